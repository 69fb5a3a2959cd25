from ipaddress import ip_address

import pytest

from proxy.dialing.address_check import DialError
from proxy.gate.client_hello import OTHER, HttpHead, parse_hello
from proxy.gate.decide import (
    GateAction,
    OriginalDestination,
    PeekWait,
    decide,
    deny_before_dial,
    deny_connection,
    is_unroutable,
    peek_wait,
)
from proxy.sandbox.sandbox_state import SandboxState, Task
from rules.attempt import Protocol
from rules.values.names import HostName
from rules.verdicts import Outcome, Reason, Verdict
from tests.proxy.gate.gate_lab import OWN, client_hello, ech_hello, made_hello, policy_of, server_name

RULES = (
    "id: seen, to: [seen.example, '*.wild.example'], ports: [443, 80], action: allow",
    "id: good, to: [good.example, other.example], ports: [443], tls: splice, action: allow",
    "id: ssh, to: ssh.example, ports: [22/tcp], action: allow",
    "id: both, to: both.example, ports: [9000/tcp, 9000/http], action: allow",
    "id: bad, to: bad.example, action: deny",
    "id: literal, to: [93.184.216.34, '2606:2800::1'], ports: [443, 80, 22/tcp], action: allow",
)
SYNTHETIC = ip_address("198.18.0.1")
LITERAL = ip_address("93.184.216.34")
STRANGE = ip_address("93.184.216.99")


def sandbox_of(tmp_path, rules=RULES, **settings):
    return SandboxState("s", Task("t", "task"), policy_of(tmp_path, rules, **settings), frozenset({OWN}), 15001)


@pytest.fixture
def sandbox(tmp_path):
    return sandbox_of(tmp_path)


def named(name, port=443, address=SYNTHETIC):
    return OriginalDestination(address, port, (HostName(name),))


def hello(name, alpn=("h2", "http/1.1")):
    return parse_hello(client_hello(name, alpn))


def judged(sandbox, wanted, seen, *, can_inspect=True):
    made = decide(sandbox, wanted, seen, can_inspect=can_inspect)
    assert made.attempt.port == wanted.port
    return str(made.attempt.target), made.attempt.protocol.value, made.decision.reason.value, made.action.value


E = parse_hello(ech_hello())

# wanted, seen: target, protocol, reason, way
TABLE = {
    "tls that is spliced": (named("good.example"), hello("good.example"), "good.example tls rule splice"),
    "tls that is inspected": (named("seen.example"), hello("seen.example"), "seen.example tls rule inspect"),
    "the same name in capitals": (named("good.example"), parse_hello(made_hello(server_name(b"GOOD.example."))), "good.example tls rule splice"),
    "another name that is allowed too": (named("good.example"), hello("other.example"), "good.example tls name_mismatch explain"),
    "another name that is not": (named("good.example"), hello("evil.example"), "good.example tls name_mismatch explain"),
    "an allowed name on a denied one's address": (named("bad.example"), hello("good.example"), "bad.example tls name_mismatch explain"),
    "no name": (named("good.example"), hello(None), "good.example tls sni_missing explain"),
    "an address for a name": (named("good.example"), parse_hello(made_hello(server_name(b"93.184.216.34"))), "good.example tls invalid_name reset"),
    "a name with a zero in it": (named("good.example"), parse_hello(made_hello(server_name(b"good.example\0.evil.example"))), "good.example tls invalid_name reset"),
    "a name outside ascii": (named("good.example"), parse_hello(made_hello(server_name("gööd.example".encode()))), "good.example tls invalid_name reset"),
    "a hidden name where nobody looks": (named("good.example"), E, "good.example tls ech explain"),
    "a name below a wildcard": (named("a.b.wild.example"), hello("a.b.wild.example"), "a.b.wild.example tls rule inspect"),
    "a name that no rule has": (named("evil.example"), hello("evil.example"), "evil.example tls no_rule explain"),
    "a name that a rule denies": (named("bad.example"), hello("bad.example"), "bad.example tls rule explain"),
    "alpn that inspection can't read": (named("seen.example"), hello("seen.example", ("imap",)), "seen.example tls protocol_mismatch reset"),
    "alpn that nobody has to read": (named("good.example"), hello("good.example", ("imap",)), "good.example tls rule splice"),
    "no alpn": (named("seen.example"), hello("seen.example", ()), "seen.example tls rule inspect"),
    "other bytes on a tls port": (named("good.example"), OTHER, "good.example tcp protocol_mismatch reset"),
    "silence on a tls port": (named("good.example"), None, "good.example tcp protocol_mismatch reset"),
    "http on a tls port": (named("good.example"), HttpHead(None), "good.example http protocol_mismatch explain"),
    "tls on an http port": (named("seen.example", 80), hello("seen.example"), "seen.example tls protocol_mismatch explain"),
    "http": (named("seen.example", 80), HttpHead(None), "seen.example http rule inspect"),
    "http to a denied name": (named("bad.example", 80), HttpHead(None), "bad.example http rule explain"),
    "http whose host is inspection's to check": (named("seen.example", 80), HttpHead("evil.example"), "seen.example http rule inspect"),
    "raw bytes": (named("ssh.example", 22), None, "ssh.example tcp rule splice"),
    "tls under a rule for raw bytes": (named("ssh.example", 22), hello("evil.example"), "ssh.example tls name_mismatch explain"),
    "raw bytes to another port": (named("ssh.example", 23), OTHER, "ssh.example tcp no_rule reset"),
    "a literal address with a name": (OriginalDestination(STRANGE, 443), hello("good.example"), "good.example tls rule splice"),
    "an address rule's address with a name": (OriginalDestination(LITERAL, 443), hello("evil.example"), "evil.example tls no_rule explain"),
    "an address rule's address": (OriginalDestination(LITERAL, 443), hello(None), "93.184.216.34 tls rule inspect"),
    "a literal address without a name": (OriginalDestination(STRANGE, 443), hello(None), "93.184.216.99 tls no_rule explain"),
    "a literal address with a host": (OriginalDestination(STRANGE, 80), HttpHead("seen.example"), "seen.example http rule inspect"),
    "a literal address with a host and port": (OriginalDestination(STRANGE, 80), HttpHead("seen.example:80"), "seen.example http rule inspect"),
    "a literal address as host": (OriginalDestination(LITERAL, 80), HttpHead("93.184.216.34"), "93.184.216.34 http rule inspect"),
    "an ipv6 address as host": (OriginalDestination(ip_address("2606:2800::1"), 80), HttpHead("[2606:2800::1]:80"), "2606:2800::1 http rule inspect"),
    "the same address spelled otherwise": (OriginalDestination(LITERAL, 80), HttpHead("0x5d.184.216.34"), "93.184.216.34 http rule inspect"),
    "another address as host": (OriginalDestination(STRANGE, 80), HttpHead("93.184.216.34"), "93.184.216.99 http name_mismatch explain"),
    "no host": (OriginalDestination(STRANGE, 80), HttpHead(None), "93.184.216.99 http no_rule explain"),
    "a host that is none": (OriginalDestination(STRANGE, 80), HttpHead("a b"), "93.184.216.99 http invalid_name explain"),
    "raw bytes to a literal address": (OriginalDestination(LITERAL, 22), None, "93.184.216.34 tcp rule splice"),
    "raw bytes to a strange address": (OriginalDestination(STRANGE, 22), None, "93.184.216.99 tcp no_rule reset"),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "seen", "says"), TABLE.values(), ids=TABLE.keys())
def test_connections_are_decided_as_the_table_says(sandbox, wanted, seen, says):
    assert judged(sandbox, wanted, seen) == tuple(says.split())


def test_denial_for_alpn_names_the_protocols_and_a_remedy(sandbox):
    made = decide(sandbox, named("seen.example"), hello("seen.example", ("imap", "mqtt")), can_inspect=True)
    assert made.detail.startswith("its client offers `imap`, `mqtt` (ALPN)")
    assert "`tls: splice`" in made.detail


@pytest.mark.parametrize("name", [n for n, (_, _, says) in TABLE.items() if says.split()[3] in ("explain", "inspect")])
def test_connection_that_needs_inspection_is_denied_without_it(sandbox, name):
    wanted, seen, says = TABLE[name]
    reason = "gate_error" if says.endswith("inspect") else says.split()[2]
    assert judged(sandbox, wanted, seen, can_inspect=False)[2:] == (reason, "reset")


@pytest.mark.parametrize("name", [n for n, (_, _, says) in TABLE.items() if says.endswith("explain")])
def test_on_block_reset_serves_no_page(tmp_path, name):
    wanted, seen, says = TABLE[name]
    assert judged(sandbox_of(tmp_path, on_block="reset"), wanted, seen)[2:] == (says.split()[2], "reset")


def test_denial_by_the_gate_keeps_the_rules_it_overrides(sandbox):
    made = decide(sandbox, named("good.example"), E, can_inspect=True).decision
    assert (made.verdict, made.outcome, made.rules) == (Verdict.DENY, Outcome.BLOCKED, ("r:good",))
    made = decide(sandbox, named("good.example"), OTHER, can_inspect=True).decision
    assert made.nearest is not None


SHARED = OriginalDestination(LITERAL, 443, (HostName("good.example"), HostName("seen.example")))


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (hello("good.example"), "good.example tls rule splice"),
        (hello("seen.example"), "seen.example tls rule inspect"),
        (hello("other.example"), "seen.example tls name_mismatch explain"),
        (hello(None), "seen.example tls sni_missing explain"),
    ],
)
def test_tls_to_address_of_several_names_is_decided_by_its_sni(sandbox, seen, says):
    assert judged(sandbox, SHARED, seen) == tuple(says.split())


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("seen.example", "seen.example http rule inspect"),
        ("evil.example", "seen.example http name_mismatch explain"),
        (None, "seen.example http rule inspect"),
    ],
)
def test_http_to_address_of_several_names_is_decided_by_its_host(sandbox, host, says):
    assert judged(sandbox, SHARED._replace(port=80), HttpHead(host)) == tuple(says.split())


def test_audit_mode_allows_what_no_rule_and_no_check_denies(tmp_path):
    sandbox = sandbox_of(tmp_path, mode="audit")
    made = decide(sandbox, named("evil.example"), hello("evil.example"), can_inspect=True)
    assert (made.decision.outcome, made.action) == (Outcome.WOULD_BLOCK, GateAction.INSPECT)
    for wanted, seen, reason in (
        (named("good.example"), hello("evil.example"), Reason.NAME_MISMATCH),
        (named("evil.example"), hello(None), Reason.SNI_MISSING),
        (named("good.example"), E, Reason.ECH),
        (named("bad.example"), hello("bad.example"), Reason.RULE),
    ):
        made = decide(sandbox, wanted, seen, can_inspect=True)
        assert (made.decision.outcome, made.decision.reason) == (Outcome.BLOCKED, reason)


@pytest.mark.parametrize(
    ("wanted", "how_long"),
    [
        (named("ssh.example", 22), PeekWait.NONE),
        (OriginalDestination(LITERAL, 22), PeekWait.NONE),
        (named("both.example", 9000), PeekWait.BRIEF),
        (named("good.example"), PeekWait.FULL),
        (named("seen.example", 80), PeekWait.FULL),
        (named("evil.example"), PeekWait.FULL),
        (named("evil.example", 80), PeekWait.FULL),
        (named("evil.example", 22), PeekWait.BRIEF),
        (named("good.example", 22), PeekWait.BRIEF),
        (OriginalDestination(STRANGE, 443), PeekWait.FULL),
        (OriginalDestination(STRANGE, 5432), PeekWait.BRIEF),
    ],
)
def test_wait_for_first_bytes_depends_on_the_allowed_protocols(sandbox, wanted, how_long):
    assert peek_wait(sandbox.policy, wanted) is how_long


NOWHERE = (
    "127.0.0.1", "127.9.9.9", "::1", "192.0.0.2", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "fe80::1%1",
)  # fmt: skip


@pytest.mark.parametrize("address", NOWHERE)
def test_destinations_inside_the_sandbox_are_unroutable(sandbox, address):
    assert is_unroutable(sandbox, OriginalDestination(ip_address(address), 443))


@pytest.mark.parametrize("address", ["93.184.216.34", "10.0.0.1", "169.254.169.254", "2606:2800::1", "fd00::1"])
def test_other_destinations_are_left_to_the_rules(sandbox, address):
    assert not is_unroutable(sandbox, OriginalDestination(ip_address(address), 443))
    assert is_unroutable(sandbox, OriginalDestination(ip_address(address), 0))


def test_port_0_of_a_name_is_unroutable(sandbox):
    assert is_unroutable(sandbox, named("good.example", 0))


def test_denial_before_any_byte_is_read_resets(sandbox):
    made = deny_connection(sandbox, named("good.example"), Reason.LIMIT_EXCEEDED)
    assert (made.decision.verdict, made.decision.outcome, made.decision.reason, made.action) == (
        Verdict.DENY, Outcome.BLOCKED, Reason.LIMIT_EXCEEDED, GateAction.RESET,
    )  # fmt: skip
    assert made.attempt.protocol is Protocol.TCP


def test_undialable_address_is_denied_and_unknown_name_fails(sandbox):
    passed = decide(sandbox, named("good.example"), hello("good.example"), can_inspect=True)
    made = deny_before_dial(sandbox.policy, passed, DialError(Reason.NON_PUBLIC_ADDRESS, ""), can_inspect=True)
    assert (made.decision.verdict, made.decision.outcome, made.action) == (
        Verdict.DENY,
        Outcome.BLOCKED,
        GateAction.EXPLAIN,
    )
    made = deny_before_dial(sandbox.policy, passed, DialError(Reason.UNRESOLVED, ""), can_inspect=True)
    assert (made.decision.verdict, made.decision.outcome, made.action) == (
        Verdict.ALLOW,
        Outcome.FAILED,
        GateAction.RESET,
    )
    raw = decide(sandbox, named("ssh.example", 22), None, can_inspect=True)
    made = deny_before_dial(sandbox.policy, raw, DialError(Reason.NON_PUBLIC_ADDRESS, ""), can_inspect=True)
    assert made.action is GateAction.RESET
