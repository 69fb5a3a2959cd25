"""Fields of a record in the formats, and shapes: tables that map members of an output to fields.

A shape maps a member's name to the path of a value in the record, to a function of the record, or to a shape.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any, Final

from proxy.telemetry.formats.kinds import Severity, words
from proxy.telemetry.masking import last_of

type Record = Mapping[str, Any]
type Shape = Mapping[str, str | Callable[[Record], Any] | Shape]

_NS_A_SECOND: Final = 1_000_000_000
_LARGEST_PORT: Final = 65_535
_SHOWN_DESTINATION: Final = 128  # characters of it in a sentence
_SEVERE_REASONS: Final = frozenset({"secret_misuse", "credential_mismatch", "leak", "gate_error", "journal_failed"})


@cache
def own_version() -> str:
    """Return which version of Exeat says so."""
    return version("exeat")


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
    known, outcome = words(record["kind"]).severity, record.get("outcome")
    if known is not None:
        return known
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
        words.append(
            last_of(where, _SHOWN_DESTINATION) + (f":{number}" if number is not None and "dns" not in record else "")
        )
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
    """Return the duration in whole units, of which a second has so many."""
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
    """Return a part of a shape that is the same for every record."""
    return lambda _record: value


def values(shape: Shape, record: Record) -> Iterator[tuple[str, Any]]:
    """Yield the members that a shape describes, with their values; None where a record doesn't say."""
    for key, part in shape.items():
        yield (
            key,
            at(record, part) if isinstance(part, str) else part(record) if callable(part) else filled(part, record),
        )


def filled(shape: Shape, record: Record) -> dict[str, Any]:
    """Return the object that a shape describes, without the members that are None or empty."""
    return present(dict(values(shape, record)))


def present(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that say something: neither None nor empty."""
    return {key: value for key, value in members.items() if value is not None and value not in ("", [], {})}


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_DESTINATION else f"{text[: _SHOWN_DESTINATION - 1]}…"
