"""`exeat log show`, `chain`, `top` and `replay`: one event, its causes, the most frequent, and a task's timeline."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from enforcer.cli import journals, log
from enforcer.cli.log import escape_unprintable
from enforcer.system.errors import UsageError
from proxy.telemetry.descriptions import describe
from proxy.telemetry.encoding import timestamp
from proxy.telemetry.events import DECISIONS, Event
from proxy.telemetry.formats.decoded_event import one_line
from proxy.telemetry.journal.query import Entry, Progress, read_events
from proxy.telemetry.views.causality import CausalChain, EventEffects, chain, find
from proxy.telemetry.views.conversations import AgentContext, find_agent_context, time_of_claim
from proxy.telemetry.views.timeline import timeline_of
from proxy.telemetry.visible import unpadded, visible
from proxy.wire import strict_json
from rules.problems import quote
from rules.verdicts import Outcome

_SHOWN = 10
_HEADINGS = ("destinations", "rules", "reasons", "tasks")


def run_show(arguments: argparse.Namespace, directory: Path) -> int:
    """Print it; 0 when there is such an event, 2 when there isn't, or for misuse."""
    entry = _event(find, directory, arguments.what or "", "show")
    record = strict_json.loads(entry.line)
    if arguments.format in ("json", "jsonl"):
        _write(record)
        return 0

    escape_unprintable()
    fields = list(_fields(record))
    width = max(len(field) for field, _ in fields)
    for field, value in fields:
        print(f"{visible(field):{width}}  {unpadded(visible(value))}")
    return 0


def _write(value: dict[str, Any]) -> None:
    """Write a value for programs."""
    sys.stdout.buffer.write(one_line(value))


def _event[T](look: Callable[[Path, str], T | None], directory: Path, given: str, part: str) -> T:
    """Return what `look` finds of the one event that is meant. Raises UsageError, also where there is none."""
    if not given:
        raise UsageError(f"which event? `exeat log {part} ID`; `exeat log` shows the ends of their ids")
    found = journals.find_event(look, directory, given, "exeat log")
    if found is None:
        raise UsageError(f"there is no event {quote(given)} in the journal")
    return found


def _fields(record: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value)


def run_chain(arguments: argparse.Namespace, directory: Path) -> int:
    """Print it; 0 when there is such an event, 2 when there isn't, or for misuse."""
    found = _event(chain, directory, arguments.what or "", "chain")
    beside = find_agent_context(directory, found.event.entry, _near(found), _shown(found))
    if arguments.format in ("json", "jsonl"):
        _write(_value(found, beside))
        return 0
    escape_unprintable()
    depth = 0
    if found.task is not None and found.task.event.id not in _ids(found):
        print(_said(found.task.event, 0))
        depth = 1
    if found.missing is not None:
        print(f"{'  ' * depth}? {found.missing} is not in the journal")
        depth += 1
    for cause in found.causes:
        print(_said(cause.event, depth))
        depth += 1
    _print_effects(found.event, depth, " <--")
    for heading, entries in _beside(beside):
        print(f"\n{heading}:")
        for entry in entries:
            print(_said(entry.event, 1))
    return 0


def _beside(beside: AgentContext) -> Iterator[tuple[str, list[Entry]]]:
    """Yield what is shown of it, under which heading."""
    for heading, entries in (
        ("what the agent says around it, which is its claim", beside.said),
        ("what the gate saw of the task meanwhile", beside.did),
        ("what the same process did besides", beside.process),
        ("what people were asked, and said", beside.people),
    ):
        if entries:
            yield heading, entries


def _near(found: CausalChain) -> list[Event]:
    """Return the events right above and below."""
    return [*(each.event for each in found.causes), *(each.entry.event for each in found.event.effects)]


def _shown(found: CausalChain) -> set[str]:
    """Return the ids of all that the tree shows."""
    ids, waiting = _ids(found), [found.event]
    while waiting:
        each = waiting.pop()
        ids.add(each.entry.event.id)
        waiting += each.effects
    return ids if found.task is None else {*ids, found.task.event.id}


def _ids(found: CausalChain) -> set[str]:
    return {entry.event.id for entry in (*found.causes, found.event.entry)}


def _print_effects(caused: EventEffects, depth: int, mark: str = "") -> None:
    waiting = [(caused, depth, mark)]
    while waiting:
        each, far, sign = waiting.pop()
        print(_said(each.entry.event, far) + sign)
        waiting += [(effect, far + 1, "") for effect in reversed(each.effects)]


def _said(event: Event, depth: int) -> str:
    when: int = event.time
    if event.agent is not None:
        when = time_of_claim(event)
    why = "".join(f" {each}" for each in (event.outcome, event.reason, *event.rules[:1]) if each)
    who = ""
    if event.process is not None:
        who = f" by {event.process.exe} (process {event.process.pid})"
    said = unpadded(visible(f"{describe(event)}{who}:{why}"))
    return f"{'  ' * depth}{timestamp(when)[11:23]} {said}  {event.id}"


def _value(found: CausalChain, beside: AgentContext) -> dict[str, Any]:
    """Return all of it as one value; effects one within the other, at most as deep as causes can be."""
    value = {"causes": [_record(each) for each in found.causes], **_caused(found.event)}
    for name in ("said", "did", "process", "people"):
        value[name] = [_record(each) for each in getattr(beside, name)]
    if found.task is not None:
        value["task"] = _record(found.task)
    if found.missing is not None:
        value["missing"] = found.missing
    return value


def _caused(caused: EventEffects, depth: int = 0) -> dict[str, Any]:
    effects = [_caused(each, depth + 1) for each in caused.effects] if depth < 64 else []
    return {"event": _record(caused.entry), "effects": effects}


def _record(entry: Entry) -> dict[str, Any]:
    value: dict[str, Any] = strict_json.loads(entry.line)
    return value


def run_top(arguments: argparse.Namespace, directory: Path) -> int:
    """Print them; 0 when all could be read, 1 when some lines could not, 2 for misuse."""
    progress = Progress()
    if not arguments.kind:
        arguments.kind = sorted(kind.value for kind in DECISIONS)
    part = log.EventFilter(arguments, journals.find_last_task(directory) if arguments.last else arguments.task)
    tried, stopped = _counted(
        entry.event for entry in read_events(directory, part.sought(), progress) if part.has(entry.event)
    )
    if arguments.format in ("json", "jsonl"):
        _write(
            {
                heading: [
                    {"name": name, "attempts": count, "blocked": stopped[heading][name]}
                    for name, count in tried[heading].most_common()
                ]
                for heading in _HEADINGS
            }
        )
    else:
        _print_top(tried, stopped)
    return journals.report_unreadable(progress, "not counted")


def _counted(events: Iterator[Event]) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    tried: dict[str, Counter[str]] = {heading: Counter() for heading in _HEADINGS}
    stopped: dict[str, Counter[str]] = {heading: Counter() for heading in _HEADINGS}
    for event in events:
        for heading, name in zip(_HEADINGS, _names(event), strict=True):
            if name:
                tried[heading][name] += 1
                stopped[heading][name] += event.outcome is Outcome.BLOCKED
    return tried, stopped


def _names(event: Event) -> tuple[str, ...]:
    destination = event.destination
    where = (destination.name or destination.address or "") if destination is not None else ""
    if not where and event.dns is not None:
        where = event.dns.question
    task = event.task
    shown = f"{task.name} ({task.id})" if task.name else task.id
    return where, event.rules[0] if event.rules else "", event.reason or "", shown


def _print_top(tried: dict[str, Counter[str]], stopped: dict[str, Counter[str]]) -> None:
    escape_unprintable()
    for heading in _HEADINGS:
        print(f"{'ATTEMPTS':>10} {'BLOCKED':>10}  {heading.upper()}")
        for name, count in tried[heading].most_common(_SHOWN):
            print(f"{count:>10} {stopped[heading][name]:>10}  {visible(name)}")
        more = len(tried[heading]) - _SHOWN
        if more > 0:
            print(f"{'':>23}and {more} more")
        print()
    sys.stdout.flush()


def run_replay(arguments: argparse.Namespace, directory: Path) -> int:
    """Tell it; 0 when all could be read, 1 when some lines could not, 2 for misuse or when there is no such task."""
    task = arguments.what or arguments.task
    if task is None and not arguments.last:
        raise UsageError("which task? write `exeat log replay TASK`, or `--last` for the last one")
    progress = Progress()
    task = journals.find_last_task(directory) if arguments.last else task
    entries = read_events(directory, journals.task_filter(task, arguments.since), progress)
    found = [entry.event for entry in entries if journals.is_of_task(entry.event, task)]
    if not found:
        raise UsageError(f"there is no task {quote(task or '')} in the journal")
    escape_unprintable()
    for number, own in enumerate(dict.fromkeys(event.task.id for event in found)):
        if number:
            print()
        for line in timeline_of(event for event in found if event.task.id == own):
            print(line)
    return journals.report_unreadable(progress, "not told")
