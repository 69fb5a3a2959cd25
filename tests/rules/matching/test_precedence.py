"""Which rule wins: tables of rules and attempts, each with verdict, reason and the rules that are named for it."""

import pytest

from rules.attempt import Attempt, Protocol, Request
from rules.loading.cases import parse_attempt
from rules.values.names import HostName
from rules.verdicts import Mode, Outcome, Reason, Verdict
from tests.rules.rule_texts import decide, policy, told

ALLOW = "- {id: a, to: x.example, action: allow}\n"
FLAG = "- {id: f, to: '*.example', action: flag}\n"
ASK = "- {id: q, to: '**.example', action: ask}\n"
DENY = "- {id: d, to: x.example, action: deny}\n"
DEFAULT_ALLOW = "- {id: da, to: '*', ports: [443, 80, 1-65535/tcp], default: true, action: allow}\n"
DEFAULT_FLAG = "- {id: df, to: '*', default: true, action: flag}\n"
DEFAULT_ASK = "- {id: dq, to: '*', default: true, action: ask}\n"
DEFAULT_DENY = "- {id: dd, to: '*', default: true, action: deny}\n"
X = "GET https://x.example/"

STRICTEST = [
    ("", "deny no_rule"),
    (ALLOW, "allow rule t:a"),
    (ALLOW + FLAG, "flag rule t:f"),
    (FLAG + ALLOW, "flag rule t:f"),
    (ALLOW + FLAG + ASK, "ask approval_unavailable t:q"),
    (ALLOW + ASK, "ask approval_unavailable t:q"),
    (ALLOW + FLAG + ASK + DENY, "deny rule t:d"),
    (DENY + ALLOW, "deny rule t:d"),
    (ASK + DENY, "deny rule t:d"),
    (DEFAULT_ALLOW, "allow default_rule t:da"),
    (DEFAULT_ALLOW + DEFAULT_FLAG, "flag default_rule t:df"),
    (DEFAULT_ALLOW + DEFAULT_FLAG + DEFAULT_ASK, "ask approval_unavailable t:dq"),
    (DEFAULT_ALLOW + DEFAULT_DENY, "deny default_rule t:dd"),
    (DEFAULT_DENY + ALLOW, "allow rule t:a"),  # a default counts only where no other rule matches
    (DEFAULT_ASK + FLAG, "flag rule t:f"),
    (DEFAULT_ALLOW + ASK, "ask approval_unavailable t:q"),
    (DEFAULT_ALLOW + DENY, "deny rule t:d"),
    ("- {id: wide, to: '*', action: allow}\n- {id: mid, to: '**.example', action: allow}\n" + ALLOW, "allow rule t:a,t:mid,t:wide"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "expected"), STRICTEST)
def test_strictest_verdict_wins(rules, expected):
    if not rules:
        assert told(decide("version: 1", X)) == expected
        return
    assert told(decide(rules, X)) == expected


MATCHING = [
    # names and addresses never meet
    ("- {id: r, to: '*', action: allow}", "GET https://1.2.3.4/", "deny no_rule"),
    ("- {id: r, to: [0.0.0.0/0, '::/0'], action: allow}", "GET https://x.example/", "deny no_rule"),
    ("- {id: r, to: 0.0.0.0/0, action: allow}", "GET https://[2606:4700::1]/", "deny no_rule"),
    ("- {id: r, to: 1.2.3.0/24, action: allow}", "GET https://1.2.3.4/", "allow rule t:r"),
    ("- {id: r, to: 1.2.3.0/24, action: allow}", "GET https://0x1020304/", "allow rule t:r"),
    ("- {id: r, to: 1.2.3.0/24, action: allow}", "GET https://[::ffff:1.2.3.4]/", "allow rule t:r"),
    ("- {id: r, to: 1.2.3.0/24, action: allow}", "GET https://1.2.4.4/", "deny no_rule"),
    ("- {id: r, to: [1.0.0.0/8, 1.2.3.4], action: allow}\n- {id: d, to: 1.2.0.0/16, action: deny}", "GET https://1.2.3.4/", "deny rule t:d"),
    # what is not public needs a rule that lists it
    ("- {id: r, to: 0.0.0.0/0, action: allow}", "GET https://10.0.0.1/", "deny non_public_address"),
    ("- {id: r, to: 0.0.0.0/0, action: allow}", "GET https://2130706433/", "deny non_public_address"),
    ("- {id: r, to: 10.0.0.0/8, action: allow}", "GET https://10.0.0.1/", "allow rule t:r"),
    ("- {id: r, to: 10.0.0.0/8, action: allow}", "tcp 10.0.0.1:22", "deny no_rule"),
    ("- {id: r, to: 10.0.0.0/8, action: allow}\n- {id: d, to: 10.0.0.1, action: deny}", "GET https://10.0.0.1/", "deny rule t:d"),
    ("- {id: d, to: 10.0.0.1, action: deny}", "GET https://10.0.0.1/", "deny non_public_address t:d"),
    ("- {id: r, to: '*', action: allow}", "GET https://localhost/", "allow rule t:r"),  # and check_address denies 127.0.0.1
    ("- {id: r, to: 1.1.1.1, action: allow}\n- {id: d, to: ['*', 1.0.0.0/8], resolves_to: [9.9.9.9], action: deny}", "GET https://1.1.1.1/", "deny rule t:d"),
    # ports
    ("- {id: r, to: x.example, action: allow}", "x.example:443", "allow rule t:r"),
    ("- {id: r, to: x.example, action: allow}", "http x.example:80", "deny no_rule"),
    ("- {id: r, to: x.example, action: allow}", "tls x.example:8443", "deny no_rule"),
    ("- {id: r, to: x.example, action: allow}", "tcp x.example:443", "deny no_rule"),
    ("- {id: r, to: x.example, ports: [80, 443], action: allow}", "GET http://x.example/", "allow rule t:r"),
    ("- {id: r, to: x.example, ports: 8000-8100/tls, action: allow}", "GET https://x.example:8100/", "allow rule t:r"),
    ("- {id: r, to: x.example, ports: 8000-8100/tls, action: allow}", "GET https://x.example:8101/", "deny no_rule"),
    ("- {id: r, to: x.example, ports: 443/http, action: allow}", "GET https://x.example/", "deny no_rule"),
    ("- {id: d, to: x.example, action: deny}", "tcp x.example:22", "deny rule t:d"),
    ("- {id: d, to: x.example, ports: 22/tcp, action: deny}\n- {id: r, to: x.example, action: allow}", "GET https://x.example/", "allow rule t:r"),
    # udp: see test_udp
    ("- {id: r, to: x.example, action: allow}", "udp x.example:443", "deny quic"),
    ("- {id: r, to: x.example, ports: 1-65535/tcp, action: allow}", "udp x.example:53", "deny udp"),
    # requests
    ("- {id: r, to: x.example, http: {methods: [GET, HEAD]}, action: allow}", "GET https://x.example/a", "allow rule t:r"),
    ("- {id: r, to: x.example, http: {methods: [GET, HEAD]}, action: allow}", "POST https://x.example/a", "deny no_rule"),
    ("- {id: r, to: x.example, http: {methods: [GET]}, action: allow}", "get https://x.example/a", "deny no_rule"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: x.example, http: {methods: [DELETE]}, action: deny}", "delete https://x.example/a", "deny rule t:d"),
    ("- {id: r, to: x.example, http: {paths: /a/**}, action: allow}", "GET https://x.example/a/b?q=/c", "allow rule t:r"),
    ("- {id: r, to: x.example, http: {paths: /a/**}, action: allow}", "GET https://x.example/b?q=/a/b", "deny no_rule"),
    ("- {id: r, to: x.example, http: {paths: /a/**}, action: allow}", "GET https://x.example/a/../b", "deny ambiguous_path"),
    ("- {id: r, to: x.example, action: allow}", "GET https://x.example/a/../b", "deny ambiguous_path"),
    ("- {id: r, to: x.example, http: {paths: /a/**}, action: allow}", "GET https://x.example/a%2fb", "deny no_rule"),
    ("- {id: r, to: x.example, http: {paths: [/a/*, /a%2f*]}, action: allow}", "GET https://x.example/a%2fb", "allow rule t:r"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: x.example, http: {paths: /admin/**}, action: deny}", "GET https://x.example/x/..%2fadmin", "deny ambiguous_path"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: x.example, http: {paths: /admin/**}, action: deny}", "GET https://x.example//admin/x", "deny rule t:d"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: x.example, http: {paths: /admin/**}, action: deny}", "GET https://x.example/admin;x=1/x", "deny rule t:d"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: x.example, http: {paths: /admin/**}, action: deny}", "GET https://x.example/%61dmin%2Fx", "deny rule t:d"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: x.example, http: {paths: /admin/**}, action: deny}", "GET https://x.example/user", "allow rule t:r"),
    ("- {id: r, to: x.example, http: {methods: [GET], paths: /a}, action: allow}\n- {id: q, to: x.example, default: true, action: ask}", "GET https://x.example/b", "ask approval_unavailable t:q"),
    # except
    ("- {id: r, to: '**.example', except: secret.example, action: allow}", "GET https://x.example/", "allow rule t:r"),
    ("- {id: r, to: '**.example', except: secret.example, action: allow}", "GET https://secret.example/", "deny no_rule"),
    ("- {id: r, to: '**.example', except: ['*.secret.example'], action: allow}", "GET https://a.secret.example/", "deny no_rule"),
    ("- {id: r, to: 1.0.0.0/8, except: [1.2.0.0/16], action: allow}", "GET https://1.2.3.4/", "deny no_rule"),
    ("- {id: r, to: 1.0.0.0/8, except: [1.2.0.0/16], action: allow}", "GET https://1.3.3.4/", "allow rule t:r"),
    ("- {id: r, to: x.example, except: [{http: {methods: [DELETE]}}], action: allow}", "DELETE https://x.example/", "deny no_rule"),
    ("- {id: r, to: x.example, except: [{http: {methods: [DELETE]}}], action: allow}", "delete https://x.example/", "deny no_rule"),
    ("- {id: r, to: x.example, except: [{http: {methods: [DELETE]}}], action: allow}", "GET https://x.example/", "allow rule t:r"),
    ("- {id: r, to: '**.example', except: [{to: x.example, http: {paths: /admin/**}}], action: allow}", "GET https://y.example/admin/x", "allow rule t:r"),
    ("- {id: r, to: '**.example', except: [{to: x.example, http: {paths: /admin/**}}], action: allow}", "GET https://x.example/admin/x", "deny no_rule"),
    ("- {id: r, to: x.example, ports: [443, 80], except: [{ports: 80}], action: allow}", "GET http://x.example/", "deny no_rule"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: '*', except: [{to: x.example, http: {methods: [GET]}}], action: deny}", "GET https://x.example/", "allow rule t:r"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: '*', except: [{to: x.example, http: {methods: [GET]}}], action: deny}", "get https://x.example/", "deny rule t:d"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: '*', except: x.example, action: deny}", "GET https://x.example/", "allow rule t:r"),
    ("- {id: r, to: x.example, action: allow}\n- {id: d, to: '*', except: x.example, action: deny}", "GET https://y.example/", "deny rule t:d"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "expected"), MATCHING)
def test_rules_match_by_every_condition(rules, attempt, expected):
    """Asked of the rules alone: a method in lower case is refused before them, and they don't rely on it."""
    asked = policy(rules)
    assert told(asked.decide(parse_attempt(attempt).attempt(asked))) == expected


AUDITED = [
    ("", X, Outcome.WOULD_BLOCK, Reason.NO_RULE),
    (DEFAULT_DENY, X, Outcome.WOULD_BLOCK, Reason.DEFAULT_RULE),
    (DEFAULT_ASK, X, Outcome.WOULD_BLOCK, Reason.APPROVAL_UNAVAILABLE),
    (DENY, X, Outcome.BLOCKED, Reason.RULE),
    (ASK, X, Outcome.BLOCKED, Reason.APPROVAL_UNAVAILABLE),
    (ALLOW, X, Outcome.PASSED, Reason.RULE),
    ("", "tcp x.example:22", Outcome.WOULD_BLOCK, Reason.NO_RULE),
    ("", "GET https://1.2.3.4/", Outcome.WOULD_BLOCK, Reason.NO_RULE),
    ("", "GET https://10.0.0.1/", Outcome.BLOCKED, Reason.NON_PUBLIC_ADDRESS),
    ("- {id: dd, to: 0.0.0.0/0, default: true, action: deny}", "GET https://127.1/", Outcome.BLOCKED, Reason.NON_PUBLIC_ADDRESS),
    ("- {id: r, to: 10.0.0.0/8, action: allow}", "tcp 10.0.0.1:22", Outcome.BLOCKED, Reason.NO_RULE),
    ("", "udp x.example:443", Outcome.BLOCKED, Reason.QUIC),
    ("", "GET https://x.example/a/../b", Outcome.BLOCKED, Reason.AMBIGUOUS_PATH),
    ("", "GET https://evil%00.example/", Outcome.BLOCKED, Reason.INVALID_NAME),
    ("- {id: dd, to: '*', default: true, mode: enforce, action: deny}", X, Outcome.BLOCKED, Reason.DEFAULT_RULE),
    ("- {id: dd, to: '*', default: true, mode: enforce, action: deny}\n" + DEFAULT_DENY.replace("dd", "d2"), X, Outcome.BLOCKED, Reason.DEFAULT_RULE),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "outcome", "reason"), AUDITED)
def test_audit_allows_only_unlisted_and_default_attempts(rules, attempt, outcome, reason):
    head = "settings: {mode: audit}"
    asked = policy(rules, head) if rules else policy(f"version: 1\n{head}")
    decision = parse_attempt(attempt).decide(asked)
    assert (decision.outcome, decision.reason) == (outcome, reason)
    assert decision.passes == (outcome is not Outcome.BLOCKED)


def test_one_default_rule_can_be_audited_alone():
    rules = "- {id: dd, to: '**.example', default: true, mode: audit, action: deny}"
    assert decide(rules, X).outcome is Outcome.WOULD_BLOCK
    assert decide(rules, "GET https://x.other/").outcome is Outcome.BLOCKED


NEAR = [
    ("- {id: a, to: x.example, action: allow}", "tcp x.example:22", ("t:a", "ports", "443/tls", "22/tcp")),
    ("- {id: a, to: x.example, action: allow}", "GET https://www.x.example/", ("t:a", "to", "x.example", "www.x.example")),
    ("- {id: a, to: www.x.example, action: allow}", "GET https://x.example/", ("t:a", "to", "www.x.example", "x.example")),
    ("- {id: a, to: '*.x.example', action: allow}", "GET https://x.example/", ("t:a", "to", "*.x.example", "x.example")),
    ("- {id: a, to: x.example, http: {methods: [GET, HEAD]}, action: allow}", "POST https://x.example/a?secret=1", ("t:a", "http.methods", "GET, HEAD", "POST")),
    ("- {id: a, to: x.example, http: {paths: /a/**}, action: allow}", "GET https://x.example/b?secret=1", ("t:a", "http.paths", "/a/**", "/b")),
    ("- {id: a, to: x.example, http: {paths: /a}, action: allow}\n- {id: b, to: x.example, http: {methods: [GET]}, action: allow}", "POST https://x.example/b", ("t:b", "http.methods", "GET", "POST")),
    ("- {id: a, to: '**.example', except: x.example, action: allow}", "GET https://x.example/", ("t:a", "except", "", "GET /")),
    ("- {id: a, to: x.example, ports: 22/tcp, except: [{ports: 22/tcp}], action: allow}", "tcp x.example:22", ("t:a", "except", "", "22/tcp")),
    ("- {id: a, to: x.example, except: [{http: {paths: /a}}], action: allow}", "GET https://x.example/a", ("t:a", "except", "", "GET /a")),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "near"), NEAR)
def test_no_rule_names_the_nearest_rule_and_its_condition(rules, attempt, near):
    decision = decide(rules, attempt)
    assert decision.reason is Reason.NO_RULE
    assert decision.nearest is not None
    assert (decision.nearest.rule, decision.nearest.field, decision.nearest.wanted, decision.nearest.got) == near


@pytest.mark.parametrize("attempt", ["GET https://y.other/", "GET https://com/", "GET https://1.1.1.1/"])
def test_distant_rules_give_no_hint(attempt):
    assert decide("- {id: a, to: x.example, action: allow}", attempt).nearest is None


def test_decision_has_the_terms_of_its_rule():
    rules = "- {id: a, to: x.example, idle_timeout: 30s, why: mirror, action: allow}\n- {id: b, to: x.example, idle_timeout: 2h, action: allow}"
    decision = decide(rules, X)
    assert (decision.idle_timeout, decision.why) == (30.0, "mirror")
    assert decide(rules, "GET https://z.example/", "settings: {idle_timeout: 5s}").idle_timeout == 5.0


@pytest.mark.parametrize("port", [-1, 0, 65536, 2**40])
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.TLS, Protocol.HTTP])
def test_invalid_port_is_denied(port, protocol):
    asked = policy(DEFAULT_ALLOW, "settings: {mode: audit}")
    assert not asked.decide(Attempt(protocol, HostName("x.example"), port)).passes


def test_raw_tcp_with_a_request_is_denied():
    asked = policy(DEFAULT_ALLOW)
    decision = asked.decide(Attempt(Protocol.TCP, HostName("x.example"), 80, Request("GET", "/")))
    assert (decision.verdict, decision.reason) == (Verdict.DENY, Reason.PROTOCOL_MISMATCH)


def test_first_value_of_every_enum_is_closed():
    from rules import verdicts

    assert next(iter(verdicts.Verdict)) is Verdict.DENY
    assert next(iter(verdicts.Outcome)) is Outcome.BLOCKED
    assert next(iter(verdicts.Mode)) is Mode.ENFORCE
    assert next(iter(verdicts.TlsMode)) is verdicts.TlsMode.INSPECT
    assert next(iter(verdicts.Reason)) is Reason.GATE_ERROR
