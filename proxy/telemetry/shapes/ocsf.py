"""OCSF 1.8: an event as one of its classes, with the profiles `host` and `security_control` (schema.ocsf.io, 1.8.0).

Connections are Network Activity, requests HTTP Activity, lookups DNS Activity, tasks and commands Process Activity,
system calls Kernel Activity; rules, questions to people and a task's changes are entities that are managed, and what
the journal says of itself is Event Log Activity. What no class knows is a Base Event. Whatever has no attribute stands
in `unmapped.exeat`.
"""

from typing import Any, Final, NamedTuple

from proxy.telemetry.shapes import ocsf_objects as objects
from proxy.telemetry.shapes.record import Record, at, nanoseconds, present, sentence, severity

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
        "metadata": objects.metadata(record, VERSION, PROFILES),
        **_status(record, kind),
        **_control(record),
        **objects.of_class(record, kind.uid),
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
        known = method in objects.METHODS
        said = (objects.METHODS.index(method) + 1, method.capitalize()) if known else (_OTHER, method or "Other")
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
        "firewall_rule": objects.firewall_rule(record),
        "policy": objects.policy(record),
    }
