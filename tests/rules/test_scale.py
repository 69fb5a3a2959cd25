"""The work for an attempt is independent of the number of rules, and nothing that a task sends makes memory grow."""

import tracemalloc
from functools import cache

import pytest

from rules.attempt import Attempt, Protocol, Request
from rules.feeds import Feed, find_covering
from rules.loading.load import read
from rules.matching.policy import Policy
from rules.ports import Ports
from rules.rule import Http, Rule
from rules.values.addresses import parse_host, parse_network
from rules.values.names import HostName
from rules.values.paths import PathPattern
from rules.values.patterns import NamePattern
from rules.verdicts import Verdict
from tests.rules.values.test_globs import calls

pytestmark = pytest.mark.xdist_group("scale")  # they share what takes seconds to make
TLS = (Ports(443, 443, Protocol.TLS),)


def crowd(number):
    rules = []
    for n in range(number):
        names = (
            NamePattern.parse(f"h{n}.example"),
            NamePattern.parse(f"*.w{n}.example"),
            NamePattern.parse(f"g{n:05}*.globs.example"),
        )
        rules.append(Rule(f"t:n{n}", Verdict.ALLOW, names, ports=TLS))
        rules.append(Rule(f"t:a{n}", Verdict.ALLOW, networks=(parse_network(str(0x01000000 + n)),), ports=TLS))
        http = Http(frozenset({"GET"}), (PathPattern.parse(f"/p{n}/**"),))
        rules.append(Rule(f"t:p{n}", Verdict.ALLOW, (NamePattern.parse("paths.example"),), ports=TLS, http=http))
    return Policy(rules)


few_rules, many_rules = cache(lambda: crowd(10)), cache(lambda: crowd(5000))  # made when they are needed
ATTEMPTS = [
    Attempt(Protocol.TLS, HostName("h7.example"), 443),
    Attempt(Protocol.TLS, HostName("h7.example"), 443, Request("GET", "/a/b")),
    Attempt(Protocol.TLS, HostName("x.y.w7.example"), 443),
    Attempt(Protocol.TLS, HostName("g00007xx.globs.example"), 443),
    Attempt(Protocol.TLS, parse_host("1.0.0.7"), 443),
    Attempt(Protocol.TLS, HostName("paths.example"), 443, Request("GET", "/p7/x")),
    Attempt(Protocol.TLS, HostName("nobody.test"), 443),
    Attempt(Protocol.TCP, HostName("h7.example"), 22),
]


@pytest.mark.parametrize(
    "attempt",
    ATTEMPTS,
    ids=lambda attempt: f"{attempt.protocol} {attempt.target} {attempt.request and attempt.request.path}",
)
def test_decision_cost_is_independent_of_rule_count(attempt):
    few, many = few_rules(), many_rules()
    for policy in (few, many):
        policy.decide(attempt)  # worked out once
    assert few.decide(attempt).reason == many.decide(attempt).reason
    assert calls(many.decide, attempt) == calls(few.decide, attempt)
    assert calls(asked_anew, many, attempt) == calls(asked_anew, few, attempt)


def asked_anew(policy, attempt):
    """Decide about a name that nobody has asked for lately."""
    policy._index._recent.clear()
    policy.decide(attempt)


def listing(number):
    return Feed.read(b"\n".join(b"0.0.0.0 h%d.ads.example" % n for n in range(number)), "ads.txt")


lists = cache(lambda: (listing(10), listing(50_000)))


@pytest.mark.parametrize("name", ["h7.ads.example", "a.b.c.h7.ads.example", "www.example", "a.b.c.www.example", "x"])
def test_decision_cost_is_independent_of_list_size(name):
    few, many = ((feed,) for feed in lists())
    assert find_covering(few, HostName(name)) == find_covering(many, HostName(name))
    assert calls(find_covering, few, HostName(name)) == calls(find_covering, many, HostName(name)) < 30


def test_name_is_compared_with_few_listed_names():
    for feed in lists():
        assert max(place.count("\n") for place in feed.names) < 64


def test_list_costs_only_its_probes():
    rules = list(crowd(10).rules)
    policies = [Policy([*rules, Rule("t:ads", Verdict.DENY, feeds=(feed,))]) for feed in lists()]
    for attempt in ATTEMPTS:
        one, other = (policy.decide(attempt) for policy in policies)
        assert one == other._replace(revision=one.revision)
        few, many = (calls(asked_anew, policy, attempt) for policy in policies)
        assert few == many
        assert few <= calls(asked_anew, few_rules(), attempt) + 20


def test_decision_of_a_rule_is_one_cached_object():
    for attempt in ATTEMPTS[:6]:
        assert many_rules().decide(attempt) is many_rules().decide(attempt)


def kept(policy):
    index = policy._index
    plans = [plan for candidates in index._found.values() for plan in candidates._plans.values()]
    return len(index._found) + len(plans) + sum(len(plan._findings) + len(plan.decisions) for plan in plans)


def test_attempts_leave_caches_bounded():
    policy = crowd(10)

    def ask(numbers):
        for n in numbers:
            name = HostName(f"n{n}.w3.example")
            policy.decide(Attempt(Protocol.TLS, name, 443))
            policy.decide(Attempt(Protocol.TCP, name, 1 + n % 65535))
            policy.decide(Attempt(Protocol.TLS, HostName("paths.example"), 443, Request("GET", f"/p{n}/x")))
            policy.decide(Attempt(Protocol.TLS, parse_host(str(0x02000000 + n)), 443))
            policy.decide_name(name)
            policy.check_address(Attempt(Protocol.TLS, name, 443), parse_host(str(0x02000000 + n)))

    ask(range(200))
    before = kept(policy)
    ask(range(200, 3000))
    assert kept(policy) <= before + 20
    assert len(policy._hinted) <= 1024
    assert len(policy._index._recent) <= 4096


def test_denied_paths_are_not_cached():
    policy = crowd(10)
    asked = [Request("GET", f"/x{size}?" + "q" * size) for size in range(0, 20_000, 100)]
    refused = [policy.decide(Attempt(Protocol.TLS, HostName("paths.example"), 443, request)) for request in asked]
    assert [decision.nearest.got for decision in refused] == [request.path.partition("?")[0] for request in asked]
    assert not [part for key in policy._hinted for part in key if isinstance(part, str) and part[:1] == "/"]


def test_listed_names_leave_caches_bounded():
    policy = Policy([Rule("t:ads", Verdict.DENY, feeds=(lists()[1],))])

    def ask(numbers):
        for n in numbers:
            policy.decide(Attempt(Protocol.TLS, HostName(f"x{n}.h{n}.ads.example"), 443))

    ask(range(2000))
    before = kept(policy)
    tracemalloc.start()
    try:
        ask(range(2000, 9000))  # more than are kept by name
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept(policy) == before
    assert grown < 4096 * 400  # bytes: the names that are kept


def test_loading_work_grows_linearly_with_rules(tmp_path):
    def work(number):
        lines = "".join(
            f"  - {{id: r{n}, to: [h{n}.example, '*.w{n}.example'], http: {{paths: /p{n}/**}}, action: deny}}\n"
            for n in range(number)
        )
        file = tmp_path / "t.yaml"
        file.write_text(f"version: 1\nrules:\n{lines}")
        return calls(read, [file])

    work(1)  # imports what it needs
    assert work(1000) < 11 * work(100)


def test_invented_methods_are_not_cached():
    for n in range(3000):
        many_rules().decide(Attempt(Protocol.TLS, HostName("paths.example"), 443, Request(f"M{n}", "/p7/x")))
    assert kept(many_rules()) < 10_000


def test_thousand_rules_for_one_name_stay_usable():
    """Rules that all match are all named; what it takes is once."""
    rules = [Rule(f"t:{n:04}", Verdict.ALLOW, (NamePattern.parse("*"),), ports=TLS) for n in range(1000)]
    policy = Policy(rules)
    decision = policy.decide(ATTEMPTS[0])
    assert len(decision.rules) == 1000
    assert calls(policy.decide, ATTEMPTS[0]) < 50
