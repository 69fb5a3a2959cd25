"""What PyYAML couldn't read, in words for whoever wrote it: the few mistakes that people make, else what YAML says.

A hint only: the file stays refused whatever is said here.
"""

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import yaml

_CONFLICT: Final = re.compile(r"^(?:<{7}|={7}|>{7})(?: .*)?$", re.MULTILINE)
_SPACES: Final = re.compile(r"[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]")  # that look like one, and are none
_KEY: Final = re.compile(r"(?P<before>\s*(?:- +)*)[\w-]+:")
_BEFORE: Final = re.compile(r"\s*(?:- +)*")
_BESIDE_ITS_DASH: Final = re.compile(r"\s*-[^\s-]")


class Wrong(NamedTuple):
    """What is wrong, and where; lines and columns count from 1."""

    line: int
    column: int
    message: str


def explained(error: "yaml.MarkedYAMLError", text: str) -> Wrong:
    """Say where and how to mend it."""
    conflict = _CONFLICT.search(text)
    if conflict is not None and conflict.group().startswith("<"):
        return Wrong(text.count("\n", 0, conflict.start()) + 1, 1, "a merge conflict is left in the file: resolve it")
    begun = error.context_mark
    mark = error.problem_mark or begun
    if mark is None:
        return Wrong(1, 1, f"this is not YAML: {error.problem or error.context}")
    if begun is not None and error.context == "while scanning a quoted scalar":
        return Wrong(begun.line + 1, begun.column + 1, "this is not YAML: the quote that begins here is never closed")
    line, column = mark.line + 1, mark.column + 1
    lines = text.split("\n", line)[:line]
    written = lines[-1] if len(lines) == line else ""
    return Wrong(line, column, _message(error, written, column, lines[:-1]))


def _is_further_in(written: str, column: int, above: list[str]) -> bool:
    """Whether a line begins with a key, which the column is part of, further in than the line above it."""
    key = _KEY.match(written)
    line = next((line for line in reversed(above) if line.strip() and not line.lstrip().startswith("#")), "")
    begins = _BEFORE.match(line)
    if key is None or not line or begins is None or column > key.end():
        return False
    return key.end("before") > begins.end()


def _message(  # noqa: C901, PLR0911 - a table
    error: "yaml.MarkedYAMLError", written: str, column: int, above: list[str]
) -> str:
    at = written[column - 1 : column]
    if error.context == "while scanning an alias":
        return "`*` begins a YAML alias: put quotes around a name with `*` in front"
    if at == "\t":
        return "tabs can't indent in YAML: use spaces"
    if at and at in "@`%":
        return f"`{at}` can't begin a value in YAML: put quotes around it"
    spaces = _SPACES.search(written)
    if spaces is not None:
        return f"this is not YAML: the line has U+{ord(spaces.group()):04X} in it, which only looks like a space"
    problem = f"this is not YAML: {error.problem or error.context}"
    if "mapping values are not allowed" in problem:
        if _BESIDE_ITS_DASH.match(written):
            return f"{problem}; a `-` needs a space behind it"
        if _is_further_in(written, column, above):
            return f"this line is indented further than the ones above, as if it were more of their text: {problem}"
        return f"{problem}; put quotes around text with `: ` in it, and begin the keys of a mapping in one column"
    if error.context == "while parsing a block mapping" and _is_further_in(written, column, above):
        return f"this line is indented further than the ones above: {problem}"
    if error.context in ("while parsing a block collection", "while parsing a block mapping"):
        return f"{problem}; what belongs together begins in one column"
    if error.context_mark is not None and (error.context or "").startswith("while parsing a flow"):
        begun = error.context_mark
        return f"{problem} for what begins in line {begun.line + 1}, column {begun.column + 1}"
    return problem
