"""ECS 9: an event as a document of the Elastic Common Schema (elastic.co/guide/en/ecs).

The verdict is `event.type` (`allowed` or `denied`). `event.outcome` tells whether the gate worked as intended: a
blocked attempt is a success. Values without an ECS field are under `exeat`.
"""

from typing import Any, Final

from proxy.telemetry.formats import fields
from proxy.telemetry.formats.fields import Record, Shape, at, filled, fixed, words

VERSION: Final = "9.4.0"
_NS_A_SECOND: Final = 1_000_000_000
_CATEGORIES: Final = {
    "connection": ["network"], "request": ["network", "web"], "dns": ["network"], "task": ["process"],
    "rules": ["configuration"], "tampering": ["intrusion_detection"], "secret": ["intrusion_detection"],
    "approval": ["iam"], "flag": ["iam"], "changes": ["file"], "command": ["process"], "syscall": ["process"],
    "anomaly": ["process"], "agent": ["process"], "journal": ["host"], "gate": ["host"],
}  # fmt: skip
_MAPPED: Final = frozenset({"time", "id", "kind", "reason", "host", "bytes", "process", "dns", "http", "started_by"})


def ecs(record: Record) -> dict[str, Any]:
    """Return the event as an ECS document, a JSON object with nested fields."""
    return filled(_SHAPE, record)


def _type(record: Record) -> list[str]:
    """Return the kind's types; for a decision also `allowed` or `denied`."""
    kind = words(record["kind"])
    if not kind.decision:
        return [*kind.ecs]
    denied = record.get("outcome") == "blocked" or record["kind"] == "tampering.detected"
    return [*kind.ecs, "denied" if denied else "allowed"]


def _outcome(record: Record) -> str:
    """Return whether the gate worked as intended, not the verdict."""
    if record["kind"] in {"gate.error", "rules.rejected"}:
        return "failure"
    outcome = record.get("outcome")
    return "unknown" if outcome is None else "failure" if outcome == "failed" else "success"


def _protocol(record: Record) -> str | None:
    protocol = "dns" if record["kind"] == "dns.decided" else record.get("protocol")
    return protocol if protocol in {"tls", "http", "dns"} else None


def _ip_version(record: Record) -> str | None:
    address = fields.address(record)
    return None if address is None else "ipv6" if ":" in address else "ipv4"


def _url(record: Record) -> dict[str, Any]:
    shape: Shape = {"domain": fields.host, "path": "http.path", "scheme": fields.scheme, "port": fields.port}
    return {} if at(record, "http.path") is None else filled(shape, record)


def _body_bytes(direction: str, record: Record) -> int | None:
    found: int | None = at(record, f"bytes.{direction}") if record["kind"] == "request.completed" else None
    return found


def _answers(record: Record) -> list[dict[str, Any]]:
    return [filled({"data": fixed(each), "type": "dns.type"}, record) for each in at(record, "dns.answers") or ()]


def _argv(record: Record) -> list[str]:
    """Return the command of the process that opened the socket; for a task's own events, the task's command."""
    return at(record, "process.argv") or record.get("argv") or []


def _executable(record: Record) -> str | None:
    return at(record, "process.exe") or next(iter(_argv(record)), None)


def _hosts(record: Record) -> list[str]:
    names = (at(record, "destination.name"), at(record, "dns.question"), at(record, "http.host"), record.get("host"))
    return list(dict.fromkeys(filter(None, names)))


def _users(record: Record) -> list[str]:
    people = [*(at(record, "approval.by") or ()), record.get("by"), at(record, "started_by.name")]
    return list(dict.fromkeys(filter(None, people)))


def _unmapped(record: Record) -> dict[str, Any]:
    sandbox_uid = at(record, "process.sandbox_uid")
    unmapped = {key: value for key, value in record.items() if key not in _MAPPED}
    return unmapped if sandbox_uid is None else {**unmapped, "sandbox_uid": sandbox_uid}


_SHAPE: Final[Shape] = {
    "@timestamp": "time",
    "ecs": {"version": fixed(VERSION)},
    "message": fields.sentence,
    "event": {
        "id": "id",
        "kind": lambda record: "alert" if words(record["kind"]).is_alert else "event",
        "category": lambda record: _CATEGORIES.get(record["kind"].partition(".")[0]),
        "type": _type,
        "action": "kind",
        "outcome": _outcome,
        "reason": "reason",
        "severity": lambda record: int(fields.severity(record)),
        "duration": lambda record: fields.scaled_duration(record, _NS_A_SECOND),
        "provider": fixed("exeat"),
        "module": fixed("exeat"),
        "dataset": fixed("exeat.journal"),
    },
    "observer": {
        "vendor": fixed("Exeat"),
        "product": fixed("Exeat"),
        "type": fixed("firewall"),
        "version": lambda _: fields.own_version(),
    },
    "host": {"name": "host"},
    "rule": {
        "id": lambda record: next(iter(record.get("rules") or ()), None),
        "name": lambda record: fields.first_rule(record)[1],
        "ruleset": lambda record: fields.first_rule(record)[0],
        "version": "revision",
    },
    "network": {
        "transport": lambda record: None if record["kind"] == "dns.decided" else fields.transport(record),
        "protocol": _protocol,
        "type": _ip_version,
        "direction": lambda record: "egress" if "destination" in record else None,
        "bytes": fields.total_bytes,
    },
    "source": {"bytes": "bytes.up"},
    "destination": {
        "address": lambda record: at(record, "destination.name") or at(record, "destination.address"),
        "domain": "destination.name",
        "ip": fields.address,
        "port": fields.port,
        "bytes": "bytes.down",
    },
    "tls": {
        "version": "tls.version",
        "version_protocol": lambda record: "tls" if at(record, "tls.version") else None,
        "client": {"server_name": "tls.sni"},
    },
    "url": _url,
    "http": {
        "request": {"method": "http.method", "body": {"bytes": lambda record: _body_bytes("up", record)}},
        "response": {"status_code": "http.status", "body": {"bytes": lambda record: _body_bytes("down", record)}},
    },
    "dns": {"question": {"name": "dns.question", "type": "dns.type"}, "answers": _answers},
    "process": {
        "pid": "process.pid",
        "executable": _executable,
        "name": lambda record: fields.basename(_executable(record)),
        "args": _argv,
        "args_count": lambda record: len(_argv(record)) or None,
        "exit_code": "ending.status",
        "parent": {
            "executable": lambda record: next(iter(at(record, "process.ancestors") or ()), None),
            "pid": lambda record: next(iter(at(record, "process.ancestor_pids") or ()), None),
        },
        "user": {"id": lambda record: fields.text_at(record, "process.uid")},
    },
    "user": {"id": lambda record: fields.text_at(record, "started_by.uid"), "name": "started_by.name"},
    "error": {"message": "fault.detail", "type": "fault.where"},
    "related": {"hosts": _hosts, "ip": lambda record: list(filter(None, [fields.address(record)])), "user": _users},
    "exeat": _unmapped,
}
