"""JSON Schema of events: complete, strict, and printed by `exeat schema --event`."""

import json

import jsonschema
import pytest

from enforcer.cli import main
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Event, Kind
from proxy.telemetry.schema import event_schema
from rules.verdicts import Reason
from tests.support import event_schema as held
from tests.support.telemetry_lab import HOSTILE, full_event

OPEN = jsonschema.Draft7Validator(event_schema())


def full(kind=Kind.CONNECTION_DECIDED):
    return json.loads(encode(full_event(kind)))


@pytest.mark.parametrize("kind", Kind)
def test_full_event_of_each_kind_is_valid_with_any_text(kind):
    for text in HOSTILE.values():
        event = json.loads(encode(full_event(kind, text)))
        assert held.problem(event) == ""
    assert list(OPEN.iter_errors(full(kind))) == []


WRONG = {
    "another kind": {"kind": "connection.guessed"},
    "another reason": {"reason": "because"},
    "a time of a clock without nanoseconds": {"time": "2026-11-21T01:15:37.603Z"},
    "an id that is no UUIDv7": {"id": "1"},
    "a cause that is no id": {"cause": "\x1b[2J"},
    "a number as text": {"bytes": {"up": "1", "down": 2}},
    "half of what was moved": {"bytes": {"up": 1}},
    "a rule that is no text": {"rules": [7]},
    "a negative duration": {"duration": -1},
    "a null": {"detail": None},
    "a label that is no text": {"task": {"labels": {"team": 7}}},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_schema_refuses_malformed_events(change):
    assert OPEN.is_valid(full())
    assert not OPEN.is_valid({**full(), **change})
    assert held.problem({**full(), **change})


@pytest.mark.parametrize("missing", ["verdict", "outcome", "reason", "revision", "mode"])
def test_decision_without_a_required_field_is_invalid(missing):
    event = full()
    del event[missing]
    assert not OPEN.is_valid(event)


def test_unknown_field_is_valid_only_in_the_open_schema():
    event = {**full(), "later": 1}
    assert OPEN.is_valid(event)
    assert "later" in held.problem(event)


def test_schema_has_every_event_field():
    top = set(event_schema()["properties"])
    assert top >= set(Event.__struct_fields__)
    assert set(event_schema()["properties"]["reason"]["enum"]) == set(Reason)


def test_schema_notices_a_wrong_event_of_a_recorder():
    from proxy.sandbox import recorder

    recorder.encode(full_event(Kind.TASK_ENDED)._replace(id="1"))
    assert [said.partition(":")[0] for said in held.heard()] == ["task.ended"]
    assert held.heard() == []


def test_schema_command_prints_the_schema(capsys):
    assert main(["schema", "--event"]) == 0
    assert json.loads(capsys.readouterr().out) == event_schema()
    jsonschema.Draft7Validator.check_schema(event_schema())
