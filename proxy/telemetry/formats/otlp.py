"""OTLP logs: records as an ExportLogsServiceRequest (opentelemetry-proto 1.x), by the semantic conventions 1.44.

Network, server, HTTP, TLS, DNS and process attributes follow the conventions; `security_rule.*` is the deciding rule.
Values without a convention are under `exeat.`. The event's name is its kind and never holds a value.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from proxy.telemetry.formats import fields
from proxy.telemetry.formats.fields import Record, Shape, at, values

_SEVERITIES: Final = (  # by our severity
    SeverityNumber.SEVERITY_NUMBER_UNSPECIFIED,
    SeverityNumber.SEVERITY_NUMBER_INFO,
    SeverityNumber.SEVERITY_NUMBER_INFO2,
    SeverityNumber.SEVERITY_NUMBER_WARN,
    SeverityNumber.SEVERITY_NUMBER_ERROR,
)
_SEVERITY_TEXTS: Final = ("", "INFO", "INFO2", "WARN", "ERROR")
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
_EXEAT_PATHS: Final = (  # members without a convention that come first
    "id", "cause", "verdict", "outcome", "reason", "mode", "rules", "revision", "task.id", "task.name", "sandbox",
    "destination.via", "tls.alpn", "tls.ech", "tls.ja4", "http.host", "dns.type", "process.uid", "process.ancestors",
    "process.ancestor_pids", "bytes.up", "bytes.down", "duration",
)  # fmt: skip
_ATTRIBUTES: Final[Shape] = {
    "server.address": "destination.name",
    "http.request.method": "http.method",
    "http.response.status_code": "http.status",
    "url.path": "http.path",
    "tls.client.server_name": "tls.sni",
    "tls.protocol.version": "tls.version",
    "dns.question.name": "dns.question",
    "dns.answers": "dns.answers",
    "process.pid": "process.pid",
    "process.executable.path": "process.exe",
    "process.command_args": "process.argv",
    "process.exit.code": "ending.status",
    "gen_ai.conversation.id": "agent.conversation",
    "gen_ai.tool.name": "agent.tool",
    "gen_ai.tool.call.id": "agent.call",
    "user.name": "started_by.name",
    **{f"exeat.{path}": path for path in _EXEAT_PATHS},
    "user.id": lambda record: fields.text_at(record, "started_by.uid"),
    "server.port": fields.port,
    "network.transport": fields.transport,
    "network.protocol.name": lambda record: {"tls": "tls", "http": "http"}.get(str(record.get("protocol"))),
    "network.peer.address": fields.address,
    "network.peer.port": lambda record: fields.port(record) if fields.address(record) else None,
    "security_rule.name": lambda record: fields.first_rule(record)[1],
    "security_rule.ruleset.name": lambda record: fields.first_rule(record)[0],
    "security_rule.uuid": lambda record: next(iter(record.get("rules") or ()), None),
    "security_rule.version": lambda record: record.get("revision") if fields.first_rule(record)[1] else None,
    "error.type": lambda record: (
        record.get("reason") if record.get("outcome") == "failed" else at(record, "fault.where")
    ),
}
# Members that the table covers; every other leaf becomes `exeat.` and its path.
_MAPPED_PATHS: Final = frozenset({
    *(part for part in _ATTRIBUTES.values() if isinstance(part, str)),
    "time", "kind", "host", "protocol", "destination.address", "destination.port",
})  # fmt: skip


def logs_request(records: Iterable[Record]) -> bytes:
    """Return an ExportLogsServiceRequest with the records in order, grouped by host."""
    by_host: dict[str, list[LogRecord]] = {}
    for record in records:
        by_host.setdefault(str(record.get("host") or ""), []).append(_log_record(record))
    groups = [_resource_logs(host, logs) for host, logs in by_host.items()]
    return ExportLogsServiceRequest(resource_logs=groups).SerializeToString()


def rejected(response: bytes) -> int:
    """Return the number of rejected records in an ExportLogsServiceResponse; 0 for any other response."""
    try:
        return ExportLogsServiceResponse.FromString(response).partial_success.rejected_log_records
    except DecodeError:
        return 0


def attributes(record: Record) -> dict[str, Any]:
    """Return a record as attributes. Their names are a closed set, except for a task's labels."""
    found = dict(values(_ATTRIBUTES, record))
    found |= {f"exeat.{path}": value for path, value in _leaves(record) if path not in _MAPPED_PATHS}
    return {name: value for name, value in found.items() if value is not None}


def _leaves(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _resource_logs(host: str, logs: list[LogRecord]) -> ResourceLogs:
    resource = {
        "service.name": "exeat",
        "service.version": fields.own_version(),
        **({"host.name": host} if host else {}),
    }
    scope = InstrumentationScope(name="exeat.journal", version=fields.own_version())
    return ResourceLogs(
        resource=Resource(attributes=_pairs(resource)),
        scope_logs=[ScopeLogs(scope=scope, log_records=logs, schema_url=_SCHEMA)],
        schema_url=_SCHEMA,
    )


def _log_record(record: Record) -> LogRecord:
    level, now = fields.severity(record), fields.nanoseconds(record)
    return LogRecord(
        time_unix_nano=now,
        severity_number=_SEVERITIES[level],
        severity_text=_SEVERITY_TEXTS[level],
        body=_value(fields.sentence(record)),
        attributes=_pairs(attributes(record)),
        observed_time_unix_nano=now,
        event_name=_text(f"exeat.{record['kind']}"),
    )


def _pairs(members: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=_text(key), value=_value(value)) for key, value in members.items()]


def _value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=map(_value, value)))
    return AnyValue(string_value=_text(str(value)))


def _text(text: str) -> str:
    """Return a text with lone surrogates, which UTF-8 can't encode, escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
