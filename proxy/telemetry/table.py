"""Events as rows for people: what was tried, what became of it, and why.

Everything that came from outside goes through `visible` (invariant 7). On a terminal a row is one line of its width and
coloured; anywhere else it is plain, and what a column has no room for stands whole at the end.
"""

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from proxy.telemetry.encoding import timestamp
from proxy.telemetry.events import Destination, Kind, Transferred
from proxy.telemetry.visible import fitted, padded, visible, width
from rules.attempt import Protocol
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.telemetry.events import Event

_WIDE_FROM = 120  # columns of a terminal that has room for everything
_NARROWEST_WHAT = 20  # columns
_RED, _GREEN, _YELLOW, _MAGENTA = 31, 32, 33, 35  # ECMA-48, SGR
_COLOURS = {
    Outcome.BLOCKED: _RED,
    Outcome.WOULD_BLOCK: _YELLOW,
    Outcome.FAILED: _MAGENTA,
    Outcome.PASSED: _GREEN,
}
_USUAL_PORTS = {Protocol.TLS: ("https", 443), Protocol.HTTP: ("http", 80)}


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column's heading and how wide it is."""

    heading: str
    columns: int


TIME, CLOCK = Column("TIME (UTC)", 23), Column("UTC", 8)
TASK = Column("TASK", 14)
VERDICT = Column("VERDICT", 7)
OUTCOME = Column("OUTCOME", 11)
WHY, SHORT_WHY = Column("WHY", 28), Column("WHY", 22)
_EVERYTHING = (TIME, TASK, VERDICT, OUTCOME, WHY)
_THE_LEAST = (CLOCK, OUTCOME, SHORT_WHY)


@dataclass(frozen=True, slots=True)
class Table:
    """A way to lay out rows. `columns` is the width of the terminal; None: lines are as long as they need to be."""

    columns: int | None = None
    coloured: bool = False

    @classmethod
    def for_output(cls, stream: TextIO) -> "Table":
        """Return what suits `stream`: a terminal's width and colours (https://no-color.org), else plain and whole."""
        if not stream.isatty():
            return cls()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(shutil.get_terminal_size().columns, not plain)

    def header(self) -> str:
        """Return the line of headings."""
        return self._line([column.heading for column in self._layout()], "WHAT")

    def row(self, event: "Event") -> str:
        """Return one event as a line without its end."""
        cells = _cells(event)
        line = self._line([cells[column] for column in self._layout()], visible(what(event)))
        colour = _colour(event) if self.coloured else None
        return line if colour is None else f"\x1b[{colour}m{line}\x1b[0m"

    def _layout(self) -> tuple[Column, ...]:
        return _EVERYTHING if self.columns is None or self.columns >= _WIDE_FROM else _THE_LEAST

    def _line(self, cells: list[str], last: str) -> str:
        shown = [
            padded(fitted(cell, column.columns), column.columns)
            for column, cell in zip(self._layout(), cells, strict=True)
        ]
        if self.columns is None:
            cut = [cell for column, cell in zip(self._layout(), cells, strict=True) if width(cell) > column.columns]
            return "  ".join([*shown, last, *(f"[{cell}]" for cell in cut)]).rstrip()
        used = sum(column.columns + 2 for column in self._layout())
        return "  ".join([*shown, fitted(last, max(self.columns - used, _NARROWEST_WHAT))]).rstrip()


def what(event: "Event") -> str:
    """Return in a few words what happened; not yet fit for a terminal."""
    return _SAYINGS[event.kind](event)


def _cells(event: "Event") -> "Mapping[Column, str]":
    moment = timestamp(event.time)
    why = _why(event)
    return {
        TIME: f"{moment[:10]} {moment[11:23]}",
        CLOCK: moment[11:19],
        TASK: visible(event.origin.name or event.origin.task),
        VERDICT: event.verdict or "",
        OUTCOME: event.outcome or "",
        WHY: why,
        SHORT_WHY: why,
    }


def _why(event: "Event") -> str:
    rule = visible(event.rules[0]) if event.rules else ""
    match event.reason:
        case None:
            return ""
        case Reason.RULE if rule:
            return rule
        case reason:
            return f"{reason} {rule}".rstrip()


def _colour(event: "Event") -> int | None:
    if event.kind is Kind.GATE_ERROR:
        return _RED
    if event.outcome is Outcome.PASSED and event.verdict is Verdict.FLAG:
        return _YELLOW
    return _COLOURS.get(event.outcome) if event.verdict is not None and event.outcome is not None else None


def _place(event: "Event") -> str:
    destination = event.destination or Destination()
    host = destination.name or destination.address or "?"
    port = "" if destination.port is None else f":{destination.port}"
    address = f" ({destination.address})" if destination.name and destination.address else ""
    protocol = f"{event.protocol} " if event.protocol is not None else ""
    via = f" via {destination.via}" if destination.via else ""
    return f"{protocol}{_bracketed(host)}{port}{address}{via}"


def _request(event: "Event") -> str:
    http, destination = event.http, event.destination or Destination()
    if http is None:
        return f"request {_place(event)}"
    host = _bracketed(destination.name or destination.address or http.host or "?")
    scheme, usual = _USUAL_PORTS.get(event.protocol, ("https", 443)) if event.protocol is not None else ("https", 443)
    port = "" if destination.port in (None, usual) else f":{destination.port}"
    # A Host that is not the name is what was wrong with the request: show it.
    claimed = f" (Host: {http.host})" if http.host is not None and http.host.partition(":")[0] != host else ""
    return f"{http.method or '?'} {scheme}://{host}{port}{http.path or ''}{claimed}"


def _lookup(event: "Event") -> str:
    if event.dns is None:
        return "lookup"
    asked = f"lookup {event.dns.type} {event.dns.question}"
    if not event.dns.answers:
        return asked
    answers = ", ".join(event.dns.answers)
    if event.outcome is Outcome.BLOCKED:  # the address stands for a refusal: whoever connects to it is told why
        return f"{asked} refused; {answers} says why"
    return f"{asked} is {answers}"


def _ending(event: "Event") -> str:
    if event.ending is None:
        return ""
    if event.ending.signal is not None:
        return f" by signal {event.ending.signal}"
    return f" with status {event.ending.status}" if event.ending.status is not None else ""


def _carried(transferred: Transferred | None) -> str:
    return f", {_size(transferred.up)} up, {_size(transferred.down)} down" if transferred is not None else ""


def _after(seconds: float | None) -> str:
    return f", {seconds:.3g} s" if seconds is not None else ""


def _detail(event: "Event") -> str:
    return f": {event.detail}" if event.detail else ""


def _size(count: int) -> str:
    """Return bytes in a unit that leaves at most four digits (IEC 80000-13)."""
    if count < 10_000:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _connect(event: "Event") -> str:
    return f"connect {_place(event)}{_detail(event)}"


def _closed(event: "Event") -> str:
    return f"closed {_place(event)}{_carried(event.bytes)}{_after(event.duration)}{_detail(event)}"


def _request_or_response(event: "Event") -> str:
    status = f"{event.http.status} to " if event.http is not None and event.http.status is not None else ""
    return f"{status}{_request(event)}{_carried(event.bytes)}{_after(event.duration)}{_detail(event)}"


def _started(event: "Event") -> str:
    return f"task started: {' '.join(event.argv)}"


def _ended(event: "Event") -> str:
    return f"task ended{_ending(event)}{_after(event.duration)}"


def _limited(event: "Event") -> str:
    return f"task limited{_detail(event)}"


def _loaded(event: "Event") -> str:
    instead = f" instead of {event.previous[:12]}" if event.previous else ""
    return f"rules {event.revision[:12]} loaded{instead} from {', '.join(event.sources)}"


def _rejected(event: "Event") -> str:
    return f"rules rejected, {event.revision[:12]} stays: {'; '.join(event.problems)}"


def _fault(event: "Event") -> str:
    return f"error in {event.fault.where}: {event.fault.detail}" if event.fault is not None else "error"


def _tamper(event: "Event") -> str:
    at = ", ".join(event.paths) if event.destination is None else _place(event)
    return f"tampering at {at}{_detail(event)}"


def _changes(event: "Event") -> str:
    by = f" by {event.by}" if event.by else ""
    return f"{event.kind.value.replace('.', ' ')}{by}: {', '.join(event.paths)}{_detail(event)}"


def _leak(event: "Event") -> str:
    return f"leak in {_request(event)}{_detail(event)}"


def _command(event: "Event") -> str:
    return f"run {' '.join(event.argv)}{_detail(event)}"


def _call(event: "Event") -> str:
    by = f" by {event.process.exe}" if event.process is not None and event.process.exe else ""
    return f"system call {event.call}{by}{_detail(event)}"


def _agent(event: "Event") -> str:
    agent = event.agent
    if agent is None:
        return "the task says something"
    who = agent.service or "the task"
    tool = f" {agent.tool}" if agent.tool else ""
    return f"{who} says {agent.name or agent.source}{tool}"


def _book(event: "Event") -> str:
    mark = event.journal
    if mark is None:
        return f"journal{_detail(event)}"
    far = "" if mark.lines is None else f" at line {mark.lines}"
    return f"{event.kind.value.replace('.', ' ')} {mark.segment}{far}{_detail(event)}"


_SAYINGS: "Mapping[Kind, Callable[[Event], str]]" = {
    Kind.GATE_ERROR: _fault,
    Kind.CONNECTION_DECIDED: _connect,
    Kind.CONNECTION_CLOSED: _closed,
    Kind.REQUEST_DECIDED: _request_or_response,
    Kind.REQUEST_COMPLETED: _request_or_response,
    Kind.DNS_DECIDED: _lookup,
    Kind.TASK_STARTED: _started,
    Kind.TASK_ENDED: _ended,
    Kind.TASK_LIMITED: _limited,
    Kind.RULES_LOADED: _loaded,
    Kind.RULES_REJECTED: _rejected,
    Kind.TAMPER: _tamper,
    Kind.CHANGES_KEPT: _changes,
    Kind.CHANGES_ACCEPTED: _changes,
    Kind.CHANGES_MERGED: _changes,
    Kind.CHANGES_DISCARDED: _changes,
    Kind.LEAK_FOUND: _leak,
    Kind.COMMAND_DECIDED: _command,
    Kind.CALL_REFUSED: _call,
    Kind.AGENT_SAID: _agent,
    Kind.JOURNAL_OPENED: _book,
    Kind.JOURNAL_CHECKPOINT: _book,
    Kind.JOURNAL_SEALED: _book,
    Kind.JOURNAL_REPAIRED: _book,
    Kind.JOURNAL_REMOVED: _book,
    Kind.JOURNAL_KEY: _book,
}
