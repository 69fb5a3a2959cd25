from ipaddress import ip_address

import pytest

from proxy.gate import decide as decide_module
from proxy.gate.client_hello import parse_hello
from proxy.gate.decide import DecisionCache, OriginalDestination, PeekWait, decide, peek_wait
from proxy.sandbox.sandbox_state import Calendar, SandboxState, Task
from rules.values.names import HostName
from rules.verdicts import Reason
from tests.proxy.gate.gate_lab import client_hello, policy_of

REAL = client_hello()
RULES = ("id: good, to: good.example, ports: [443], tls: splice, action: allow",)
GOOD = OriginalDestination(ip_address("198.18.0.1"), 443, (HostName("good.example"),))


@pytest.fixture
def sandbox(tmp_path):
    return SandboxState("s", Task("t", "task"), policy_of(tmp_path, RULES), frozenset(), 15001)


def test_same_connection_gets_the_cached_decision(sandbox):
    cache = DecisionCache(sandbox, can_inspect=True)
    hello = parse_hello(REAL)
    for _ in range(3):
        assert cache.decide(GOOD, hello) == decide(sandbox, GOOD, hello, can_inspect=True)
        assert cache.peek_wait(GOOD) is peek_wait(sandbox.policy, GOOD) is PeekWait.FULL
    assert cache.decide(GOOD, hello) is cache.decide(GOOD, hello)


@pytest.mark.parametrize(
    ("wanted", "change", "reason"),
    [
        (GOOD, {"sni": "evil.example"}, "name_mismatch"),
        (GOOD, {"sni": None}, "sni_missing"),
        (GOOD, {"ech": True}, "ech"),
        (GOOD._replace(port=444), {}, "no_rule"),
        (GOOD._replace(names=(HostName("evil.example"),)), {"sni": "evil.example"}, "no_rule"),
        (GOOD._replace(names=()), {"sni": None}, "non_public_address"),
        (GOOD._replace(names=()), {}, "rule"),
    ],
)
def test_different_connection_is_decided_separately(sandbox, wanted, change, reason):
    cache = DecisionCache(sandbox, can_inspect=True)
    hello = parse_hello(REAL)
    assert cache.decide(GOOD, hello).decision.passes
    other = hello._replace(**change)
    for _ in range(2):
        made = cache.decide(wanted, other)
        assert made == decide(sandbox, wanted, other, can_inspect=True)
        assert made.decision.reason is Reason(reason)
        assert made.hello is other


def test_new_policy_clears_the_cache(sandbox, tmp_path):
    cache = DecisionCache(sandbox, can_inspect=True)
    hello = parse_hello(REAL)
    assert cache.decide(GOOD, hello).decision.passes
    sandbox.policy = policy_of(tmp_path, ("id: other, to: other.example, ports: [22/tcp], action: allow",))
    assert not cache.decide(GOOD, hello).decision.passes
    assert cache.peek_wait(OriginalDestination(GOOD.address, 22, GOOD.names)) is PeekWait.BRIEF


def turned(sandbox):
    sandbox.calendar = Calendar(lambda: 4e9)


def tainted(sandbox):
    sandbox.tainted = True


@pytest.mark.parametrize("change", [turned, tainted], ids=["day", "taint"])
def test_new_day_and_taint_clear_the_cache(tmp_path, change):
    rules = (f"{RULES[0]}, until: 2096-01-01", "id: no, to: good.example, when: tainted, action: deny")
    sandbox = SandboxState("s", Task("t", "task"), policy_of(tmp_path, rules), frozenset(), 15001)
    cache = DecisionCache(sandbox, can_inspect=True)
    hello = parse_hello(REAL)
    assert cache.decide(GOOD, hello).decision.passes
    change(sandbox)
    assert not cache.decide(GOOD, hello).decision.passes


def test_cached_decision_has_the_hello_of_its_connection(sandbox):
    cache = DecisionCache(sandbox, can_inspect=True)
    one, two = parse_hello(REAL), parse_hello(REAL)._replace(version="TLSv1.2")
    assert cache.decide(GOOD, one).hello is one
    assert cache.decide(GOOD, two).hello is two


def test_decisions_for_addresses_are_not_mixed_up(tmp_path):
    rule = ("id: raw, to: 93.184.216.34, ports: [22/tcp], action: allow",)
    sandbox = SandboxState("s", Task("t", "task"), policy_of(tmp_path, rule), frozenset(), 15001)
    cache = DecisionCache(sandbox, can_inspect=True)
    one, two = (
        OriginalDestination(ip_address("93.184.216.34"), 22),
        OriginalDestination(ip_address("93.184.216.35"), 22),
    )
    assert [cache.peek_wait(wanted) for wanted in (one, two, one)] == [PeekWait.NONE, PeekWait.BRIEF, PeekWait.NONE]


def test_cache_is_bounded_and_holds_no_long_text_of_a_task(sandbox, monkeypatch):
    monkeypatch.setattr(decide_module, "MOST_REMEMBERED", 5)
    cache = DecisionCache(sandbox, can_inspect=True)
    hello = parse_hello(REAL)
    for port in range(1, 100):
        cache.decide(GOOD._replace(port=port), hello)
        cache.peek_wait(GOOD._replace(port=port))
        assert len(cache._decisions) <= 5
        assert len(cache._peek_waits) <= 5
    cache._decisions.clear()
    cache.decide(GOOD, hello._replace(alpn=("x",) * 9))
    cache.decide(GOOD, hello._replace(sni="x" * 9999))
    cache.decide(GOOD._replace(names=()), hello)
    assert not cache._decisions
