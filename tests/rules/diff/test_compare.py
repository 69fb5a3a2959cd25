"""Comparison of two policies: every difference in a decision is reported, and nothing else."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.attempt import Attempt, Protocol
from rules.diff.compare import compare
from rules.diff.sample_attempts import OTHER_METHOD
from rules.diff.statements import describe_diff
from rules.loading.cases import parse_attempt
from rules.matching.policy import Policy
from rules.matching.reference import covers_target
from rules.ports import ports_could_cover
from rules.settings import Settings
from rules.values.globs import MANY
from rules.values.names import HostName
from rules.values.paths import PathPattern, readings
from rules.values.patterns import NamePattern
from rules.verdicts import Mode, Outcome, Reason, Verdict
from tests.rules import strategies as laws
from tests.rules.rule_texts import policy

READ = "  - {id: read, to: api.example, http: {methods: [GET, HEAD], paths: ['/repos/acme/**']}, action: allow}\n"
WEB = "  - {id: web, to: '*.web.example', action: allow}\n"

# old rules, new rules, what is said
SAID = [
    (
        WEB,
        WEB + "  - {id: a, to: x.example, action: allow}",
        ["tls x.example:443: was denied (no_rule), is allowed by `t:a`"],
    ),
    (
        WEB + "  - {id: a, to: x.example, action: allow}",
        WEB,
        ["tls x.example:443: was allowed by `t:a`, is denied (no_rule)"],
    ),
    (
        READ,
        READ.replace("acme/**'", "acme/**', /user"),
        ["GET, HEAD https://api.example/user: was denied (no_rule), is allowed by `t:read`"],
    ),
    (
        READ,
        READ + "  - {id: no, to: api.example, http: {paths: ['/**/secrets']}, action: deny}\n",
        [
            "GET, HEAD https://api.example/repos/acme/** that is also /**/secrets: was allowed by `t:read`, is denied by `t:no`"
        ],
    ),
    (
        WEB + "  - {id: a, to: x.example, credential: ours, action: allow}",
        WEB + "  - {id: a, to: x.example, credential: theirs, action: allow}",
        [
            "any method: https://x.example/** (credential theirs): was denied (credential_mismatch), is allowed by `t:a`",
            "any method: https://x.example/** (credential ours): was allowed by `t:a`, is denied (credential_mismatch)",
        ],
    ),
    (
        READ,
        READ.replace("methods: [GET, HEAD], ", ""),
        ["any method but GET, HEAD: https://api.example/repos/acme/**: was denied (no_rule), is allowed by `t:read`"],
    ),
    (
        WEB,
        WEB + "  - {id: no, to: evil.web.example, action: deny}",
        ["tls evil.web.example:443: was allowed by `t:web`, is denied by `t:no`"],
    ),
    (
        WEB + "  - {id: no, to: evil.web.example, action: deny}",
        WEB.replace("allow}", "flag}") + "  - {id: no, to: evil.web.example, action: deny}",
        ["tls *.web.example:443 but not evil.web.example: was allowed by `t:web`, is flagged by `t:web`"],
    ),
    (
        WEB,
        WEB.replace("action", "tls: splice, action"),
        [
            "tls *.web.example:443: was allowed by `t:web` with its requests read, is allowed by `t:web` with its requests unseen"
        ],
    ),
    (
        WEB,
        WEB.replace("action", "except: [evil.web.example], action"),
        ["tls evil.web.example:443: was allowed by `t:web`, is denied (no_rule)"],
    ),
    (
        WEB,
        WEB.replace("action", "ports: [443, 80, 8000-8100/tcp], action"),
        [
            "anything to *.web.example:8000-8100: was denied (no_rule), is allowed by `t:web`",
            "http *.web.example:80: was denied (no_rule), is allowed by `t:web`",
        ],
    ),
    (
        WEB,
        WEB + "  - {id: rest, to: '*', default: true, action: ask}",
        ["anything to * that no other rule decides: was denied (no_rule), is held for approval by `t:rest`"],
    ),
    (
        WEB,
        WEB.replace("action", "resolves_to: [10.1.0.0/16], action"),
        [
            "tls *.web.example:443 where it resolves to 10.1.0.0/16: was denied (non_public_address), is allowed",
            "tls *.web.example:443 where it resolves to 0.0.0.0/0: was allowed, is denied (address_not_listed)",
        ],
    ),
    (
        WEB,
        WEB + "  - {id: net, to: 1.2.3.0/24, action: deny}",
        ["tls *.web.example:443 where it resolves to 1.2.3.0/24: was allowed, is denied by `t:net`"],
    ),
    (
        "  - {id: net, to: 1.2.3.0/24, action: allow}",
        "  - {id: net, to: 1.2.3.0/24, except: [1.2.3.4], action: allow}",
        ["tls 1.2.3.4:443: was allowed by `t:net`, is denied (no_rule)"],
    ),
]

GIT = "  - {id: git, to: git.example, git: {repos: ['acme/*'], fetch: true}, action: allow}\n"
DB = "  - {id: db, to: db.example, ports: 5432/tcp, action: allow}\n"
API = "  - {id: api, to: api.example, http: {methods: [POST], paths: [/v1]}, action: allow}\n"

# old rules, new rules, what is said: what rules ask beside names, ports, methods and paths
SAID_OF_MORE = [
    (
        DB,
        DB.replace("action", "for: {tasks: ['migrate-*']}, action"),
        ["anything to db.example:5432 (task any other): was allowed by `t:db`, is denied (no_rule)"],
    ),
    (
        DB,
        DB.replace("action", "for: {labels: {team: data}}, action"),
        ["anything to db.example:5432 (label team any other, none): was allowed by `t:db`, is denied (no_rule)"],
    ),
    (
        DB,
        DB.replace("action", "until: 2027-01-31, action"),
        ["anything to db.example:5432 (from 2027-02-01): was allowed by `t:db`, is denied by `t:db` (expired)"],
    ),
    (
        DB,
        DB.replace("action", "limits: {connections: 4, per: task}, action"),
        ["anything to db.example:5432: was allowed by `t:db`, is allowed by `t:db` with at most 4 connections per task"],
    ),
    (
        API,
        API.replace("[/v1]}", "[/v1], query: {q: [a]}}"),
        ["POST https://api.example/v1 (query no q, q read in two ways, q=other): was allowed by `t:api`, is denied (no_rule)"],
    ),
    (
        API,
        API.replace("[/v1]}", "[/v1], headers: {x-team: present}}"),
        ["POST https://api.example/v1 (headers no x-team, unknown): was allowed by `t:api`, is denied (no_rule)"],
    ),
    (
        API,
        API.replace("[/v1]}", "[/v1], body: false}"),
        ["POST https://api.example/v1 (with a body): was allowed by `t:api`, is denied (body_not_allowed)"],
    ),
    (
        API,
        API.replace("[/v1]}", "[/v1], max_url: 2KB}"),
        ["POST https://api.example/v1 (URL over 2048 bytes): was allowed by `t:api`, is denied (url_too_long)"],
    ),
    (
        GIT,
        GIT.replace("fetch: true", "fetch: true, push: ['refs/heads/x']"),
        ["git create/update https://git.example (ref refs/heads/x; repository acme/*): was denied (no_rule), is allowed by `t:git`"],
    ),
    (
        GIT,
        GIT.replace("acme/*", "acme/web"),
        ["git fetch https://git.example (repository acme/* but not acme/web): was allowed by `t:git`, is denied (no_rule)"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), SAID_OF_MORE)
def test_rules_with_different_conditions_differ(old, new, expected):
    assert said(policy(old), policy(new)) == expected


def said(old, new):
    return [statement.text for statement in describe_diff(compare(old, new))]


@pytest.mark.parametrize(("old", "new", "expected"), SAID)
def test_differences_are_described_in_sentences(old, new, expected):
    assert said(policy(old), policy(new)) == expected


SAME = [
    (WEB, "  - {id: other, to: '*.WEB.example.', ports: 443/tls, why: because, action: allow}"),
    (READ, READ.replace("[GET, HEAD]", "[HEAD, GET]").replace("acme/**'", "acme/**/'")),
    (
        "  - {id: a, to: [x.example, y.example], action: deny}",
        "  - {id: a, to: y.example, action: deny}\n  - {id: b, to: x.example, action: deny}",
    ),
    (WEB, WEB + "  - {id: no, to: no.example, action: deny}"),  # was denied anyway
    (WEB, WEB + "  - {id: part, to: www.web.example, action: allow}"),
    ("  - {id: a, to: 10.0.0.1, action: allow}", "  - {id: a, to: 10.0.0.1/32, action: allow}"),
    (READ, READ + READ.replace("read", "again").replace("/**", "/*/**")),
]


@pytest.mark.parametrize(("old", "new"), SAME)
def test_equivalent_rules_do_not_differ(old, new):
    assert compare(policy(old), policy(new)).is_empty
    assert compare(policy(new), policy(old)).is_empty


def test_one_changed_name_among_thousands_is_reported_alone():
    names = [f"host{number}.zone{number % 7}.example" for number in range(2_000)]
    old = policy(f"  - {{id: a, to: [{', '.join(names)}], action: deny}}\n{WEB}")
    new = policy(f"  - {{id: a, to: [{', '.join([*names, 'www.web.example'])}], action: deny}}\n{WEB}")
    compared = compare(old, new)
    assert [statement.text for statement in describe_diff(compared)] == [
        "tls www.web.example:443: was allowed by `t:web`, is denied by `t:a`"
    ]
    assert len(compared.names) == 1, "names that don't differ are not even looked at"


def test_thousands_of_changed_rules_are_reported():
    def pool(shift):
        return policy(
            "\n".join(
                f"  - {{id: r{n}, to: h{n + shift}.example, http: {{methods: [GET], paths: ['/a/{n}/**']}}, action: allow}}"
                for n in range(1_000)
            )
        )

    compared = compare(pool(0), pool(1))
    assert compared.complete
    # each host but the first and the last has another path; those have one less and one more
    assert len(describe_diff(compared)) == 2 * 1_000


SCANNED = "- {id: a, to: x.example, scan: %s, action: allow}"


def test_changes_of_secrets_are_reported():
    said = compare(policy(SCANNED % "off"), policy(SCANNED % "block"))
    assert [statement.text for statement in describe_diff(said)] == [
        "tls x.example:443: was allowed by `t:a` with scan off, is allowed by `t:a` with scan block"
    ]
    assert compare(policy(SCANNED % "flag"), policy("- {id: a, to: x.example, action: allow}")).is_empty


def test_changed_settings_are_reported_separately():
    old, new = policy(WEB, "settings: {mode: audit}"), policy(WEB)
    compared = compare(old, new)
    assert [tuple(setting) for setting in compared.settings] == [("mode", "audit", "enforce")]
    assert compared.rows == ()
    assert not compared.is_empty


def test_default_ask_in_place_of_deny_is_a_difference_in_audit_mode():
    rest = "- {id: d, to: x.example, default: true, action: %s}"
    old = policy(rest % "deny", "settings: {mode: audit}")
    assert not compare(old, policy(rest % "deny")).rows
    assert {statement.text for statement in describe_diff(compare(old, policy(rest % "ask")))} == {
        "anything to x.example that no other rule decides: was allowed by audit mode by `t:d` (default_rule), is held for approval by `t:d`",
        "udp x.example that no other rule decides: was denied by `t:d` (default_rule), is held for approval by `t:d`",
    }


def test_audited_connection_with_ask_follows_from_mode():
    asks = "- {id: q, to: x.example, http: {paths: /}, action: ask}"
    old, new = policy(asks), policy(asks, "settings: {mode: audit}")
    decided = [parse_attempt("tls x.example:443").decide(each).outcome for each in (old, new)]
    assert decided == ["passed", "would_block"]
    assert compare(old, new).rows == ()


NOTHING = "version: 1\nname: t\n%s\nrules: []"
DENIED = "- {id: d, to: [%s93.184.216.34], action: deny}"


@pytest.mark.parametrize("named", ["", "'*.web.example', "])
def test_unlisted_name_in_audit_mode_passes_until_address_is_denied(named):
    rules, audit = DENIED % named, "settings: {mode: audit}"
    but = f" but not {named[1:-3]}" if named else ""
    said = [statement.text for statement in describe_diff(compare(policy(NOTHING % audit), policy(rules, audit)))]
    gone = "was allowed by audit mode (no_rule), is denied by `t:d`"
    assert f"anything to *{but} where it resolves to 93.184.216.34/32: {gone}" in said
    assert f"anything to 93.184.216.34: {gone}" in said
    assert not any(
        "*" in statement.text for statement in describe_diff(compare(policy(NOTHING % ""), policy(DENIED % "")))
    )


def test_example_of_a_difference_is_decided_as_reported():
    old = policy(READ + WEB)
    new = policy(READ.replace("GET, ", "") + WEB.replace("allow", "flag"))
    told = describe_diff(compare(old, new))
    assert len(told) == 2
    for statement in told:
        question = parse_attempt(statement.example)
        assert question.decide(old).verdict == statement.was.verdict
        assert question.decide(new).verdict == statement.now.verdict


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
