"""Reads OTLP logs and traces that a task's programs send, JSON or protobuf, as one kind of value.

Pure, and all of it the task's own claim. The result is bounded: a flat set of few attributes of limited length. JSON
is proto3's, with ids in hexadecimal; protobuf is made into the same, a record at a time (opentelemetry-proto 1.x: logs,
trace, common). The gate's one thread does something else between two records.
"""

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.telemetry.events import Agent
from proxy.wire import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

MOST_VALUES: Final = 20_000  # in JSON: read in one go, in 4 ms; protobuf's C parser reads the longest request in 5 ms
MOST_RECORDS: Final = 20_000  # of a request in protobuf
MOST_GROUPS: Final = 1000  # resources of one request, and scopes
MOST_ATTRIBUTES: Final = 32
DEEPEST: Final = 4  # of values in values
LONGEST_NAME: Final = 64  # characters
LONGEST_VALUE: Final = 512
_LONGEST_BYTES: Final = 256
_TOO_MANY: Final = f"it has more than {MOST_GROUPS} resources or scopes"
_BODY: Final = "body"
_CAPITAL: Final = re.compile("[A-Z]")

# Attributes that link an agent's events: Codex, Claude Code, the GenAI semantic conventions.
_CONVERSATION: Final = ("conversation.id", "session.id", "gen_ai.conversation.id", "thread.id", "session_id")
_CALL: Final = ("call_id", "gen_ai.tool.call.id", "tool_use_id", "tool_call_id")
_TOOL: Final = ("tool_name", "gen_ai.tool.name", "tool.name")
_NAME: Final = ("event.name",)
_SERVICE: Final = "service.name"


class OtlpRecord(NamedTuple):
    """One OTLP record, not decoded until `decode`: records over the limit are only counted."""

    read: "Callable[[str, Any], Agent]"
    service: str
    record: Any  # an object of JSON, a message of protobuf

    def decode(self) -> Agent:
        """Return the record's fields. Never raises."""
        return self.read(self.service, self.record)


def logs(body: bytes, *, as_json: bool) -> "Iterator[OtlpRecord]":
    """Read an ExportLogsServiceRequest. Raises ValueError."""
    names = "resourceLogs", "scopeLogs", "logRecords"
    if as_json:
        return _sent(_log, _json_groups(body, *names))
    # 15 ms, once: few tasks send protobuf
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    return _sent(_packed_log, _packed_groups(ExportLogsServiceRequest(), body, *map(_snake, names)))


def spans(body: bytes, *, as_json: bool) -> "Iterator[OtlpRecord]":
    """Read an ExportTraceServiceRequest. Raises ValueError."""
    names = "resourceSpans", "scopeSpans", "spans"
    if as_json:
        return _sent(_span, _json_groups(body, *names))
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # likewise

    return _sent(_packed_span, _packed_groups(ExportTraceServiceRequest(), body, *map(_snake, names)))


def _sent(
    read: "Callable[[str, Any], Agent]", groups: "Iterator[tuple[dict[str, Any], Iterator[Any]]]"
) -> "Iterator[OtlpRecord]":
    for resource, records in groups:
        # Once for all records of it: a large resource and many small records would otherwise multiply.
        service = _attributes(resource.get("attributes")).get(_SERVICE, "")
        for record in records:
            yield OtlpRecord(read, service, record)


def _log(service: str, record: dict[str, Any]) -> Agent:
    attributes = _attributes(record.get("attributes"))
    if (content := _text(record.get("body"))) is not None:
        attributes.setdefault(_BODY, content)
    if isinstance(severity := record.get("severityText"), str) and severity:
        attributes.setdefault("severity", severity[:LONGEST_VALUE])
    at = _number(record.get("timeUnixNano")) or _number(record.get("observedTimeUnixNano"))
    return _agent("log", record.get("eventName"), at, attributes, service)


def _span(service: str, record: dict[str, Any]) -> Agent:
    attributes = _attributes(record.get("attributes"))
    start, end = _number(record.get("startTimeUnixNano")), _number(record.get("endTimeUnixNano"))
    if end >= start:
        attributes.setdefault("duration_ms", f"{(end - start) / 1e6:g}")
    return _agent("span", record.get("name"), start, attributes, service)


def _agent(source: str, name: object, at: int, attributes: dict[str, str], service: str) -> Agent:
    def first(names: tuple[str, ...]) -> str:
        return next((attributes[each] for each in names if attributes.get(each)), "")

    return Agent(
        source,
        ((name if isinstance(name, str) else "") or first(_NAME))[:LONGEST_VALUE],
        service,
        conversation=first(_CONVERSATION),
        call=first(_CALL),
        tool=first(_TOOL),
        at=at,
        attributes=attributes,
    )


def _attributes(listed: object) -> dict[str, str]:
    """Return the first MOST_ATTRIBUTES entries of a list of keys and values."""
    attributes: dict[str, str] = {}
    for each in listed[:MOST_ATTRIBUTES] if isinstance(listed, list) else ():
        if isinstance(each, dict) and isinstance(key := each.get("key"), str) and key:
            value = _text(each.get("value"))
            if value is not None:
                attributes[key[:LONGEST_NAME]] = value
    return attributes


def _text(value: object, depth: int = 0) -> str | None:
    """Return an AnyValue as text."""
    if not isinstance(value, dict) or depth > DEEPEST:
        return None
    for name, content in value.items():
        if name == "arrayValue":
            items = content.get("values") if isinstance(content, dict) else None
            texts = [
                _text(each, depth + 1) or "" for each in (items if isinstance(items, list) else [])[:MOST_ATTRIBUTES]
            ]
            return ("[" + ", ".join(texts) + "]")[:LONGEST_VALUE]
        if name == "kvlistValue":
            inner = _attributes(content.get("values") if isinstance(content, dict) else None) if depth < DEEPEST else {}
            return json.dumps(inner)[:LONGEST_VALUE]
        if name.endswith("Value"):
            if isinstance(content, (dict, list)):
                return None  # no value of these kinds is one, and nobody says how deep it is
            return (content if isinstance(content, str) else json.dumps(content))[:LONGEST_VALUE]
    return None


def _number(value: object) -> int:
    """Return a time: JSON has it as text or as a number."""
    text = str(value) if isinstance(value, (str, int)) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0


def _json_groups(body: bytes, *names: str) -> "Iterator[tuple[dict[str, Any], Iterator[dict[str, Any]]]]":
    if body.count(b",") > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values")
    try:
        whole = strict_json.loads(body)
    except (RecursionError, UnicodeDecodeError) as error:
        raise ValueError("it is no JSON that can be read") from error
    outer, middle, inner = names
    scopes = 0
    for number, group in enumerate(_dicts(whole, outer)):
        listed = list(_dicts(group, middle))
        scopes += len(listed)
        if number >= MOST_GROUPS or scopes > MOST_GROUPS:
            raise ValueError(_TOO_MANY)
        resource = group.get("resource")
        records = (record for scope in listed for record in _dicts(scope, inner))
        yield resource if isinstance(resource, dict) else {}, records


def _dicts(of: object, name: str) -> "Iterator[dict[str, Any]]":
    listed = of.get(name) if isinstance(of, dict) else None
    if of is not None and not isinstance(of, dict):
        raise ValueError("it is no request of OTLP")
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict):
            yield each


def _packed_groups(request: Any, body: bytes, *names: str) -> "Iterator[tuple[dict[str, Any], Iterator[Any]]]":
    from google.protobuf.message import DecodeError

    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise ValueError("it is no protobuf that can be read") from error
    outer, middle, inner = names
    groups = getattr(request, outer)
    if len(groups) > MOST_GROUPS or sum(len(getattr(group, middle)) for group in groups) > MOST_GROUPS:
        raise ValueError(_TOO_MANY)
    if sum(len(getattr(scope, inner)) for group in groups for scope in getattr(group, middle)) > MOST_RECORDS:
        raise ValueError(f"it has more than {MOST_RECORDS} records")
    for group in groups:
        records = (record for scope in getattr(group, middle) for record in getattr(scope, inner))
        yield {"attributes": _pairs(group.resource.attributes)}, records


def _packed_log(service: str, record: "LogRecord") -> Agent:
    read = _as_json(record, "timeUnixNano", "observedTimeUnixNano", "severityText", "eventName")
    return _log(service, {**read, "body": _any(record.body) if record.HasField("body") else None})


def _packed_span(service: str, record: "Span") -> Agent:
    return _span(service, _as_json(record, "name", "startTimeUnixNano", "endTimeUnixNano"))


def _as_json(record: "LogRecord | Span", *names: str) -> dict[str, Any]:
    """Return some fields of a message as JSON has them, and its attributes."""
    return {**{name: getattr(record, _snake(name)) for name in names}, "attributes": _pairs(record.attributes)}


def _snake(name: str) -> str:
    """Return what protobuf calls a field that JSON calls so."""
    return _CAPITAL.sub(r"_\g<0>", name).lower()


def _pairs(listed: "Sequence[KeyValue]", depth: int = 0) -> list[dict[str, Any]]:
    return [{"key": each.key, "value": _any(each.value, depth)} for each in listed[:MOST_ATTRIBUTES]]


def _any(value: "AnyValue", depth: int = 0) -> dict[str, Any]:
    """Return an AnyValue as JSON has it: the one field that it has."""
    kind = value.WhichOneof("value")
    if kind is None or depth > DEEPEST:
        return {}
    if kind == "array_value":
        some = [_any(each, depth + 1) for each in value.array_value.values[:MOST_ATTRIBUTES]]
        return {"arrayValue": {"values": some}}
    if kind == "kvlist_value":
        return {"kvlistValue": {"values": _pairs(value.kvlist_value.values, depth + 1)}}
    plain = value.bytes_value[:_LONGEST_BYTES].hex() if kind == "bytes_value" else getattr(value, kind)
    return {f"{kind.removesuffix('_value')}Value": plain}
