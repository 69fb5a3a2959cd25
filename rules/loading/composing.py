"""Composes nodes from what PyYAML parses, with bounds, and explains what is no YAML.

Raises nothing: what is wrong becomes a problem with its place.
"""

import re
from typing import Final, NamedTuple

import yaml

from rules.loading.document import Listing, Mapping, Node, Scalar, find_position
from rules.problems import Problem, quote

_CONFLICT: Final = re.compile(r"^(?:<{7}|={7}|>{7})(?: .*)?$", re.MULTILINE)
_SPACES: Final = re.compile(r"[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]")  # that look like one, and are none
_KEY: Final = re.compile(r"(?P<before>\s*(?:- +)*)[\w-]+:")
_BEFORE: Final = re.compile(r"\s*(?:- +)*")
_BESIDE_ITS_DASH: Final = re.compile(r"\s*-[^\s-]")


class YamlProblem(NamedTuple):
    """Problem in YAML text; lines and columns count from 1."""

    line: int
    column: int
    message: str


def explain_yaml_error(error: "yaml.MarkedYAMLError", text: str) -> YamlProblem:
    """Explain a YAML error: where it is and how to correct it."""
    conflict = _CONFLICT.search(text)
    if conflict is not None and conflict.group().startswith("<"):
        return YamlProblem(
            text.count("\n", 0, conflict.start()) + 1, 1, "a merge conflict is left in the file: resolve it"
        )
    begun = error.context_mark
    mark = error.problem_mark or begun
    if mark is None:
        return YamlProblem(1, 1, f"this is not YAML: {error.problem or error.context}")
    if begun is not None and error.context == "while scanning a quoted scalar":
        return YamlProblem(
            begun.line + 1, begun.column + 1, "this is not YAML: the quote that begins here is never closed"
        )
    line, column = mark.line + 1, mark.column + 1
    lines = text.split("\n", line)[:line]
    written = lines[-1] if len(lines) == line else ""
    return YamlProblem(line, column, _message(error, written, column, lines[:-1]))


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


_DEEPEST: Final = 32
_LOADER: Final = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_PLAIN_TAGS: Final = (None, "!")  # no tag, and the one that only means "not by its form"


class YamlRefusedError(Exception):
    """The text is not YAML as rule files may use it."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line, self.column, self.message = line, column, message


def compose(text: str, file: str, problems: list[Problem]) -> Node | None:
    """Build the node tree of a document. Adds problems to `problems`; None if nothing can be read."""
    try:
        return _Builder(text, file, problems).document()
    except YamlRefusedError as refused:
        problems.append(Problem(file, refused.line, refused.column, refused.message))
    except yaml.MarkedYAMLError as error:
        problems.append(Problem(file, *explain_yaml_error(error, text)))
    except yaml.reader.ReaderError as error:
        before = text.encode()[: error.position]
        problems.append(Problem(file, *find_position(before), "a control character is not allowed: remove it"))
    return None


class _Builder:
    """Builds the tree; recursion is bounded by `_DEEPEST`."""

    def __init__(self, text: str, file: str, problems: list[Problem]) -> None:
        self._next = _LOADER(text).get_event
        self._file = file
        self._problems = problems

    def document(self) -> Node | None:
        self._next()  # the stream's start
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return None
        root = self._node(self._next(), 0)
        self._next()  # the document's end
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise _refused(event, "a rule file is one document: a second one begins here")
        return root

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        line, column = _start(event)
        if depth > _DEEPEST:
            raise _refused(event, f"nested more than {_DEEPEST} deep")
        if isinstance(event, yaml.SequenceStartEvent):
            self._check(event)
            listing = Listing(line, column)
            while not isinstance(event := self._next(), yaml.SequenceEndEvent):
                listing.items.append(self._node(event, depth + 1))
            return listing
        if isinstance(event, yaml.MappingStartEvent):
            self._check(event)
            return self._mapping(Mapping(line, column), depth)
        raise _refused(event, "aliases are not part of the rule language; a name that begins with `*` needs quotes")

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        if event.anchor is not None or event.tag is not None:
            self._check(event)
        mark = event.start_mark
        assert mark is not None
        return Scalar(mark.line + 1, mark.column + 1, event.value, plain=not event.style)

    def _mapping(self, mapping: Mapping, depth: int) -> Mapping:
        following, pairs = self._next, mapping.pairs
        while not isinstance(event := following(), yaml.MappingEndEvent):
            key = self._scalar(event) if isinstance(event, yaml.ScalarEvent) else self._node(event, depth + 1)
            event = following()
            value = self._scalar(event) if isinstance(event, yaml.ScalarEvent) else self._node(event, depth + 1)
            if not isinstance(key, Scalar):
                self._complain(key, "a key is a word, not a list or a mapping")
            elif key.text == "<<" and key.plain:
                self._complain(key, "merge keys (`<<`) are not part of the rule language; write the keys out")
            elif key.text in pairs:
                first = pairs[key.text][0]
                self._complain(key, f"{quote(key.text)} is here twice; first in line {first.line}")
            else:
                pairs[key.text] = key, value
        return mapping

    def _check(self, event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            raise _refused(event, "anchors (`&`) are not part of the rule language; write what they stand for")
        if event.tag not in _PLAIN_TAGS:  # type: ignore[attr-defined]
            raise _refused(event, "tags (`!`) are not part of the rule language; every value has the type of its key")

    def _complain(self, node: Node, message: str) -> None:
        self._problems.append(Problem(self._file, node.line, node.column, message))


def _refused(event: yaml.Event, message: str) -> YamlRefusedError:
    return YamlRefusedError(*_start(event), message)


def _start(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
