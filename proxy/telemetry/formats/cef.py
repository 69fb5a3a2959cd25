"""CEF, ArcSight's Common Event Format (Implementing ArcSight Common Event Format, version 26): one line of text.

Whoever reads it takes `|` for the end of a header's field and `=` for the end of a key: both are escaped here, and a
line can't end early, since a record holds no control character.
"""

from typing import Any, Final

from proxy.telemetry.formats.record import Record, address, at, nanoseconds, own_version, port, sentence, severity

_NS_A_MS: Final = 1_000_000
_SEVERITIES: Final = (0, 2, 5, 7, 9)  # of ten; by ours
_LONGEST: Final = 1023  # what the dictionary allows of most texts
_LABELS: Final = (  # the custom texts, which are whatever their label says
    ("Rule", "rules"),
    ("Task", "task.id"),
    ("TaskName", "task.name"),
    ("Verdict", "verdict"),
    ("Revision", "revision"),
    ("Sandbox", "sandbox"),
)
_NAMES: Final = {
    "connection.decided": "Connection",
    "connection.closed": "Connection over",
    "request.decided": "Request",
    "request.completed": "Request over",
    "dns.decided": "Lookup",
    "task.started": "Task started",
    "task.ended": "Task ended",
    "rules.loaded": "Rules loaded",
    "rules.rejected": "Rules rejected",
    "gate.error": "Gate failed",
    "tamper": "Placeholder of a secret misused",
    "leak.found": "Secret found in what leaves",
    "task.limited": "Task at a limit",
    "task.tainted": "Task read from an untrusted source",
    "task.unusual": "Task does what is unusual",
    "command.decided": "Command",
    "call.refused": "System call",
    "agent.said": "Task says",
    "changes.kept": "Changes kept",
    "changes.accepted": "Changes accepted",
    "changes.merged": "Changes merged",
    "changes.discarded": "Changes discarded",
    "approval.asked": "Approval asked for",
    "approval.seen": "Approval seen",
    "approval.answered": "Approval answered",
    "approval.expired": "Approval over",
    "approval.used": "Approval used",
    "approval.refused": "Approval refused",
    "approval.stale": "Approval waited for no more",
    "flag.seen": "Flagged event looked at",
    "journal.opened": "Journal segment begun",
    "journal.checkpoint": "Journal signed",
    "journal.sealed": "Journal segment ended",
    "journal.repaired": "Journal segment mended",
    "journal.removed": "Journal segment removed",
    "journal.key": "Journal key changed",
}


def cef(record: Record) -> str:
    """Return the event as a line of CEF, without an end."""
    outcome = record.get("outcome")
    name = _NAMES.get(record["kind"], record["kind"])
    head = (
        "Exeat", "Exeat", own_version(), record["kind"], f"{name} {outcome}" if outcome else name,
        str(_SEVERITIES[severity(record)]),
    )  # fmt: skip
    extension = " ".join(f"{key}={_value(value)}" for key, value in _extension(record) if value not in (None, ""))
    return f"CEF:0|{'|'.join(map(_header, head))}|{extension}"


def _extension(record: Record) -> list[tuple[str, Any]]:
    """Return keys of the dictionary with their values, in the order in which they are written."""
    where = address(record)
    seconds = record.get("duration")
    protocol = record.get("protocol")
    pairs: list[tuple[str, Any]] = [
        ("rt", nanoseconds(record) // _NS_A_MS),
        ("externalId", record["id"]),
        ("dvchost", record.get("host")),
        ("act", record.get("outcome")),
        ("reason", record.get("reason")),
        ("cat", record["kind"].partition(".")[0]),
        ("dhost", at(record, "destination.name") or at(record, "dns.question")),
        ("dst", where if where and ":" not in where else None),  # IPv4; for IPv6 there is a custom field
        ("c6a2", where if where and ":" in where else None),
        ("c6a2Label", "Destination IPv6" if where and ":" in where else None),
        ("dpt", port(record)),
        ("proto", None if protocol is None else "UDP" if protocol == "udp" else "TCP"),
        ("app", {"tls": "TLS", "http": "HTTP"}.get(str(protocol))),
        ("requestMethod", at(record, "http.method")),
        ("request", at(record, "http.path")),
        ("spid", at(record, "process.pid")),
        ("sproc", at(record, "process.exe") or " ".join(record.get("argv") or ())),
        ("suid", at(record, "process.uid") if "started_by" not in record else at(record, "started_by.uid")),
        (
            "suser",
            ",".join(at(record, "approval.by") or ()) or record.get("by") or at(record, "started_by.name"),
        ),
        ("in", at(record, "bytes.down")),
        ("out", at(record, "bytes.up")),
        ("cn1", None if seconds is None else round(seconds * 1000)),
        ("cn1Label", None if seconds is None else "DurationMs"),
    ]
    for number, (label, path) in enumerate(_LABELS, start=1):
        value = at(record, path)
        if value:
            pairs += [(f"cs{number}Label", label), (f"cs{number}", ",".join(value) if path == "rules" else value)]
    if at(record, "approval.id"):
        pairs += [("flexString1Label", "Approval"), ("flexString1", at(record, "approval.id"))]
    return [*pairs, ("msg", record.get("detail") or at(record, "fault.detail") or sentence(record))]


def _header(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _value(value: Any) -> str:
    text = str(value)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return text.replace("\\", "\\\\").replace("=", "\\=")
