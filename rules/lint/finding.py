"""One thing that was found, with its place: what a person reads, and what programs are given."""

from typing import TYPE_CHECKING, Any, NamedTuple

from rules.lint.codes import Check, Severity
from rules.loading.document import Listing, Mapping, Scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.loading.document import Node
    from rules.loading.load import Loaded
    from rules.problems import Problem
    from rules.rule import Rule


class Finding(NamedTuple):
    """What was found, and where; lines and columns count from 1."""

    check: Check
    file: str
    line: int
    column: int
    message: str
    rules: tuple[str, ...] = ()  # that it is about, the one to change first

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        if self.check.severity is Severity.ERROR:
            return f"{place}: {self.message}"  # as every other command tells it
        return f"{place}: {self.check.severity}: {self.check.code} {self.check.name}: {self.message}; {self.check.todo}"

    def value(self) -> dict[str, Any]:
        """Tell it to a program."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "severity": self.check.severity.value,
            "code": self.check.code,
            "name": self.check.name,
            "message": self.message,
            "todo": self.check.todo,
            "rules": list(self.rules),
        }


def from_problem(problem: "Problem", check: Check) -> Finding:
    """Make a finding of what reading a file told."""
    return Finding(check, problem.file, problem.line, problem.column, problem.message)


class Reporter:
    """Makes findings about the rules of files that were loaded, each at the most telling place."""

    def __init__(self, loaded: "Loaded") -> None:
        self._places = loaded.places
        self._settings = loaded.settings
        self._secrets = loaded.secrets
        self._boxes = loaded.boxes
        self._numbers = {rule: number for number, rule in enumerate(loaded.places)}

    def number(self, rule: "Rule") -> tuple[int, str]:
        """Give what sorts rules as they stand in the files."""
        return self._numbers.get(rule.id, 0), rule.id

    def is_shipped(self, ident: str) -> bool:
        """Whether a rule is a preset's, which is nobody's here to change."""
        place = self._places.get(ident)
        return place is not None and place.via is not None

    def about(self, check: Check, rule: "Rule", message: str, *others: str, at: str = "id", entry: str = "") -> Finding:
        """Tell something about a rule, at one of its keys, or at the entry of that key's list that is written so."""
        place = self._places.get(rule.id)
        rules = (rule.id, *others)
        if place is None:  # made by no file: a program's
            return Finding(check, rule.id.partition(":")[0], 1, 1, message, rules)
        if place.via is not None:
            return Finding(check, place.via.file, place.via.node.line, place.via.node.column, message, rules)
        node = _node(place.node, at, entry)
        return Finding(check, place.file, node.line, node.column, message, rules)

    def about_secret(self, check: Check, ident: str, message: str, entry: str) -> Finding:
        """Tell something about a secret, at one of its `hosts`."""
        place = self._secrets[ident]
        node = _node(place.node, "hosts", entry)
        return Finding(check, place.file, node.line, node.column, message)

    def about_boxes(self, check: Check, key: str, message: str, entry: str = "") -> "Iterator[Finding]":
        """Tell something about each `sandbox` that has a key, and in its list an entry that is written so."""
        for place in self._boxes:
            if isinstance(place.node, Mapping) and key in place.node.pairs:
                node = _node(place.node, key, entry.lower().rstrip("."))
                if not entry or not isinstance(node, Listing):
                    yield Finding(check, place.file, node.line, node.column, message)

    def about_settings(self, check: Check, key: str, message: str) -> Finding:
        """Tell something about the settings."""
        assert self._settings is not None, "no file has settings, so all are the defaults"
        node = _node(self._settings.node, key, "")
        return Finding(check, self._settings.file, node.line, node.column, message)


def _node(node: "Node", key: str, entry: str) -> "Node":
    """Find where a key of a mapping stands, or an entry of its list; as near as what is written allows."""
    if not isinstance(node, Mapping) or key not in node.pairs:
        return node
    name, value = node.pairs[key]
    if not entry:
        return name if key != "id" else node
    entries = value.items if isinstance(value, Listing) else [value]
    written = [item for item in entries if isinstance(item, Scalar) and item.text.lower().rstrip(".") == entry]
    return written[-1] if written else value  # the last of two that are alike is the one too many
