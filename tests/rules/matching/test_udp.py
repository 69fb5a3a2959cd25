"""UDP: what rules can allow, what they never can, and conditions that need inspection."""

import pytest

from rules.attempt import Attempt, Protocol
from rules.values.names import HostName
from rules.verdicts import Outcome, Reason
from tests.rules.rule_texts import decide, policy, told

NTP = "- {id: ntp, to: time.example, ports: 123/udp, action: allow}\n"
VOICE = "- {id: voice, to: ['*.voice.example', 203.0.113.0/24, 9.9.9.9], ports: [3478/udp, 10000-20000/udp], action: flag}\n"
ASK = "- {id: q, to: time.example, ports: 123/udp, action: ask}\n"
ELSEWHERE = "- {id: o, to: other.example, action: allow}\n"
X = "udp time.example:123"

DECIDED = [
    (NTP, X, "allow rule t:ntp"),
    (NTP, "time.example:123", "allow rule t:ntp"),  # what the rules let out there
    (NTP, "udp time.example:124", "deny udp"),
    (NTP, "udp other.example:123", "deny udp"),
    (NTP, "tcp time.example:123", "deny no_rule"),
    (NTP, "tls time.example:123", "deny no_rule"),
    (VOICE, "udp a.voice.example:19999", "flag rule t:voice"),
    (VOICE, "udp 9.9.9.9:3478", "flag rule t:voice"),
    (VOICE, "udp 9.9.9.10:3478", "deny udp"),
    # a rule about anything else lets no UDP out
    ("- {id: r, to: time.example, action: allow}", X, "deny udp"),
    ("- {id: r, to: '*', ports: [443, 80, 1-65535/tcp], action: allow}", X, "deny udp"),
    ("- {id: r, to: time.example, ports: 123/tls, action: allow}", X, "deny udp"),
    # QUIC never leaves, and lookups are the resolver's
    ("- {id: r, to: x.example, action: allow}", "udp x.example:443", "deny quic"),
    ("- {id: r, to: x.example, ports: 442/udp, action: allow}", "udp x.example:443", "deny quic"),
    ("- {id: d, to: x.example, ports: 443/udp, action: deny}", "udp x.example:443", "deny quic"),
    ("- {id: r, to: x.example, ports: 1-65535/tcp, action: allow}", "udp x.example:53", "deny udp"),
    # the strictest wins, and what nobody reads counts against it
    (NTP + ASK, X, "ask approval_unavailable t:q"),
    (NTP + "- {id: d, to: '*', action: deny}", X, "deny rule t:d"),
    (NTP + "- {id: d, to: '*', http: {methods: [POST]}, action: deny}", X, "deny rule t:d"),
    (NTP + "- {id: f, to: '*', http: {methods: [GET]}, action: flag}", X, "allow rule t:ntp"),  # of 443/tls
    (NTP + "- {id: d, to: '*', ports: [443, 80], http: {methods: [POST]}, action: deny}", X, "allow rule t:ntp"),
    (NTP + "- {id: d, to: '*', ports: [443, 80, 1-65535/tcp], action: deny}", X, "allow rule t:ntp"),
    (NTP + "- {id: d, to: time.example, ports: 1-1000/udp, action: deny}", X, "deny rule t:d"),
    (NTP + "- {id: d, to: '*', except: time.example, action: deny}", X, "allow rule t:ntp"),
    (NTP + "- {id: d, to: '*', except: [{ports: 123/udp}], action: deny}", X, "allow rule t:ntp"),
    (NTP + "- {id: d, to: '*', except: [{to: time.example, http: {methods: [GET]}}], action: deny}", X, "deny rule t:d"),
    ("- {id: r, to: '*', except: time.example, ports: 123/udp, action: allow}", X, "deny udp"),
    ("- {id: r, to: '*', except: [{ports: 100-200/udp}], ports: 1-442/tcp, action: allow}", X, "deny udp"),
    ("- {id: r, to: '*', except: [{to: time.example, http: {methods: [PUT]}}], ports: 123/udp, action: allow}", X, "deny udp"),
    # defaults
    (NTP + "- {id: d, to: '*', default: true, action: deny}", X, "allow rule t:ntp"),
    ("- {id: r, to: '*', ports: 123/udp, default: true, action: allow}", X, "allow default_rule t:r"),
    ("- {id: q, to: '*', default: true, action: ask}", X, "ask approval_unavailable t:q"),
    # addresses
    ("- {id: r, to: 10.0.0.0/8, ports: 123/udp, action: allow}", "udp 10.1.2.3:123", "allow rule t:r"),
    ("- {id: r, to: 0.0.0.0/0, ports: 123/udp, action: allow}", "udp 10.1.2.3:123", "deny non_public_address"),
    ("- {id: r, to: 0.0.0.0/0, ports: 123/udp, action: allow}", "udp 169.254.169.254:123", "deny non_public_address"),
    ("- {id: r, to: '*', ports: 123/udp, action: allow}", "udp 1.2.3.4:123", "deny udp"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "expected"), DECIDED)
def test_udp_is_decided_by_the_rules(rules, attempt, expected):
    assert told(decide(rules, attempt)) == expected


AUDITED = [
    (ELSEWHERE, X, Reason.UDP),
    ("- {id: d, to: '*', default: true, action: deny}", X, Reason.DEFAULT_RULE),
    ("- {id: q, to: '*', default: true, mode: audit, action: ask}", X, Reason.APPROVAL_UNAVAILABLE),
    (ELSEWHERE, "udp x.example:443", Reason.QUIC),
]


@pytest.mark.parametrize(("rules", "attempt", "reason"), AUDITED)
def test_audit_mode_allows_no_udp(rules, attempt, reason):
    decision = decide(rules, attempt, "settings: {mode: audit}")
    assert (decision.outcome, decision.passes, decision.reason) == (Outcome.BLOCKED, False, reason)


TIMEOUTS = [
    (NTP, "", 120),
    (NTP, "settings: {idle_timeout: 30s}", 30),
    (NTP, "settings: {idle_timeout: 1h}", 120),
    (NTP.replace("123/udp,", "123/udp, idle_timeout: 10m,"), "", 600),
    (NTP.replace("123/udp,", "123/udp, idle_timeout: 5s,"), "", 5),
    (NTP + NTP.replace("id: ntp", "id: two, idle_timeout: 7s"), "", 7),
]


@pytest.mark.parametrize(("rules", "head", "seconds"), TIMEOUTS)
def test_idle_flow_ends_sooner_than_a_connection(rules, head, seconds):
    assert decide(rules, X, head).idle_timeout == seconds
    assert decide(rules, "tcp time.example:123", head).idle_timeout != 120


def test_denied_flow_names_the_nearest_rule():
    near = decide(NTP, "udp time.example:124").nearest
    assert (near.rule, near.field, near.wanted) == ("t:ntp", "ports", "123/udp")


NEEDED = [
    (ELSEWHERE, False),
    ("- {id: a, to: x.example, ports: [443, 123/tcp], action: allow}", False),
    ("- {id: d, to: x.example, ports: 123/udp, action: deny}", False),
    ("- {id: d, to: '*', default: true, action: ask}", False),
    (NTP, True),
    (VOICE, True),
    (ASK, True),  # whoever asks is told why it waits
]


@pytest.mark.parametrize(("rules", "needed"), NEEDED)
def test_udp_socket_opens_only_for_udp_rules(rules, needed):
    assert policy(rules).needs.udp is needed
    assert policy(rules, "settings: {mode: audit}").needs.udp is needed


def test_name_with_only_udp_rules_is_resolved():
    asked = policy(NTP)
    assert asked.decide_name(HostName("time.example")).passes
    assert not asked.decide_name(HostName("other.example")).passes


CHECKED = [
    (NTP, "93.184.216.34", None),
    (NTP, "10.0.0.1", Reason.NON_PUBLIC_ADDRESS),
    (NTP, "169.254.169.254", Reason.NON_PUBLIC_ADDRESS),
    (NTP.replace("123/udp,", "123/udp, resolves_to: 10.0.0.0/8,"), "10.0.0.1", None),
    (NTP.replace("123/udp,", "123/udp, resolves_to: 10.0.0.0/8,"), "93.184.216.34", Reason.ADDRESS_NOT_LISTED),
    (NTP + "- {id: d, to: 93.184.0.0/16, action: deny}", "93.184.216.34", Reason.RULE),
    (NTP + "- {id: d, to: 93.184.0.0/16, ports: 443, action: deny}", "93.184.216.34", None),
]


@pytest.mark.parametrize(("rules", "address", "reason"), CHECKED)
def test_address_of_a_flow_is_checked(rules, address, reason):
    from ipaddress import ip_address

    assert (
        policy(rules).check_address(Attempt(Protocol.UDP, HostName("time.example"), 123), ip_address(address)) is reason
    )
