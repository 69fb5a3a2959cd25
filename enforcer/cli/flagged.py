"""`exeat flagged`: lists attempts that rules with `flag` allowed, and records who reviewed them."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enforcer.cli import journals
from enforcer.cli.output import count_of, format_time, print_table
from enforcer.cli.parsing import FORMAT, JOURNAL, argument
from enforcer.system.errors import UsageError
from proxy.telemetry.descriptions import describe
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Event, Kind
from proxy.telemetry.journal.query import LineFilter, Progress, read_events
from proxy.wire import strict_json
from rules.verdicts import Outcome, Verdict

_VERBS = ("list", "ack")
_HEAD = ("ID", "TIME (UTC)", "TASK", "RULES", "WHAT")
_AT_A_TIME = 1000
_SHORT = 12  # characters of an id's end, which no two events of a millisecond share


ARGUMENTS: Final = (
    argument("verb", _VERBS, "list flagged attempts, or acknowledge them", nargs="?", default="list"),
    argument("ids", "ID", "ack: event, by the id that `list` shows", nargs="*"),
    argument("--all", "", "ack: all events that are not acknowledged; list: acknowledged events too"),
    *journals.TASK_AND_SINCE,
    JOURNAL,
    FORMAT,
)


def run(arguments: argparse.Namespace) -> int:
    """List or acknowledge. 0 when it is done, 1 when lines of the journal could not be read, 2 for wrong words."""
    if arguments.verb == "ack":
        return _ack(arguments)
    if arguments.ids:
        raise UsageError("`exeat flagged list` takes no ids; `exeat log show ID` shows one event")
    return _list(arguments)


def _list(arguments: argparse.Namespace) -> int:
    events, status = _flagged(arguments)
    known = _acknowledged()
    shown = [event for event in events if arguments.all or event.id not in known]
    if arguments.format == "json":
        print(json.dumps([_as_json(event, known.get(event.id)) for event in shown], indent=2))
        return status
    if not shown:
        print("all flagged events are acknowledged" if events else "there are no flagged events")
        return status

    rows = [
        (
            _listed(event.id),
            format_time(event.time / 1e9),
            event.task.name,
            ", ".join(event.rules),
            describe(event) + (f" (acknowledged by {known[event.id][0]})" if event.id in known else ""),
        )
        for event in shown
    ]
    print_table(_HEAD, rows)
    waiting = any(event.id not in known for event in shown)
    how = (
        "; `exeat log show ID` shows details; acknowledge them with `exeat flagged ack ID` or `--all`"
        if waiting
        else ", all acknowledged"
    )
    print(f"{count_of(len(shown), 'event')}{how}")
    return status


def _ack(arguments: argparse.Namespace) -> int:
    if bool(arguments.ids) == bool(arguments.all or arguments.task):
        raise UsageError("which events? write `exeat flagged ack ID...`, `--all` or `--task TASK`")
    events, status = _flagged(arguments)
    known = _acknowledged()
    waiting = [event.id for event in events if event.id not in known]
    chosen = waiting if not arguments.ids else [_one(given, [event.id for event in events]) for given in arguments.ids]
    from enforcer.approvals.client import ask

    new = 0
    for at in range(0, len(chosen), _AT_A_TIME):
        (answer,) = ask({"what": "ack", "events": chosen[at : at + _AT_A_TIME]})
        new += int(answer["new"])
    if arguments.format == "json":
        print(json.dumps({"acknowledged": new, "of": len(chosen)}))
    else:
        print(
            f"{count_of(new, 'event')} acknowledged"
            + (f", {len(chosen) - new} were acknowledged before" if new < len(chosen) else "")
        )
    return status


def _listed(event: str) -> str:
    """Shorten an id as it is listed."""
    return event[-_SHORT:]


def _one(given: str, ids: list[str]) -> str:
    """Return the one event that is meant. Raises UsageError."""
    found = [each for each in ids if each.startswith(given) or each.endswith(given) or _listed(each).startswith(given)]
    if len(found) != 1:
        some = "more than one event that was flagged has" if found else "no event that was flagged has"
        raise UsageError(f"{some} the id `{ascii(given)[1:-1]}`; see `exeat flagged list`")
    return found[0]


def _flagged(arguments: argparse.Namespace) -> tuple[list[Event], int]:
    """Return what was let go and flagged, in order of time, and the status that comes of reading it."""
    directory = journals.find_journal(arguments.journal)
    progress = Progress()
    events = [
        event
        for event in _read(directory, arguments, progress, f'"verdict":"{Verdict.FLAG}"')
        if event.verdict is Verdict.FLAG and event.outcome is Outcome.PASSED and event.kind is not Kind.DNS_DECIDED
    ]
    if any(event.kind is Kind.CONNECTION_DECIDED for event in events):
        # Of a connection that was looked into each request is told by itself, also those that no flag is about
        requests = _read(directory, arguments, Progress(), f'"kind":"{Kind.REQUEST_DECIDED}"')
        causes = {event.cause for event in requests}
        events = [event for event in events if event.id not in causes]
    return events, journals.report_unreadable(progress, "not shown")


def _read(directory: Path, arguments: argparse.Namespace, progress: Progress, holding: str) -> Iterator[Event]:
    sought = LineFilter(((holding.encode(),),), arguments.since)
    with journals.report_read_errors(directory):
        for entry in read_events(directory, sought, progress):
            if journals.is_of_task(entry.event, arguments.task):
                yield entry.event


def _acknowledged() -> dict[str, tuple[str, float]]:
    """Return who has looked at what, and when."""
    from enforcer.approvals.client import ask

    return {each["event"]: (each["by"], each["at"]) for answer in ask({"what": "acks"}) for each in answer["acks"]}


def _as_json(event: Event, looked: tuple[str, float] | None) -> dict[str, object]:
    record = strict_json.loads(encode(event))
    return {**record, "acknowledged": None if looked is None else {"by": looked[0], "at": looked[1]}}
