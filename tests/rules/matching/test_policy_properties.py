"""Policy decisions and address checks as properties of every rule set; Hypothesis draws rules and attempts."""

from functools import partial
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from rules.attempt import Attempt, Caller, GitService, Protocol, RefChange, Request
from rules.explain.explanation import consider_rules, weigh_considered
from rules.matching.layers import Layer, rank_decision
from rules.matching.policy import Policy
from rules.matching.reference import has_ended, is_granted
from rules.matching.revision import digest_of
from rules.values.addresses import network_opens, normalize, why_not_public
from rules.values.names import HostName
from rules.values.paths import readings
from rules.verdicts import LayerKind, Mode, Outcome, Reason, Verdict
from tests.rules.strategies import (
    ADDRESSES,
    DAYS,
    METHODS,
    NAMES,
    answered,
    attempts,
    connections,
    granting,
    many,
    modes,
    pools,
    requests,
    rules,
    seen,
    simple_pools,
    who,
)

LENIENT = {Verdict.DENY: 0, Verdict.ASK: 0, Verdict.FLAG: 2, Verdict.ALLOW: 3}


voting = st.tuples(st.sampled_from(LayerKind), pools, st.sampled_from(Mode))
layered, perhaps_layered = (st.lists(voting, min_size=least, max_size=2) for least in (1, 0))


def in_layers(said):
    return [
        Layer(kind, f"l{n}", tuple(rule._replace(id=f"l{n}:{m}") for m, rule in enumerate(own)), mode)
        for n, (kind, own, mode) in enumerate(said)
    ]


def lets(decision):
    """How much is let out: nothing, audited, flagged, allowed."""
    return 1 if decision.outcome is Outcome.WOULD_BLOCK else LENIENT[decision.verdict]


@many
@given(pools, modes, attempts, st.randoms())
def test_order_of_rules_never_matters(pool, given_settings, attempt, random):
    shuffled = list(pool)
    random.shuffle(shuffled)
    one, other = Policy(pool, given_settings), Policy(shuffled, given_settings)
    assert one.revision == other.revision
    assert one.decide(attempt) == other.decide(attempt)


class Forgetful(dict):
    """Remembers nothing."""

    def __setitem__(self, key, value):
        pass


@many
@given(
    st.just([]) | pools,
    modes,
    perhaps_layered,
    st.lists(st.tuples(attempts, st.sampled_from(ADDRESSES)), min_size=1, max_size=4),
)
def test_cached_decisions_equal_fresh_ones(pool, given_settings, said, asked):
    layers = in_layers(said)
    remembering, other = (Policy(pool, given_settings, layers=layers) for _ in range(2))
    other._hinted = other._merged = Forgetful()
    for attempt, address in asked:
        assert remembering.decide(attempt) == other.decide(attempt)
        assert remembering.check_address(attempt, address) == other.check_address(attempt, address)
        assert remembering.decide(attempt) == other.decide(attempt)


@many
@given(pools, modes, attempts, st.data())
def test_added_deny_or_ask_never_allows_more(pool, given_settings, attempt, data):
    added = data.draw(rules(data.draw(st.sampled_from([Verdict.DENY, Verdict.ASK])), 99))
    before, after = Policy(pool, given_settings).decide(attempt), Policy([*pool, added], given_settings).decide(attempt)
    assert lets(after) <= lets(before)


@many
@given(pools, modes, seen, answered)
def test_allowed_request_has_an_allowed_connection(pool, given_settings, attempt, numbers):
    """Or that is held itself, where nobody reads what is on it."""
    attempt = granting(attempt, pool, numbers)
    policy = Policy(pool, given_settings)
    connection, request = policy.decide(attempt._replace(request=None)), policy.decide(attempt)
    assert lets(request) <= lets(connection) or connection.verdict is Verdict.ASK, "it is let in more strictly"
    if request.needs_approval:
        assert connection.passes or connection.needs_approval, "nobody could ever be asked"
    if request.passes and not connection.inspect:
        assert request.verdict == connection.verdict, "a spliced connection's requests would be decided otherwise"


DEEP = ["/" + "/".join(parts) for n in range(5) for parts in product(["a", "b", "z", "ab", "a%2fz"], repeat=n)]


@settings(many, max_examples=40)
@given(
    simple_pools,
    modes,
    st.builds(partial(Attempt), st.just(Protocol.TLS), st.sampled_from(NAMES[:3]), st.just(443), st.none(), *who),
)
def test_allowed_connection_has_an_allowed_request(pool, given_settings, attempt):
    """None is opened for nothing. All paths of four segments stand for all paths: no pattern here is longer than three."""
    policy = Policy(pool, given_settings)
    connection = policy.decide(attempt)
    if not connection.passes:
        return
    best = 0
    for method in [*METHODS, "OTHER"]:
        for path, (body, websocket) in product(DEEP, product([False, True], repeat=2)):
            request = Request(method, path, body=body, websocket=websocket)
            best = max(best, lets(policy.decide(attempt._replace(request=request))))
            if best == lets(connection):
                return
    raise AssertionError("no request passes as the connection does")


@many
@given(pools, modes, connections, st.lists(requests(), min_size=8, max_size=8))
def test_spliced_connection_has_no_request_rule(pool, given_settings, attempt, tried):
    """If a connection passes unread, every request that could be on it passes no worse."""
    policy = Policy(pool, given_settings)
    connection = policy.decide(attempt)
    if not connection.passes or connection.inspect:
        return
    for request in tried:
        for protocol in [Protocol.TLS, Protocol.HTTP] if attempt.protocol is Protocol.TCP else [attempt.protocol]:
            decision = policy.decide(attempt._replace(protocol=protocol, request=request))
            if decision.reason is not Reason.AMBIGUOUS_PATH:
                assert lets(decision) >= lets(connection), (request, decision)


@many
@given(pools, modes, attempts, answered)
def test_compiled_policy_agrees_with_the_reference(pool, given_settings, attempt, numbers):
    """Decide agrees with every rule read plainly and weighed: what `explain` shows is what happens."""
    attempt = granting(attempt, pool, numbers)
    policy = Policy(pool, given_settings)
    decision = policy.decide(attempt)
    if decision.reason is Reason.AMBIGUOUS_PATH:
        assert attempt.request is not None
        assert readings(attempt.request.path) == ()
        return
    entries = consider_rules(policy, attempt)
    finding = weigh_considered(entries, attempt, policy.leniency(attempt.target))
    git = attempt.request and attempt.request.git
    if git is not None and git.service is GitService.PUSH and git.ref is None:
        return  # decided by the pushes that could come
    if (
        attempt.request is None
        and attempt.protocol is not Protocol.TCP
        and any(e.match.value == "perhaps" for e in entries)
    ):
        return  # decided by the requests that could come, which other laws are about
    if finding.allows:
        assert (decision.verdict, decision.outcome) == (finding.verdict, Outcome.PASSED)
        assert set(decision.rules) == {rule.id for rule in finding.rules}
        assert (decision.reason is Reason.APPROVAL_GRANTED) is bool(finding.granted)
    else:
        assert not decision.may_send_now or decision.outcome is Outcome.WOULD_BLOCK
        assert (decision.needs_approval or decision.verdict is Verdict.ASK) is (
            finding.answerable and decision.outcome is not Outcome.WOULD_BLOCK
        )
        if decision.reason is not Reason.NON_PUBLIC_ADDRESS:
            assert set(decision.rules) == {rule.id for rule in finding.rules}


@many
@given(pools, modes, connections)
def test_lookup_is_answered_whenever_a_connection_could_pass(pool, given_settings, attempt):
    if not isinstance(attempt.target, HostName):
        return
    policy = Policy(pool, given_settings)
    if policy.decide(attempt).passes:
        assert policy.decide_name(attempt.target, Caller(attempt.task, attempt.labels, attempt.at)).passes
    named = policy.decide_name(attempt.target, Caller(attempt.task, attempt.labels, attempt.at))
    if named.outcome is Outcome.PASSED:
        assert any(rule.action is not Verdict.DENY for rule in pool)


@many
@given(pools, modes, connections)
def test_allowed_protocol_is_among_the_named_ones(pool, given_settings, attempt):
    policy = Policy(pool, given_settings)
    decision = policy.decide(attempt)
    if decision.may_send_now:
        told = policy.protocols(attempt.target, attempt.port)
        assert attempt.protocol in told or Protocol.TCP in told
    if decision.passes and attempt.protocol is Protocol.TLS and decision.inspect:
        assert policy.needs.inspection


@many
@given(pools, modes, attempts, st.sampled_from(ADDRESSES), st.lists(st.sampled_from(DAYS), min_size=2, max_size=2))
def test_time_never_allows_more(pool, given_settings, attempt, address, days):
    """Not the verdict, nor what is read, nor how long, how much and where to."""
    policy = Policy(pool, given_settings)
    earlier, later = (attempt._replace(at=day) for day in sorted(days))
    then, now, unknown = policy.decide(earlier), policy.decide(later), policy.decide(attempt._replace(at=None))
    assert lets(unknown) <= lets(now) <= lets(then)
    if now.passes:
        assert now.idle_timeout <= then.idle_timeout
        assert set(now.limits) >= set(then.limits) or then.verdict is Verdict.DENY
        if then.outcome is now.outcome:
            assert now.inspect >= then.inspect
        if policy.check_address(later, address) is None and then.outcome is now.outcome:
            assert policy.check_address(earlier, address) is None
    if isinstance(attempt.target, HostName):
        named = [
            policy.decide_name(attempt.target, Caller(attempt.task, attempt.labels, each.at))
            for each in (earlier, later)
        ]
        assert lets(named[1]) <= lets(named[0])


@many
@given(pools, modes, seen)
def test_unknown_facts_of_a_request_never_allow_more(pool, given_settings, attempt):
    policy = Policy(pool, given_settings)
    known = policy.decide(attempt)
    unknown = attempt.request._replace(headers=())
    assert lets(policy.decide(attempt._replace(request=unknown))) <= lets(known)
    if attempt.request.git is not None and attempt.request.git.ref is not None:
        unknown = attempt.request._replace(git=None)
        assert lets(policy.decide(attempt._replace(request=unknown))) <= lets(known)


@many
@given(pools, modes, seen)
def test_first_request_of_a_push_is_allowed_as_any_push(pool, given_settings, attempt):
    """As far as the best of those that could follow, and no further."""
    git = attempt.request.git
    if git is None or git.service is not GitService.PUSH:
        return
    policy = Policy(pool, given_settings)
    begun = policy.decide(attempt._replace(request=attempt.request._replace(git=git._replace(ref=None, change=None))))
    refs = [
        "refs/heads/main",
        "refs/heads/x",
        "refs/heads/x/y",
        "refs/tags/v1",
        "refs/tags/v1/x",
        "refs/notes/x",
        "refs/x/y/z",
    ]
    pushes = (
        policy.decide(attempt._replace(request=attempt.request._replace(git=git._replace(ref=ref, change=change))))
        for ref, change in product(refs, RefChange)
    )
    assert lets(begun) == max(map(lets, pushes))


@many
@given(pools, modes, attempts, answered, st.sampled_from(ADDRESSES))
def test_taint_never_allows_more(pool, given_settings, attempt, numbers, address):
    attempt = granting(attempt, pool, numbers)
    policy = Policy(pool, given_settings)
    clean, tainted = (attempt._replace(tainted=is_so) for is_so in (False, True))
    before, after = policy.decide(clean), policy.decide(tainted)
    assert lets(after) <= lets(before)
    if policy.check_address(tainted, address) is None:
        assert policy.check_address(clean, address) is None
    if after.may_send_now and before.outcome is after.outcome:
        assert after.inspect >= before.inspect
        # A connection has those of rules that match whatever is asked on it; each request that is read has its own.
        if attempt.request is not None or not after.inspect:
            assert set(after.limits) >= set(before.limits)


@many
@given(pools, modes, attempts, answered)
def test_grant_allows_nothing_that_another_rule_holds(pool, given_settings, attempt, numbers):
    """Neither a deny, nor another ask, nor an `until` that has passed; and what names no ask changes nothing."""
    policy = Policy(pool, given_settings)
    asked = attempt._replace(
        granted=frozenset({"f" * 64, *(digest_of(r) for r in pool if r.action is not Verdict.ASK)})
    )
    assert policy.decide(asked) == policy.decide(attempt)
    decision = policy.decide(granted := granting(attempt, pool, numbers))
    assert lets(decision) >= lets(policy.decide(attempt))
    holding = [
        r
        for r in pool
        if not r.allows and not r.default and not (is_granted(r, granted) and not has_ended(r, attempt.at))
    ]
    # Of a connection the requests that could come decide, as if no header or credential held them: see `witness`.
    decides = attempt.request is not None or attempt.protocol is Protocol.TCP
    if decides and Policy(holding, given_settings).decide(attempt).rules:
        assert not decision.may_send_now
    if decision.may_send_now and decision.reason is not Reason.APPROVAL_GRANTED:
        # As if those that are granted weren't there: they step aside, and audit mode lets out what is left to nobody
        others = [rule for rule in pool if not is_granted(rule, granted) or has_ended(rule, attempt.at)]
        left = Policy(others, given_settings).decide(attempt)
        assert (*decision[:3], decision.inspect or left.inspect) == (*left[:3], decision.inspect)
        assert decision == policy.decide(attempt) or not decision.verdict.allows


@many
@given(pools, modes, attempts)
def test_held_attempt_passes_once_granted(pool, given_settings, attempt):
    """Nobody is asked in vain."""
    policy = Policy(pool, given_settings)
    decision = policy.decide(attempt)
    for _ in range(2):  # an explicit ask, and then perhaps one by default
        if decision.needs_approval:
            attempt = attempt._replace(granted=attempt.granted.union(asks.digest for asks in decision.approval))
            decision = policy.decide(attempt)
            assert decision.needs_approval or decision.reason is Reason.APPROVAL_GRANTED
    assert not decision.needs_approval


@many
@given(pools, modes, layered, attempts, st.sampled_from(ADDRESSES), st.randoms())
def test_no_other_rule_loosens_a_layer(  # noqa: PLR0917 - what hypothesis draws
    pool, given_settings, said, attempt, address, random
):
    layers = in_layers(said)
    every = [*pool, *(rule for layer in layers for rule in layer.rules)]
    policy = Policy(every, given_settings, layers=layers)
    decision = policy.decide(attempt)
    layer_policies = [
        Policy(layer.rules, given_settings._replace(mode=layer.mode), layer_kind=layer.kind) for layer in layers
    ]
    for layer_policy in layer_policies:
        assert rank_decision(decision) <= rank_decision(layer_policy.decide(attempt)), "less strict than a layer"
        if layer_policy.check_address(attempt, address) is not None:
            assert policy.check_address(attempt, address) is not None
    pooled = Policy(every, given_settings)
    assert rank_decision(decision) <= rank_decision(pooled.decide(attempt)), "less strict than the pool"
    assert rank_decision(decision) == min(rank_decision(each.decide(attempt)) for each in (pooled, *layer_policies)), (
        "stricter than anybody"
    )
    assert policy.revision != pooled.revision
    random.shuffle(layers)
    random.shuffle(every)
    other = Policy(every, given_settings, layers=layers)
    assert other.revision == policy.revision
    assert other.decide(attempt)[:3] == decision[:3]
    if isinstance(attempt.target, HostName) and decision.passes:
        assert policy.decide_name(attempt.target, Caller(attempt.task, attempt.labels, attempt.at)).passes


@many
@given(pools, modes, attempts, answered)
def test_name_rules_and_address_rules_never_cross(pool, given_settings, attempt, numbers):
    is_name = isinstance(attempt.target, HostName)
    enforced = given_settings._replace(mode=Mode.ENFORCE)
    others = [rule._replace(networks=()) if not is_name else rule._replace(names=()) for rule in pool]
    decision = Policy(others, enforced).decide(granting(attempt, others, numbers))
    assert not decision.passes
    assert not decision.needs_approval


@many
@given(pools, modes, attempts, answered)
def test_nonpublic_address_passes_only_if_listed(pool, given_settings, attempt, numbers):
    attempt = granting(attempt, pool, numbers)
    if isinstance(attempt.target, HostName) or why_not_public(attempt.target) is None:
        return
    decision = Policy(pool, given_settings).decide(attempt)
    assert decision.outcome is not Outcome.WOULD_BLOCK, "audit mode lets it out"
    if decision.passes or decision.needs_approval:
        asking = [] if decision.may_send_now and not attempt.granted else [Verdict.ASK]
        opening = [rule for rule in pool if rule.allows or rule.action in asking]
        assert any(network_opens(network, attempt.target) for rule in opening for network in rule.networks)


@many
@given(pools, modes, connections | seen, st.sampled_from(ADDRESSES), answered)
def test_dialled_address_is_allowed_by_a_rule(pool, given_settings, attempt, address, numbers):
    attempt = granting(attempt, pool, numbers)
    policy = Policy(pool, given_settings)
    address = normalize(address)
    reason = policy.check_address(attempt, address)
    if not policy.decide(attempt).may_send_now:
        assert reason is not None, "what is to be asked about is nothing to be dialled"
    if reason is not None:
        return
    if why_not_public(address) is not None:
        opening = [rule for rule in pool if rule.allows or is_granted(rule, attempt)]
        listed = [n for rule in opening for n in (*rule.networks, *(rule.resolves_to or ()))]
        assert any(address in network for network in listed)
    if not isinstance(attempt.target, HostName):
        assert address == attempt.target
    denied = [
        rule
        for rule in pool
        if rule.action is Verdict.DENY
        and rule.selector is None
        and not rule.default
        and not rule.excepts
        and rule.http is None
        and rule.ports is None
    ]
    assert not any(address in network for rule in denied for network in rule.networks)


@many
@given(pools, modes, seen, st.sampled_from(ADDRESSES), answered)
def test_address_of_a_connection_serves_each_allowed_request(pool, given_settings, attempt, address, numbers):
    """Without the request the check is at least as strict as with any that is let out."""
    attempt = granting(attempt, pool, numbers)
    policy = Policy(pool, given_settings)
    connection = policy.check_address(attempt._replace(request=None), address)
    decision = policy.decide(attempt)
    if connection is not None or not decision.may_send_now:
        return
    with_request = policy.check_address(attempt, address)
    audited = decision.outcome is Outcome.WOULD_BLOCK and why_not_public(address) is not None
    if audited:
        assert with_request is not None or attempt.granted, "audit mode is about public addresses"
    elif with_request is not None:
        # A rule that holds back this very address from this very request; no rule that lets out may differ.
        assert with_request in {
            Reason.RULE, Reason.APPROVAL_UNAVAILABLE, Reason.DEFAULT_RULE, Reason.EXPIRED, Reason.TAINTED
        }  # fmt: skip
