"""OTLP as agents send it, read from JSON and from the protobuf that OpenTelemetry's own library makes of the same."""

import contextlib
import json
import subprocess
import sys
from time import thread_time

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from proxy.info_api import otlp
from proxy.info_api.otlp import MOST_ATTRIBUTES, MOST_RECORDS
from tests.proxy.info_api.samples import CLAUDE, CODEX, SPANS, logs, pairs
from tests.support.processor_time import check, measured_again


def both(said, of=ExportLogsServiceRequest, read=otlp.logs):
    """What is read of one request in either form, which has to be the same."""
    for group in said.get("resourceSpans", ()):
        for scope in group["scopeSpans"]:
            scope["spans"] = [
                {k: v for k, v in span.items() if k not in {"traceId", "spanId"}} for span in scope["spans"]
            ]
    packed = ParseDict(said, of()).SerializeToString()
    first = [sent.decode() for sent in read(json.dumps(said).encode(), as_json=True)]
    second = [sent.decode() for sent in read(packed, as_json=False)]
    assert first == second
    return first


@pytest.mark.parametrize("name", CODEX)
def test_codex_events_are_mapped(name):
    [said] = both(logs(CODEX[name]))
    assert (said.source, said.name, said.service) == ("log", f"codex.{name}", "codex_cli_rs")
    assert (said.conversation, said.at) == ("0199-c0de", 1795000000000000000)
    tool = name.startswith("tool")
    assert (said.tool, said.call) == (("shell", "call_7") if tool else ("", ""))
    assert said.attributes["severity"] == "INFO"


@pytest.mark.parametrize("name", CLAUDE)
def test_claude_code_events_are_mapped(name):
    [said] = both(logs(CLAUDE[name], service="claude-code"))
    assert (said.name, said.service, said.conversation) == (f"claude_code.{name}", "claude-code", "11111111-2222")
    assert said.tool == ("Bash" if name.startswith("tool") else "")
    assert said.attributes["event.sequence"] == "3"


def test_spans_are_mapped():
    [said] = both(SPANS, ExportTraceServiceRequest, otlp.spans)
    assert (said.source, said.name, said.conversation) == ("span", "execute_tool shell", "conv_1")
    assert (said.tool, said.call, said.attributes["duration_ms"]) == ("shell", "call_9", "250")


def test_values_of_every_kind_become_text():
    values = {
        "list": {"arrayValue": {"values": [{"intValue": "-5"}, {"boolValue": True}]}},
        "map": {"kvlistValue": {"values": pairs({"a": "b"})}},
        "number": {"doubleValue": 1.5},
        "text": {"stringValue": "x"},
    }
    [said] = both(logs({"attributes": [{"key": key, "value": each} for key, each in values.items()]}))
    assert said.attributes == {"list": "[-5, true]", "map": '{"a": "b"}', "number": "1.5", "text": "x"}


def test_kept_values_are_bounded():
    many = {f"{'k' * 100}{n}": "v" * 10_000 for n in range(100)}
    [said] = both(logs({"attributes": pairs({f"k{n}": "v" for n in range(100)})}))
    assert len(said.attributes) == MOST_ATTRIBUTES
    [said] = both(logs({"body": {"stringValue": "b" * 9999}, "attributes": pairs(many)}))
    assert {len(key) for key in said.attributes} <= {64, 4}
    assert max(map(len, said.attributes.values())) == 512


def test_deep_values_are_cut():
    value = {"stringValue": "x"}
    for _ in range(20):
        value = {"arrayValue": {"values": [value]}}
    [said] = both(logs({"attributes": [{"key": "deep", "value": value}]}))
    assert said.attributes["deep"] == "[[[[[]]]]]"


ODD = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"7",
    b'{"resourceLogs": 7}',
    b'{"resourceLogs": [7, {"scopeLogs": {}}]}',
    b"{" * 100_000,
    b"\xff",
]


@pytest.mark.parametrize("data", ODD, ids=range(len(ODD)))
def test_unusual_json_is_ignored_or_refused(data):
    with contextlib.suppress(ValueError):
        assert list(otlp.logs(data, as_json=True)) == []


@pytest.mark.parametrize("depth", [900, 5000, 9000, 15_000])
def test_nesting_depth_raises_only_the_documented_error(depth):
    deep = "[" * depth + "]" * depth
    for said in (f'"body": {{"xValue": {deep}}}', f'"timeUnixNano": {deep}', f'"attributes": {deep}'):
        body = f'{{"resourceLogs": [{{"scopeLogs": [{{"logRecords": [{{{said}}}]}}]}}]}}'
        with contextlib.suppress(ValueError):
            [sent] = otlp.logs(body.encode(), as_json=True)
            assert (sent.decode().at, sent.decode().attributes) == (0, {})


@pytest.mark.parametrize(
    "said", [{"resourceLogs": [{}] * 2000}, {"resourceLogs": [{"scopeLogs": [{}] * 2000}]}], ids=["resources", "scopes"]
)
def test_groups_of_a_request_are_bounded(said):
    with pytest.raises(ValueError, match="resources or scopes"):
        list(otlp.logs(json.dumps(said).encode(), as_json=True))


def test_large_resource_is_parsed_once():
    """Read for each of them it takes minutes, and fails by that."""
    value = {"arrayValue": {"values": [{"arrayValue": {"values": [{"stringValue": "x"}] * 32}}] * 5}}
    body = logs(*[{}] * 15_000)
    body["resourceLogs"][0]["resource"]["attributes"] += [{"key": f"k{n}", "value": value} for n in range(31)]
    services = [sent.decode().service for sent in otlp.logs(json.dumps(body).encode(), as_json=True)]
    assert services == ["codex_cli_rs"] * 15_000


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_the_documented_error(data):
    for read in (otlp.logs, otlp.spans):
        for as_json in (True, False):
            with contextlib.suppress(ValueError):
                [sent.decode() for sent in read(data, as_json=as_json)]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (lambda: _field(1, b"") * 1001, "resources or scopes"),
        (lambda: _field(1, _field(2, b"") * 1001), "resources or scopes"),
        (lambda: _field(1, _field(2, _field(2, b"") * (MOST_RECORDS + 1))), "records"),
    ],
    ids=["resources", "scopes", "records"],
)
def test_parts_of_a_protobuf_request_are_bounded(body, what):
    with pytest.raises(ValueError, match=what):
        list(otlp.logs(body(), as_json=False))


def test_unknown_fields_are_skipped():
    later = b"".join(_field(number, b"later") for number in (99, 1000)) + b"\xa0\x06\x07"
    record = _field(5, _field(1, b"x")) + later
    [said] = [
        sent.decode() for sent in otlp.logs(_field(1, _field(2, _field(2, record) + later) + later), as_json=False)
    ]
    assert said.attributes == {"body": "x"}


def test_json_needs_no_protobuf():
    """Who sends none doesn't pay for it: 15 ms and 3 MB."""
    program = "import sys\nfrom proxy.info_api import otlp, telemetry_handler\nlist(otlp.logs(b'{}', as_json=True))\nprint('google.protobuf' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def _varint(number):
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


ROOM = 256 * 1024  # bytes of a request


def _filled(begin, unit, end):
    return begin + unit * ((ROOM - len(begin) - len(end)) // len(unit)) + end


def _field(number, data):
    return _varint(number << 3 | 2) + _varint(len(data)) + data


IN_ONE_RECORD = _filled(
    b'[{"key":"a","value":{"kvlistValue":{"values":[', b'{"key":"a","value":{"intValue":1}},', b"{}]}}}]"
)
COSTLY = {
    "numbers": (True, _filled(b'{"a":[', b"1,", b"1]}")),
    "objects": (True, _filled(b'{"a":[', b'{"a":1},', b"{}]}")),
    "as many values as there may be": (True, b'{"a":[' + b"1," * 19_990 + b"1]}"),
    "records": (True, _filled(b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[', b"{},", b"{}]}]}]}")),
    "attributes": (True, b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"attributes":' + IN_ONE_RECORD[: ROOM // 2] + b"{}]}}}]}]}]}]}"),
    "resources in protobuf": (False, _field(1, b"") * (ROOM // 2)),
    "scopes in protobuf": (False, _field(1, _field(2, b"") * (ROOM // 2))),
    "records in protobuf": (False, _field(1, _field(2, _field(2, b"") * (ROOM // 2)))),
    "attributes in protobuf": (False, _field(1, _field(2, _field(2, _field(6, _field(1, b"a")) * (ROOM // 6))))),
    "values in protobuf": (False, _field(1, _field(2, _field(2, _field(6, _field(2, _field(6, _field(1, b"") * (ROOM // 2)))))))),
    "texts in protobuf": (False, _field(1, _field(2, _field(2, _field(6, _field(1, b"a" * 4000) + _field(2, _field(1, b"b" * 4000))) * 32)))),
    "numbers in protobuf": (False, _field(1, _field(2, _field(2, b"\x08\x01" * (ROOM // 2))))),
    "nothing that is known in protobuf": (False, b"\x08\x01" * (ROOM // 2)),
}  # fmt: skip


@pytest.mark.parametrize(("as_json", "body"), COSTLY.values(), ids=COSTLY)
@measured_again
def test_cost_of_a_record_is_bounded(as_json, body):
    """Between two records the gate's one thread does something else; so the time between them counts (seconds)."""
    longest, before = 0.0, thread_time()
    with contextlib.suppress(ValueError):
        for sent in otlp.logs(body, as_json=as_json):
            sent.decode()
            now = thread_time()
            longest, before = max(longest, now - before), now
    check(max(longest, thread_time() - before))
