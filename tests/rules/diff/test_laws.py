"""What must hold for every two policies that are compared: what differs is told, and nothing else is."""

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from rules.attempt import Attempt, Protocol
from rules.diff.compare import compare
from rules.diff.sample_attempts import OTHER_METHOD
from rules.diff.statements import describe_diff
from rules.globs import MANY
from rules.matching.policy import Policy
from rules.matching.reference import covers_target
from rules.names import HostName
from rules.paths import PathPattern, readings
from rules.patterns import NamePattern
from rules.ports import ports_could_cover
from rules.settings import Settings
from rules.verdicts import Mode, Outcome, Reason, Verdict
from tests.rules import drawing as laws

MOST = 400  # attempts a comparison: hypothesis puts everything that rules can ask into one pool


any_rule = laws.rules()
near_names = st.sampled_from([NamePattern.parse(text) for text in ("a.example", "**.a.example", "*", "x.*.example")])


@st.composite
def about(draw):
    """A rule that is about something, and mostly about what attempts are about."""
    rule = draw(any_rule)
    return rule._replace(names=rule.names or (draw(near_names),)) if draw(laws.yes_or_no) else rule


one_in_four_is_gone, one_in_six = st.integers(0, 3), st.integers(0, 5)
a_few = st.lists(about(), max_size=4)
at_most_two = {least: st.lists(about(), min_size=least, max_size=2) for least in (0, 1)}


@st.composite
def changed(draw, pool):
    """Another policy's rules: some gone, some otherwise, some new, in another order and under other ids."""
    kept = [rule for rule in pool if draw(one_in_four_is_gone)]
    fresh = draw(at_most_two[0 if len(kept) < len(pool) else 1])
    both = draw(st.permutations([*kept, *fresh]))
    return [rule._replace(id=f"n:{number}") for number, rule in enumerate(both)]


@st.composite
def pairs(draw):
    pool = laws.numbered(draw(a_few))
    settings = draw(laws.modes)
    others = settings if draw(one_in_six) else draw(laws.modes)
    return Policy(pool, settings), Policy(draw(changed(pool)), others)


def standing(policy, attempt):
    decision = policy.decide(attempt)
    # What is blocked and nobody can be asked about is as good as denied; what audit mode lets out would be asked about.
    audited = decision.outcome is Outcome.WOULD_BLOCK and decision.reason is Reason.APPROVAL_UNAVAILABLE
    verdict = Verdict.ASK if decision.needs_approval or audited else decision.verdict
    unread = attempt.request is None and attempt.protocol is Protocol.TLS and decision.passes and not decision.inspect
    return verdict, decision.outcome, unread


def is_held_by_ask(policy, attempt):
    """Whether an ask holds an attempt, or would if audit mode let it; one that nobody can answer too."""
    decision = policy.decide(attempt)
    return decision.verdict is Verdict.ASK or decision.reason is Reason.APPROVAL_UNAVAILABLE


def asking(both, attempt):
    """Who an attempt is by, and when, as far as the rules about it in either policy ask."""
    rules = [rule for each in both for rule in each.rules if covers_target(rule, attempt)]
    rules = [rule for rule in rules if ports_could_cover(rule.ports, attempt.port, attempt.protocol)]
    selectors = [owner.selector for rule in rules for owner in (rule, *rule.excepts)]
    return (
        [rule.until is not None and (attempt.at is None or attempt.at > rule.until) for rule in rules],
        [selector and selector.matches(attempt.task, attempt.labels) for selector in selectors],
    )


def covers(row, attempt, both):  # noqa: PLR0911
    """Whether a row is about an attempt, by the patterns that both policies have."""
    if row.where["protocol"] is not attempt.protocol:
        return False
    if not row.where["ports"].low <= attempt.port <= row.where["ports"].high:
        return False
    rules = [rule for each in both for rule in each.rules]
    owners = [*rules, *(exemption for rule in rules for exemption in rule.excepts)]
    if isinstance(attempt.target, HostName):
        about = {name.text for owner in owners for name in owner.names if name.matches(attempt.target)}
        if not isinstance(row.target, frozenset) or row.target - {"*"} != about - {"*"}:
            return False
    elif not isinstance(row.target, frozenset):
        around = [
            {network for owner in owners for network in owner.networks if address in network}
            for address in (attempt.target, row.attempt.target)
        ]
        if around[0] != around[1]:
            return False
    else:
        return False
    if asking(both, attempt) != asking(both, row.attempt):
        return False
    if attempt.request is None or row.attempt.request is None or "rest" in row.where:
        return True
    if "git" in row.where or (attempt.request.git is not None and row.among["repository"]):
        return (row.attempt.request.git is None) is (attempt.request.git is None)
    named = [method for method in row.among["method"] if method != OTHER_METHOD]
    method = attempt.request.method if attempt.request.method in named else OTHER_METHOD
    patterns = {text for kind in row.among["path"] for text in kind}
    parsed = [PathPattern.parse(text) if text != "/**" else PathPattern("/**", (MANY,)) for text in patterns]
    kinds = [
        {pattern.text for pattern in parsed if pattern.matches(reading)} for reading in readings(attempt.request.path)
    ]
    return row.where["method"] == method and row.where["path"] in kinds


NEAR = {  # what rules at hand are most about, so that attempts meet them
    "target": st.sampled_from([*laws.NAMES[:3], *laws.ADDRESSES[:3]]),
    "port": st.sampled_from([443, 80, 22]),
    "task": st.sampled_from(laws.TASKS),
    "labels": st.sampled_from(laws.LABELS),
    "at": st.sampled_from([None, *laws.DAYS]),
}
near = st.lists(
    st.builds(partial(Attempt), st.sampled_from([Protocol.TLS, Protocol.HTTP]), request=laws.requests(), **NEAR)
    | st.builds(partial(Attempt), st.sampled_from([Protocol.TLS, Protocol.TCP]), **NEAR),
    min_size=20,
    max_size=20,
)


@laws.many
@given(pairs(), near)
def test_every_changed_decision_is_reported(both, attempts):
    found = [(attempt, [standing(each, attempt) for each in both]) for attempt in attempts]
    differing = [(attempt, was, now) for attempt, (was, now) in found if was != now]
    if not differing:
        return
    compared = compare(*both, MOST)
    assert not compared.is_empty
    modes = {each.settings.mode for each in both}
    for attempt, was, now in differing:
        held = {is_held_by_ask(each, attempt) for each in both}
        mixed = attempt.request is None and attempt.protocol is not Protocol.TCP  # some of its requests are held
        undecided = Outcome.WOULD_BLOCK in {was[1], now[1]} and now[1] is not was[1] and (mixed or len(held) == 1)
        spliced = was[1] is now[1] is Outcome.WOULD_BLOCK
        if (len(modes) == 2 and undecided) or spliced or not compared.complete:
            continue  # the settings say it; or it is said that there is more
        assert [row for row in compared.rows if covers(row, attempt, both)], (attempt, was, now)


@laws.many
@given(pairs(), laws.attempts, st.sampled_from(laws.ADDRESSES))
def test_every_changed_address_check_is_reported(both, attempt, address):
    if len({each.settings for each in both}) == 2:
        return
    if standing(both[0], attempt) != standing(both[1], attempt) or not both[0].decide(attempt).passes:
        return
    reasons = [each.check_address(attempt, address) for each in both]
    if (reasons[0] is None) is not (reasons[1] is None):
        compared = compare(*both, MOST)
        rows = [row for row in compared.rows if isinstance(row.target, frozenset)]
        if not compared.complete:
            return
        assert [row for row in rows if covers(row, attempt._replace(request=None), both)], reasons


@laws.many
@given(laws.pools, laws.modes, st.randoms())
def test_reordered_rules_do_not_differ(pool, settings, random):
    other = [rule._replace(id=f"z:{number}", why="otherwise") for number, rule in enumerate(pool)]
    random.shuffle(other)
    compared = compare(Policy(pool, settings), Policy(other, settings))
    assert compared.is_empty
    assert (
        compare(Policy(pool, settings), Policy([*pool, *other], Settings())).rows == () or settings.mode is Mode.AUDIT
    )


@laws.many
@given(pairs())
def test_every_row_agrees_with_decide(both):
    compared = compare(*both, MOST)
    for row in compared.rows:
        if row.address is None:
            was, now = (standing(each, row.attempt) for each in both)
            assert was != now or row.was.terms != row.now.terms
    told = describe_diff(compared)
    assert bool(told) is bool(compared.rows)
    assert all(statement.text.isprintable() and statement.value()["text"] for statement in told)
