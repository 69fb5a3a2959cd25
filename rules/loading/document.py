"""Document of a rule file: YAML nodes with their places, not yet interpreted."""

from typing import Final, NamedTuple

from rules.problems import Problem

_MOST_VALUES: Final = 2_000_000  # a value takes a hundred bytes of memory and more
_SEPARATORS: Final = (b"\n", b"\r", b",", b"[", b"{")  # between values, in any style
# Line breaks to YAML and to no editor, and the direction marks of CVE-2021-42574 ("Trojan Source").
_DECEPTIVE: Final = "\x85\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class Node:
    """A place in the file; lines and columns count from 1.

    A large file makes a million of them: plain classes, each of which sets what it has itself.
    """

    __slots__ = ("column", "line")

    def __init__(self, line: int, column: int) -> None:
        self.line = line
        self.column = column


class Scalar(Node):
    """Text. `plain`: written without quotes."""

    __slots__ = ("plain", "text")

    def __init__(self, line: int, column: int, text: str, *, plain: bool) -> None:
        self.line = line
        self.column = column
        self.text = text
        self.plain = plain


class Listing(Node):
    """A list."""

    __slots__ = ("items",)

    def __init__(self, line: int, column: int) -> None:
        self.line = line
        self.column = column
        self.items: list[Node] = []


class Mapping(Node):
    """Keys and values in the order they were written; no key twice."""

    __slots__ = ("pairs",)

    def __init__(self, line: int, column: int) -> None:
        self.line = line
        self.column = column
        self.pairs: dict[str, tuple[Scalar, Node]] = {}


class FilePlace(NamedTuple):
    """Place of a value in a file, for later problems. `file` is the path as the user wrote it."""

    file: str
    node: Node
    via: "FilePlace | None" = None  # of a preset: the include, in a file that is none, that leads to it

    def problem(self, message: str) -> Problem:
        """Return a problem at this place."""
        return Problem(self.file, self.node.line, self.node.column, message)


def parse(data: bytes, file: str, problems: list[Problem]) -> Node | None:
    """Parse a document. Adds problems to `problems`; None if nothing can be read."""
    many = sum(map(data.count, _SEPARATORS))
    if many > _MOST_VALUES:
        message = (
            f"more than {_MOST_VALUES} values: keep long lists of names in files of their own, `to: {{list: FILE}}`"
        )
        problems.append(Problem(file, 1, 1, message))
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(Problem(file, *find_position(data[: error.start]), "a rule file is UTF-8; this byte is not"))
        return None
    for character in _DECEPTIVE:
        if (at := text.find(character)) >= 0:
            place = find_position(text[:at].encode())
            problems.append(Problem(file, *place, f"{character!a} shows a reader something else than what is read"))
            return None
    from rules.loading.composing import compose  # imports yaml, which takes as long as all else of a small file

    return compose(text, file, problems)


def find_position(before: bytes) -> tuple[int, int]:
    """Return the line and column of what follows `before`."""
    lines = before.decode("utf-8-sig", "replace").split("\n")
    return len(lines), len(lines[-1]) + 1
