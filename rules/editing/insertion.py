"""Finds where to insert an entry in the text of a rule file, and in which style. Nothing else of the text moves."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import yaml

_LOADER: Final = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_MARK: Final = "\ufeff"
_BLOCK_SCALARS: Final = ("|", ">")


class Insertion(NamedTuple):
    """A text that goes in at an index."""

    at: int
    text: str


class InsertionError(Exception):
    """The text of the rule file has no place where an entry can be inserted."""


class RuleFileText:
    """The text of a rule file that was read, composed once more for the places of everything. Raises ValueError.

    `line_break` is the file's own.
    """

    def __init__(self, text: str) -> None:
        self._begin = _MARK if text.startswith(_MARK) else ""  # places are counted from behind it
        self.text = text = text.removeprefix(_MARK)
        self.line_break = "\r\n" if "\r\n" in text else "\n"
        try:
            root = yaml.compose(text, Loader=_LOADER)
        except yaml.YAMLError as error:
            raise ValueError("it is not YAML") from error
        self._root = root if isinstance(root, yaml.MappingNode) else None

    def with_all(self, insertions: Sequence[Insertion]) -> str:
        """Put everything in at once, each at its index in the text as it was; of two at one place the first first."""
        pieces, done = [self._begin], 0
        for each in sorted(insertions, key=lambda each: each.at):
            pieces += [self.text[done : each.at], each.text]
            done = each.at
        return "".join([*pieces, self.text[done:]])

    def ids(self) -> set[str]:
        """List the ids of the file's rules and commands."""
        entries = [item for key in ("rules", "commands") for item in _items(self._value(self._root, key))]
        return {value.value for item in entries if (value := self._value(item, "id")) is not None}

    def has(self, ident: str) -> bool:
        """Whether a rule of that id is written here."""
        return any(_is_called(item, ident) for item in self._rules())

    def last(self) -> str:
        """Return the id of the last rule in the text."""
        found = [value.value for item in self._rules() if (value := self._value(item, "id")) is not None]
        if not found:
            raise InsertionError("it has no rule after which a new one can be added")
        return str(found[-1])

    def source(self, ident: str, key: str) -> str | None:
        """Give what a rule says under a key as it is written, where that is one flow value or word; else None."""
        value = self._value(self._rule(ident), key)
        if value is None:
            return None
        written = self.text[_start(value) : _end(value)]
        is_flow = not isinstance(value, yaml.CollectionNode) or value.flow_style
        if not is_flow or "\n" in written or (isinstance(value, yaml.ScalarNode) and value.style in _BLOCK_SCALARS):
            raise InsertionError(f"`{key}` of `{ident}` is written over several lines: write it in one")
        return written

    def after(self, ident: str, pairs: Sequence[tuple[str, str]]) -> Insertion:
        """Put a rule of these keys behind another, written as that one is."""
        listing, rule = self._value(self._root, "rules"), self._rule(ident)
        if listing is None or not isinstance(listing, yaml.SequenceNode):
            raise InsertionError("its `rules` is not a list")
        flow = f"{{{', '.join(f'{key}: {value}' for key, value in pairs)}}}"
        if listing.flow_style:
            return Insertion(_end(rule), f", {flow}")
        dash, column = _column(listing), _column(rule)
        begin = " " * dash + "-" + " " * (column - dash - 1)
        lines = [flow] if rule.flow_style else [f"{key}: {value}" for key, value in pairs]
        indented = [(" " * column if number else begin) + line for number, line in enumerate(lines)]
        return self._line(rule, indented)

    def exempting(self, ident: str, entry: str) -> list[Insertion]:
        """Put an entry into a rule's `except`, or a whole `except` where it has none."""
        rule = self._rule(ident)
        listed = self._value(rule, "except")
        if listed is None:
            if rule.flow_style:
                return [Insertion(_end(rule.value[-1][1]), f", except: [{entry}]")]
            return [self._line(rule, [" " * _column(rule) + f"except: [{entry}]"])]
        if isinstance(listed, yaml.SequenceNode) and not listed.flow_style:
            return [self._line(listed, [" " * _column(listed) + f"- {entry}"])]
        if isinstance(listed, yaml.SequenceNode):
            if not listed.value:
                return [Insertion(_start(listed) + 1, entry)]
            return [Insertion(_end(listed.value[-1]), f", {entry}")]
        if isinstance(listed, yaml.MappingNode) and not listed.flow_style:
            raise InsertionError(f"`except` of `{ident}` is one mapping over several lines: make it a list first")
        return [Insertion(_start(listed), "["), Insertion(_end(listed), f", {entry}]")]

    def _line(self, node: yaml.Node, lines: Iterable[str]) -> Insertion:
        """Put lines behind the last one of a node that is written as a block."""
        text = self.text
        last = _last(node)
        at = _end(last)
        if isinstance(last, yaml.ScalarNode) and last.style in _BLOCK_SCALARS:
            at = text.rfind("\n", 0, at) + 1 if at < len(text) or text.endswith("\n") else at
        else:
            found = text.find("\n", at)
            at = len(text) if found < 0 else found + 1
        begin = "" if not at or text[at - 1] == "\n" else self.line_break
        return Insertion(at, begin + "".join(line + self.line_break for line in lines))

    def _rules(self) -> list[yaml.Node]:
        return _items(self._value(self._root, "rules"))

    def _rule(self, ident: str) -> yaml.MappingNode:
        for item in self._rules():
            if isinstance(item, yaml.MappingNode) and _is_called(item, ident):
                return item
        raise InsertionError(f"there is no rule `{ident}` in it")

    @staticmethod
    def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
        if not isinstance(node, yaml.MappingNode):
            return None
        return next((value for name, value in node.value if name.value == key), None)


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _is_called(node: yaml.Node, ident: str) -> bool:
    return isinstance(node, yaml.MappingNode) and any(k.value == "id" and v.value == ident for k, v in node.value)


def _last(node: yaml.Node) -> yaml.Node:
    """Find the last thing that is written of a node: of a block the last of its entries, and so on."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node


def _start(node: yaml.Node) -> int:
    assert node.start_mark is not None
    return int(node.start_mark.index)


def _end(node: yaml.Node) -> int:
    assert node.end_mark is not None
    return int(node.end_mark.index)


def _column(node: yaml.Node) -> int:
    assert node.start_mark is not None
    return int(node.start_mark.column)
