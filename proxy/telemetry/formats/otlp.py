"""OTLP logs: records as an ExportLogsServiceRequest (opentelemetry-proto 1.x), by the semantic conventions 1.44.

Network, server, HTTP, TLS, DNS and process attributes are theirs, and `security_rule.*` says what decided; what the
conventions have no word for is under `exeat.`. The event's name is its kind, and never holds a value.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from proxy.telemetry.formats.record import (
    Record,
    address,
    at,
    first_rule,
    nanoseconds,
    own_version,
    port,
    sentence,
    severity,
)

_SEVERITIES: Final = (  # by ours
    SeverityNumber.SEVERITY_NUMBER_UNSPECIFIED,
    SeverityNumber.SEVERITY_NUMBER_INFO,
    SeverityNumber.SEVERITY_NUMBER_INFO2,
    SeverityNumber.SEVERITY_NUMBER_WARN,
    SeverityNumber.SEVERITY_NUMBER_ERROR,
)
_SEVERITY_TEXTS: Final = ("", "INFO", "INFO2", "WARN", "ERROR")
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
_NAMES: Final = {  # attribute: where in a record its value is
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
    "exeat.id": "id",
    "exeat.cause": "cause",
    "exeat.verdict": "verdict",
    "exeat.outcome": "outcome",
    "exeat.reason": "reason",
    "exeat.mode": "mode",
    "exeat.rules": "rules",
    "exeat.revision": "revision",
    "exeat.task.id": "task.id",
    "exeat.task.name": "task.name",
    "exeat.sandbox": "sandbox",
    "exeat.destination.via": "destination.via",
    "exeat.tls.alpn": "tls.alpn",
    "exeat.tls.ech": "tls.ech",
    "exeat.tls.ja4": "tls.ja4",
    "exeat.http.host": "http.host",
    "exeat.dns.type": "dns.type",
    "exeat.process.uid": "process.uid",
    "exeat.process.ancestors": "process.ancestors",
    "exeat.process.ancestor_pids": "process.ancestor_pids",
    "exeat.bytes.up": "bytes.up",
    "exeat.bytes.down": "bytes.down",
    "exeat.duration": "duration",
}
# Members that `_NAMES` or `attributes` take apart; of all others each leaf is `exeat.` and its path.
_KNOWN: Final = frozenset({*_NAMES.values(), "time", "kind", "host", "protocol", "destination.address",
                           "destination.port"})  # fmt: skip


def logs_request(records: Iterable[Record]) -> bytes:
    """Return an ExportLogsServiceRequest with the records in their order, those of a host together."""
    by_host: dict[str, list[LogRecord]] = {}
    for record in records:
        by_host.setdefault(str(record.get("host") or ""), []).append(_log_record(record))
    groups = [_resource_logs(host, logs) for host, logs in by_host.items()]
    return ExportLogsServiceRequest(resource_logs=groups).SerializeToString()


def rejected(response: bytes) -> int:
    """Return how many records an ExportLogsServiceResponse says were rejected; 0 for what can't be read as one."""
    try:
        return ExportLogsServiceResponse.FromString(response).partial_success.rejected_log_records
    except DecodeError:
        return 0


def attributes(record: Record) -> dict[str, Any]:
    """Return what a record says as attributes, in a closed set of names but for a task's labels."""
    file, rule = first_rule(record)
    protocol = record.get("protocol")
    found: dict[str, Any] = {name: at(record, path) for name, path in _NAMES.items()}
    starter = at(record, "started_by.uid")
    found |= {
        "user.id": None if starter is None else str(starter),
        "server.port": port(record),
        "network.transport": None if protocol is None else "udp" if protocol == "udp" else "tcp",
        "network.protocol.name": protocol if protocol in {"tls", "http"} else None,
        "network.peer.address": address(record),
        "network.peer.port": port(record) if address(record) else None,
        "security_rule.name": rule,
        "security_rule.ruleset.name": file,
        "security_rule.uuid": (record.get("rules") or [None])[0],
        "security_rule.version": record.get("revision") if rule else None,
        "error.type": record.get("reason") if record.get("outcome") == "failed" else at(record, "fault.where"),
    }
    found |= {f"exeat.{path}": value for path, value in _leaves(record) if path not in _KNOWN}
    return {name: value for name, value in found.items() if value is not None}


def _leaves(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def _resource_logs(host: str, logs: list[LogRecord]) -> ResourceLogs:
    named = {"service.name": "exeat", "service.version": own_version(), **({"host.name": host} if host else {})}
    scope = InstrumentationScope(name="exeat.journal", version=own_version())
    return ResourceLogs(
        resource=Resource(attributes=_pairs(named)),
        scope_logs=[ScopeLogs(scope=scope, log_records=logs, schema_url=_SCHEMA)],
        schema_url=_SCHEMA,
    )


def _log_record(record: Record) -> LogRecord:
    level, now = severity(record), nanoseconds(record)
    return LogRecord(
        time_unix_nano=now,
        severity_number=_SEVERITIES[level],
        severity_text=_SEVERITY_TEXTS[level],
        body=_value(sentence(record)),
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
    """Return a text without lone surrogates, which are no UTF-8: spelled out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
