"""`exeat log show ID`: everything that one event says."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enforcer.cli.log import backslashed, no_journal
from proxy.wire import strict_json
from rules.problems import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """Print it; 0 when there is such an event, 1 when there isn't, 2 for misuse."""
    from proxy.telemetry.chains import find

    if not directory.is_dir():
        return no_journal(directory)
    given = arguments.what or ""
    name = meant(directory, given)
    entry = None if name is None else find(directory, name)
    if entry is None:
        return not_there(directory, given, "show")
    record = strict_json.loads(entry.line)
    if arguments.format in ("json", "jsonl"):
        from proxy.telemetry.shapes.record import one_line

        sys.stdout.buffer.write(one_line(record))
        return 0
    from proxy.telemetry.visible import unpadded, visible

    backslashed()
    fields = list(_fields(record))
    width = max(len(field) for field, _ in fields)
    for field, value in fields:
        print(f"{visible(field):{width}}  {unpadded(visible(value))}")
    return 0


def meant(directory: Path, given: str) -> str | None:
    """Return the id of the one event that is named, in whole or by an end of its id."""
    from proxy.telemetry.chains import named

    found = named(directory, given)
    return found[0] if len(found) == 1 else None


def not_there(directory: Path, given: str, part: str) -> int:
    """Say that there is no event with that id, or several; the status that comes of it."""
    from proxy.telemetry.chains import is_named, named

    if not given:
        print(f"exeat: which event? `exeat log {part} ID`; `exeat log` shows the ends of their ids", file=sys.stderr)
        return 2
    if not is_named(given):
        said = "is no event's id, nor an end of one of 8 characters or more"
        print(f"exeat: {quoted(given)} {said}; `exeat log` shows the ends of their ids", file=sys.stderr)
        return 2
    if several := named(directory, given)[1:]:
        print(f"exeat: {len(several) + 1} events have an id like {quoted(given)}; say more of it", file=sys.stderr)
        return 2
    print(f"exeat: there is no event {quoted(given)} in the journal", file=sys.stderr)
    return 1


def _fields(record: dict[str, Any], above: str = "") -> "Iterator[tuple[str, str]]":
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value)
