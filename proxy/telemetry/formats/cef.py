"""CEF, ArcSight's Common Event Format (version 26): an event as one line of text.

In CEF `|` ends a field of the header and `=` ends a key: both are escaped here. A line can't end early, since a record
holds no control character.
"""

from typing import Any, Final

from proxy.telemetry.formats import fields
from proxy.telemetry.formats.fields import Record, Shape, at, values, words

_NS_A_MS: Final = 1_000_000
_SEVERITIES: Final = (0, 2, 5, 7, 9)  # 0 to 10, by our severity
_LONGEST: Final = 1023  # characters; limit of most texts in the dictionary
_CUSTOM_FIELDS: Final = (  # custom fields, each with its label
    ("cs1", "Rule", "rules"),
    ("cs2", "Task", "task.id"),
    ("cs3", "TaskName", "task.name"),
    ("cs4", "Verdict", "verdict"),
    ("cs5", "Revision", "revision"),
    ("cs6", "Sandbox", "sandbox"),
    ("flexString1", "Approval", "approval.id"),
)


def _ipv4(record: Record) -> str | None:
    address = fields.address(record)
    return address if address and ":" not in address else None


def _ipv6(record: Record) -> str | None:
    address = fields.address(record)
    return address if address and ":" in address else None


def _milliseconds(record: Record) -> int | None:
    return fields.scaled_duration(record, 1000)


def _user(record: Record) -> str | None:
    return ",".join(at(record, "approval.by") or ()) or record.get("by") or at(record, "started_by.name")


_SHAPE: Final[Shape] = {  # keys of the dictionary, in the order in which they are written
    "rt": lambda record: fields.nanoseconds(record) // _NS_A_MS,
    "externalId": "id",
    "dvchost": "host",
    "act": "outcome",
    "reason": "reason",
    "cat": lambda record: record["kind"].partition(".")[0],
    "dhost": lambda record: at(record, "destination.name") or at(record, "dns.question"),
    "dst": _ipv4,
    "c6a2": _ipv6,  # `dst` is for IPv4 alone
    "c6a2Label": lambda record: _ipv6(record) and "Destination IPv6",
    "dpt": fields.port,
    "proto": lambda record: (fields.transport(record) or "").upper(),
    "app": lambda record: {"tls": "TLS", "http": "HTTP"}.get(str(record.get("protocol"))),
    "requestMethod": "http.method",
    "request": "http.path",
    "spid": "process.pid",
    "sproc": lambda record: at(record, "process.exe") or " ".join(record.get("argv") or ()),
    "suid": lambda record: at(record, "started_by.uid" if "started_by" in record else "process.uid"),
    "suser": _user,
    "in": "bytes.down",
    "out": "bytes.up",
    "cn1": _milliseconds,
    "cn1Label": lambda record: None if _milliseconds(record) is None else "DurationMs",
}


def cef(record: Record) -> str:
    """Return the event as a line of CEF, without a newline."""
    outcome, name = record.get("outcome"), words(record["kind"]).name
    head = (
        "Exeat", "Exeat", fields.own_version(), record["kind"], f"{name} {outcome}" if outcome else name,
        str(_SEVERITIES[fields.severity(record)]),
    )  # fmt: skip
    extension = dict(values(_SHAPE, record))
    for key, label, path in _CUSTOM_FIELDS:
        if value := at(record, path):
            extension |= {f"{key}Label": label, key: ",".join(value) if path == "rules" else value}
    extension["msg"] = record.get("detail") or at(record, "fault.detail") or fields.sentence(record)
    text = " ".join(f"{key}={_escape_value(value)}" for key, value in extension.items() if value not in (None, ""))
    return f"CEF:0|{'|'.join(map(_escape_header, head))}|{text}"


def _escape_header(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _escape_value(value: Any) -> str:
    text = str(value)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return text.replace("\\", "\\\\").replace("=", "\\=")
