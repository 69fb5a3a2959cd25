"""Audit mode allows TCP to public addresses that no rule or a default rule decides, as `would_block`. Nothing else."""

import pytest

from proxy.telemetry.journal.query import read_events
from proxy.telemetry.replay.learner import Learner, without_secrets
from proxy.telemetry.replay.replay import Effect, Replay
from rules.learning.writing import write_rule_file
from rules.loading.load import load
from tests.lab import Name

from .attempt_network import UNREACHABLE, dns_names
from .lab_runner import PYTHON, only_as_ordinary_user, summary
from .task.audited import OPEN_ADDRESS
from .task.wire import EVIL

pytestmark = only_as_ordinary_user

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
ADDRESSES = {zone: f"93.184.216.{at}" for at, zone in enumerate(("unknown", "waiting", "reading", "allowed"), 240)}
AUDIT_NAMES = {
    **{f"*.{zone}.example": Name.at(address) for zone, address in ADDRESSES.items()},
    "*.reviewed.example": Name.at("93.184.216.245"),
    "*.spliced.example": Name.at("93.184.216.246"),
    "*.hidden.example": Name.at(EVIL),
    "private.inside.example": Name.at("10.0.0.1"),
    "metadata.inside.example": Name.at("169.254.169.254"),
    "turns.rebinding.example": Name.rebinding(("93.184.216.247",), ("127.0.0.1",)),
}
UNREACHED = (*UNREACHABLE, "93.184.216.245", "93.184.216.246")

_WOULD = "would_block"
ALLOWED = {
    "unknown_by_tls": (ADDRESSES["unknown"], [("connection", _WOULD, "no_rule"), ("request", _WOULD, "no_rule")]),
    "unknown_in_the_clear": (ADDRESSES["unknown"], [("connection", _WOULD, "no_rule"), ("request", _WOULD, "no_rule")]),
    "unknown_address": (OPEN_ADDRESS, [("connection", _WOULD, "no_rule"), ("request", _WOULD, "no_rule")]),
    "waiting_by_default": (
        ADDRESSES["waiting"],
        [("connection", _WOULD, "approval_unavailable"), ("request", _WOULD, "approval_unavailable")],
    ),
    "method_nobody_decided": (ADDRESSES["reading"], [("connection", "passed", "rule"), ("request", _WOULD, "no_rule")]),
    "allowed": (ADDRESSES["allowed"], [("connection", "passed", "rule"), ("request", "passed", "rule")]),
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
def audit_run(runner):
    """Return the results of the task, the journal, and the records of both origins."""
    origin = runner.lab.origin
    origin.name({**dns_names(), **AUDIT_NAMES})
    origin.forget()
    runner.lab.loopback.forget()
    done = runner.run("audited", runner.rules(AUDIT_RULES, "audit.yaml"), PYTHON, "-m", "task.audited")
    return done.output, done.journal, origin, runner.lab.loopback


def _decisions(audit_run, trial):
    return [summary(event) for event in audit_run[1].decisions_during(trial) if event["kind"] != "dns.decided"]


@pytest.mark.parametrize(("trial", "to", "expected"), [(trial, *rest) for trial, rest in ALLOWED.items()])
def test_undecided_attempt_passes_as_would_block(audit_run, trial, to, expected):
    assert _decisions(audit_run, trial) == expected
    assert audit_run[0][trial]["echo"]["destination"][0] == to


def test_server_that_speaks_first_is_reached(audit_run):
    assert _decisions(audit_run, "unknown_server_first") == [("connection", _WOULD, "no_rule")]
    assert audit_run[0]["unknown_server_first"] == f"220 lab {ADDRESSES['unknown']} 22\r\n"


@pytest.mark.parametrize(("trial", "reason"), AT_THE_CONNECTION.items())
def test_denied_and_ambiguous_connections_stay_blocked(audit_run, trial, reason):
    assert _decisions(audit_run, trial) == [("connection", "blocked", reason)]
    assert "echo" not in audit_run[0][trial]


@pytest.mark.parametrize(("trial", "reason"), AT_THE_REQUEST.items())
def test_ambiguous_and_denied_requests_stay_blocked(audit_run, trial, reason):
    first = ("connection", _WOULD, "no_rule")
    assert _decisions(audit_run, trial) == [first, ("request", "blocked", reason)]
    assert audit_run[0][trial].get("reason") == reason


def test_request_under_an_ask_rule_is_blocked_without_a_registry(audit_run):
    recorded = [("connection", "passed", "rule"), ("request", "blocked", "approval_unavailable")]
    assert _decisions(audit_run, "asked_about") == recorded
    assert audit_run[0]["asked_about"].get("reason") == "approval_unavailable"


@pytest.mark.parametrize("trial", ["udp", "quic"])
def test_udp_and_quic_are_refused(audit_run, trial):
    assert audit_run[0][trial] == "ECONNREFUSED"
    recorded = audit_run[1].of(kind="connection.decided", destination__name=f"{trial}.unknown.example")
    assert [summary(event) for event in recorded] == [
        ("connection", "blocked", trial)
    ]  # recorded when the kernel log is read


def test_rebinding_name_is_denied_at_loopback(audit_run):
    good, bad = audit_run[0]["unknown_that_rebinds_to_loopback"]
    assert (good["echo"]["destination"][0], bad["reason"]) == ("93.184.216.247", "non_public_address")


def test_lookups_are_not_forwarded(audit_run):
    assert audit_run[0]["text_record"]["answers"] == 0
    assert [summary(event) for event in audit_run[1].decisions_during("text_record")] == [
        ("dns", "blocked", "dns_type")
    ]
    assert audit_run[0]["lookup_of_data"]["address"].startswith("198.18.")
    assert [summary(event) for event in audit_run[1].decisions_during("lookup_of_data")] == [("dns", _WOULD, "no_rule")]
    assert [queried for queried, *_ in audit_run[2].queries() if "c2vjcmv0" in queried.lower()] == []


def test_no_packet_reaches_denied_addresses_or_loopback(audit_run):
    assert audit_run[2].packets_to(*UNREACHED) == 0
    assert [one for one in audit_run[3].packets() if one.port in (22, 80, 443)] == []
    assert [one for one in audit_run[2].packets() if one.protocol == 17 and one.destination != "203.0.113.53"] == []


def test_every_decision_event_has_mode_audit(audit_run):
    assert {event["mode"] for event in audit_run[1].decisions()} == {"audit"}
    assert {event["verdict"] for event in audit_run[1].decisions() if event["outcome"] == _WOULD} == {"deny"}


def test_would_block_attempts_have_one_closing_event(audit_run):
    journal = audit_run[1]
    for decided, ended in (("connection.decided", "connection.closed"), ("request.decided", "request.completed")):
        out = sorted(e["id"] for e in journal.of(kind=decided) if e["outcome"] in {"passed", _WOULD})
        assert sorted(e["cause"] for e in journal.of(kind=ended)) == out
    assert journal.of(kind="gate.error") == []


def test_learned_rules_allow_what_passed_and_no_more(runner, audit_run):
    """Replayed over the same journal, the learned rules break only attempts that the learner left out and reported."""
    entries = [entry.event for entry in read_events(runner.journal("audited"))]
    learner = Learner()
    for event in entries:
        learner.take(event)
    drafted = learner.result()
    path = runner.rules(write_rule_file(drafted, (), "learned", without_secrets), "learned.yaml")
    policy = load([path])
    replay = Replay(policy, None)
    for event in entries:
        replay.take(event)
    broken = {group: tally.counts.total() for group, tally in replay.groups.items() if group.effect is Effect.BREAKS}
    assert sum(broken.values()) <= sum(each.times for each in drafted.left_out)
    recorded = " ".join(each.what for each in drafted.left_out)
    assert all(group.place.rpartition("/")[2].rpartition(" ")[2] in recorded for group in broken), broken
    assert not [group for group in replay.groups if group.effect is Effect.OPENS and "lookup" not in group.place]
    learned = {str(draft.place.target) for draft in drafted.drafts}
    assert {"tls.unknown.example", "first.unknown.example", OPEN_ADDRESS} <= learned
    assert not learned & {EVIL, "10.0.0.1", "169.254.169.254", "private.inside.example", "udp.unknown.example"}
    assert not [name for name in learned if name.endswith("evil.example")]
