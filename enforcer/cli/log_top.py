"""`exeat log top`: destinations, rules, reasons and tasks, by how many attempts there were of each."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.cli import journals, log_part
from enforcer.cli.log import backslashed, no_journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.telemetry.events import Event

_SHOWN = 10
_HEADINGS = ("destinations", "rules", "reasons", "tasks")


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """Print them; 0 when all could be read, 1 when some lines could not, 2 for misuse."""
    from proxy.telemetry.events import DECISIONS
    from proxy.telemetry.journal.query import Progress, read_events

    if not directory.is_dir():
        return no_journal(directory)
    journals.allow_many_segments()
    progress = Progress()
    try:
        task = journals.last(directory) if arguments.last else arguments.task
        if not arguments.kind:
            arguments.kind = sorted(kind.value for kind in DECISIONS)
        part = log_part.Part(arguments, task)
        tried, stopped = _counted(
            entry.event for entry in read_events(directory, 0, progress, part.sought()) if part.has(entry.event)
        )
    except OSError as error:
        return journals.unreadable(error, directory)
    if arguments.format in ("json", "jsonl"):
        from proxy.telemetry.shapes.record import one_line

        value = {
            heading: [{"name": name, "attempts": count, "blocked": stopped[heading][name]} for name, count in most]
            for heading, most in ((heading, tried[heading].most_common()) for heading in _HEADINGS)
        }
        sys.stdout.buffer.write(one_line(value))
    else:
        _print(tried, stopped)
    return journals.report(progress, "not counted")


def _counted(events: "Iterator[Event]") -> "tuple[dict[str, Counter[str]], dict[str, Counter[str]]]":
    from rules.verdicts import Outcome

    tried: dict[str, Counter[str]] = {heading: Counter() for heading in _HEADINGS}
    stopped: dict[str, Counter[str]] = {heading: Counter() for heading in _HEADINGS}
    for event in events:
        for heading, name in zip(_HEADINGS, _names(event), strict=True):
            if name:
                tried[heading][name] += 1
                stopped[heading][name] += event.outcome is Outcome.BLOCKED
    return tried, stopped


def _names(event: "Event") -> tuple[str, ...]:
    destination = event.destination
    where = (destination.name or destination.address or "") if destination is not None else ""
    if not where and event.dns is not None:
        where = event.dns.question
    task = event.task
    shown = f"{task.name} ({task.id})" if task.name else task.id
    return where, event.rules[0] if event.rules else "", event.reason or "", shown


def _print(tried: "dict[str, Counter[str]]", stopped: "dict[str, Counter[str]]") -> None:
    from proxy.telemetry.visible import visible

    backslashed()
    for heading in _HEADINGS:
        print(f"{'ATTEMPTS':>10} {'BLOCKED':>10}  {heading.upper()}")
        for name, count in tried[heading].most_common(_SHOWN):
            print(f"{count:>10} {stopped[heading][name]:>10}  {visible(name)}")
        more = len(tried[heading]) - _SHOWN
        if more > 0:
            print(f"{'':>23}and {more} more")
        print()
    sys.stdout.flush()
