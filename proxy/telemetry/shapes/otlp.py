"""OTLP logs: records as an ExportLogsServiceRequest (opentelemetry-proto 1.x), by the semantic conventions 1.44.

Network, server, HTTP, TLS, DNS and process attributes are theirs, and `security_rule.*` says what decided; what the
conventions have no word for is under `exeat.`. The event's name is its kind, and never holds a value.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from proxy.telemetry.shapes import protobuf
from proxy.telemetry.shapes.record import (
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

_SEVERITIES: Final = (0, 9, 10, 13, 17)  # INFO, INFO2, WARN, ERROR; by ours
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
    by_host: dict[str, list[bytes]] = {}
    for record in records:
        by_host.setdefault(str(record.get("host") or ""), []).append(_log_record(record))
    return b"".join(_resource_logs(host, logs) for host, logs in by_host.items())


def rejected(response: bytes) -> int:
    """Return how many records an ExportLogsServiceResponse says were rejected; 0 for what can't be read as one."""
    partial = _field(response, 1)
    number = _field(partial, 1) if isinstance(partial, bytes) else 0
    return number if isinstance(number, int) else 0


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


def _resource_logs(host: str, logs: list[bytes]) -> bytes:
    resource = {"service.name": "exeat", "service.version": own_version(), **({"host.name": host} if host else {})}
    scope = protobuf.message(1, protobuf.text(1, "exeat.journal"), protobuf.text(2, own_version()))
    return protobuf.message(
        1,
        protobuf.message(1, *_pairs(1, resource)),
        protobuf.message(2, scope, *logs, protobuf.text(3, _SCHEMA)),
        protobuf.text(3, _SCHEMA),
    )


def _log_record(record: Record) -> bytes:
    """Return a field `log_records` of a ScopeLogs: opentelemetry/proto/logs/v1/logs.proto."""
    level, now = severity(record), nanoseconds(record)
    return protobuf.message(
        2,
        protobuf.fixed64(1, now),
        protobuf.whole(2, _SEVERITIES[level]),
        protobuf.text(3, _SEVERITY_TEXTS[level]),
        protobuf.message(5, _value(sentence(record))),
        *_pairs(6, attributes(record)),
        protobuf.fixed64(11, now),
        protobuf.text(12, f"exeat.{record['kind']}"),
    )


def _pairs(field: int, members: Mapping[str, Any]) -> list[bytes]:
    """Return KeyValues: opentelemetry/proto/common/v1/common.proto."""
    return [protobuf.message(field, _key(key), protobuf.message(2, _value(value))) for key, value in members.items()]


@lru_cache(maxsize=256)
def _key(name: str) -> bytes:
    return protobuf.text(1, name)


def _value(value: Any) -> bytes:
    """Return the one member of an AnyValue."""
    if isinstance(value, bool):
        return protobuf.varint(2 << 3) + protobuf.varint(value)
    if isinstance(value, int):
        return protobuf.varint(3 << 3) + protobuf.varint(value)
    if isinstance(value, float):
        return protobuf.double(4, value)
    if isinstance(value, list):
        return protobuf.message(5, *(protobuf.message(1, _value(each)) for each in value))
    return protobuf.message(1, str(value).encode("utf-8", "backslashreplace"))


def _field(body: bytes, wanted: int) -> bytes | int | None:
    """Return the first field with this number that is a varint or has a length; None without one or for nonsense."""
    at_byte = 0
    try:
        while at_byte < len(body):
            tag, at_byte = _read_varint(body, at_byte)
            number, at_byte = _read_varint(body, at_byte)
            if tag & 7 == 2:
                part, at_byte = body[at_byte : at_byte + number], at_byte + number
                if tag >> 3 == wanted:
                    return part
            elif tag & 7 or tag >> 3 == wanted:
                return None if tag & 7 else number
    except IndexError:
        pass
    return None


def _read_varint(body: bytes, start: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = body[start]
        number |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return number, start
        if shift > 63:
            raise IndexError
