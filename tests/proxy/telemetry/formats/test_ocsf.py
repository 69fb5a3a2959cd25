"""OCSF 1.8: each event is valid by the published schema, with the action of the gate."""

from functools import cache

import jsonschema
import pytest
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from proxy.telemetry.events import Kind
from proxy.telemetry.formats.fields import KINDS
from proxy.telemetry.formats.ocsf import PROFILES, VERSION, ocsf
from tests.proxy.telemetry.formats.sample_records import bare, event, everything, harmful, record, texts, unknown
from tests.support.telemetry_lab import HOSTILE


@cache
def published():
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(version=VERSION))


@cache
def validator(uid):
    name = published().lookup_class_name_from_uid(class_uid=uid)
    return jsonschema.Draft202012Validator(published().get_class_schema(class_name=name, profiles=list(PROFILES)))


def wrong(converted):
    return [f"{error.json_path}: {error.message}" for error in validator(converted["class_uid"]).iter_errors(converted)]


def test_every_event_is_valid_in_its_class():
    for each in everything():
        converted = ocsf(each)
        assert wrong(converted) == [], each["kind"]
        assert converted["type_uid"] == converted["class_uid"] * 100 + converted["activity_id"]
        assert converted["metadata"]["uid"] == each["id"]


def test_published_ocsf_schema_refuses_invalid_events():
    converted = ocsf(record())
    assert wrong({**converted, "activity_id": 55})
    assert wrong({**converted, "firewal_rule": {}})
    assert wrong({key: value for key, value in converted.items() if key != "severity_id"})


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_makes_no_ocsf_event_invalid(name):
    for kind in Kind:
        converted = ocsf(record(kind, HOSTILE[name]))
        assert wrong(converted) == []
        assert [text for text in texts(converted) if harmful(text)] == []


# Results of attempts in OCSF: activity, action, disposition, status, alert.
SAID = {
    "let out": ({}, (1, 1, 1, 1, False)),
    "let out and flagged": ({"verdict": "flag"}, (1, 1, 19, 1, True)),
    "a person allowed it": ({"reason": "approval_granted"}, (1, 1, 8, 1, False)),
    "blocked": ({"verdict": "deny", "outcome": "blocked", "reason": "no_rule"}, (5, 2, 2, 2, False)),
    "audit mode let it out": ({"verdict": "deny", "outcome": "would_block"}, (1, 3, 17, 1, False)),
    "the network failed": ({"outcome": "failed", "reason": "unresolved"}, (4, 1, 27, 2, False)),
}


@pytest.mark.parametrize(("members", "expected"), SAID.values(), ids=SAID)
def test_verdicts_map_to_actions_and_dispositions(members, expected):
    converted = ocsf(event(**members))
    keys = ("activity_id", "action_id", "disposition_id", "status_id", "is_alert")
    assert tuple(converted[key] for key in keys) == expected


ACTIVITIES = [
    ("connection.closed", {"reason": None}, 4001, 2),
    ("connection.closed", {"reason": "limit_exceeded"}, 4001, 3),
    ("request.decided", {"http": {"method": "GET", "path": "/"}}, 4002, 3),
    ("request.decided", {"http": {"method": "PROPFIND", "path": "/"}}, 4002, 99),
    ("request.completed", {"http": {"method": "PATCH", "path": "/", "status": 204}}, 4002, 9),
    ("dns.decided", {"dns": {"question": "a.example", "type": "A"}}, 4003, 1),
    ("dns.decided", {"dns": {"question": "a.example", "type": "A", "answers": ["198.18.0.1"]}}, 4003, 6),
    ("task.started", {}, 1007, 1),
    ("task.ended", {}, 1007, 2),
    ("rules.loaded", {"previous": None}, 3004, 1),
    ("rules.loaded", {}, 3004, 3),
    ("gate.error", {}, 6008, 1),
    ("tampering.detected", {}, 2004, 1),
    ("secret.detected", {}, 2006, 1),
    ("task.limited", {}, 1007, 99),
    ("command.decided", {}, 1007, 1),
    ("syscall.denied", {}, 1003, 4),
    ("changes.discarded", {}, 3004, 4),
    ("approval.asked", {}, 3004, 1),
    ("approval.answered", {}, 3004, 3),
    ("approval.refused", {}, 3004, 99),
    ("task.tainted", {}, 2004, 1),
    ("anomaly.detected", {}, 2004, 1),
    ("journal.sealed", {}, 1008, 5),
    ("journal.key", {}, 1008, 99),
]


@pytest.mark.parametrize(("kind", "more", "uid", "activity"), ACTIVITIES)
def test_each_kind_has_its_ocsf_class_and_activity(kind, more, uid, activity):
    converted = ocsf(record(kind, **more))
    assert (converted["class_uid"], converted["activity_id"]) == (uid, activity)
    assert wrong(converted) == []


def test_connection_fields_are_in_their_ocsf_attributes():
    converted = ocsf(event(
        destination={"name": "www.example.com", "address": "93.184.216.34", "port": 443}, rules=["web:pages"],
        bytes={"up": 3, "down": 5}, duration=0.25,
    ))  # fmt: skip
    assert converted["dst_endpoint"] == {"hostname": "www.example.com", "ip": "93.184.216.34", "port": 443}
    assert converted["traffic"] == {"bytes_out": 3, "bytes_in": 5, "bytes": 8}
    assert converted["duration"] == 250
    assert converted["firewall_rule"]["uid"] == "web:pages"
    assert converted["time"] == 1_795_000_000_123
    assert converted["connection_info"]["direction_id"] == 2


def test_approver_is_the_actor():
    converted = ocsf(
        record("approval.answered", approval={"id": "k3x9abcd", "by": ["ada", "bo"], "answer": "approved"})
    )
    assert converted["actor"]["user"] == {"name": "ada, bo"}
    assert converted["entity"]["uid"] == "k3x9abcd"


def test_every_field_is_in_the_ocsf_event():
    """What has no attribute is in `unmapped`, also of kinds that come later."""
    converted = ocsf(unknown())
    assert converted["class_uid"] == 0
    assert converted["unmapped"]["exeat"]["later"] == {"deep": [1, "x"]}
    assert set(KINDS) == set(Kind)
    assert ocsf(bare("connection.decided"))["src_endpoint"]["name"] == "sandbox"
