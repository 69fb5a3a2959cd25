"""What is wrong in a rule file, told with its place: the only error type for what an admin wrote."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Problem(NamedTuple):
    """One thing wrong in one place; lines and columns count from 1."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class RuleFileError(Exception):
    """The files can't be used. `str()` is a line a problem, in the order of the files and their lines."""

    def __init__(self, problems: "Sequence[Problem]") -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def did_you_mean(word: str, known: "Iterable[str]") -> str:
    """Give `; did you mean …?` for the nearest of the known words, or nothing."""
    from difflib import get_close_matches  # only when something is wrong anyway

    near = get_close_matches(word.lower()[:64], list(known), 1)
    return f"; did you mean `{near[0]}`?" if near else ""


def quoted(text: str) -> str:
    """Quote what the user wrote, short and harmless to a terminal."""
    shown = text if len(text) <= 80 else text[:80] + "…"
    return f"`{shown if shown.isprintable() else ascii(shown)[1:-1]}`"
