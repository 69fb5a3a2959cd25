"""ECS 9: an event as a document of the Elastic Common Schema (elastic.co/guide/en/ecs).

The verdict is `event.type` (`allowed` or `denied`); `event.outcome` says whether the gate did what it set out to:
an attempt that was blocked is a success of the gate. What ECS has no field for stands under `exeat`.
"""

from typing import Any, Final

from proxy.telemetry.formats.record import (
    Record,
    address,
    at,
    first_rule,
    own_version,
    port,
    present,
    sentence,
    severity,
)

VERSION: Final = "9.4.0"
_NS_A_SECOND: Final = 1_000_000_000
_CATEGORIES: Final = {
    "connection": ["network"],
    "request": ["network", "web"],
    "dns": ["network"],
    "task": ["process"],
    "rules": ["configuration"],
    "tamper": ["intrusion_detection"],
    "leak": ["intrusion_detection"],
    "approval": ["iam"],
    "flag": ["iam"],
    "changes": ["file"],
    "command": ["process"],
    "call": ["process"],
    "agent": ["process"],
    "journal": ["host"],
    "gate": ["host"],
}
_TYPES: Final = {
    "connection.decided": ["connection", "start"],
    "connection.closed": ["connection", "end"],
    "request.decided": ["connection", "access"],
    "request.completed": ["access", "end"],
    "dns.decided": ["protocol"],
    "task.started": ["start"],
    "task.ended": ["end"],
    "rules.loaded": ["change"],
    "rules.rejected": ["info"],
    "command.decided": ["start"],
    "call.refused": ["access"],
    "changes.kept": ["creation"],
    "changes.merged": ["change"],
    "changes.discarded": ["deletion"],
    "approval.asked": ["creation", "user"],
    "approval.seen": ["info", "user"],
    "approval.answered": ["change", "user"],
    "approval.used": ["info"],
    "flag.seen": ["info", "user"],
    "approval.expired": ["deletion"],
    "approval.stale": ["deletion"],
    "journal.opened": ["start"],
    "journal.sealed": ["end"],
}
_DENIED: Final = frozenset({"blocked"})
_ALERTS: Final = frozenset({"tamper", "leak.found", "task.tainted", "task.unusual"})
_DECIDED: Final = frozenset({
    "connection.decided", "request.decided", "dns.decided", "command.decided", "call.refused", "leak.found", "tamper",
})  # fmt: skip
_MAPPED: Final = frozenset({"time", "id", "kind", "reason", "host", "bytes", "process", "dns", "http", "started_by"})


def ecs(record: Record) -> dict[str, Any]:
    """Return the event as an ECS document, a JSON object with nested fields."""
    file, rule = first_rule(record)
    seconds, starter = record.get("duration"), at(record, "started_by.uid")
    inside = at(record, "process.sandbox_uid")
    return present({
        "@timestamp": record["time"],
        "ecs": {"version": VERSION},
        "message": sentence(record),
        "event": present({
            "id": record["id"],
            "kind": "alert" if record["kind"] in _ALERTS else "event",
            "category": _CATEGORIES.get(record["kind"].partition(".")[0]),
            "type": _type(record),
            "action": record["kind"],
            "outcome": _outcome(record),
            "reason": record.get("reason"),
            "severity": int(severity(record)),
            "duration": None if seconds is None else round(seconds * _NS_A_SECOND),
            "provider": "exeat",
            "module": "exeat",
            "dataset": "exeat.journal",
        }),
        "observer": {"vendor": "Exeat", "product": "Exeat", "type": "firewall", "version": own_version()},
        "host": present({"name": record.get("host")}),
        "rule": present({"id": (record.get("rules") or [None])[0], "name": rule, "ruleset": file})
        | ({"version": record["revision"]} if record.get("revision") else {}),
        "network": _network(record),
        "source": present({"bytes": at(record, "bytes.up")}),
        "destination": _destination(record),
        "tls": _tls(record),
        "url": _url(record),
        "http": _http(record),
        "dns": _dns(record),
        "process": _process(record),
        "user": present({"id": None if starter is None else str(starter), "name": at(record, "started_by.name")}),
        "error": present({"message": at(record, "fault.detail"), "type": at(record, "fault.where")}),
        "related": _related(record),
        "exeat": {key: value for key, value in record.items() if key not in _MAPPED}
        | ({} if inside is None else {"sandbox_uid": inside}),
    })  # fmt: skip


def _type(record: Record) -> list[str]:
    """Return the kind's types, and of a decision what was decided."""
    types = list(_TYPES.get(record["kind"], ["info"]))
    if record["kind"] not in _DECIDED:
        return types
    denied = record.get("outcome") in _DENIED or record["kind"] == "tamper"
    return [*types, "denied" if denied else "allowed"]


def _outcome(record: Record) -> str:
    """Return whether it went as the gate set out to, not what the verdict was."""
    if record["kind"] in {"gate.error", "rules.rejected"}:
        return "failure"
    outcome = record.get("outcome")
    return "unknown" if outcome is None else "failure" if outcome == "failed" else "success"


def _network(record: Record) -> dict[str, Any]:
    protocol = record.get("protocol")
    up, down = at(record, "bytes.up"), at(record, "bytes.down")
    where = address(record)
    if record["kind"] == "dns.decided":
        protocol = "dns"
    return present({
        "transport": None if protocol in {None, "dns"} else "udp" if protocol == "udp" else "tcp",
        "protocol": protocol if protocol in {"tls", "http", "dns"} else None,
        "type": None if where is None else "ipv6" if ":" in where else "ipv4",
        "direction": "egress" if "destination" in record else None,
        "bytes": None if up is None or down is None else up + down,
    })  # fmt: skip


def _destination(record: Record) -> dict[str, Any]:
    name, where = at(record, "destination.name"), address(record)
    return present({
        "address": name or at(record, "destination.address"),
        "domain": name,
        "ip": where,
        "port": port(record),
        "bytes": at(record, "bytes.down"),
    })  # fmt: skip


def _tls(record: Record) -> dict[str, Any]:
    return present({
        "version": at(record, "tls.version"),
        "version_protocol": "tls" if at(record, "tls.version") else None,
        "client": present({"server_name": at(record, "tls.sni")}),
    })  # fmt: skip


def _url(record: Record) -> dict[str, Any]:
    path = at(record, "http.path")
    if path is None:
        return {}
    scheme = {"tls": "https", "http": "http"}.get(str(record.get("protocol")))
    host = at(record, "http.host") or at(record, "destination.name")
    return present({"domain": host, "path": path, "scheme": scheme, "port": port(record)})


def _http(record: Record) -> dict[str, Any]:
    request = record["kind"] == "request.completed"
    up, down = (at(record, "bytes.up"), at(record, "bytes.down")) if request else (None, None)
    return present({
        "request": present({"method": at(record, "http.method"), "body": present({"bytes": up})}),
        "response": present({"status_code": at(record, "http.status"), "body": present({"bytes": down})}),
    })  # fmt: skip


def _dns(record: Record) -> dict[str, Any]:
    kind = at(record, "dns.type")
    return present({
        "question": present({"name": at(record, "dns.question"), "type": kind}),
        "answers": [present({"data": each, "type": kind}) for each in at(record, "dns.answers") or ()],
    })  # fmt: skip


def _process(record: Record) -> dict[str, Any]:
    """Return who opened the socket; of a task's own events, the task."""
    argv = at(record, "process.argv") or record.get("argv") or []
    exe = at(record, "process.exe") or (argv[0] if argv else None)
    parents, pids = at(record, "process.ancestors") or [], at(record, "process.ancestor_pids") or []
    user = at(record, "process.uid")
    return present({
        "pid": at(record, "process.pid"),
        "executable": exe,
        "name": exe.rpartition("/")[2] if exe else None,
        "args": argv,
        "args_count": len(argv) or None,
        "exit_code": at(record, "ending.status"),
        "parent": present({"executable": parents[0] if parents else None, "pid": pids[0] if pids else None}),
        "user": present({"id": None if user is None else str(user)}),
    })  # fmt: skip


def _related(record: Record) -> dict[str, Any]:
    """Return what a hunt looks for, wherever it stands."""
    names = (at(record, "destination.name"), at(record, "dns.question"), at(record, "http.host"), record.get("host"))
    hosts = dict.fromkeys(name for name in names if name)
    people = [*(at(record, "approval.by") or ()), record.get("by"), at(record, "started_by.name")]
    users = list(dict.fromkeys(filter(None, people)))
    return present({"hosts": list(hosts), "ip": [each for each in (address(record),) if each], "user": users})
