"""Matches `commands` against a program and its arguments: which programs may start. Pure.

A guard rail and not a boundary: a copied, renamed or interpreted program is another (docs/explanation/guard-rails.md).
If a program has more arguments than are examined, a command that could match counts as matching.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rules.decision import DEFAULT_APPROVAL_TERMS, Decision, RequiredApproval
from rules.matching.revision import digest_of
from rules.sandbox import Command
from rules.values.globs import MANY, Glob, Part, pattern_matches
from rules.verdicts import STRICTEST_FIRST, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from rules.matching.policy import Policy


class ProgramRun(NamedTuple):
    """A program about to start."""

    names: tuple[str, ...]  # what it goes by: the path that was given, what that leads to, what it is called by
    words: tuple[str, ...] = ()  # its arguments
    whole: bool = True  # no: there are more of them

    @classmethod
    def parse(cls, text: str) -> "ProgramRun":
        """Read `PROGRAM ARGUMENT…`, with spaces between. Raises ValueError."""
        words = text.split()
        if not words:
            raise ValueError("`run` needs a program, as in `run terraform apply`")
        return cls((words[0],), tuple(words[1:]))


def decide_run(
    policy: "Policy",
    run: ProgramRun,
    task: str = "",
    labels: Mapping[str, str] | None = None,
    granted: frozenset[str] = frozenset(),
) -> Decision:
    """Decide whether a program may start: by the strictest command that matches; it may if none does.

    `granted` are the digests of asks that are approved for this program: they no longer hold it. Every other ask still
    does.
    """
    matching = [
        command
        for command in policy.commands
        if matches(command, run) and (command.for_ is None or command.for_.matches(task, labels or {}))
    ]
    if not matching:
        return Decision(Verdict.ALLOW, Outcome.PASSED, Reason.NO_COMMAND, revision=policy.revision)
    answered = [command for command in matching if _is_granted(command, granted)]
    holding = [command.action for command in matching if command not in answered]
    verdict = min(holding, key=STRICTEST_FIRST.index, default=Verdict.ALLOW)
    deciding = [command for command in matching if command.action is verdict and command not in answered]
    passes = verdict.allows
    asking = deciding if verdict is Verdict.ASK else ()
    if passes:
        deciding += answered
    return Decision(
        verdict if passes else Verdict.DENY,
        Outcome.PASSED if passes else Outcome.BLOCKED,
        Reason.APPROVAL_UNAVAILABLE if asking else Reason.APPROVAL_GRANTED if passes and answered else Reason.RULE,
        rules=tuple(command.cite for command in deciding),
        revision=policy.revision,
        why=next((command.why for command in deciding if command.why), ""),
        approval=tuple(
            RequiredApproval(c.cite, digest_of(c), c.approval or DEFAULT_APPROVAL_TERMS, c.why) for c in asking
        ),
    )


def _is_granted(command: Command, granted: frozenset[str]) -> bool:
    return bool(granted) and command.action is Verdict.ASK and digest_of(command) in granted


def matches(command: Command, run: ProgramRun) -> bool:
    """Whether a command matches the beginning of this program and its arguments."""
    program, *words = command.words
    if not any(_is_called(program, name) for name in run.names):
        return False
    pattern = _to_parts(tuple(words))
    if pattern_matches(pattern, run.words):
        return True
    return not run.whole and _could_cover(pattern, run.words)


def _is_called(program: str, name: str) -> bool:
    """Whether a program's name, or its full path if the command has one, matches."""
    part = _to_part(program)
    shown = name if "/" in program else name.rpartition("/")[2]
    return part.matches(shown) if isinstance(part, Glob) else part == shown


@lru_cache(maxsize=1024)
def _to_parts(words: tuple[str, ...]) -> tuple[Part, ...]:
    """Return arguments as parts. A lone `*` is any number of arguments, and so is the end."""
    return (*(MANY if word == "*" else _to_part(word) for word in words), MANY)


@lru_cache(maxsize=1024)
def _to_part(word: str) -> Glob | str:
    return Glob.parse(word) if "*" in word else word


def _could_cover(pattern: Sequence[Part], words: Sequence[str]) -> bool:
    """Whether a truncated argument list could match: nothing before the first gap contradicts."""
    head = pattern[: pattern.index(MANY)]
    return all(pattern_matches((part,), (word,)) for part, word in zip(head, words, strict=False))
