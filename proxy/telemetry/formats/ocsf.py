"""OCSF 1.8: an event as one of its classes, with the profiles `host` and `security_control` (schema.ocsf.io, 1.8.0).

Connections are Network Activity, requests HTTP Activity, lookups DNS Activity, tasks and commands Process Activity,
system calls Kernel Activity; rules, approval requests and the changes of a task are managed entities; what the journal
records of itself is Event Log Activity. A kind that no class fits is a Base Event. What has no attribute stands in
`unmapped.exeat`. The attributes that an object requires are always there.
"""

from typing import Any, Final, NamedTuple

from proxy.telemetry.formats.record import (
    Record,
    address,
    at,
    first_rule,
    nanoseconds,
    own_version,
    port,
    present,
    sentence,
    severity,
)

VERSION: Final = "1.8.0"
PROFILES: Final = ("host", "security_control")
_MAPPED: Final = frozenset({"time", "id", "kind", "cause", "host", "tls", "bytes"})
_NS_A_MS: Final = 1_000_000


class Class(NamedTuple):
    """An OCSF class: its uid, its category's, and their captions."""

    uid: int
    category: int
    name: str
    category_name: str


NETWORK: Final = Class(4001, 4, "Network Activity", "Network Activity")
HTTP: Final = Class(4002, 4, "HTTP Activity", "Network Activity")
DNS: Final = Class(4003, 4, "DNS Activity", "Network Activity")
PROCESS: Final = Class(1007, 1, "Process Activity", "System Activity")
KERNEL: Final = Class(1003, 1, "Kernel Activity", "System Activity")
EVENT_LOG: Final = Class(1008, 1, "Event Log Activity", "System Activity")
ENTITY: Final = Class(3004, 3, "Entity Management", "Identity & Access Management")
ERROR: Final = Class(6008, 6, "Application Error", "Application Activity")
DETECTION: Final = Class(2004, 2, "Detection Finding", "Findings")
LEAK: Final = Class(2006, 2, "Data Security Finding", "Findings")
BASE: Final = Class(0, 0, "Base Event", "Uncategorized")

CLASSES: Final = {
    "connection.decided": NETWORK,
    "connection.closed": NETWORK,
    "request.decided": HTTP,
    "request.completed": HTTP,
    "dns.decided": DNS,
    "task.started": PROCESS,
    "task.ended": PROCESS,
    "task.limited": PROCESS,
    "rules.loaded": ENTITY,
    "rules.rejected": ENTITY,
    "gate.error": ERROR,
    "tamper": DETECTION,
    "leak.found": LEAK,
    "command.decided": PROCESS,
    "call.refused": KERNEL,
    "changes.kept": ENTITY,
    "changes.accepted": ENTITY,
    "changes.merged": ENTITY,
    "changes.discarded": ENTITY,
    "approval.asked": ENTITY,
    "approval.seen": ENTITY,
    "approval.answered": ENTITY,
    "approval.expired": ENTITY,
    "approval.used": ENTITY,
    "approval.refused": ENTITY,
    "approval.stale": ENTITY,
    "flag.seen": ENTITY,
    "task.tainted": DETECTION,
    "task.unusual": DETECTION,
    "agent.said": BASE,  # a claim: what it speaks of is told by whoever saw it
    "journal.opened": EVENT_LOG,
    "journal.checkpoint": EVENT_LOG,
    "journal.sealed": EVENT_LOG,
    "journal.repaired": EVENT_LOG,
    "journal.removed": EVENT_LOG,
    "journal.key": EVENT_LOG,
}
# What happened in the words of its class, where the kind alone says so; of other kinds it is `Other`.
_ACTIVITIES: Final = {
    "task.started": (1, "Launch"),
    "task.ended": (2, "Terminate"),
    "command.decided": (1, "Launch"),
    "call.refused": (4, "Invoke"),
    "changes.kept": (1, "Create"),
    "changes.accepted": (3, "Update"),
    "changes.merged": (3, "Update"),
    "changes.discarded": (4, "Delete"),
    "approval.asked": (1, "Create"),
    "approval.seen": (2, "Read"),
    "approval.answered": (3, "Update"),
    "flag.seen": (2, "Read"),
    "approval.used": (10, "Activate"),
    "approval.expired": (11, "Deactivate"),
    "approval.stale": (11, "Deactivate"),
    "rules.rejected": (3, "Update"),
    "gate.error": (1, "General Error"),
    "tamper": (1, "Create"),
    "leak.found": (1, "Create"),
    "task.tainted": (1, "Create"),
    "task.unusual": (1, "Create"),
    "journal.opened": (6, "Start"),
    "journal.sealed": (5, "Rotate"),
    "journal.removed": (2, "Delete"),
}
_ALERTS: Final = frozenset({"tamper", "leak.found", "task.tainted", "task.unusual"})
_OTHER: Final = 99
_ACTION: Final = {"passed": 1, "blocked": 2, "would_block": 3, "failed": 1}  # Allowed, Denied, Observed
_ACTIONS: Final = {1: "Allowed", 2: "Denied", 3: "Observed"}
_DISPOSITIONS: Final = {1: "Allowed", 2: "Blocked", 8: "Approved", 17: "Logged", 19: "Alert", 27: "Error"}


def ocsf(record: Record) -> dict[str, Any]:
    """Return the event as an OCSF event, a JSON object."""
    kind = CLASSES.get(record["kind"], BASE)
    number, name = _activity(record, kind)
    level = severity(record)
    return present({
        "class_uid": kind.uid,
        "class_name": kind.name,
        "category_uid": kind.category,
        "category_name": kind.category_name,
        "activity_id": number,
        "activity_name": name,
        "type_uid": kind.uid * 100 + number,
        "type_name": f"{kind.name}: {name}",
        "severity_id": int(level),
        "severity": level.name.capitalize(),
        "time": nanoseconds(record) // _NS_A_MS,
        "message": sentence(record),
        "metadata": metadata(record, VERSION, PROFILES),
        **_status(record, kind),
        **_control(record),
        **of_class(record, kind.uid),
        "unmapped": {"exeat": {key: value for key, value in record.items() if key not in _MAPPED}},
    })  # fmt: skip


def _activity(record: Record, kind: Class) -> tuple[int, str]:
    """Return what happened in the words of its class."""
    outcome, said = record.get("outcome"), (0, "Unknown")
    if kind is NETWORK and record["kind"] == "connection.decided":
        said = {"blocked": (5, "Refuse"), "failed": (4, "Fail")}.get(str(outcome), (1, "Open"))
    elif kind is NETWORK:
        said = (3, "Reset") if record.get("reason") else (2, "Close")
    elif kind is HTTP:
        method = str(at(record, "http.method") or "")
        known = method in METHODS
        said = (METHODS.index(method) + 1, method.capitalize()) if known else (_OTHER, method or "Other")
    elif kind is DNS:
        said = (6, "Traffic") if at(record, "dns.answers") else (1, "Query")
    elif record["kind"] == "rules.loaded":
        said = (3, "Update") if record.get("previous") else (1, "Create")
    else:
        said = _ACTIVITIES.get(record["kind"], (_OTHER, record["kind"]))
    return said


def _status(record: Record, kind: Class) -> dict[str, Any]:
    """Return whether what was tried came about; of a finding, that it is new."""
    if kind in {DETECTION, LEAK}:
        return {"status_id": 1, "status": "New", "status_detail": record.get("reason")}
    bad = record.get("outcome") in {"blocked", "failed"} or record["kind"] in {"rules.rejected", "gate.error"}
    return {
        "status_id": 2 if bad else 1,
        "status": "Failure" if bad else "Success",
        "status_code": record.get("reason"),
        "status_detail": record.get("detail"),
    }


def _control(record: Record) -> dict[str, Any]:
    """Return what the gate did about it: the profile `security_control`."""
    outcome = record.get("outcome")
    if record["kind"] == "tamper":
        outcome = "blocked"  # whatever of it was sent never left
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
        "is_alert": flagged or record["kind"] in _ALERTS,
        "firewall_rule": firewall_rule(record),
        "policy": policy(record),
    }


METHODS: Final = ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT", "TRACE", "PATCH")  # as numbered from 1
_OUTBOUND: Final = 2
_SECONDS_TO_MS: Final = 1000
_PROTOCOL_NUMBERS: Final = {"tcp": 6, "udp": 17}  # IANA protocol numbers
_NETWORK_UID, _HTTP, _DNS = 4001, 4002, 4003
_PROCESS, _ENTITY, _DETECTION, _LEAK = 1007, 3004, 2004, 2006
_KERNEL, _EVENT_LOG = 1003, 1008
_TITLES: Final = {
    "tamper": "placeholder of a secret misused",
    "leak.found": "secret in what a task sends",
    "task.tainted": "task read from an untrusted source",
    "task.unusual": "task does what tasks of its name usually don't",
}


def metadata(record: Record, schema: str, profiles: tuple[str, ...]) -> dict[str, Any]:
    """Return who says so, about which event, by which version of the schema."""
    return present({
        "version": schema,
        "product": {"name": "Exeat", "vendor_name": "Exeat", "version": own_version()},
        "profiles": list(profiles),
        "uid": record["id"],
        "correlation_uid": record.get("cause"),
        "event_code": record["kind"],
        "log_name": "journal",
        "original_time": record["time"],
    })  # fmt: skip


def of_class(record: Record, uid: int) -> dict[str, Any]:
    """Return the attributes that one class has and others have not."""
    common: dict[str, Any] = {"device": device(record), "actor": actor(record), "duration": _milliseconds(record)}
    if uid in {_NETWORK_UID, _HTTP, _DNS}:
        common |= _network(record, uid)
    elif uid == _PROCESS:
        started = command(record) if record["kind"] == "command.decided" else task(record)
        common |= {"process": started, "exit_code": at(record, "ending.status")}
    elif uid == _KERNEL:
        call = record.get("call") or "unknown"
        common["kernel"] = {"name": call, "type_id": 2, "type": "System Call", "system_call": call}
    elif uid == _ENTITY:
        common["entity"] = _entity(record)
    elif uid == _EVENT_LOG:
        common |= {"log_name": at(record, "journal.segment") or "journal", "log_provider": "exeat"}
    elif uid in {_DETECTION, _LEAK}:
        common["finding_info"] = _finding(record)
        if uid == _DETECTION:
            common["evidences"] = _evidence(record)
    return common


def _network(record: Record, uid: int) -> dict[str, Any]:
    found = {
        "src_endpoint": sandbox(record),
        "dst_endpoint": endpoint(record),
        "connection_info": connection(record),
        "traffic": traffic(record),
        "tls": tls(record),
        "ja4_fingerprint_list": _ja4(record),
    }
    if uid == _HTTP:
        found |= {"http_request": http_request(record), "http_response": http_response(record)}
    if uid == _DNS:
        del found["connection_info"]
        found |= {"query": query(record), "answers": answers(record)}
    return found


def firewall_rule(record: Record) -> dict[str, Any]:
    """Return the rule that decided, cited as the journal cites it."""
    file, own = first_rule(record)
    if not own:
        return {}
    return present({"uid": record["rules"][0], "name": own, "category": file, "version": record.get("revision")})


def policy(record: Record) -> dict[str, Any]:
    """Return the compiled rules; in audit mode they are not applied."""
    if not record.get("revision"):
        return {}
    return {"uid": record["revision"], "name": "exeat", "is_applied": record.get("mode") != "audit"}


def device(record: Record) -> dict[str, Any]:
    """Return the machine that the sandbox is on."""
    return {"type_id": 0, "type": "Unknown", "hostname": record.get("host") or "unknown"}


def actor(record: Record) -> dict[str, Any]:
    """Return who did it: the process, where it is known, on behalf of the task; or people."""
    people = ", ".join(at(record, "approval.by") or ()) or record.get("by")
    uid = at(record, "started_by.uid")
    starter = {} if uid is None else present({"name": at(record, "started_by.name"), "uid": str(uid)})
    return present({
        "app_name": at(record, "task.name") or "task",
        "app_uid": at(record, "task.id"),
        "process": process(record),
        "user": {"name": people} if people else starter,
    })  # fmt: skip


def process(record: Record) -> dict[str, Any]:
    """Return the process that opened the socket."""
    pid, exe = at(record, "process.pid"), at(record, "process.exe")
    if pid is None:
        return {}
    uid = at(record, "process.uid")
    parents, pids = at(record, "process.ancestors"), at(record, "process.ancestor_pids")
    return present({
        "pid": pid,
        "path": exe,
        "name": exe.rpartition("/")[2] if exe else None,
        "cmd_line": " ".join(at(record, "process.argv") or ()),
        "lineage": parents,
        "parent_process": present({"pid": pids[0], "path": parents[0]}) if parents and pids else None,
        "user": None if uid is None else {"uid": str(uid)},
    })  # fmt: skip


def task(record: Record) -> dict[str, Any]:
    """Return the task as the process that it is."""
    return present({
        "uid": at(record, "task.id") or "unknown",
        "name": at(record, "task.name"),
        "cmd_line": " ".join(record.get("argv") or ()),
        "sandbox": record.get("sandbox"),
    })  # fmt: skip


def command(record: Record) -> dict[str, Any]:
    """Return the program that a task wants to start, as the process that asks for it."""
    words = record.get("argv") or ()
    return present({
        **process(record),
        "uid": None if at(record, "process.pid") is not None else at(record, "task.id") or "unknown",
        "cmd_line": " ".join(words),
        "sandbox": record.get("sandbox"),
    })  # fmt: skip


def sandbox(record: Record) -> dict[str, Any]:
    """Return where it came from: every address in there means the same."""
    name = at(record, "task.name") or "sandbox"
    return present({"uid": record.get("sandbox"), "name": name, "type_id": 6, "type": "Virtual"})


def endpoint(record: Record) -> dict[str, Any]:
    """Return where it wanted to go."""
    found = present({
        "hostname": at(record, "destination.name"),
        "ip": address(record),
        "name": at(record, "destination.via"),
    })  # fmt: skip
    return present({**found, "port": port(record)}) if found else {}


def connection(record: Record) -> dict[str, Any]:
    """Return how: always outbound."""
    transport = "udp" if record.get("protocol") == "udp" else "tcp" if record.get("protocol") else None
    return present({
        "direction_id": _OUTBOUND,
        "direction": "Outbound",
        "protocol_name": transport,
        "protocol_num": _PROTOCOL_NUMBERS.get(transport or ""),
        "uid": record.get("cause") if record["kind"] == "connection.closed" else record["id"],
    })  # fmt: skip


def traffic(record: Record) -> dict[str, Any]:
    """Return how much: out is what left the sandbox."""
    up, down = at(record, "bytes.up"), at(record, "bytes.down")
    return {} if up is None or down is None else {"bytes_out": up, "bytes_in": down, "bytes": up + down}


def tls(record: Record) -> dict[str, Any]:
    """Return what the ClientHello said."""
    if "tls" not in record:
        return {}
    return present({"version": at(record, "tls.version") or "unknown", "sni": at(record, "tls.sni")})


def _ja4(record: Record) -> list[dict[str, Any]]:
    taken = at(record, "tls.ja4")
    return [{"type_id": 1, "type": "JA4", "value": taken}] if taken else []


def url(record: Record) -> dict[str, Any]:
    """Return the URL as far as it is kept: never its query."""
    host = at(record, "http.host") or at(record, "destination.name")
    path = at(record, "http.path")
    if not path:
        return {}
    return present({"hostname": host, "path": path, "port": port(record), "scheme": _scheme(record)})


def http_request(record: Record) -> dict[str, Any]:
    """Return the request. A method that OCSF doesn't know has its name in `activity_name`."""
    method = at(record, "http.method")
    return present({"uid": record["id"], "http_method": method if method in METHODS else None, "url": url(record)})


def http_response(record: Record) -> dict[str, Any]:
    """Return the response, once there is one."""
    status = at(record, "http.status")
    return {} if status is None else {"code": status}


def query(record: Record) -> dict[str, Any]:
    """Return the question."""
    return present({"hostname": at(record, "dns.question") or "unknown", "type": at(record, "dns.type")})


def answers(record: Record) -> list[dict[str, Any]]:
    """Return what it was answered with."""
    said = [each for each in at(record, "dns.answers") or () if each]
    return [present({"rdata": each, "type": at(record, "dns.type")}) for each in said]


def _entity(record: Record) -> dict[str, Any]:
    """Return what is managed: rules, a question to people, or what a task changed."""
    area = record["kind"].partition(".")[0]
    if area == "rules":
        return _rules(record)
    names = {"approval": "approval.id", "flag": "cause"}
    named = at(record, names.get(area, "task.id"))
    return present({"type_id": 99, "type": area, "uid": named, "name": f"{area} {named or ''}".strip()})


def _rules(record: Record) -> dict[str, Any]:
    files = ", ".join(record.get("sources") or ())
    return present({
        "type_id": 5,
        "type": "Policy",
        "name": "exeat",
        "uid": record.get("revision"),
        "policy": present({**policy(record), "name": "exeat", "desc": files}),
    })  # fmt: skip


def _finding(record: Record) -> dict[str, Any]:
    related = record.get("cause")
    return present({
        "uid": record["id"],
        "title": _TITLES.get(record["kind"], record["kind"]),
        "desc": record.get("detail"),
        "types": [record["kind"]],
        "data_sources": ["exeat"],
        "related_events": [{"uid": related, "type": "cause"}] if related else [],
    })  # fmt: skip


def _evidence(record: Record) -> list[dict[str, Any]]:
    found = present({"dst_endpoint": endpoint(record), "src_endpoint": sandbox(record), "process": process(record)})
    return [{**found, "name": sentence(record)}]


def _scheme(record: Record) -> str | None:
    return {"tls": "https", "http": "http"}.get(str(record.get("protocol")))


def _milliseconds(record: Record) -> int | None:
    seconds = record.get("duration")
    return None if seconds is None else round(seconds * _SECONDS_TO_MS)
