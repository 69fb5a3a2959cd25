"""Connections and their requests: denied only if no request could pass, inspected if a rule looks at requests."""

import pytest

from rules.attempt import Attempt, Protocol
from rules.loading.cases import parse_attempt
from rules.values.addresses import parse_host
from rules.values.names import HostName
from rules.verdicts import Outcome
from tests.rules.rule_texts import decide, policy, told

SPLICE = "- {id: s, to: x.example, tls: splice, action: allow}\n"
INSPECT = "- {id: i, to: x.example, action: allow}\n"
GETS = "- {id: g, to: x.example, http: {methods: [GET], paths: /a/**}, action: allow}\n"
NO_DELETE = "- {id: n, to: x.example, http: {methods: [DELETE]}, action: deny}\n"
FLAG_PUT = "- {id: p, to: x.example, http: {methods: [PUT]}, action: flag}\n"
RAW = "- {id: t, to: x.example, ports: 443/tcp, action: allow}\n"
WEB = "- {id: w, to: x.example, ports: [80, 443], action: allow}\n"

C = "tls x.example:443"
INSPECTED = [
    (INSPECT, C, "allow rule t:i", True),
    (SPLICE, C, "allow rule t:s", False),
    (SPLICE + INSPECT, C, "allow rule t:i,t:s", True),
    (SPLICE + GETS, C, "allow rule t:g,t:s", True),
    (SPLICE + NO_DELETE, C, "allow rule t:s", True),
    (SPLICE + FLAG_PUT, C, "allow rule t:s", True),
    (SPLICE + "- {id: f, to: x.example, tls: splice, action: flag}", C, "flag rule t:f", False),
    (SPLICE + "- {id: f, to: x.example, action: flag}", C, "flag rule t:f", True),
    (SPLICE + "- {id: o, to: other.example, http: {methods: [GET]}, action: deny}", C, "allow rule t:s", False),
    (SPLICE + "- {id: o, to: x.example, ports: 80, http: {methods: [GET]}, action: deny}", C, "allow rule t:s", False),
    (SPLICE + "- {id: dd, to: '*', default: true, action: allow}", C, "allow rule t:s", False),
    (SPLICE + "- {id: dd, to: '*', default: true, http: {methods: [GET]}, action: deny}", C, "allow rule t:s", True),
    (GETS, C, "allow rule t:g", True),
    (WEB, "http x.example:80", "allow rule t:w", True),
    (WEB, "http x.example:443", "deny no_rule", True),
    (NO_DELETE, C, "deny no_rule", True),
    (FLAG_PUT, C, "flag rule t:p", True),
    (FLAG_PUT + GETS, C, "allow rule t:g", True),
    # none could pass
    (GETS + "- {id: d, to: x.example, http: {paths: /a/**}, action: deny}", C, "deny rule t:d", True),
    (GETS + "- {id: d, to: x.example, http: {paths: /**}, action: deny}", C, "deny rule t:d", True),
    (GETS + "- {id: d, to: x.example, http: {methods: [GET, POST]}, action: deny}", C, "deny rule t:d", True),
    (GETS + "- {id: d, to: x.example, http: {paths: [/a, /*/*, /*/*/**]}, action: deny}", C, "deny rule t:d", True),
    (GETS + "- {id: d, to: x.example, http: {methods: [GET]}, action: ask}", C, "ask rule t:d", True),
    ("- {id: r, to: x.example, except: [{http: {paths: /**}}], action: allow}", C, "deny no_rule", True),
    (INSPECT + "- {id: d, to: x.example, action: deny}", C, "deny rule t:d", True),
    # some could
    (GETS + "- {id: d, to: x.example, http: {paths: /a/b/**}, action: deny}", C, "allow rule t:g", True),
    (GETS + "- {id: d, to: x.example, http: {paths: [/a, /a/*]}, action: deny}", C, "allow rule t:g", True),
    (GETS + "- {id: d, to: x.example, http: {methods: [POST], paths: /**}, action: deny}", C, "allow rule t:g", True),
    (INSPECT + "- {id: d, to: x.example, http: {paths: '/*'}, action: deny}", C, "allow rule t:i", True),
    (GETS + "- {id: dd, to: '*', default: true, action: deny}", C, "allow rule t:g", True),
    # a splice of one layer says nothing about requests that another layer sees
    (GETS + "- {id: dd, to: '*', default: true, tls: splice, action: allow}", C, "allow rule t:g", True),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "expected", "inspect"), INSPECTED)
def test_connections_are_decided_by_the_rules(rules, attempt, expected, inspect):
    decision = decide(rules, attempt)
    assert (told(decision), decision.inspect) == (expected, inspect)


def test_connection_to_nonpublic_address_needs_approval_in_audit_mode():
    """Other requests on it would be audited elsewhere; not there, where that is more than the ask."""
    rules = "- {id: q, to: 10.0.0.0/8, ports: 443, http: {paths: [/a%2fb, /c]}, action: ask}"
    asks = {
        attempt: told(decide(rules, attempt, "settings: {mode: audit}"))
        for attempt in ("tls 10.0.0.1:443", "GET https://10.0.0.1/c", "GET https://10.0.0.1/a%2fb")
    }
    assert list(asks.values()) == ["ask rule t:q", "ask approval_unavailable t:q", "deny non_public_address"]


R = "tcp x.example:443"
UNSEEN = [
    # bytes that the gate does not read could be whatever a rule holds back; they are never what a rule lets out
    (RAW, R, "allow rule t:t"),
    (INSPECT, R, "deny no_rule"),
    (SPLICE, R, "deny no_rule"),
    (GETS, R, "deny no_rule"),
    (RAW + NO_DELETE, R, "deny rule t:n"),
    (RAW + "- {id: d, to: x.example, ports: 443/tls, action: deny}", R, "deny rule t:d"),
    (RAW + "- {id: d, to: x.example, ports: 443/http, action: deny}", R, "deny rule t:d"),
    (RAW + "- {id: d, to: x.example, ports: 443/udp, action: deny}", R, "allow rule t:t"),
    (RAW + "- {id: d, to: x.example, ports: 80/http, http: {methods: [DELETE]}, action: deny}", R, "allow rule t:t"),
    (RAW + "- {id: q, to: x.example, http: {paths: /x}, action: ask}", R, "ask approval_unavailable t:q"),
    (RAW + FLAG_PUT, R, "flag rule t:p"),
    (FLAG_PUT, R, "deny no_rule"),
    ("- {id: f, to: x.example, action: flag}", R, "deny no_rule"),
    (RAW + "- {id: f, to: x.example, action: flag}", R, "flag rule t:f"),
    ("- {id: t, to: x.example, ports: 443/tcp, except: [{http: {methods: [DELETE]}}], action: allow}", R, "deny no_rule"),
    ("- {id: t, to: x.example, ports: 443/tcp, except: [{ports: 443/tls}], action: allow}", R, "deny no_rule"),
    (RAW + "- {id: d, to: '*', except: [x.example], action: deny}", R, "allow rule t:t"),
    (RAW + "- {id: d, to: '*', except: [{to: x.example, http: {methods: [GET]}}], action: deny}", R, "deny rule t:d"),
    (RAW + "- {id: d, to: '*', except: [{to: x.example, ports: 443/tls}], action: deny}", R, "deny rule t:d"),
    (RAW + "- {id: d, to: '*', except: [{to: x.example, ports: 443/tcp}], action: deny}", R, "allow rule t:t"),
    # defaults
    ("- {id: t, to: x.example, ports: 443/tcp, default: true, action: allow}\n" + NO_DELETE, R, "deny rule t:n"),
    ("- {id: t, to: x.example, ports: 443/tcp, default: true, action: allow}\n" + FLAG_PUT, R, "flag default_rule t:p"),
    ("- {id: t, to: x.example, ports: 443/tcp, default: true, action: allow}\n" + INSPECT, R, "allow default_rule t:t"),
    (RAW + "- {id: dd, to: '*', default: true, http: {methods: [GET]}, action: deny}", R, "allow rule t:t"),
    ("- {id: t, to: x.example, ports: 443/tcp, default: true, action: allow}\n- {id: dd, to: '*', default: true, http: {methods: [GET]}, action: deny}", R, "deny default_rule t:dd"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "expected"), UNSEEN)
def test_raw_tcp_is_decided_by_the_rules(rules, attempt, expected):
    decision = decide(rules, attempt)
    assert (told(decision), decision.inspect) == (expected, False)


ANY_BYTES = [
    # a rule for raw tcp lets any bytes out, also if somebody happens to read them
    (RAW, "tls x.example:443", "allow rule t:t", False),
    (RAW, "http x.example:443", "allow rule t:t", True),
    (RAW, "DELETE https://x.example/", "allow rule t:t", True),
    (RAW + SPLICE, "tls x.example:443", "allow rule t:s,t:t", False),
    (RAW + INSPECT, "tls x.example:443", "allow rule t:i,t:t", True),
    (RAW + NO_DELETE, "tls x.example:443", "allow rule t:t", True),
    (RAW + NO_DELETE, "GET https://x.example/", "allow rule t:t", True),
    (RAW + NO_DELETE, "DELETE https://x.example/", "deny rule t:n", True),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "expected", "inspect"), ANY_BYTES)
def test_raw_rule_matches_inspected_traffic_too(rules, attempt, expected, inspect):
    decision = decide(rules, attempt)
    assert (told(decision), decision.inspect) == (expected, inspect)


AUDITED = [
    ("", C, True),
    (SPLICE, C, False),
    (GETS, C, True),
    ("", R, False),
    ("", "http x.example:80", True),
    ("- {id: d, to: x.example, action: deny, except: [{http: {methods: [POST]}}]}", C, True),
]


@pytest.mark.parametrize(("rules", "attempt", "inspect"), AUDITED)
def test_audited_connection_is_allowed_and_inspected(rules, attempt, inspect):
    head = "settings: {mode: audit}"
    asked = policy(rules, head) if rules else policy(f"version: 1\n{head}")
    decision = parse_attempt(attempt).decide(asked)
    assert (decision.passes, decision.inspect) == (True, inspect)


def test_audited_connection_with_all_requests_denied_is_blocked():
    rules = "- {id: d, to: x.example, http: {paths: [/, /*, /*/**]}, action: deny}"
    assert not decide(rules, C, "settings: {mode: audit}").passes
    assert decide(rules.replace("/*/**", "/*/a/**"), C, "settings: {mode: audit}").passes


def test_settings_choose_splice_or_inspect():
    spliced = policy(INSPECT, "settings: {tls: splice}")
    assert not parse_attempt(C).decide(spliced).inspect
    audited = policy("version: 1\nsettings: {mode: audit, tls: splice}")
    assert not parse_attempt(C).decide(audited).inspect
    assert parse_attempt("http x.example:80").decide(audited).inspect
    kept = policy("- {id: i, to: x.example, tls: inspect, action: allow}", "settings: {tls: splice}")
    assert parse_attempt(C).decide(kept).inspect


LOOKUPS = [
    (INSPECT, "allow rule t:i"),
    (RAW, "allow rule t:t"),
    (GETS, "allow rule t:g"),
    ("- {id: d, to: y.example, action: allow}", "deny no_rule"),
    ("- {id: d, to: x.example, action: deny}", "deny rule t:d"),
    (INSPECT + "- {id: d, to: x.example, action: deny}", "deny rule t:d"),
    (INSPECT + "- {id: d, to: x.example, ports: 1-65535/tls, action: deny}", "deny rule t:d"),
    ("- {id: r, to: x.example, ports: 1-65535/tcp, action: allow}\n- {id: d, to: x.example, ports: 1-65534/tcp, action: deny}", "allow rule t:r"),
    ("- {id: r, to: x.example, ports: 8000-8010/tls, action: allow}\n- {id: d, to: x.example, ports: [8000-8004/tls, 8006-9000/tls], action: deny}", "allow rule t:r"),
    ("- {id: r, to: x.example, ports: 8000-8010/tls, action: allow}\n- {id: d, to: x.example, ports: [8000-8004/tls, 8005-9000/tls], action: deny}", "deny no_rule"),
    (GETS + "- {id: d, to: x.example, http: {paths: /**}, action: deny}", "deny rule t:d"),
    ("- {id: q, to: x.example, action: ask}", "ask rule t:q"),
    ("- {id: da, to: '*', default: true, action: allow}", "allow default_rule t:da"),
    ("- {id: dd, to: '*', default: true, action: deny}", "deny default_rule t:dd"),
    ("- {id: r, to: 1.2.3.4, action: allow}", "deny no_rule"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "expected"), LOOKUPS)
def test_lookup_is_answered_if_a_connection_could_pass(rules, expected):
    assert told(policy(rules).decide_name(HostName("x.example"))) == expected


def test_audited_lookup_passes_and_says_it_would_be_blocked():
    audited = policy("- {id: d, to: bad.example, action: deny}", "settings: {mode: audit}")
    decision = audited.decide_name(HostName("x.example"))
    assert (decision.outcome, decision.passes) == (Outcome.WOULD_BLOCK, True)
    assert not audited.decide_name(HostName("bad.example")).passes


def test_decision_names_the_protocols():
    asked = policy(
        "- {id: a, to: x.example, ports: [443, 5432/tcp, 8000-8001/http], action: allow}\n"
        "- {id: f, to: x.example, ports: 443/tcp, default: true, action: flag}\n"
        "- {id: d, to: x.example, ports: 22/tcp, action: deny}"
    )
    x = HostName("x.example")
    assert asked.protocols(x, 443) == {Protocol.TLS, Protocol.TCP}
    assert asked.protocols(x, 5432) == {Protocol.TCP}
    assert asked.protocols(x, 8001) == {Protocol.HTTP}
    assert asked.protocols(x, 22) == frozenset()
    assert asked.protocols(HostName("y.example"), 443) == frozenset()
    assert asked.protocols(parse_host("1.2.3.4"), 443) == frozenset()
    every = {Protocol.TCP, Protocol.TLS, Protocol.HTTP}
    assert policy("version: 1\nsettings: {mode: audit}").protocols(x, 22) == every
    one = policy("- {id: dd, to: '*', ports: 22/tcp, default: true, mode: audit, action: deny}")
    assert one.protocols(x, 22) == {Protocol.TCP}
    assert one.protocols(x, 23) == frozenset()


def test_decision_says_whether_requests_are_inspected():
    asked = policy(
        "- {id: a, to: x.example, ports: 1-65535/tcp, action: allow}\n"
        "- {id: d, to: x.example, ports: 8000/http, http: {methods: [PUT]}, action: deny}\n"
        "- {id: e, to: y.example, except: [{http: {paths: /a}}], action: deny}"
    )
    assert asked.looks_at(HostName("x.example"), 8000).requests
    assert not asked.looks_at(HostName("x.example"), 8001).requests
    assert asked.looks_at(HostName("y.example"), 22).requests
    assert not asked.looks_at(HostName("z.example"), 443).requests


NEEDS = [
    ("version: 1", False),
    (SPLICE, False),
    (RAW, False),
    ("- {id: d, to: '*', action: deny}", False),
    (INSPECT, True),
    (WEB, True),
    (SPLICE + NO_DELETE, True),
    ("version: 1\nsettings: {mode: audit}", True),
    ("- {id: dd, to: '*', default: true, mode: audit, action: deny}", True),
    ("- {id: dd, to: '*', default: true, mode: enforce, action: deny}", False),
]


@pytest.mark.parametrize(("rules", "needs"), NEEDS)
def test_inspection_is_needed_only_for_request_rules(rules, needs):
    assert policy(rules).needs.inspection is needs


def test_port_ranges_are_decided_alike():
    asked = policy("- {id: a, to: x.example, ports: 100-200/tcp, action: allow}\n- {id: d, to: x.example, ports: 150-160/tcp, action: deny}")  # fmt: skip
    for port in range(90, 210):
        passes = asked.decide(Attempt(Protocol.TCP, HostName("x.example"), port)).passes
        assert passes == (100 <= port <= 200 and not 150 <= port <= 160), port
