"""Causes and effects of an event, found in the journal.

An id has the millisecond of its creation (UUIDv7), which limits the search for an event. Effects come after their
causes: one pass over the later events of the task finds them all.
"""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proxy.telemetry.encoding import quoted
from proxy.telemetry.events import Kind
from proxy.telemetry.journal.query import Entry, LineFilter, read_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")  # RFC 9562 section 5.7
_PART: Final = re.compile(r"[0-9a-f-]{8,}")  # of an id; shorter parts match too many
_NS_A_MILLISECOND: Final = 1_000_000
_SEARCH_RANGE: Final = 5_000 * _NS_A_MILLISECOND  # ids made in a burst are ahead of the event time
_LONGEST: Final = 64  # length of a chain of causes: an edited journal may have cycles
_MOST: Final = 100_000  # effects


@dataclass(slots=True)
class EventEffects:
    """Event with its effects."""

    entry: Entry
    effects: "list[EventEffects]" = field(default_factory=list)


@dataclass(slots=True)
class CausalChain:
    """Causes of an event (first cause first), the event with its effects, and its task's start."""

    causes: list[Entry]
    event: EventEffects
    task: Entry | None
    missing: str | None = None  # id of a cause that the journal lacks


def instant_of(name: str) -> int | None:
    """Return the creation time of an event id (ns since 1970), to the millisecond; None: not an event id."""
    return int(name[:13].replace("-", ""), 16) * _NS_A_MILLISECOND if _ID.fullmatch(name) else None


def is_named(part: str) -> bool:
    """Whether a text can be an event id or an end of one."""
    return _PART.fullmatch(part) is not None


def named(directory: "Path", part: str) -> list[str]:
    """Return the ids that equal, start or end with `part`: tables show ends of ids. Raises OSError."""
    if instant_of(part) is not None:
        return [part]
    if not is_named(part):
        return []
    found = read_events(directory, LineFilter(((part.encode(),),), bookkeeping=True))
    return list(dict.fromkeys(each.event.id for each in found if _matches_end(part, each.event.id)))


def _matches_end(part: str, name: str) -> bool:
    return name.startswith(part) or name.endswith(part)


def find(directory: "Path", name: str) -> Entry | None:
    """Return the event with this id. Raises OSError."""
    made = instant_of(name)
    if made is None:
        return None
    line_filter = LineFilter(
        ((f'"id":"{name}"'.encode(),),), max(0, made - _SEARCH_RANGE), made + _SEARCH_RANGE, bookkeeping=True
    )
    return next((entry for entry in read_events(directory, line_filter) if entry.event.id == name), None)


def chain(directory: "Path", name: str) -> CausalChain | None:
    """Return the causes and effects of the event with this id. Raises OSError."""
    entry = find(directory, name)
    if entry is None:
        return None
    causes: list[Entry] = []
    effect, missing = entry, None
    while effect.event.cause is not None and len(causes) < _LONGEST:
        found = find(directory, effect.event.cause)
        if found is None or found.event.id in {each.event.id for each in (entry, *causes)}:
            missing = effect.event.cause if found is None else None
            break
        causes.insert(0, found)
        effect = found
    return CausalChain(causes, _find_effects(directory, entry), _find_task_start(directory, entry), missing)


def _find_effects(directory: "Path", entry: Entry) -> EventEffects:
    """Return an event with all its effects."""
    root = EventEffects(entry)
    known = {entry.event.id: root}
    for found in _read_task_events(directory, entry, b'"cause":"', entry.event.time):
        event = found.event
        if event.cause in known and event.id not in known:
            known[event.id] = EventEffects(found)
            known[event.cause].effects.append(known[event.id])
        ended = event.kind is Kind.TASK_ENDED and event.task.id == entry.event.task.id
        if ended or len(known) > _MOST:
            break
    return root


def _find_task_start(directory: "Path", entry: Entry) -> Entry | None:
    """Return the start of an event's task."""
    task = entry.event.task.id
    found = _read_task_events(directory, entry, b'"kind":"task.started"', 0) if task else ()
    return next((each for each in found if each.event.task.id == task and each.event.kind is Kind.TASK_STARTED), None)


def _read_task_events(directory: "Path", entry: Entry, text: bytes, since: int) -> "Iterator[Entry]":
    groups: tuple[tuple[bytes, ...], ...] = ((text,),)
    if entry.event.task.id:
        groups = ((f'"id":{quoted(entry.event.task.id)}'.encode(),), *groups)
    return read_events(directory, LineFilter(groups, since))
