"""Fields of a record in the formats, event kinds in the terms of SIEMs, and shapes.

`KINDS` has one row for each kind: CEF name, severity, ECS event types, OCSF class and activity. A shape is a table that
maps each member of an output to the path of a value in the record, to a function of the record, or to a shape.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import IntEnum
from functools import cache
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from proxy.telemetry.masking import last_of


class Severity(IntEnum):
    """Severity of an event."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4


class Class(NamedTuple):
    """OCSF class: uid and category uid, and their captions."""

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
    activity: tuple[int, str] | None = None  # None: by the record, or `Other`
    ecs: tuple[str, ...] = ("info",)
    severity: Severity | None = None  # None: by outcome and reason
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
    "agent.said": KindWords("Task says", BASE),  # a claim, not an observation
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
    """Return the row of a kind; an unknown kind gets its own name."""
    return KINDS.get(kind) or KindWords(kind, BASE)


type Record = Mapping[str, Any]
type Shape = Mapping[str, str | Callable[[Record], Any] | Shape]

_NS_A_SECOND: Final = 1_000_000_000
_LARGEST_PORT: Final = 65_535
_SHOWN_DESTINATION: Final = 128  # characters in a sentence
_SEVERE_REASONS: Final = frozenset({"secret_misuse", "credential_mismatch", "leak", "gate_error", "journal_failed"})


@cache
def own_version() -> str:
    """Return the version of Exeat."""
    return version("exeat")


def at(record: Record, path: str) -> Any:
    """Return the member at `a.b`, None where there is none."""
    value: Any = record
    while path:
        key, _, path = path.partition(".")
        if not isinstance(value, dict):  # a check for Mapping takes three times as long
            return None
        value = value.get(key)
    return value


def nanoseconds(record: Record) -> int:
    """Return the time of the event, in ns since 1970. Raises ValueError for another format of time."""
    text = record["time"]
    return int(datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()) * _NS_A_SECOND + int(text[20:29])


def address(record: Record) -> str | None:
    """Return the destination's address if it is valid: receivers reject the whole event for an invalid one."""
    text = at(record, "destination.address")
    try:
        return None if text is None or "%" in text else str(ip_address(text))
    except ValueError:
        return None


def port(record: Record) -> int | None:
    """Return the destination's port if it is valid."""
    port_number = at(record, "destination.port")
    return port_number if isinstance(port_number, int) and 0 <= port_number <= _LARGEST_PORT else None


def severity(record: Record) -> Severity:
    """Return the severity: highest for a possible leak, lowest for an allowed attempt."""
    known, outcome = words(record["kind"]).severity, record.get("outcome")
    if known is not None:
        return known
    if record.get("reason") in _SEVERE_REASONS:
        return Severity.HIGH if outcome == "blocked" else Severity.MEDIUM
    quiet = outcome in {"passed", "failed", None} and record.get("verdict") != "flag"
    return Severity.INFORMATIONAL if quiet else Severity.LOW


def sentence(record: Record) -> str:
    """Describe the event in one line."""
    destination = at(record, "dns.question") or at(record, "destination.name") or at(record, "destination.address")
    port_number = at(record, "destination.port")
    method = at(record, "http.method")
    parts = [record["kind"], *filter(None, (at(record, "approval.id"),))]
    if method:
        parts.append(_short(method))
    if destination:
        parts.append(
            last_of(destination, _SHOWN_DESTINATION)
            + (f":{port_number}" if port_number is not None and "dns" not in record else "")
        )
    for text in (" ".join(record.get("argv") or ()), record.get("call"), at(record, "approval.answer")):
        parts += [_short(text)] if text else []
    outcome, reason = record.get("outcome"), record.get("reason")
    if outcome or reason:
        parts.append(f"{outcome or ''}{f' ({reason})' if reason else ''}".strip())
    return " ".join(map(str, parts))


def first_rule(record: Record) -> tuple[str | None, str | None]:
    """Return the file and the id of the rule that decided; None where there is none."""
    rules = record.get("rules") or ()
    if not isinstance(rules, Sequence) or not rules:
        return None, None
    file, colon, rule_id = str(rules[0]).partition(":")
    return (file, rule_id) if colon else (None, file)


def transport(record: Record) -> str | None:
    """Return `udp` or `tcp`, which carries every other protocol."""
    protocol = record.get("protocol")
    return None if protocol is None else "udp" if protocol == "udp" else "tcp"


def scheme(record: Record) -> str | None:
    """Return the scheme of a request's URL."""
    return {"tls": "https", "http": "http"}.get(str(record.get("protocol")))


def host(record: Record) -> str | None:
    """Return the host of a request's URL."""
    found: str | None = at(record, "http.host") or at(record, "destination.name")
    return found


def total_bytes(record: Record) -> int | None:
    """Return the bytes of both directions together, where both are known."""
    up, down = at(record, "bytes.up"), at(record, "bytes.down")
    return None if up is None or down is None else up + down


def scaled_duration(record: Record, units: int) -> int | None:
    """Return the duration in whole units; `units` is their number per second."""
    seconds = record.get("duration")
    return None if seconds is None else round(seconds * units)


def text_at(record: Record, path: str) -> str | None:
    """Return a number at `a.b` as text."""
    value = at(record, path)
    return None if value is None else str(value)


def basename(path: str | None) -> str | None:
    """Return the last part of an executable's path."""
    return path.rpartition("/")[2] if path else None


def fixed(value: Any) -> Callable[[Record], Any]:
    """Return a constant part of a shape."""
    return lambda _record: value


def values(shape: Shape, record: Record) -> Iterator[tuple[str, Any]]:
    """Yield the members that a shape describes, with their values; None where the record has none."""
    for key, part in shape.items():
        yield (
            key,
            at(record, part) if isinstance(part, str) else part(record) if callable(part) else filled(part, record),
        )


def filled(shape: Shape, record: Record) -> dict[str, Any]:
    """Return the object that a shape describes, without the members that are None or empty."""
    return present(dict(values(shape, record)))


def present(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that are neither None nor empty."""
    return {key: value for key, value in members.items() if value is not None and value not in ("", [], {})}


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_DESTINATION else f"{text[: _SHOWN_DESTINATION - 1]}…"
