"""What must hold for every set of rules: hypothesis writes them, and attempts that come near them."""

from dataclasses import replace
from itertools import product

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rules.addresses import normal, parse_address, parse_network, why_not_public
from rules.attempt import Attempt, Protocol, Request
from rules.explain import considered, finding_of
from rules.names import HostName
from rules.paths import PathPattern, readings
from rules.patterns import NamePattern
from rules.policy import Policy
from rules.ports import Ports
from rules.rule import Exemption, Http, Rule
from rules.settings import Settings
from rules.verdicts import Mode, Outcome, Reason, TlsMode, Verdict

NAMES = [HostName(n) for n in ("a.example", "b.example", "x.a.example", "r1.x.a.example", "other.test")]
PATTERNS = [
    "a.example",
    "*.a.example",
    "**.a.example",
    "*",
    "x.*.example",
    "r*.x.a.example",
    "*.*.example",
    "other.test",
]
ADDRESSES = [parse_address(a) for a in ("1.1.1.1", "1.1.2.2", "10.0.0.1", "10.1.0.1", "127.0.0.1", "169.254.169.254", "2606:4700::1", "fd00::1")]  # fmt: skip
NETWORKS = ["1.1.1.1", "1.1.0.0/16", "0.0.0.0/0", "10.0.0.0/8", "10.0.0.1", "169.254.169.254", "127.0.0.0/8", "::/0", "fd00::/8"]  # fmt: skip
PATHS = ["/", "/a", "/a/b", "/a/b/c", "/b", "/a//b", "/a%2fb", "/a/./b", "/a;x/b", "/%61", "/b/../a", "/@s%2fn?x=1"]
PATH_PATTERNS = ["/", "/a", "/a/**", "/**", "/*", "/*/b", "/**/b", "/a*", "/a/*/**", "/a%2f*"]
METHODS = ["GET", "POST", "DELETE"]
PORTS = [
    Ports(443, 443, Protocol.TLS),
    Ports(80, 80, Protocol.HTTP),
    Ports(443, 443, Protocol.TCP),
    Ports(400, 500, Protocol.TLS),
    Ports(22, 22, Protocol.TCP),
    Ports(1, 65535, Protocol.TCP),
    Ports(80, 443, Protocol.HTTP),
]


def some(values, **limits):
    return st.lists(st.sampled_from(values), unique=True, **limits).map(tuple)


https = st.builds(
    Http,
    st.none() | some(METHODS, min_size=1, max_size=2).map(frozenset),
    st.none() | some([PathPattern.parse(p) for p in PATH_PATTERNS], min_size=1, max_size=2),
)
targets = st.tuples(
    some([NamePattern.parse(p) for p in PATTERNS], max_size=2), some([parse_network(n) for n in NETWORKS], max_size=1)
)
exemptions = st.builds(
    lambda target, ports, http: Exemption(*target, ports, http),
    targets,
    st.none() | some(PORTS, min_size=1, max_size=2),
    st.none() | https,
)


@st.composite
def rules(draw, action=None, number=0):
    action = action or draw(st.sampled_from(Verdict))
    names, networks = draw(targets)
    ports = draw(some(PORTS, min_size=1, max_size=2))
    if not action.lets_out and draw(st.booleans()):
        ports = None
    http = draw(st.none() | https)
    if http is not None and ports is not None:
        ports = tuple(p for p in ports if p.protocol is not Protocol.TCP) or (PORTS[0],)
    return Rule(
        id=f"t:{number}",
        action=action,
        names=names,
        networks=networks,
        ports=ports,
        resolves_to=draw(st.none() | some([parse_network(n) for n in NETWORKS], min_size=1, max_size=1))
        if names
        else None,
        http=http,
        default=draw(st.booleans()),
        excepts=tuple(draw(st.lists(exemptions, max_size=1))),
        tls=draw(st.sampled_from(TlsMode)),
        idle_timeout=draw(st.sampled_from([None, 5.0])),
    )


pools = st.lists(rules(), max_size=5).map(lambda pool: [replace(rule, id=f"t:{n}") for n, rule in enumerate(pool)])
modes = st.builds(Settings, mode=st.sampled_from(Mode), tls=st.sampled_from(TlsMode))
requests = st.builds(Request, st.sampled_from([*METHODS, "get", "PATCH"]), st.sampled_from(PATHS))
hosts = st.sampled_from([*NAMES, *ADDRESSES])
ports = st.sampled_from([22, 80, 443, 444, 9000])
seen = st.builds(Attempt, st.sampled_from([Protocol.TLS, Protocol.HTTP]), hosts, ports, requests)
connections = st.builds(Attempt, st.sampled_from([Protocol.TLS, Protocol.HTTP, Protocol.TCP]), hosts, ports)
attempts = seen | connections

LENIENT = {Verdict.DENY: 0, Verdict.ASK: 0, Verdict.FLAG: 2, Verdict.ALLOW: 3}
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def lets(decision):
    """How much is let out: nothing, audited, flagged, allowed."""
    return 1 if decision.outcome is Outcome.WOULD_BLOCK else LENIENT[decision.verdict]


@many
@given(pools, modes, attempts, st.randoms())
def test_order_never_matters(pool, given_settings, attempt, random):
    shuffled = list(pool)
    random.shuffle(shuffled)
    one, other = Policy(pool, given_settings), Policy(shuffled, given_settings)
    assert one.revision == other.revision
    assert one.decide(attempt) == other.decide(attempt)


@many
@given(pools, modes, attempts, st.data())
def test_another_rule_that_holds_back_never_allows_more(pool, given_settings, attempt, data):
    added = data.draw(rules(data.draw(st.sampled_from([Verdict.DENY, Verdict.ASK])), 99))
    before, after = Policy(pool, given_settings).decide(attempt), Policy([*pool, added], given_settings).decide(attempt)
    assert lets(after) <= lets(before)


@many
@given(pools, modes, seen)
def test_a_request_that_passes_has_a_connection_that_passes(pool, given_settings, attempt):
    policy = Policy(pool, given_settings)
    connection, request = policy.decide(replace(attempt, request=None)), policy.decide(attempt)
    assert lets(request) <= lets(connection), "a connection is denied, or let in more strictly, than a request on it"
    if request.passes and not connection.inspect:
        assert request.verdict == connection.verdict, "a spliced connection's requests would be decided otherwise"


DEEP = ["/" + "/".join(parts) for n in range(5) for parts in product(["a", "b", "z", "ab", "a%2fz"], repeat=n)]


@settings(many, max_examples=40)
@given(pools, modes, st.builds(Attempt, st.just(Protocol.TLS), st.sampled_from(NAMES[:3]), st.just(443)))
def test_a_connection_that_is_let_in_has_a_request_that_passes(pool, given_settings, attempt):
    """None is opened for nothing. All paths of four segments stand for all paths: no pattern here is longer than three."""
    policy = Policy(pool, given_settings)
    connection = policy.decide(attempt)
    if not connection.passes:
        return
    best = 0
    for method in [*METHODS, "OTHER"]:
        for path in DEEP:
            best = max(best, lets(policy.decide(replace(attempt, request=Request(method, path)))))
            if best == lets(connection):
                return
    raise AssertionError("no request passes as the connection does")


@many
@given(pools, modes, connections, st.lists(requests, min_size=8, max_size=8))
def test_what_is_not_read_needs_no_reading(pool, given_settings, attempt, tried):
    """If a connection passes unread, every request that could be on it passes no worse."""
    policy = Policy(pool, given_settings)
    connection = policy.decide(attempt)
    if not connection.passes or connection.inspect:
        return
    for request in tried:
        for protocol in [Protocol.TLS, Protocol.HTTP] if attempt.protocol is Protocol.TCP else [attempt.protocol]:
            decision = policy.decide(replace(attempt, protocol=protocol, request=request))
            if decision.reason is not Reason.AMBIGUOUS_PATH:
                assert lets(decision) >= lets(connection), (request, decision)


@many
@given(pools, modes, attempts)
def test_the_compiled_policy_means_what_its_rules_say(pool, given_settings, attempt):
    """Decide agrees with every rule read plainly and weighed: what `explain` shows is what happens."""
    policy = Policy(pool, given_settings)
    decision = policy.decide(attempt)
    if decision.reason is Reason.AMBIGUOUS_PATH:
        assert attempt.request is not None
        assert readings(attempt.request.path) == ()
        return
    entries = considered(policy, attempt)
    finding = finding_of(entries)
    if (
        attempt.request is None
        and attempt.protocol is not Protocol.TCP
        and any(e.match.value == "perhaps" for e in entries)
    ):
        return  # decided by the requests that could come, which other laws are about
    if finding.lets_out:
        assert (decision.verdict, decision.outcome) == (finding.verdict, Outcome.PASSED)
        assert set(decision.rules) == {rule.id for rule in finding.rules}
    else:
        assert decision.verdict is Verdict.DENY
        if decision.reason is not Reason.NON_PUBLIC_ADDRESS:
            assert set(decision.rules) == {rule.id for rule in finding.rules}


@many
@given(pools, modes, attempts)
def test_a_name_rule_never_allows_an_address_nor_the_other_way_round(pool, given_settings, attempt):
    is_name = isinstance(attempt.target, HostName)
    enforced = replace(given_settings, mode=Mode.ENFORCE)
    others = [replace(rule, networks=()) if not is_name else replace(rule, names=()) for rule in pool]
    assert not Policy(others, enforced).decide(attempt).passes


@many
@given(pools, modes, attempts)
def test_an_address_that_is_not_public_passes_only_if_it_is_listed(pool, given_settings, attempt):
    if isinstance(attempt.target, HostName) or why_not_public(attempt.target) is None:
        return
    if Policy(pool, given_settings).decide(attempt).passes:
        assert any(attempt.target in network for rule in pool if rule.lets_out for network in rule.networks)


@many
@given(pools, modes, connections | seen, st.sampled_from(ADDRESSES))
def test_a_dialled_address_is_admitted_by_a_rule(pool, given_settings, attempt, address):
    policy = Policy(pool, given_settings)
    address = normal(address)
    reason = policy.check_address(attempt.target, attempt.port, attempt.protocol, address, attempt.request)
    if not policy.decide(attempt).passes:
        assert reason is not None
    if reason is not None:
        return
    if why_not_public(address) is not None:
        listed = [n for rule in pool if rule.lets_out for n in (*rule.networks, *(rule.resolves_to or ()))]
        assert any(address in network for network in listed)
    if not isinstance(attempt.target, HostName):
        assert address == attempt.target
    denied = [
        rule
        for rule in pool
        if rule.action is Verdict.DENY
        and not rule.default
        and not rule.excepts
        and rule.http is None
        and rule.ports is None
    ]
    assert not any(address in network for rule in denied for network in rule.networks)


@many
@given(pools, modes, seen, st.sampled_from(ADDRESSES))
def test_an_address_for_a_connection_is_one_for_each_request_that_passes(pool, given_settings, attempt, address):
    """Without the request the check is at least as strict as with any that is let out."""
    policy = Policy(pool, given_settings)
    connection = policy.check_address(attempt.target, attempt.port, attempt.protocol, address)
    if connection is not None or not policy.decide(attempt).passes:
        return
    with_request = policy.check_address(attempt.target, attempt.port, attempt.protocol, address, attempt.request)
    if with_request is not None:
        # A rule that holds back this very address from this very request; no rule that lets out may differ.
        assert with_request in {Reason.RULE, Reason.APPROVAL_UNAVAILABLE, Reason.DEFAULT_RULE}


@many
@given(pools, modes, connections)
def test_a_lookup_is_answered_whenever_a_connection_could_pass(pool, given_settings, attempt):
    if not isinstance(attempt.target, HostName):
        return
    policy = Policy(pool, given_settings)
    if policy.decide(attempt).passes:
        assert policy.decide_name(attempt.target).passes
    named = policy.decide_name(attempt.target)
    if named.outcome is Outcome.PASSED:
        assert any(rule.lets_out for rule in pool)


@many
@given(pools, modes, connections)
def test_what_is_let_out_is_among_the_protocols_told(pool, given_settings, attempt):
    policy = Policy(pool, given_settings)
    decision = policy.decide(attempt)
    if decision.passes:
        told = policy.protocols(attempt.target, attempt.port)
        assert attempt.protocol in told or Protocol.TCP in told
    if decision.passes and attempt.protocol is Protocol.TLS and decision.inspect:
        assert policy.needs_inspection
