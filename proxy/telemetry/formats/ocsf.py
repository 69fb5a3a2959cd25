"""OCSF 1.8: an event as one of its classes, with the profiles `host` and `security_control` (schema.ocsf.io, 1.8.0).

Connections are Network Activity, requests HTTP Activity, lookups DNS Activity, tasks and commands Process Activity,
system calls Kernel Activity; rules, approval requests and the changes of a task are managed entities; the journal's own
events are Event Log Activity (`fields.KINDS`). A kind without a class is a Base Event. Values without an attribute are
in `unmapped.exeat`. Required attributes are always present.
"""

from collections.abc import Callable
from typing import Any, Final

from proxy.telemetry.formats import fields
from proxy.telemetry.formats.fields import (
    DETECTION,
    DNS,
    ENTITY,
    EVENT_LOG,
    HTTP,
    KERNEL,
    LEAK,
    NETWORK,
    PROCESS,
    Class,
    KindWords,
    Record,
    Shape,
    at,
    filled,
    fixed,
    words,
)

VERSION: Final = "1.8.0"
PROFILES: Final = ("host", "security_control")
_MAPPED: Final = frozenset({"time", "id", "kind", "cause", "host", "tls", "bytes"})
_NS_A_MS: Final = 1_000_000
_OTHER: Final = 99
_METHODS: Final = ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT", "TRACE", "PATCH")  # numbered from 1
_ACTION: Final = {"passed": 1, "blocked": 2, "would_block": 3, "failed": 1}
_ACTIONS: Final = {1: "Allowed", 2: "Denied", 3: "Observed"}
_DISPOSITIONS: Final = {1: "Allowed", 2: "Blocked", 8: "Approved", 17: "Logged", 19: "Alert", 27: "Error"}
_PROTOCOL_NUMBERS: Final = {"tcp": 6, "udp": 17}  # IANA protocol numbers
_TITLES: Final = {
    "tampering.detected": "placeholder of a secret misused",
    "secret.detected": "secret in what a task sends",
    "task.tainted": "task read from an untrusted source",
    "anomaly.detected": "task does what tasks of its name usually don't",
}


def ocsf(record: Record) -> dict[str, Any]:
    """Return the event as an OCSF event, a JSON object."""
    kind = words(record["kind"])
    number, name = _activity(record, kind)
    level = fields.severity(record)
    return fields.present({
        "class_uid": kind.ocsf.uid,
        "class_name": kind.ocsf.name,
        "category_uid": kind.ocsf.category,
        "category_name": kind.ocsf.category_name,
        "activity_id": number,
        "activity_name": name,
        "type_uid": kind.ocsf.uid * 100 + number,
        "type_name": f"{kind.ocsf.name}: {name}",
        "severity_id": int(level),
        "severity": level.name.capitalize(),
        "time": fields.nanoseconds(record) // _NS_A_MS,
        "message": fields.sentence(record),
        "metadata": filled(_METADATA, record),
        **_status(record, kind),
        **_control(record, kind),
        **filled(_COMMON, record),
        **filled(_CLASS_SHAPES.get(kind.ocsf, {}), record),
        "unmapped": {"exeat": {key: value for key, value in record.items() if key not in _MAPPED}},
    })  # fmt: skip


def _activity(record: Record, kind: KindWords) -> tuple[int, str]:
    """Return the activity of the event's class: its number and name."""
    outcome = record.get("outcome")
    if record["kind"] == "connection.decided":
        activity = {"blocked": (5, "Refuse"), "failed": (4, "Fail")}.get(str(outcome), (1, "Open"))
    elif kind.ocsf is NETWORK:
        activity = (3, "Reset") if record.get("reason") else (2, "Close")
    elif kind.ocsf is HTTP:
        method = str(at(record, "http.method") or "")
        known = method in _METHODS
        activity = (_METHODS.index(method) + 1, method.capitalize()) if known else (_OTHER, method or "Other")
    elif kind.ocsf is DNS:
        activity = (6, "Traffic") if at(record, "dns.answers") else (1, "Query")
    elif record["kind"] == "rules.loaded":
        activity = (3, "Update") if record.get("previous") else (1, "Create")
    else:
        activity = kind.activity or (_OTHER, record["kind"])
    return activity


def _status(record: Record, kind: KindWords) -> dict[str, Any]:
    """Return whether the attempt succeeded; a finding is new."""
    if kind.is_alert:
        return {"status_id": 1, "status": "New", "status_detail": record.get("reason")}
    is_failure = record.get("outcome") in {"blocked", "failed"} or record["kind"] in {"rules.rejected", "gate.error"}
    return {
        "status_id": 2 if is_failure else 1,
        "status": "Failure" if is_failure else "Success",
        "status_code": record.get("reason"),
        "status_detail": record.get("detail"),
    }


def _control(record: Record, kind: KindWords) -> dict[str, Any]:
    """Return the action of the gate: the profile `security_control`."""
    outcome = record.get("outcome")
    if record["kind"] == "tampering.detected":
        outcome = "blocked"  # nothing of it left
    if outcome not in _ACTION:
        return {}
    action, flagged = _ACTION[outcome], record.get("verdict") == "flag"
    disposition = {"blocked": 2, "would_block": 17, "failed": 27}.get(outcome, 19 if flagged else 1)
    if outcome == "passed" and record.get("reason") == "approval_granted":
        disposition = 8
    return {
        "action_id": action,
        "action": _ACTIONS[action],
        "disposition_id": disposition,
        "disposition": _DISPOSITIONS[disposition],
        "is_alert": flagged or kind.is_alert,
        "firewall_rule": _rule(record),
        "policy": _policy(record),
    }


def _shape_if_present(path: str, shape: Shape) -> Callable[[Record], dict[str, Any]]:
    """Return a part that is present for records with a value at `path`."""
    return lambda record: filled(shape, record) if at(record, path) not in (None, "", []) else {}


def _rule(record: Record) -> dict[str, Any]:
    """Return the rule that decided, as the journal cites it."""
    file, rule_id = fields.first_rule(record)
    shape: Shape = {
        "uid": lambda record: record["rules"][0],
        "name": fixed(rule_id),
        "category": fixed(file),
        "version": "revision",
    }
    return filled(shape, record) if rule_id else {}


def _policy(record: Record) -> dict[str, Any]:
    """Return the compiled rules; in audit mode they are not applied."""
    if not record.get("revision"):
        return {}
    return {"uid": record["revision"], "name": "exeat", "is_applied": record.get("mode") != "audit"}


def _user(record: Record) -> dict[str, Any]:
    """Return the people who answered, or who started the task."""
    people = ", ".join(at(record, "approval.by") or ()) or record.get("by")
    starter = _shape_if_present("started_by.uid", {"name": "started_by.name", "uid": _text("started_by.uid")})
    return {"name": people} if people else starter(record)


def _text(path: str) -> Callable[[Record], str | None]:
    return lambda record: fields.text_at(record, path)


def _words_at(path: str) -> Callable[[Record], str]:
    return lambda record: " ".join(at(record, path) or ())


def _parent(record: Record) -> dict[str, Any]:
    parents, pids = at(record, "process.ancestors"), at(record, "process.ancestor_pids")
    return {"pid": pids[0], "path": parents[0]} if parents and pids else {}


def _process_attributes(record: Record) -> dict[str, Any]:
    """Return the task as a process; for a command, the program that the task wants to start."""
    if record["kind"] != "command.decided":
        return filled(_TASK, record)
    unknown = None if at(record, "process.pid") is not None else at(record, "task.id") or "unknown"
    argv = " ".join(record.get("argv") or ())
    return fields.present({**_PROCESS(record), "uid": unknown, "cmd_line": argv, "sandbox": record.get("sandbox")})


def _endpoint(record: Record) -> dict[str, Any]:
    """Return the destination."""
    found = filled({"hostname": "destination.name", "ip": fields.address, "name": "destination.via"}, record)
    return found | filled({"port": fields.port}, record) if found else {}


def _traffic(record: Record) -> dict[str, Any]:
    """Return the bytes; `out` left the sandbox."""
    shape: Shape = {"bytes_out": "bytes.up", "bytes_in": "bytes.down", "bytes": fields.total_bytes}
    return {} if fields.total_bytes(record) is None else filled(shape, record)


def _answers(record: Record) -> list[dict[str, Any]]:
    answers = [each for each in at(record, "dns.answers") or () if each]
    return [filled({"rdata": fixed(each), "type": "dns.type"}, record) for each in answers]


def _entity(record: Record) -> dict[str, Any]:
    """Return the managed entity: rules, an approval request, or changes of a task."""
    area = record["kind"].partition(".")[0]
    if area == "rules":
        return filled(_RULES, record)
    named = at(record, {"approval": "approval.id", "flag": "cause"}.get(area, "task.id"))
    return fields.present({"type_id": 99, "type": area, "uid": named, "name": f"{area} {named or ''}".strip()})


def _evidence(record: Record) -> list[dict[str, Any]]:
    shape: Shape = {"dst_endpoint": _endpoint, "src_endpoint": _SANDBOX, "process": _PROCESS, "name": fields.sentence}
    return [filled(shape, record)]


_METADATA: Final[Shape] = {
    "version": fixed(VERSION),
    "product": {"name": fixed("Exeat"), "vendor_name": fixed("Exeat"), "version": lambda _: fields.own_version()},
    "profiles": fixed(list(PROFILES)),
    "uid": "id",
    "correlation_uid": "cause",
    "event_code": "kind",
    "log_name": fixed("journal"),
    "original_time": "time",
}
_PROCESS: Final = _shape_if_present("process.pid", {
    "pid": "process.pid",
    "path": "process.exe",
    "name": lambda record: fields.basename(at(record, "process.exe")),
    "cmd_line": _words_at("process.argv"),
    "lineage": "process.ancestors",
    "parent_process": _parent,
    "user": {"uid": _text("process.uid")},
})  # fmt: skip
_TASK: Final[Shape] = {
    "uid": lambda record: at(record, "task.id") or "unknown",
    "name": "task.name",
    "cmd_line": _words_at("argv"),
    "sandbox": "sandbox",
}
_COMMON: Final[Shape] = {
    "device": {
        "type_id": fixed(0),
        "type": fixed("Unknown"),
        "hostname": lambda record: record.get("host") or "unknown",
    },
    "actor": {
        "app_name": lambda record: at(record, "task.name") or "task",
        "app_uid": "task.id",
        "process": _PROCESS,
        "user": _user,
    },
    "duration": lambda record: fields.scaled_duration(record, 1000),
}
_SANDBOX: Final[Shape] = {  # addresses inside a sandbox tell nothing apart
    "uid": "sandbox",
    "name": lambda record: at(record, "task.name") or "sandbox",
    "type_id": fixed(6),
    "type": fixed("Virtual"),
}
_CONNECTION: Final[Shape] = {
    "direction_id": fixed(2),
    "direction": fixed("Outbound"),
    "protocol_name": fields.transport,
    "protocol_num": lambda record: _PROTOCOL_NUMBERS.get(fields.transport(record) or ""),
    "uid": lambda record: record.get("cause") if record["kind"] == "connection.closed" else record["id"],
}
_URL: Final[Shape] = {  # the recorded part: never the query
    "hostname": fields.host,
    "path": "http.path",
    "port": fields.port,
    "scheme": fields.scheme,
}
_ENDPOINTS: Final[Shape] = {"src_endpoint": _SANDBOX, "dst_endpoint": _endpoint}
_TRAFFIC_AND_TLS: Final[Shape] = {
    "traffic": _traffic,
    "tls": lambda record: filled(_TLS, record) if "tls" in record else {},
    "ja4_fingerprint_list": lambda record: [filled(_JA4, record)] if at(record, "tls.ja4") else [],
}
_TLS: Final[Shape] = {"version": lambda record: at(record, "tls.version") or "unknown", "sni": "tls.sni"}
_JA4: Final[Shape] = {"type_id": fixed(1), "type": fixed("JA4"), "value": "tls.ja4"}
_RULES: Final[Shape] = {
    "type_id": fixed(5),
    "type": fixed("Policy"),
    "name": fixed("exeat"),
    "uid": "revision",
    "policy": lambda record: fields.present({
        **_policy(record), "name": "exeat", "desc": ", ".join(record.get("sources") or ()),
    }),
}  # fmt: skip
_FINDING: Final[Shape] = {
    "uid": "id",
    "title": lambda record: _TITLES.get(record["kind"], record["kind"]),
    "desc": "detail",
    "types": lambda record: [record["kind"]],
    "data_sources": fixed(["exeat"]),
    "related_events": lambda record: [{"uid": record["cause"], "type": "cause"}] if record.get("cause") else [],
}
_CLASS_SHAPES: Final[dict[Class, Shape]] = {  # attributes that only one class has
    NETWORK: {**_ENDPOINTS, "connection_info": _CONNECTION, **_TRAFFIC_AND_TLS},
    HTTP: {
        **_ENDPOINTS,
        "connection_info": _CONNECTION,
        **_TRAFFIC_AND_TLS,
        "http_request": {
            "uid": "id",
            # A method that OCSF doesn't know has its name in `activity_name`
            "http_method": lambda record: method if (method := at(record, "http.method")) in _METHODS else None,
            "url": _shape_if_present("http.path", _URL),
        },
        "http_response": {"code": "http.status"},
    },
    DNS: {
        **_ENDPOINTS,
        **_TRAFFIC_AND_TLS,
        "query": {"hostname": lambda record: at(record, "dns.question") or "unknown", "type": "dns.type"},
        "answers": _answers,
    },
    PROCESS: {"process": _process_attributes, "exit_code": "ending.status"},
    KERNEL: {
        "kernel": {
            "name": lambda record: record.get("call") or "unknown",
            "type_id": fixed(2),
            "type": fixed("System Call"),
            "system_call": lambda record: record.get("call") or "unknown",
        }
    },
    ENTITY: {"entity": _entity},
    EVENT_LOG: {
        "log_name": lambda record: at(record, "journal.segment") or "journal",
        "log_provider": fixed("exeat"),
    },
    DETECTION: {"finding_info": _FINDING, "evidences": _evidence},
    LEAK: {"finding_info": _FINDING},
}
