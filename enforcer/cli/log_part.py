"""Which events `exeat log` shows: the options that say so, as texts to look for and then as what is held to each."""

import argparse
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from enforcer.cli import journals
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from proxy.telemetry.events import Event
    from proxy.telemetry.journal.query import Sought

_WORDS = tuple(dict.fromkeys(member.value for member in (*Verdict, *Outcome)))
_GLOB = frozenset("*?[")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how events are chosen."""
    add = parser.add_argument
    add(
        "--verdict",
        action="append",
        type=_word,
        metavar="WORD",
        help=f"only events with this verdict or outcome: {', '.join(_WORDS)}; may be given again for more",
    )
    add(
        "--reason",
        action="append",
        type=_reason,
        metavar="REASON",
        help="only events with this reason, as in no_rule; may be given again for more",
    )
    add(
        "--kind",
        action="append",
        type=_kind,
        metavar="KIND",
        help="only events of this kind, as in request.decided; may be given again for more",
    )
    add("--rule", action="append", metavar="RULE", help="only what this rule decided: its id, or `file:id`")
    add("--name", action="append", metavar="NAME", help="only what went to this name or address")
    add("--process", action="append", metavar="EXE", help="only what this program did, or one that it started")
    journals.add_part(parser)
    add("--until", type=journals.instant, metavar="WHEN", help="only what came before, written as for --since")


class Part:
    """The part of a journal that is to be shown."""

    def __init__(self, arguments: argparse.Namespace, task: str | None) -> None:
        self._task = task
        self._words = frozenset(arguments.verdict or ())
        self._reasons = arguments.reason or ()
        self._kinds = arguments.kind or ()
        self._rules = arguments.rule or ()
        self._names = [name.lower() for name in arguments.name or ()]
        self._programs = arguments.process or ()
        self._since, self._until = arguments.since, arguments.until

    def sought(self) -> "Sought":
        """Return what lines have to hold, as they stand in the journal."""
        from proxy.telemetry.journal.query import Sought

        groups = [
            self._judged(),
            tuple(f'"reason":"{reason}"'.encode() for reason in self._reasons),
            tuple(f'"kind":"{kind}"'.encode() for kind in self._kinds),
            _texts([] if self._task is None else [self._task]),
            _texts(self._names),
            _texts(self._rules, whole=False),
            _texts(self._programs, whole=False),
            (b'"process":',) if self._programs else (),
        ]
        bookkeeping = any(kind.startswith("journal.") for kind in self._kinds)
        # What there are fewest texts of is found quickest, and the others are only looked for in what that leaves.
        groups.sort(key=len)
        return Sought(tuple(group for group in groups if group), self._since, self._until, bookkeeping)

    def has(self, event: "Event") -> bool:
        """Whether to show an event."""
        return (
            journals.belongs(event, self._task)
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
            texts.append('"kind":"tamper"')
        return tuple(text.encode() for text in texts)


def _members(word: str) -> "Iterable[str]":
    if word in set(Verdict):
        yield "verdict"
    if word in set(Outcome):
        yield "outcome"


def _texts(wanted: "Collection[str]", *, whole: bool = True) -> tuple[bytes, ...]:
    """Return texts as JSON has them in a line, from their beginning if `whole`; nothing if one may be anything."""
    from proxy.telemetry.encoding import quoted

    if any(_GLOB.intersection(text) for text in wanted):
        return ()
    return tuple(quoted(text).encode()[0 if whole else 1 :] for text in wanted)


def _cites(rule: str, wanted: str) -> bool:
    return fnmatchcase(rule, wanted) or fnmatchcase(rule.rpartition(":")[2], wanted)


def _names(event: "Event") -> "Iterable[str | None]":
    if event.destination is not None:
        yield event.destination.name
        yield event.destination.address
    if event.dns is not None:
        yield event.dns.question
    if event.http is not None:
        yield event.http.host


def _programs(event: "Event") -> "Iterable[str]":
    if event.process is not None:
        for exe in (event.process.exe, *event.process.ancestors):
            yield exe
            yield exe.rpartition("/")[2]


def _any(texts: "Iterable[str | None]", wanted: "Collection[str]") -> bool:
    return any(text is not None and fnmatchcase(text, each) for text in texts for each in wanted)


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
