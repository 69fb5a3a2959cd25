"""`exeat log chain ID`: what led to an event and what came of it, as a tree or as one value for a ticket.

Beside it stands what the agent says of that time, which is its claim, and what else the same process did.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enforcer.cli.log import backslashed, no_journal
from enforcer.cli.log_show import meant, not_there
from proxy.wire import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.telemetry.chains import Caused, Chain
    from proxy.telemetry.conversations import Joined
    from proxy.telemetry.events import Event
    from proxy.telemetry.journal.query import Entry


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """Print it; 0 when there is such an event, 1 when there isn't, 2 for misuse."""
    from proxy.telemetry.chains import chain
    from proxy.telemetry.conversations import joined

    if not directory.is_dir():
        return no_journal(directory)
    given = arguments.what or ""
    name = meant(directory, given)
    found = None if name is None else chain(directory, name)
    if found is None:
        return not_there(directory, given, "chain")
    beside = joined(directory, found.event.entry, _near(found), _shown(found))
    if arguments.format in ("json", "jsonl"):
        from proxy.telemetry.shapes.record import one_line

        sys.stdout.buffer.write(one_line(_value(found, beside)))
        return 0
    backslashed()
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


def _beside(beside: "Joined") -> "Iterator[tuple[str, list[Entry]]]":
    """Yield what is shown of it, under which heading."""
    for heading, entries in (
        ("what the agent says around it, which is its claim", beside.said),
        ("what the gate saw of the task meanwhile", beside.did),
        ("what the same process did besides", beside.process),
        ("what people were asked, and said", beside.people),
    ):
        if entries:
            yield heading, entries


def _near(found: "Chain") -> "list[Event]":
    """Return the events right above and below."""
    return [*(each.event for each in found.causes), *(each.entry.event for each in found.event.effects)]


def _shown(found: "Chain") -> set[str]:
    """Return the ids of all that the tree shows."""
    ids, waiting = _ids(found), [found.event]
    while waiting:
        each = waiting.pop()
        ids.add(each.entry.event.id)
        waiting += each.effects
    return ids if found.task is None else {*ids, found.task.event.id}


def _ids(found: "Chain") -> set[str]:
    return {entry.event.id for entry in (*found.causes, found.event.entry)}


def _print_effects(caused: "Caused", depth: int, mark: str = "") -> None:
    waiting = [(caused, depth, mark)]
    while waiting:
        each, far, sign = waiting.pop()
        print(_said(each.entry.event, far) + sign)
        waiting += [(effect, far + 1, "") for effect in reversed(each.effects)]


def _said(event: "Event", depth: int) -> str:
    from proxy.telemetry.encoding import timestamp
    from proxy.telemetry.sayings import what
    from proxy.telemetry.visible import unpadded, visible

    when: int = event.time
    if event.agent is not None:
        from proxy.telemetry.conversations import moment

        when = moment(event)
    why = "".join(f" {each}" for each in (event.outcome, event.reason, *event.rules[:1]) if each)
    who = ""
    if event.process is not None:
        who = f" by {event.process.exe} (process {event.process.pid})"
    said = unpadded(visible(f"{what(event)}{who}:{why}"))
    return f"{'  ' * depth}{timestamp(when)[11:23]} {said}  {event.id}"


def _value(found: "Chain", beside: "Joined") -> dict[str, Any]:
    """Return all of it as one value; effects one within the other, at most as deep as causes can be."""
    value = {"causes": [_record(each) for each in found.causes], **_caused(found.event)}
    for name in ("said", "did", "process", "people"):
        value[name] = [_record(each) for each in getattr(beside, name)]
    if found.task is not None:
        value["task"] = _record(found.task)
    if found.missing is not None:
        value["missing"] = found.missing
    return value


def _caused(caused: "Caused", depth: int = 0) -> dict[str, Any]:
    effects = [_caused(each, depth + 1) for each in caused.effects] if depth < 64 else []
    return {"event": _record(caused.entry), "effects": effects}


def _record(entry: "Entry") -> dict[str, Any]:
    value: dict[str, Any] = strict_json.loads(entry.line)
    return value
