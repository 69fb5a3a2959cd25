"""`host.exeat.internal` is this machine, by exactly that name; no other name of the zone is a service."""

from ipaddress import ip_address

import pytest

from rules.attempt import Attempt, Protocol, Request
from rules.problems import RuleFileError
from rules.values.names import HOST, HostName, is_exeat_name
from rules.verdicts import Outcome, Reason, Verdict
from tests.rules.rule_texts import policy

ALLOW = "- {id: a, to: host.exeat.internal, ports: [8080/http, 5432/tcp, 443], action: allow}"
WIDE = "- {id: w, to: '*', ports: [8080/http, 5432/tcp, 443, 80], tls: splice, action: allow}"
ZONES = "- {id: w, to: ['**.internal', 'host.*.internal', 'h*.exeat*.internal', 'host.e*.internal'], ports: [8080/http, 5432/tcp], action: allow}"
DENY = "- {id: d, to: '**.internal', action: deny}"
ASK = "- {id: k, to: '*', action: ask}"
AUDIT = "settings: {mode: audit}"


def attempt(name, port, protocol, path=None):
    request = None if path is None else Request("GET", path)
    return Attempt(protocol, HostName.parse(name), port, request)


HTTP, TCP, TLS = Protocol.HTTP, Protocol.TCP, Protocol.TLS
DECISIONS = [
    # rules, name, port, protocol: outcome reason
    (ALLOW, "host.exeat.internal", 8080, HTTP, "passed rule"),
    (ALLOW, "host.exeat.internal", 5432, TCP, "passed rule"),
    (ALLOW, "HOST.Exeat.INTERNAL.", 5432, TCP, "passed rule"),
    (ALLOW, "host.exeat.internal", 22, TCP, "blocked no_rule"),
    (ALLOW, "host.exeat.internal", 8080, TLS, "blocked no_rule"),
    (ALLOW, "sub.host.exeat.internal", 8080, HTTP, "blocked non_public_address"),
    (ALLOW, "exeat.internal", 8080, HTTP, "blocked non_public_address"),
    (ALLOW, "hosts.exeat.internal", 8080, HTTP, "blocked non_public_address"),
    (WIDE, "host.exeat.internal", 8080, HTTP, "blocked non_public_address"),
    (WIDE, "host.exeat.internal", 5432, TCP, "blocked non_public_address"),
    (WIDE, "exeat.internal", 80, HTTP, "blocked non_public_address"),
    (WIDE, "xexeat.internal", 80, HTTP, "passed rule"),
    (WIDE, "host.exeat.internal.example", 80, HTTP, "passed rule"),
    (ZONES, "host.exeat.internal", 8080, HTTP, "blocked non_public_address"),
    (ZONES, "other.exeat.internal", 8080, HTTP, "blocked non_public_address"),
    (ZONES, "host.other.internal", 8080, HTTP, "passed rule"),
    (f"{ALLOW}\n{DENY}", "host.exeat.internal", 8080, HTTP, "blocked rule"),
    (f"{ALLOW}\n{ASK}", "host.exeat.internal", 5432, TCP, "blocked approval_unavailable"),
    (f"{ALLOW}\n- {{id: d, to: '*', default: true, action: ask}}", "host.exeat.internal", 8080, HTTP, "passed rule"),
    ("- {id: x, to: x.example, action: allow}", "host.exeat.internal", 443, TLS, "blocked non_public_address"),
]


@pytest.mark.parametrize(("rules", "name", "port", "protocol", "expected"), DECISIONS)
def test_host_names_are_allowed_by_rules_only(rules, name, port, protocol, expected):
    decision = policy(rules).decide(attempt(name, port, protocol))
    assert f"{decision.outcome} {decision.reason}" == expected


@pytest.mark.parametrize("rules", [WIDE, "- {id: n, to: '*', default: true, mode: audit, action: deny}"])
@pytest.mark.parametrize("name", ["host.exeat.internal", "exeat.internal", "sub.host.exeat.internal"])
@pytest.mark.parametrize(("port", "protocol"), [(8080, HTTP), (22, TCP), (8443, TLS)])
def test_audit_mode_allows_no_host_service(rules, name, port, protocol):
    audited = policy(rules, AUDIT)
    assert audited.decide(attempt("www.example", port, protocol)).passes  # as it does elsewhere
    assert not audited.decide(attempt(name, port, protocol)).passes
    assert not audited.decide_name(HostName.parse(name)).passes


@pytest.mark.parametrize("mode", ["", ", mode: audit"])
@pytest.mark.parametrize("to", ["host.exeat.internal", "10.0.0.0/8"])
def test_default_ask_in_audit_mode_allows_no_host_service(to, mode):
    rules = f"- {{id: k, to: {to}, ports: 22/tcp, default: true{mode}, action: ask}}"
    asked = policy(rules, AUDIT)
    target, address = (HOST, "127.0.0.1") if to == HOST else (ip_address("10.0.0.1"), "10.0.0.1")
    tried = Attempt(TCP, target, 22)
    decision = asked.decide(tried)
    assert (decision.outcome, decision.needs_approval) == (Outcome.BLOCKED, True)
    assert asked.check_address(tried, ip_address(address)) is Reason.APPROVAL_UNAVAILABLE
    granted = tried._replace(granted=frozenset(asks.digest for asks in decision.approval))
    assert asked.decide(granted).reason is Reason.APPROVAL_GRANTED
    assert asked.check_address(granted, ip_address(address)) is None


NARROW = "- {id: n, to: host.exeat.internal, ports: 22/tcp, for: {tasks: build}, action: allow}"
NOT_THERE = "- {id: d, to: host.exeat.internal, action: deny, why: nobody builds there}"
SAID = [
    # rules, name, port, protocol: reason, rules, why, the field that was nearest
    (NARROW, "host.exeat.internal", 22, TCP, "non_public_address", "", "", "for"),
    (NARROW, "sub.host.exeat.internal", 22, TCP, "non_public_address", "", "", ""),
    (f"{NARROW}\n{WIDE}", "host.exeat.internal", 443, TLS, "non_public_address", "", "", "for"),
    (WIDE, "host.exeat.internal", 443, TLS, "non_public_address", "", "", ""),
    ("- {id: n, to: '**.internal', ports: 22/tcp, for: {tasks: build}, action: allow}", "host.exeat.internal", 22, TCP, "non_public_address", "", "", ""),
    (NOT_THERE, "host.exeat.internal", 22, TCP, "rule", "t:d", "nobody builds there", ""),
    (NOT_THERE, "exeat.internal", 22, TCP, "non_public_address", "", "", ""),
    (f"{NOT_THERE}\n{NARROW}", "host.exeat.internal", 22, TCP, "rule", "t:d", "nobody builds there", ""),
    (f"{NOT_THERE}\n{ALLOW}", "host.exeat.internal", 8080, HTTP, "rule", "t:d", "nobody builds there", ""),
    (f"{NOT_THERE}\n{ALLOW}", "host.exeat.internal", 22, TCP, "rule", "t:d", "nobody builds there", ""),
    (f"{ALLOW}\n{DENY}", "exeat.internal", 8080, HTTP, "rule", "t:d", "", ""),
    (DENY, "host.exeat.internal", 8080, HTTP, "rule", "t:d", "", ""),
    (ASK, "host.exeat.internal", 8080, HTTP, "non_public_address", "t:k", "", ""),
    ("- {id: d, to: '*', default: true, action: deny, why: w}", "host.exeat.internal", 22, TCP, "non_public_address", "t:d", "w", ""),
]  # fmt: skip


@pytest.mark.parametrize("head", ["", AUDIT])
@pytest.mark.parametrize("path", [None, "/"])
@pytest.mark.parametrize("row", SAID, ids=str)
def test_denied_host_service_has_its_reason(row, path, head):
    rules, name, port, protocol, reason, by, why, field = row
    asked = attempt(name, port, protocol, None if protocol is TCP else path)
    decision = policy(rules, head).decide(asked)
    assert (decision.verdict, decision.outcome) == (Verdict.DENY, Outcome.BLOCKED)
    assert (decision.reason, ",".join(decision.rules), decision.why) == (reason, by, why)
    assert (decision.nearest.field if decision.nearest else "") == field


def test_deny_of_a_host_name_is_named_in_the_address_check():
    asked, name = policy(f"{ALLOW}\n{NOT_THERE}"), attempt("host.exeat.internal", 8080, HTTP)
    assert asked.check_address(name, ip_address("127.0.0.1")) is Reason.RULE
    decision = asked.decide_name(HOST)
    assert (decision.reason, decision.why) == ("rule", "nobody builds there")


def test_deny_of_a_nonpublic_address_says_why():
    rules = "- {id: a, to: 10.0.0.1, action: allow}\n- {id: d, to: 10.0.0.0/8, action: deny, why: not yours}"
    decision = policy(rules).decide(Attempt(TLS, ip_address("10.0.0.1"), 443))
    assert (decision.reason, decision.rules, decision.why) == ("rule", ("t:d",), "not yours")


ADDRESSES = [
    # rules, name, address: why it may not be dialled
    (ALLOW, "host.exeat.internal", "127.0.0.1", None),
    (ALLOW, "host.exeat.internal", "::1", None),
    (ALLOW, "host.exeat.internal", "::ffff:127.0.0.1", None),
    (ALLOW, "host.exeat.internal", "127.0.0.2", "non_public_address"),
    (ALLOW, "host.exeat.internal", "10.0.0.1", "non_public_address"),
    (ALLOW, "host.exeat.internal", "169.254.169.254", "non_public_address"),
    (ALLOW, "host.exeat.internal", "93.184.216.34", "address_not_listed"),
    (f"{ALLOW}\n- {{id: d, to: 127.0.0.0/8, action: deny}}", "host.exeat.internal", "127.0.0.1", "rule"),
    (f"{ALLOW}\n- {{id: d, to: 127.0.0.0/8, action: deny}}", "host.exeat.internal", "::1", None),
    (WIDE, "www.example", "127.0.0.1", "non_public_address"),
    (WIDE, "www.example", "::1", "non_public_address"),
    (WIDE, "host.exeat.internal.example", "127.0.0.1", "non_public_address"),
]


@pytest.mark.parametrize(("rules", "name", "address", "reason"), ADDRESSES)
def test_only_the_host_name_resolves_to_the_host(rules, name, address, reason):
    asked = policy(rules)
    target = HostName.parse(name)
    for path in (None, "/"):
        request = None if path is None else Request("GET", path)
        assert asked.check_address(Attempt(HTTP, target, 8080, request), ip_address(address)) == reason


@pytest.mark.parametrize(
    "rule",
    [
        "to: 127.0.0.1", "to: 127.0.0.0/8", "to: 127.8.9.10", "to: '::1'", "to: 0x7f000001",
        "to: x.example, resolves_to: 127.0.0.1", "to: x.example, resolves_to: [10.0.0.0/8, 127.0.0.0/16]",
        "to: '*', resolves_to: '::1'", "to: localhost", "to: LocalHost.", "to: '*.localhost'", "to: '**.localhost'",
        "to: [x.example, web.localhost]", "to: localhost, ports: 8080/http, resolves_to: 10.0.0.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("action", ["allow", "flag"])
def test_no_rule_allows_the_loopback_by_address(rule, action):
    with pytest.raises(RuleFileError, match=r"is loopback, and no rule can .* `to: host\.exeat\.internal`"):
        policy(f"- {{id: a, {rule}, action: {action}}}")


@pytest.mark.parametrize("name", ["localhost.example", "xlocalhost", "localhost.internal"])
def test_similar_names_are_ordinary_names(name):
    assert policy(f"- {{id: a, to: {name}, action: allow}}").rules
    assert policy("- {id: a, to: localhost, action: deny}").rules  # holding it back may be said as with its address


WRONG = {
    "to: host.exeat.internal": "list the `ports`",
    "to: [x.example, HOST.exeat.internal.]": "list the `ports`",
    "to: host.exeat.internal, ports: 8080/http, resolves_to: 10.0.0.1": "remove `resolves_to`",
    "to: exeat.internal, ports: 80": "only `host.exeat.internal`",
    "to: sub.host.exeat.internal, ports: 80": "only `host.exeat.internal`",
    "to: '*.exeat.internal', ports: 80": "only `host.exeat.internal`",
    "to: '**.exeat.internal', ports: 80": "only `host.exeat.internal`",
    "to: '*.host.exeat.internal', ports: 80": "only `host.exeat.internal`",
}


@pytest.mark.parametrize("rule", WRONG)
def test_misused_host_name_is_an_error(rule):
    with pytest.raises(RuleFileError) as caught:
        policy(f"- {{id: a, {rule}, action: allow}}")
    assert WRONG[rule] in str(caught.value)
    policy(f"- {{id: a, {rule}, action: deny}}")  # what holds back may say it in any way


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("exeat.internal", True), ("host.exeat.internal", True), ("a.b.exeat.internal", True), ("internal", False),
        ("xexeat.internal", False), ("exeat.internal.example", False), ("host.exeat-internal.example", False),
    ],
)  # fmt: skip
def test_names_of_the_zone_are_recognised(name, own):
    assert is_exeat_name(name) is own
    assert is_exeat_name(HOST)


def test_host_services_bypass_the_upstream_proxy():
    asked = policy(
        f"{ALLOW}\n- {{id: x, to: x.example, action: allow}}", "settings: {upstream: 'http://proxy.example:3128'}"
    )
    assert asked.upstream_for(attempt("x.example", 443, TLS)) is not None
    for name in ("host.exeat.internal", "exeat.internal"):
        assert asked.upstream_for(attempt(name, 8080, HTTP)) is None
