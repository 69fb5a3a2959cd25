"""`exeat log replay TASK`: what a task tried, in order, and why each was decided as it was."""

import argparse
import sys
from pathlib import Path

from enforcer.cli import journals
from enforcer.cli.log import backslashed, no_journal
from rules.problems import quoted


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """Tell it; 0 when all could be read, 1 when some lines could not or there is no such task, 2 for misuse."""
    from proxy.telemetry.journal.query import Progress, read_events
    from proxy.telemetry.story import story

    if not directory.is_dir():
        return no_journal(directory)
    task = arguments.what or arguments.task
    if task is None and not arguments.last:
        print("exeat: which task? `exeat log replay TASK`, or `--last` for the last one", file=sys.stderr)
        return 2
    journals.allow_many_segments()
    progress = Progress()
    try:
        task = journals.last(directory) if arguments.last else task
        entries = read_events(directory, arguments.since, progress, journals.sieve(task, arguments.since))
        found = [entry.event for entry in entries if journals.belongs(entry.event, task)]
    except OSError as error:
        return journals.unreadable(error, directory)
    if not found:
        print(f"exeat: there is no task {quoted(task or '')} in the journal", file=sys.stderr)
        return 1
    backslashed()
    for number, own in enumerate(dict.fromkeys(event.task.id for event in found)):
        if number:
            print()
        for line in story(event for event in found if event.task.id == own):
            print(line)
    return journals.report(progress, "not told")
