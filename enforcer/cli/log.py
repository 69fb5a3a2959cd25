"""`exeat log`: prints the journal as a table for people or as lines for programs, filtered."""

import argparse
import importlib
import io
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Final

from enforcer.cli import journals
from enforcer.cli.parsing import JOURNAL, argument, old_spelling, warn_renamed
from enforcer.system.errors import UsageError
from enforcer.system.state import journal_directory
from proxy.telemetry.encoding import encode
from proxy.telemetry.encoding import quoted as in_json
from proxy.telemetry.events import FORMER_KINDS, Event, Kind
from proxy.telemetry.formats.decoded_event import read
from proxy.telemetry.journal.query import Entry, LineFilter, Progress, follow, read_events
from proxy.telemetry.views.table import Table
from rules.problems import did_you_mean, quote
from rules.verdicts import Outcome, Reason, Verdict

PARTS = {
    "show": "all fields of one event",
    "chain": "causes and effects of an event",
    "top": "most frequent destinations, rules, reasons and tasks",
    "replay": "timeline of one task",
    "verify": "check the signatures of the journal",
    "keys": "list, make, export or rotate the keys that sign the journal",
    "retention": "show or set how long, and how much of, the journal is kept",
}
_MODULES = {part: "log_integrity" if part in {"verify", "keys", "retention"} else "log_views" for part in PARTS}
_SHAPES = ("ocsf", "ecs", "cef")
_LATEST = 10  # events that a table begins with which goes on, as with tail(1)
_WORDS = tuple(dict.fromkeys(member.value for member in (*Verdict, *Outcome)))
_GLOB = frozenset("*?[")


def _one_of(words: Collection[str], otherwise: str, text: str) -> str:
    """Read one of the words of a closed list."""
    if text in words:
        return text

    instead = did_you_mean(text, words) or f"; there are {', '.join(words)}"
    raise argparse.ArgumentTypeError(f"{quote(text)} is {otherwise}{instead}")


def _part(text: str) -> str:
    if text == "keep":
        warn_renamed("exeat log keep", "exeat log retention")
        return "retention"
    return text


def _kind(text: str) -> str:
    """Read a kind of event, also under the name that it had in an earlier version."""
    return text if text in FORMER_KINDS else _one_of(tuple(Kind), "no kind of event", text)


ARGUMENTS: Final = (
    argument("part", tuple(PARTS), "; ".join(f"{word}: {says}" for word, says in PARTS.items()), nargs="?", type=_part),
    argument("what", "WHAT", "id of an event, a task, a journal directory, or an action on keys", nargs="?"),
    JOURNAL,
    argument(
        "--format",
        ("table", "jsonl", "json", *_SHAPES),
        "output format (default: table); jsonl is the lines as written, ocsf, ecs and cef are for a SIEM",
    ),
    argument(
        "--verdict",
        "WORD...",
        f"only events with this verdict or outcome: {', '.join(_WORDS)}",
        type=partial(_one_of, _WORDS, "neither a verdict nor an outcome"),
    ),
    argument(
        "--reason",
        "REASON...",
        "only events with this reason, as in no_rule",
        type=partial(_one_of, tuple(Reason), "no reason"),
    ),
    argument(
        "--kind",
        "KIND...",
        "only events of this kind, as in request.decided",
        type=_kind,
    ),
    argument("--rule", "RULE...", "only decisions of this rule: its id, or `file:id`"),
    argument("--name", "NAME...", "only attempts to this name or address, and lookups of it"),
    argument("--process", "EXE...", "only attempts of this program, and of programs that it started; a name or path"),
    *journals.TASK_AND_SINCE,
    argument("--until", "WHEN", "only events before this time, as for --since", type=journals.parse_time),
    journals.LAST,
    argument("-f --follow", "", "print new events as they come; a table begins with the last 10"),
    argument("--key", "FILE", "verify: trust only the public keys in this file (PEM)"),
    argument("--copy", "FILE", "verify: lines stored elsewhere, whose signatures this journal must contain"),
    old_spelling("--kept", "--copy", "FILE"),
    argument("--age", "TIME", "retention: remove days older than this: 90d, or `none` (default: 365d)"),
    argument(
        "--size", "SIZE", "retention: remove the oldest segments beyond this size: 20G, or `none` (default: none)"
    ),
    argument("--now", "", "retention: compress and remove at once instead of within the hour"),
)


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0 when all could be read, 1 when some lines could not or it isn't intact, 2 for misuse."""
    directory = arguments.journal or journal_directory()
    does: Callable[[argparse.Namespace, Path], int] = _show
    if arguments.part is not None:
        module = importlib.import_module(f"enforcer.cli.{_MODULES[arguments.part]}")
        does = getattr(module, f"run_{arguments.part}")
        if _MODULES[arguments.part] == "log_integrity":
            return does(arguments, directory)
    elif arguments.last and arguments.task is not None:
        raise UsageError("`--last` and `--task` both name a task: leave one out")
    journals.require_journal(directory)
    with journals.report_read_errors(directory):
        return does(arguments, directory)


def _show(arguments: argparse.Namespace, directory: Path) -> int:
    task = journals.find_last_task(directory) if arguments.last else arguments.task
    if arguments.last and task is None:
        print(f"exeat: no task has been started in the journal in `{directory}`", file=sys.stderr)
        return 0
    part, progress = EventFilter(arguments, task), Progress()
    sought = part.sought()
    put = _printer(arguments.format, at_once=arguments.follow)
    if not arguments.follow:
        entries = read_events(directory, sought, progress)
    elif arguments.format in (None, "table") and task is None and not arguments.since:
        latest = _Latest(put)
        put, entries = latest.put, follow(directory, sought, progress, latest.wait)
    else:
        entries = follow(directory, sought, progress)
    shown = False
    for entry in entries:
        if part.has(entry.event):
            put(entry)
            shown = True
    status = journals.report_unreadable(progress, "not shown")
    if task is not None and not shown and not _known(directory, arguments, task):
        print(f"exeat: {journals.describe_empty(task, arguments.since)}", file=sys.stderr)
    return status


class _Latest:
    """Prints the last few entries that there are already, and each that comes then."""

    def __init__(self, put: Callable[[Entry], None]) -> None:
        self._put = put
        self._kept: deque[Entry] | None = deque(maxlen=_LATEST)

    def put(self, entry: Entry) -> None:
        if self._kept is None:
            self._put(entry)
        else:
            self._kept.append(entry)

    def wait(self, seconds: float) -> None:
        """Wait: all that there was has come."""
        kept, self._kept = self._kept or (), None
        for entry in kept:
            self._put(entry)
        time.sleep(seconds)


def _known(directory: Path, arguments: argparse.Namespace, task: str) -> bool:
    """Whether there is anything of a task, whatever else was asked for."""
    return any(journals.read_task_events(directory, task, arguments.since))


def _printer(wanted: str | None, *, at_once: bool) -> Callable[[Entry], None]:
    """Return what prints an entry. Whoever follows sees each line as it happens, also through a pipe."""
    if wanted in (None, "table"):
        escape_unprintable()
        table = Table.for_output(sys.stdout)
        print(table.header(), flush=at_once)
        return lambda entry: print(table.row(entry.event), flush=at_once)
    shaped = _as_written if wanted in ("jsonl", "json") else _shape(str(wanted))

    def put(entry: Entry) -> None:
        sys.stdout.buffer.write(shaped(entry))
        if at_once:
            sys.stdout.buffer.flush()

    return put


def _as_written(entry: Entry) -> bytes:
    """Return a line as it stands in the journal; one that was tampered with can't reach a terminal unescaped."""
    line = entry.line
    return line if line.isascii() and line[:-1].decode("ascii").isprintable() else encode(entry.event)


def _shape(name: str) -> Callable[[Entry], bytes]:
    from proxy.telemetry.exporters.exporter import FORMATS, Item  # all that SIEMs read, which no other form needs

    return lambda entry: f"{FORMATS[name](Item(b'', read(entry.line)))}\n".encode()


def escape_unprintable() -> None:
    """Have a terminal that isn't UTF-8 get what it can show."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class EventFilter:
    """The part of a journal that is to be shown."""

    def __init__(self, arguments: argparse.Namespace, task: str | None) -> None:
        self._task = task
        self._words = frozenset(arguments.verdict or ())
        self._reasons = arguments.reason or ()
        self._kinds = _current_kinds(arguments.kind or ())
        self._rules = arguments.rule or ()
        self._names = [name.lower() for name in arguments.name or ()]
        self._programs = arguments.process or ()
        self._since, self._until = arguments.since, arguments.until

    def sought(self) -> LineFilter:
        """Return what lines have to hold, as they stand in the journal."""
        groups = [
            self._judged(),
            tuple(f'"reason":"{reason}"'.encode() for reason in self._reasons),
            tuple(f'"kind":"{name}"'.encode() for kind in self._kinds for name in kind.names()),
            _texts([] if self._task is None else [self._task]),
            _texts(self._names),
            _texts(self._rules, whole=False),
            _texts(self._programs, whole=False),
            (b'"process":',) if self._programs else (),
        ]
        bookkeeping = any(kind.startswith("journal.") for kind in self._kinds)
        # What there are fewest texts of is found quickest, and the others are only looked for in what that leaves.
        groups.sort(key=len)
        return LineFilter(tuple(group for group in groups if group), self._since, self._until, bookkeeping)

    def has(self, event: Event) -> bool:
        """Whether to show an event."""
        return (
            journals.is_of_task(event, self._task)
            and (not self._reasons or event.reason in self._reasons)
            and (not self._kinds or event.kind in self._kinds)
            and (not self._words or not self._words.isdisjoint(_said(event)))
            and (not self._rules or any(_cites(each, rule) for each in event.rules for rule in self._rules))
            and (not self._names or _any(_names(event), self._names))
            and (not self._programs or _any(_programs(event), self._programs))
        )

    def _judged(self) -> tuple[bytes, ...]:
        texts = [f'"{member}":"{word}"' for word in sorted(self._words) for member in _members(word)]
        if Outcome.BLOCKED in self._words:
            texts += [f'"kind":"{name}"' for name in Kind.TAMPERING_DETECTED.names()]
        return tuple(text.encode() for text in texts)


def _current_kinds(words: Iterable[str]) -> tuple[Kind, ...]:
    """Return the kinds that are asked for, and report each name of an earlier version once on stderr."""
    for former in dict.fromkeys(word for word in words if word in FORMER_KINDS):
        warn_renamed(f"--kind {former}", f"--kind {FORMER_KINDS[former]}")
    return tuple(dict.fromkeys(map(Kind, words)))


def _members(word: str) -> Iterable[str]:
    if word in set(Verdict):
        yield "verdict"
    if word in set(Outcome):
        yield "outcome"


def _texts(wanted: Collection[str], *, whole: bool = True) -> tuple[bytes, ...]:
    """Return texts as JSON has them in a line, from their beginning if `whole`; nothing if one may be anything."""
    if any(_GLOB.intersection(text) for text in wanted):
        return ()
    return tuple(in_json(text).encode()[0 if whole else 1 :] for text in wanted)


def _cites(rule: str, wanted: str) -> bool:
    return fnmatchcase(rule, wanted) or fnmatchcase(rule.rpartition(":")[2], wanted)


def _names(event: Event) -> Iterable[str | None]:
    if event.destination is not None:
        yield event.destination.name
        yield event.destination.address
    if event.dns is not None:
        yield event.dns.question
    if event.http is not None:
        yield event.http.host


def _programs(event: Event) -> Iterable[str]:
    if event.process is not None:
        for exe in (event.process.exe, *event.process.ancestors):
            yield exe
            yield exe.rpartition("/")[2]


def _any(texts: Iterable[str | None], wanted: Collection[str]) -> bool:
    return any(text is not None and fnmatchcase(text, each) for text in texts for each in wanted)


def _said(event: Event) -> tuple[str | None, ...]:
    """Return the words that an event is found by. What a task tampers with is blocked, though its event says not so."""
    return (Outcome.BLOCKED,) if event.kind is Kind.TAMPERING_DETECTED else (event.verdict, event.outcome)
