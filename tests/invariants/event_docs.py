"""Checks events of a journal against docs/reference/telemetry.md."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/reference/telemetry.md"
REASONS = DOCUMENT.with_name("reasons.md")
_COMMON = {"time", "id", "kind", "task.id", "sandbox", "host"}
_DECISION = {"verdict", "outcome", "reason", "revision", "mode", "destination.port"}
_ALWAYS = {
    "connection.decided": _DECISION - {"destination.port"},  # a refused packet may have no port
    "connection.closed": {"cause", "outcome", "bytes.up", "bytes.down", "duration", "destination.port"},
    "request.decided": {*_DECISION, "cause", "http.method", "http.path", "protocol"},
    "request.completed": {"cause", "outcome", "bytes.up", "bytes.down", "duration", "http.method", "http.path"},
    "dns.decided": {*_DECISION, "dns.question", "dns.type"},
    "task.started": {"argv", "outcome"},
    "task.ended": {"cause", "outcome", "duration"},
    "rules.loaded": {"revision", "sources", "mode"},
    "rules.rejected": {"revision", "problems"},
    "gate.error": {"fault.where", "fault.detail"},
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")  # RFC 9562 section 5.7
_ALLOWED = {"passed", "would_block"}


def documented_names(heading: str, document: Path = DOCUMENT) -> set[str]:
    """Return the names in the first column of the first table under a heading."""
    section = re.split(r"^#+ ", document.read_text(), flags=re.MULTILINE)
    (found,) = [text for text in section if text.startswith(f"{heading}\n")]
    return set(re.findall(r"^\| `([^`]+)` \|", found, flags=re.MULTILINE))


FIELDS, KINDS = documented_names("The event"), documented_names("Kinds")
VALUES = {
    "kind": KINDS, "verdict": documented_names("Verdicts"), "outcome": documented_names("Outcomes"), "reason": documented_names("Reasons", REASONS),
    "fault.where": documented_names("Faults"), "mode": {"enforce", "audit"}, "protocol": {"tcp", "tls", "http", "udp"},
}  # fmt: skip


def flatten(event: Mapping, above: str = "") -> Iterator[tuple[str, object]]:
    """Yield the fields of an event with dotted names, as the documentation has them; labels stay as they are."""
    for key, value in event.items():
        if isinstance(value, dict) and above + key != "task.labels":
            yield from flatten(value, f"{above}{key}.")
        else:
            yield above + key, value


def problems(event: Mapping) -> list[str]:
    """Return how an event differs from the documentation."""
    fields = dict(flatten(event))
    found = [f"{name} is not documented" for name in fields if name not in FIELDS]
    found += [
        f"{name}: `{fields[name]}`" for name, known in VALUES.items() if name in fields and fields[name] not in known
    ]
    found += [f"{name} is missing" for name in _COMMON | _ALWAYS.get(event["kind"], set()) if name not in fields]
    found += [f"time: `{event['time']}`"] if not _TIME.fullmatch(event["time"]) else []
    return found + [
        f"{name}: `{fields[name]}`" for name in ("id", "cause") if not _ID.fullmatch(fields.get(name, event["id"]))
    ]


def accounting_problems(events: list[Mapping], *, killed: bool) -> list[str]:
    """Return violations of: one decision per attempt, one closing event per allowed one. A killed worker records none."""
    found = []
    ids = Counter(event["id"] for event in events)
    found += [f"{one} is there {times} times" for one, times in ids.items() if times > 1]
    for decided, ended in (("connection.decided", "connection.closed"), ("request.decided", "request.completed")):
        out = {event["id"] for event in events if event["kind"] == decided and event["outcome"] in _ALLOWED}
        ends = Counter(event["cause"] for event in events if event["kind"] == ended)
        found += [f"{one} ended {times} times" for one, times in ends.items() if times > 1]
        found += [f"{one} ended and was not let out" for one in set(ends) - out]
        found += [f"{one} was let out and never ended" for one in out - set(ends) if not killed]
    connections = {event["id"] for event in events if event["kind"] == "connection.decided"}
    requests = [event for event in events if event["kind"] == "request.decided"]
    return found + [f"{event['id']} is of no connection" for event in requests if event["cause"] not in connections]
