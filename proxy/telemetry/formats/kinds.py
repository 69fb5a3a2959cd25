"""Event kinds in the terms of SIEMs: CEF name, severity, ECS event types, OCSF class and activity, one row each."""

from enum import IntEnum
from typing import Final, NamedTuple


class Severity(IntEnum):
    """Severity of an event."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4


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


class KindWords(NamedTuple):
    """Names of one event kind at receivers. A `decision` also has the ECS type `allowed` or `denied`."""

    name: str
    ocsf: Class
    activity: tuple[int, str] | None = None  # None: the class says so by the record, or it is `Other`
    ecs: tuple[str, ...] = ("info",)
    severity: Severity | None = None  # None: by what became of it
    decision: bool = False

    @property
    def is_alert(self) -> bool:
        """Whether OCSF counts the kind among the findings."""
        return self.ocsf in {DETECTION, LEAK}


_HIGH, _MEDIUM, _LOW = Severity.HIGH, Severity.MEDIUM, Severity.LOW
_CREATE, _UPDATE, _DELETE = (1, "Create"), (3, "Update"), (4, "Delete")
_START, _LAUNCH, _READ, _DEACTIVATE = ("start",), (1, "Launch"), (2, "Read"), (11, "Deactivate")
KINDS: Final = {
    "connection.decided": KindWords("Connection", NETWORK, None, ("connection", "start"), decision=True),
    "connection.closed": KindWords("Connection over", NETWORK, None, ("connection", "end")),
    "request.decided": KindWords("Request", HTTP, None, ("connection", "access"), decision=True),
    "request.completed": KindWords("Request over", HTTP, None, ("access", "end")),
    "dns.decided": KindWords("Lookup", DNS, None, ("protocol",), decision=True),
    "task.started": KindWords("Task started", PROCESS, _LAUNCH, _START),
    "task.ended": KindWords("Task ended", PROCESS, (2, "Terminate"), ("end",)),
    "task.limited": KindWords("Task at a limit", PROCESS),
    "task.tainted": KindWords("Task read from an untrusted source", DETECTION, _CREATE, severity=_MEDIUM),
    "anomaly.detected": KindWords("Task does what is unusual", DETECTION, _CREATE, severity=_MEDIUM),
    "rules.loaded": KindWords("Rules loaded", ENTITY, None, ("change",)),
    "rules.rejected": KindWords("Rules rejected", ENTITY, _UPDATE, severity=_MEDIUM),
    "gate.error": KindWords("Gate failed", ERROR, (1, "General Error"), severity=_MEDIUM),
    "tampering.detected": KindWords(
        "Placeholder of a secret misused", DETECTION, _CREATE, severity=_HIGH, decision=True
    ),
    "secret.detected": KindWords("Secret found in what leaves", LEAK, _CREATE, severity=_HIGH, decision=True),
    "command.decided": KindWords("Command", PROCESS, _LAUNCH, _START, decision=True),
    "syscall.denied": KindWords("System call", KERNEL, (4, "Invoke"), ("access",), decision=True),
    "agent.said": KindWords("Task says", BASE),  # a claim: what it speaks of is recorded by the component that saw it
    "changes.kept": KindWords("Changes kept", ENTITY, _CREATE, ("creation",)),
    "changes.accepted": KindWords("Changes accepted", ENTITY, _UPDATE),
    "changes.merged": KindWords("Changes merged", ENTITY, _UPDATE, ("change",)),
    "changes.discarded": KindWords("Changes discarded", ENTITY, _DELETE, ("deletion",)),
    "approval.asked": KindWords("Approval asked for", ENTITY, _CREATE, ("creation", "user")),
    "approval.seen": KindWords("Approval seen", ENTITY, _READ, ("info", "user")),
    "approval.answered": KindWords("Approval answered", ENTITY, _UPDATE, ("change", "user")),
    "approval.expired": KindWords("Approval over", ENTITY, _DEACTIVATE, ("deletion",)),
    "approval.used": KindWords("Approval used", ENTITY, (10, "Activate")),
    "approval.refused": KindWords("Approval refused", ENTITY),
    "approval.stale": KindWords("Approval waited for no more", ENTITY, _DEACTIVATE, ("deletion",)),
    "flag.seen": KindWords("Flagged event looked at", ENTITY, _READ, ("info", "user")),
    "journal.opened": KindWords("Journal segment begun", EVENT_LOG, (6, "Start"), _START),
    "journal.checkpoint": KindWords("Journal signed", EVENT_LOG),
    "journal.sealed": KindWords("Journal segment ended", EVENT_LOG, (5, "Rotate"), ("end",)),
    "journal.repaired": KindWords("Journal segment mended", EVENT_LOG),
    "journal.removed": KindWords("Journal segment removed", EVENT_LOG, (2, "Delete"), severity=_LOW),
    "journal.key": KindWords("Journal key changed", EVENT_LOG, severity=_LOW),
}


def words(kind: str) -> KindWords:
    """Return what a kind is called; one that this version doesn't know goes by its own name."""
    return KINDS.get(kind) or KindWords(kind, BASE)
