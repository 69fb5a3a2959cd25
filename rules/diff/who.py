"""Who tries and when: a task for each kind of `for` that rules tell apart, tainted or not; a day for each end."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.matching.signatures import Grammar, Signatures, characters

if TYPE_CHECKING:
    from rules.rule import Rule
    from rules.selectors import For, Pattern

_ANY_TEXT: Final = Grammar(hyphens_inside=False)
_NOBODY: Final[Mapping[str, str]] = {}
_READ: Final = {False: (("task that is", "clean"),), True: (("task that is", "tainted"),)}


class Who(NamedTuple):
    """A task, its labels, a day and what it has read; `where` says which kind that is, by what rules ask about."""

    task: str = ""
    labels: Mapping[str, str] = _NOBODY
    at: date | None = None
    where: tuple[tuple[str, str], ...] = ()
    tainted: bool = False


def whos(rules: "Iterable[Rule]") -> list[Who]:
    """Give one of each kind; a single nobody where no rule asks."""
    rules = tuple(rules)
    asked = [s for rule in rules for s in (rule.selector, *(e.selector for e in rule.excepts)) if s is not None]
    ends = sorted({rule.until for rule in rules if rule.until is not None})
    minds = any(rule.minds_taint for rule in rules)
    return [
        Who(task, labels, day, (*who, *when, *(_READ[tainted] if minds else ())), tainted)
        for (task, labels, who), (day, when), tainted in product(
            _tasks(asked), _days(ends), _READ if minds else (False,)
        )
    ]


def _days(ends: Sequence[date]) -> list[tuple[date | None, tuple[tuple[str, str], ...]]]:
    if not ends:
        return [(None, ())]
    days: list[tuple[date | None, tuple[tuple[str, str], ...]]] = []
    begins: date | None = None
    for end in ends:
        said = f"until {end}" if begins is None else f"from {begins} until {end}"
        days.append((end, (("when", said),)))
        begins = end + timedelta(days=1)
    return [*days, (begins, (("when", f"from {begins}"),))]


def _tasks(asked: "Sequence[For]") -> list[tuple[str, Mapping[str, str], tuple[tuple[str, str], ...]]]:
    if not asked:
        return [("", _NOBODY, ())]
    names = [pattern for selector in asked for pattern in selector.tasks]
    keys = sorted({key for selector in asked for key, _ in selector.labels})
    values = {key: [p for s in asked for named, patterns in s.labels if named == key for p in patterns] for key in keys}
    choices = [_texts(names) if names else [("", "")], *([*_texts(values[key]), (None, "none")] for key in keys)]
    found: list[tuple[str, Mapping[str, str], tuple[tuple[str, str], ...]]] = []
    for (task, task_kind), *labels in product(*choices):
        where = [("task", task_kind)] if names else []
        where += [(f"label {key}", kind) for key, (_, kind) in zip(keys, labels, strict=True)]
        own = {key: value for key, (value, _) in zip(keys, labels, strict=True) if value is not None}
        found.append((task or "", own, tuple(where)))
    return found


def _texts(patterns: "Sequence[Pattern]") -> list[tuple[str | None, str]]:
    """Give a text for each combination of patterns, and one that none covers; each with what it is called."""
    return [(text, kind or "any other") for text, kind in texts(tuple(dict.fromkeys(patterns)))]


def texts(patterns: "tuple[Pattern, ...]") -> list[tuple[str, str]]:
    """Give a text and the patterns that cover it, for each combination, and at last one that no pattern covers."""
    walk = Signatures([characters(pattern.glob or pattern.text) for pattern in patterns], _ANY_TEXT)
    found = [
        ("".join(each.parts), " and ".join(sorted(patterns[number].text for number in each.signature)))
        for each in walk.find(bool, other=_letters(patterns))
    ]
    other = next(
        (text for text in _others() if not any(pattern.matches(text) for pattern in patterns)),
        None,
    )
    return found if other is None else [*found, (other, "")]


def _letters(patterns: "Iterable[Pattern]") -> str:
    used = {character for pattern in patterns for character in pattern.text}
    return next(letter for letter in "xyzwvq0123456789abcdefghijklmnop~" if letter not in used or letter == "~")


def _others() -> "Iterable[str]":
    yield "other"
    yield from (f"other{number}x" for number in range(64))
