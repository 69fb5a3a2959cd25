"""`exeat log`: the journal as a table for people, or as the lines it is made of for programs."""

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.cli import journals
from enforcer.state import journal_directory
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from proxy.telemetry.events import Event
    from proxy.telemetry.reading import Entry

_WORDS = tuple(dict.fromkeys(member.value for member in (*Verdict, *Outcome)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat log` takes."""
    parser.add_argument(
        "--journal", type=Path, metavar="DIR", help="the journal to read (default: where `run` keeps it)"
    )
    parser.add_argument(
        "--format", choices=("table", "jsonl"), default="table", help="a table, or the lines as written"
    )
    parser.add_argument(
        "--verdict",
        action="append",
        type=_word,
        metavar="WORD",
        help=f"only events with this verdict or outcome: {', '.join(_WORDS)}; may be given again for more",
    )
    parser.add_argument(
        "--reason",
        action="append",
        type=_reason,
        metavar="REASON",
        help="only events with this reason, as in no_rule; may be given again for more",
    )
    parser.add_argument(
        "--kind",
        action="append",
        type=_kind,
        metavar="KIND",
        help="only events of this kind, as in request.decided; may be given again for more",
    )
    journals.add_part(parser)
    parser.add_argument("--last", action="store_true", help="only the task that was started last")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until interrupted")


def run(arguments: argparse.Namespace) -> int:
    """Print the events. 0 when all could be read, 1 when some lines could not, 2 when there is no journal."""
    from proxy.telemetry.reading import Progress, follow, last_task, read_events

    if arguments.last and arguments.task is not None:
        print("exeat: `--last` names a task already: leave `--task` out", file=sys.stderr)
        return 2
    directory = arguments.journal or journal_directory()
    if not directory.is_dir():
        print(f"exeat: there is no journal in `{directory}`; name another with `--journal`", file=sys.stderr)
        return 2
    journals.allow_many_segments()
    progress = Progress()
    show = _lines if arguments.format == "jsonl" else _table
    try:
        task = last_task(directory) if arguments.last else arguments.task
        if arguments.last and task is None:
            print(f"exeat: no task has been started in the journal in `{directory}`", file=sys.stderr)
            return 0
        entries = (follow if arguments.follow else read_events)(directory, arguments.since, progress)
        part = _Part(task, arguments.verdict or [], arguments.reason or [], arguments.kind or [])
        # Whoever follows sees each line as it happens, also through a pipe.
        show((entry for entry in entries if part.has(entry.event)), at_once=arguments.follow)
    except BrokenPipeError:
        raise  # whoever reads us has enough: no fault of the journal
    except OSError as error:
        return journals.unreadable(error, directory)
    status = journals.report(progress, "not shown")
    if task is not None and not part.known:
        print(f"exeat: {journals.nothing_of(task, arguments.since)}", file=sys.stderr)
    return status


def _lines(entries: "Iterator[Entry]", *, at_once: bool) -> None:
    """Print lines as they stand in the journal; one that was tampered with can't reach a terminal unescaped."""
    from proxy.telemetry.encoding import encode

    for line, event in entries:
        plain = line.isascii() and line[:-1].decode("ascii").isprintable()
        sys.stdout.buffer.write(line if plain else encode(event))
        if at_once:
            sys.stdout.buffer.flush()


def _table(entries: "Iterator[Entry]", *, at_once: bool) -> None:
    from proxy.telemetry.table import Table

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that isn't UTF-8 gets what it can show
    table = Table.for_output(sys.stdout)
    print(table.header(), flush=at_once)
    for entry in entries:
        print(table.row(entry.event), flush=at_once)


class _Part:
    """The part of a journal that is to be shown. `known`: whether there is anything of the task, shown or not."""

    def __init__(self, task: str | None, words: "list[str]", reasons: "list[str]", kinds: "list[str]") -> None:
        self.known = False
        self._task = task
        self._words = frozenset(words)
        self._reasons = reasons
        self._kinds = kinds

    def has(self, event: "Event") -> bool:
        """Whether to show an event."""
        if not journals.belongs(event, self._task):
            return False
        self.known = True
        if (self._reasons and event.reason not in self._reasons) or (self._kinds and event.kind not in self._kinds):
            return False
        return not self._words or not self._words.isdisjoint(_said(event))


def _said(event: "Event") -> "tuple[str | None, ...]":
    """Return the words that an event is found by. What a task tampers with is blocked, though its event says not so."""
    from proxy.telemetry.events import Kind

    return (Outcome.BLOCKED,) if event.kind is Kind.TAMPER else (event.verdict, event.outcome)


def _word(text: str) -> str:
    return _one_of(_WORDS, text, "neither a verdict nor an outcome")


def _reason(text: str) -> str:
    return _one_of(tuple(Reason), text, "no reason")


def _kind(text: str) -> str:
    from proxy.telemetry.events import Kind

    return _one_of(tuple(Kind), text, "no kind of event")


def _one_of(words: "Collection[str]", text: str, otherwise: str) -> str:
    """Read one of the words of a closed list."""
    if text in words:
        return text
    from rules.problems import did_you_mean, quoted

    instead = did_you_mean(text, words) or f"; there are {', '.join(words)}"
    raise argparse.ArgumentTypeError(f"{quoted(text)} is {otherwise}{instead}")
