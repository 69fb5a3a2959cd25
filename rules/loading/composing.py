"""From the text of a rule file to its nodes.

YAML's events are taken as they come and every scalar stays text, so that `off`, `007` and `127.1` mean what they look
like. What makes YAML dangerous is refused here: anchors and aliases (bombs), tags (types that the schema didn't
choose), merge keys and duplicate keys (two readings of one file), and depth (PyYAML's own composer recurses until the
stack is gone).
"""

from typing import Final

import yaml

from rules.loading.document import Listing, Mapping, Node, Scalar, place_of
from rules.problems import Problem, quoted

_DEEPEST: Final = 32
_LOADER: Final = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_PLAIN_TAGS: Final = (None, "!")  # no tag, and the one that only says "not by its looks"


class Refused(Exception):  # noqa: N818  (never leaves the rules; load.py makes a RuleFileError of it)
    """The text is not YAML as rule files may use it."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line, self.column, self.message = line, column, message


def compose(text: str, file: str, problems: list[Problem]) -> Node | None:
    """Build the tree of one document. Adds what is wrong to `problems`; None if nothing can be read or is there."""
    try:
        return _Builder(text, file, problems).document()
    except Refused as refused:
        problems.append(Problem(file, refused.line, refused.column, refused.message))
    except yaml.MarkedYAMLError as error:
        from rules.loading.yaml_errors import explained  # only when something is wrong anyway

        problems.append(Problem(file, *explained(error, text)))
    except yaml.reader.ReaderError as error:
        before = text.encode()[: error.position]
        problems.append(Problem(file, *place_of(before), "control characters have no place in a rule file"))
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
                self._complain(key, f"{quoted(key.text)} is here twice; first in line {first.line}")
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


def _refused(event: yaml.Event, message: str) -> Refused:
    return Refused(*_start(event), message)


def _start(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
