"""Audit mode lets out what no rule or a default rule decided, over TCP, to public addresses, and says so. Nothing else."""

import pytest

from proxy.telemetry.journal.query import read_events
from proxy.telemetry.replay.learner import Learner, without_secrets
from proxy.telemetry.replay.replay import Effect, Replay
from rules.learning.writing import write_rule_file
from rules.loading.load import load
from tests.lab import Name

from .attempt_network import NEVER, names
from .lab_runner import PYTHON, by_the_gate, shape
from .task.audited import OPEN_ADDRESS
from .task.wire import EVIL

pytestmark = by_the_gate

AUDIT_RULES = """
version: 1
name: audited
settings: {mode: audit}
rules:
  - {id: allowed, to: "*.allowed.example", action: allow}
  - {id: spliced, to: "*.spliced.example", tls: splice, action: allow}
  - {id: reading, to: "*.reading.example", http: {methods: [GET], paths: ["/echo"]}, action: allow}
  - {id: reviewed, to: "*.reviewed.example", action: ask}
  - {id: evil, to: "**.evil.example", action: deny}
  - {id: evil-address, to: "93.184.219.66", action: deny}
  - {id: waiting, to: "*.waiting.example", default: true, action: ask}
  - {id: marks, to: "*.mark.example", ports: [1/tcp], action: allow}
"""
AT = {zone: f"93.184.216.{at}" for at, zone in enumerate(("unknown", "waiting", "reading", "allowed"), 240)}
PLACES = {
    **{f"*.{zone}.example": Name.at(address) for zone, address in AT.items()},
    "*.reviewed.example": Name.at("93.184.216.245"),
    "*.spliced.example": Name.at("93.184.216.246"),
    "*.hidden.example": Name.at(EVIL),
    "private.inside.example": Name.at("10.0.0.1"),
    "metadata.inside.example": Name.at("169.254.169.254"),
    "turns.rebinding.example": Name.rebinding(("93.184.216.247",), ("127.0.0.1",)),
}
NOWHERE = (*NEVER, "93.184.216.245", "93.184.216.246")

_WOULD = "would_block"
LET_OUT = {
    "unknown_by_tls": (AT["unknown"], [("connection", _WOULD, "no_rule"), ("request", _WOULD, "no_rule")]),
    "unknown_in_the_clear": (AT["unknown"], [("connection", _WOULD, "no_rule"), ("request", _WOULD, "no_rule")]),
    "unknown_address": (OPEN_ADDRESS, [("connection", _WOULD, "no_rule"), ("request", _WOULD, "no_rule")]),
    "waiting_by_default": (
        AT["waiting"],
        [("connection", _WOULD, "approval_unavailable"), ("request", _WOULD, "approval_unavailable")],
    ),
    "method_nobody_decided": (AT["reading"], [("connection", "passed", "rule"), ("request", _WOULD, "no_rule")]),
    "allowed": (AT["allowed"], [("connection", "passed", "rule"), ("request", "passed", "rule")]),
}
AT_THE_CONNECTION = {
    "denied": "rule",
    "denied_in_the_clear": "rule",
    "denied_server_first": "rule",
    "denied_address": "rule",
    "unknown_at_the_metadata_address": "non_public_address",
    "private_address": "non_public_address",
    "metadata_address": "non_public_address",
    "another_sni": "name_mismatch",
    "another_unknown_sni": "name_mismatch",
    "no_sni": "sni_missing",
    "invalid_sni": "invalid_name",
    "hidden_hello": "ech",
}
AT_THE_REQUEST = {
    "unknown_at_a_denied_address": "rule",
    "unknown_at_a_private_address": "non_public_address",
    "unknown_in_the_clear_at_a_private_address": "non_public_address",
    "another_host": "name_mismatch",
    "another_host_in_the_clear": "name_mismatch",
    "two_hosts": "ambiguous_request",
    "climbing_path": "ambiguous_path",
}


@pytest.fixture(scope="module")
def audited(place):
    """(what the task saw, the journal, what reached the origins)."""
    origin = place.lab.origin
    origin.name({**names(), **PLACES})
    origin.forget()
    place.lab.loopback.forget()
    done = place.run("audited", place.rules(AUDIT_RULES, "audit.yaml"), PYTHON, "-m", "task.audited")
    return done.said, done.journal, origin, place.lab.loopback


def _told(audited, trial):
    return [shape(event) for event in audited[1].during(trial) if event["kind"] != "dns.decided"]


@pytest.mark.parametrize(("trial", "to", "told"), [(trial, *rest) for trial, rest in LET_OUT.items()])
def test_undecided_attempt_passes_as_would_block(audited, trial, to, told):
    assert _told(audited, trial) == told
    assert audited[0][trial]["echo"]["destination"][0] == to


def test_server_that_speaks_first_is_reached(audited):
    assert _told(audited, "unknown_server_first") == [("connection", _WOULD, "no_rule")]
    assert audited[0]["unknown_server_first"] == f"220 lab {AT['unknown']} 22\r\n"


@pytest.mark.parametrize(("trial", "reason"), AT_THE_CONNECTION.items())
def test_denied_and_ambiguous_connections_stay_blocked(audited, trial, reason):
    assert _told(audited, trial) == [("connection", "blocked", reason)]
    assert "echo" not in audited[0][trial]


@pytest.mark.parametrize(("trial", "reason"), AT_THE_REQUEST.items())
def test_ambiguous_and_denied_requests_stay_blocked(audited, trial, reason):
    first = ("connection", _WOULD, "no_rule")
    assert _told(audited, trial) == [first, ("request", "blocked", reason)]
    assert audited[0][trial].get("reason") == reason


def test_request_under_an_ask_rule_is_blocked_without_a_registry(audited):
    told = [("connection", "passed", "rule"), ("request", "blocked", "approval_unavailable")]
    assert _told(audited, "asked_about") == told
    assert audited[0]["asked_about"].get("reason") == "approval_unavailable"


@pytest.mark.parametrize("trial", ["udp", "quic"])
def test_udp_and_quic_are_refused(audited, trial):
    assert audited[0][trial] == "ECONNREFUSED"
    told = audited[1].of(kind="connection.decided", destination__name=f"{trial}.unknown.example")
    assert [shape(event) for event in told] == [("connection", "blocked", trial)]  # when the kernel's log got to it


def test_rebinding_name_is_denied_at_loopback(audited):
    good, bad = audited[0]["unknown_that_rebinds_to_loopback"]
    assert (good["echo"]["destination"][0], bad["reason"]) == ("93.184.216.247", "non_public_address")


def test_lookups_are_not_forwarded(audited):
    assert audited[0]["text_record"]["answers"] == 0
    assert [shape(event) for event in audited[1].during("text_record")] == [("dns", "blocked", "dns_type")]
    assert audited[0]["lookup_of_data"]["address"].startswith("198.18.")
    assert [shape(event) for event in audited[1].during("lookup_of_data")] == [("dns", _WOULD, "no_rule")]
    assert [asked for asked, *_ in audited[2].queries() if "c2vjcmv0" in asked.lower()] == []


def test_no_packet_reaches_denied_addresses_or_loopback(audited):
    assert audited[2].packets_to(*NOWHERE) == 0
    assert [one for one in audited[3].packets() if one.port in (22, 80, 443)] == []
    assert [one for one in audited[2].packets() if one.protocol == 17 and one.destination != "203.0.113.53"] == []


def test_every_decision_event_has_mode_audit(audited):
    assert {event["mode"] for event in audited[1].decisions()} == {"audit"}
    assert {event["verdict"] for event in audited[1].decisions() if event["outcome"] == _WOULD} == {"deny"}


def test_would_block_attempts_have_one_closing_event(audited):
    journal = audited[1]
    for decided, ended in (("connection.decided", "connection.closed"), ("request.decided", "request.completed")):
        out = sorted(e["id"] for e in journal.of(kind=decided) if e["outcome"] in {"passed", _WOULD})
        assert sorted(e["cause"] for e in journal.of(kind=ended)) == out
    assert journal.of(kind="gate.error") == []


def test_learned_rules_allow_what_passed_and_no_more(place, audited):
    """Hostile attempts and all: replayed over the same journal nothing breaks that isn't left out and told."""
    entries = [entry.event for entry in read_events(place.journal("audited"))]
    learner = Learner()
    for event in entries:
        learner.take(event)
    drafted = learner.result()
    path = place.rules(write_rule_file(drafted, (), "learned", without_secrets), "learned.yaml")
    policy = load([path])
    replay = Replay(policy, None)
    for event in entries:
        replay.take(event)
    broken = {group: tally.counts.total() for group, tally in replay.groups.items() if group.effect is Effect.BREAKS}
    assert sum(broken.values()) <= sum(each.times for each in drafted.left_out)
    told = " ".join(each.what for each in drafted.left_out)
    assert all(group.place.rpartition("/")[2].rpartition(" ")[2] in told for group in broken), broken
    assert not [group for group in replay.groups if group.effect is Effect.OPENS and "lookup" not in group.place]
    learned = {str(draft.place.target) for draft in drafted.drafts}
    assert {"tls.unknown.example", "first.unknown.example", OPEN_ADDRESS} <= learned
    assert not learned & {EVIL, "10.0.0.1", "169.254.169.254", "private.inside.example", "udp.unknown.example"}
    assert not [name for name in learned if name.endswith("evil.example")]
