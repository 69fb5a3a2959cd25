"""`exeat report`: the attempts and decisions of a task or of a period, as one HTML page."""

import argparse
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from enforcer.cli import journals
from enforcer.cli.parsing import FORCE, JOURNAL, argument
from enforcer.system.errors import UsageError
from proxy.telemetry.journal.query import Progress, last_task
from proxy.telemetry.views.report import gather, page

ARGUMENTS: Final = (
    argument("task", "TASK", "only this task, by id or name; `*` matches any characters", nargs="?"),
    journals.LAST,
    journals.SINCE,
    JOURNAL,
    argument(
        "-o --output",
        "FILE",
        "file to write; `-` is standard output (default: a new file exeat-report-TASK.html)",
        type=str,
    ),
    FORCE,
)


def run(arguments: argparse.Namespace) -> int:
    """Write the page. 0 when all could be read, 1 when some lines could not, 2 for misuse or when there is nothing."""
    if arguments.last and arguments.task is not None:
        raise UsageError("`--last` and TASK both name a task: leave one out")
    if not (arguments.last or arguments.since) and arguments.task is None:
        raise UsageError("no task or period to report: name a task, or write `--last` or `--since 1h`")
    path = journals.find_journal(arguments.journal)
    progress = Progress()
    with journals.report_read_errors(path):
        task = last_task(path) if arguments.last else arguments.task
        all_ = gather(entry.event for entry in journals.read_task_events(path, task, arguments.since, progress))
    if not all_.events:
        raise UsageError(journals.describe_empty(task, arguments.since))
    names = {run.name for run in all_.runs.values()}
    about = f"task {names.pop()}" if task is not None and len(names) == 1 else "what tasks tried"
    try:
        _write(arguments.output, about, page(all_, about, version("exeat")), force=arguments.force)
    except BrokenPipeError:
        raise  # whoever reads our output has enough
    except OSError as error:
        where = error.filename or arguments.output
        other = "overwrite it with `--force`" if arguments.output else "name another file with `-o`"
        hint = f"; {other}" if isinstance(error, FileExistsError) else ""
        raise UsageError(f"cannot write `{where}`: {(error.strerror or str(error)).lower()}{hint}") from error
    return journals.report_unreadable(progress, "not in the report")


def _write(output: str | None, about: str, text: str, *, force: bool) -> None:
    """Write the page where it was asked for; without a name, to a new file, and say which."""
    if output == "-":
        sys.stdout.buffer.write(text.encode())
    elif output is not None:
        # What is no regular file (a pipe, /dev/stdout) can't be lost
        anew = not force and (Path(output).is_file() or not Path(output).exists())
        with open(output, "x" if anew else "w", encoding="utf-8") as file:
            file.write(text)
    else:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", about.removeprefix("task "))[:60].strip("-")
        name = f"exeat-report-{slug or 'task'}.html"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        print(name)
