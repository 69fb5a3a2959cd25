"""A line of the journal as every shape takes it, and what all of them ask of it.

Texts in it are fit to be shown (`visible`): the receivers of these shapes print them on terminals and pages of their
own, and not all of them escape. What was written exactly is in the journal, under the same id.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import IntEnum
from functools import cache
from importlib.metadata import version
from ipaddress import ip_address
from math import isfinite
from typing import Any

from proxy.telemetry.masking import cut
from proxy.telemetry.schema import fitted
from proxy.telemetry.visible import visible
from proxy.wire import strict_json

type Record = Mapping[str, Any]

_NS_A_SECOND = 1_000_000_000
_LARGEST = 2**63 - 1  # whole numbers beyond it fit no receiver's field
_LARGEST_PORT = 65_535
_SHOWN_DESTINATION = 128  # characters of it in a sentence
_BRIEF = 128  # characters of what a record is cut down to
_BRIEFER = 64, 16  # ... of what tells neither where to nor by what rule; the second where that is still too long
_FEW = 4  # members of a list
_LONGEST_NAME = 256  # of a host: never cut
_NAMED = frozenset({"destination.name", "dns.question", "tls.sni"})
# What says where in the journal an event stands, and nothing that a sandbox chose.
_CORE = frozenset({
    "time", "id", "kind", "verdict", "outcome", "reason", "revision", "mode", "cause", "protocol", "bytes", "duration",
    "host", "sandbox", "prev", "hash",
})  # fmt: skip
_BRIEFLY = _CORE | {"http.path", "rules"}


class Severity(IntEnum):
    """How much an event asks for a person."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4


_SEVERE = {
    "tamper": Severity.HIGH,
    "leak.found": Severity.HIGH,
    "gate.error": Severity.MEDIUM,
    "rules.rejected": Severity.MEDIUM,
    "task.tainted": Severity.MEDIUM,
    "task.unusual": Severity.MEDIUM,
    "journal.removed": Severity.LOW,
    "journal.key": Severity.LOW,
}
_SEVERE_REASONS = frozenset({"secret_misuse", "credential_mismatch", "leak", "gate_error", "journal_failed"})


@cache
def own_version() -> str:
    """Return which version of Exeat says so."""
    return version("exeat")


def read(line: bytes) -> Record:
    """Return the record of a journal's line. Raises ValueError for what is no event: it has no time, id and kind."""
    try:
        found = strict_json.without_misfits(line)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004  like all else that is no event
        record = harmless(_with_own_names(fitted(found)))
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not (record.get("id") and record.get("kind") and "time" in record):
        raise ValueError("it has no time, id and kind")
    nanoseconds(record)
    return record


def _with_own_names(record: dict[str, Any]) -> dict[str, Any]:
    """Make a list of what a task itself has named: a name is a column at many receivers, and they have only so many."""
    agent = record.get("agent")
    if isinstance(agent, dict) and isinstance(named := agent.get("attributes"), dict):
        record = {**record, "agent": {**agent, "attributes": [f"{name}={value}" for name, value in named.items()]}}
    return record


def harmless(record: Record) -> dict[str, Any]:
    """Return a copy whose texts, keys included, print as what they are and nothing else."""
    return {visible(cut(key)): _harmless(value) for key, value in record.items()}


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return visible(cut(value))
    if isinstance(value, Mapping):
        return harmless(value)
    if isinstance(value, list):
        return [_harmless(each) for each in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        return None
    return value


def shortened(record: Record, note: str) -> Iterator[dict[str, Any]]:
    """Yield a record with less and less of each text, all in ASCII, and `note` in its detail; in the end its core.

    Where it went and by what rule stays longest: a task chooses how long its words are, not what a receiver is told.
    """
    for most in _BRIEFER:
        kept = {key: _shorter(key, value, most) for key, value in record.items()}
        said = kept.get("detail")
        yield {**kept, "detail": f"{note}: {said}" if said else note}
    yield core(record, note)


def _shorter(key: str, value: Any, most: int) -> Any:
    if isinstance(value, str):
        text = _ascii(value)
        most = _LONGEST_NAME if key in _NAMED else _BRIEF if key in _BRIEFLY else most
        return text if len(text) <= most else f"{text[: most - 3]}..."
    if isinstance(value, list):
        return [_shorter(key, each, most) for each in value[:_FEW]]
    if isinstance(value, Mapping):
        members = list(value.items())[: 2 * _FEW]
        return {_ascii(name)[:_BRIEF]: _shorter(f"{key}.{name}", inner, most) for name, inner in members}
    return value


def core(record: Record, note: str) -> dict[str, Any]:
    """Return what of a record no sandbox chose, with `note` as its detail: what even a picky receiver takes."""
    kept = {key: _brief(value) for key, value in record.items() if key in _CORE}
    task = at(record, "task.id")
    return {**kept, **({} if task is None else {"task": {"id": _brief(task)}}), "detail": note}


def _brief(value: Any) -> Any:
    """Return a text in ASCII and short; all that is ours is both."""
    return _ascii(value)[:_BRIEF] if isinstance(value, str) else value


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def at(record: Record, path: str) -> Any:
    """Return the member at `a.b`, None where there is none."""
    value: Any = record
    while path:
        key, _, path = path.partition(".")
        if not isinstance(value, dict):  # as JSON makes them: to ask for a Mapping takes three times as long
            return None
        value = value.get(key)
    return value


def nanoseconds(record: Record) -> int:
    """Return when it happened, in ns since 1970. Raises ValueError for a time that is none of ours."""
    text = record["time"]
    return int(datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()) * _NS_A_SECOND + int(text[20:29])


def address(record: Record) -> str | None:
    """Return the destination's address where it is one: receivers refuse a whole event for one that isn't."""
    text = at(record, "destination.address")
    try:
        return None if text is None or "%" in text else str(ip_address(text))
    except ValueError:
        return None


def port(record: Record) -> int | None:
    """Return the destination's port where it is one."""
    number = at(record, "destination.port")
    return number if isinstance(number, int) and 0 <= number <= _LARGEST_PORT else None


def severity(record: Record) -> Severity:
    """Say how much an event asks for a person: what may have leaked most, what was let out least."""
    kind, outcome = record["kind"], record.get("outcome")
    if kind in _SEVERE:
        return _SEVERE[kind]
    if record.get("reason") in _SEVERE_REASONS:
        return Severity.HIGH if outcome == "blocked" else Severity.MEDIUM
    quiet = outcome in {"passed", "failed", None} and record.get("verdict") != "flag"
    return Severity.INFORMATIONAL if quiet else Severity.LOW


def sentence(record: Record) -> str:
    """Say in one line what happened, for people."""
    where = at(record, "dns.question") or at(record, "destination.name") or at(record, "destination.address")
    number = at(record, "destination.port")
    method = at(record, "http.method")
    words = [record["kind"], *filter(None, (at(record, "approval.id"),))]
    if method:
        words.append(_short(method))
    if where:
        words.append(_ended(where) + (f":{number}" if number is not None and "dns" not in record else ""))
    for said in (" ".join(record.get("argv") or ()), record.get("call"), at(record, "approval.answer")):
        words += [_short(said)] if said else []
    outcome, reason = record.get("outcome"), record.get("reason")
    if outcome or reason:
        words.append(f"{outcome or ''}{f' ({reason})' if reason else ''}".strip())
    return " ".join(map(str, words))


def first_rule(record: Record) -> tuple[str | None, str | None]:
    """Return the file and the id of the rule that decided, as far as there is one."""
    rules = record.get("rules") or ()
    if not isinstance(rules, Sequence) or not rules:
        return None, None
    file, colon, own = str(rules[0]).partition(":")
    return (file, own) if colon else (None, file)


def present(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that say something: neither None nor empty."""
    return {key: value for key, value in members.items() if value is not None and value not in ("", [], {})}


def one_line(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as one line of printable ASCII, newline included."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"{text}\n".replace("\x7f", "\\u007f").encode("ascii")


def _ended(name: str) -> str:
    """Return the end of a long name: that says whose it is."""
    return name if len(name) <= _SHOWN_DESTINATION else f"…{name[1 - _SHOWN_DESTINATION :]}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_DESTINATION else f"{text[: _SHOWN_DESTINATION - 1]}…"
