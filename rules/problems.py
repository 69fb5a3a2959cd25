"""Problem in a rule file, with its place: the only error type for what an admin wrote."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


_MOST_REPORTED: Final = 1000


class Problem(NamedTuple):
    """One thing wrong in one place; lines and columns count from 1."""

    file: str
    line: int
    column: int
    message: str
    code: str = ""  # lint code, if the problem is a warning of rules.lint

    def __str__(self) -> str:
        return escape_unprintable(f"{self.file}:{self.line}:{self.column}: {self.message}")


class RuleFileError(Exception):
    """The files can't be used. `str()` has a line for each problem, in the order of the files and lines.

    `searched_paths`: every path that was looked for before the error.
    """

    def __init__(self, problems: Sequence[Problem], searched_paths: "Sequence[Path]" = ()) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)
        self.searched_paths = tuple(searched_paths)


def limit_problems(problems: Sequence[Problem]) -> Sequence[Problem]:
    """Return the first 1000 problems, and how many more there are."""
    more = len(problems) - _MOST_REPORTED
    if more <= 0:
        return problems
    last = problems[_MOST_REPORTED]._replace(message=f"{more} more problems are not shown: fix these first")
    return [*problems[:_MOST_REPORTED], last]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for the nearest known word, or an empty text."""
    from difflib import get_close_matches  # only when something is wrong anyway

    near = get_close_matches(word.lower()[:64], list(known), 1)
    return f"; did you mean `{near[0]}`?" if near else ""


def join_first(texts: Iterable[str], most: int) -> str:
    """Join texts with commas; of many the first, and how many more there are."""
    texts = list(texts)
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def quote(text: str) -> str:
    """Quote text of a user, shortened and safe to print on a terminal."""
    shown = text if len(text) <= 80 else text[:80] + "…"
    return f"`{escape_unprintable(shown)}`"


def escape_unprintable(text: str) -> str:
    """Escape characters that a terminal would interpret or hide."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
