"""Records of any content in every format."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind
from proxy.telemetry.exporters.exporter import FORMATS, Item
from proxy.telemetry.exporters.syslog import syslog
from proxy.telemetry.formats.decoded_event import read
from proxy.telemetry.formats.otlp import attributes, logs_request
from proxy.telemetry.schema import event_schema
from tests.proxy.telemetry.formats.sample_records import harmful
from tests.support.telemetry_lab import full_event

FULL = {kind: json.loads(encode(full_event(kind))) for kind in Kind}
FIELDS = sorted(event_schema()["properties"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "name", "port", "up", "x"]), inner)
    ),
    max_leaves=4,
)


@given(st.sampled_from(Kind), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
@settings(max_examples=60, deadline=None)
def test_every_format_takes_any_value_in_any_field(kind, change):
    line = json.dumps({**FULL[kind], **change}).encode() + b"\n"
    try:
        found = read(line)
    except ValueError:
        assert {"time", "id", "kind"} & change.keys()
        return
    for shape in FORMATS.values():
        body = shape(Item(line, found))
        assert harmful(body) == []
        assert syslog(found, body).isascii()
    assert logs_request([found])


KEPT = [
    ({"reason": "of_a_later_version"}, "reason", "of_a_later_version"),
    ({"kind": "later.kind"}, "kind", "later.kind"),
    ({"later": [1, {"x": None}]}, "later", [1, {"x": None}]),
    ({"rules": ["a:b", 7, None]}, "rules", ["a:b"]),
    ({"rules": "a:b"}, "rules", None),
    ({"duration": "1"}, "duration", None),
    ({"duration": -1}, "duration", None),
    ({"bytes": {"up": 1}}, "bytes", None),
    ({"bytes": {"up": 1, "down": True}}, "bytes", None),
    ({"task": {"id": "t", "labels": {"a": 1, "b": "2"}}}, "task", {"id": "t", "labels": {"b": "2"}}),
]


@pytest.mark.parametrize(("change", "field", "value"), KEPT)
def test_unknown_enum_values_stay_and_mistyped_values_are_dropped(change, field, value):
    assert read(json.dumps({**FULL[Kind.CONNECTION_DECIDED], **change}).encode()).get(field) == value


@pytest.mark.parametrize(
    "wrong",
    [{"time": "now"}, {"time": 7}, {"id": None}, {"id": ""}, {"kind": ["tampering.detected"]}, {"time": "9" * 30}],
)
def test_record_without_time_id_or_kind_is_refused(wrong):
    with pytest.raises(ValueError):
        read(json.dumps({**FULL[Kind.TAMPERING_DETECTED], **wrong}).encode())


def test_names_chosen_by_a_task_become_no_field_names():
    """Each new name is a column at many receivers, which refuse all events when they run out of columns."""
    line = {**FULL[Kind.AGENT_SAID], "agent": {"source": "log", "attributes": {"odd.one": "1", "exeat.id": "2"}}}
    found = read(json.dumps(line).encode() + b"\n")
    assert found["agent"]["attributes"] == ["odd.one=1", "exeat.id=2"]
    for name in ("ecs", "ocsf", "cef"):
        assert '"odd.one"' not in FORMATS[name](Item(b"", found))
    assert attributes(found)["exeat.agent.attributes"] == ["odd.one=1", "exeat.id=2"]
    assert not any("odd" in key for key in attributes(found))
