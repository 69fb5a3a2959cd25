"""Reads `identities.yaml` of root, which says who may use which task names and labels.

    version: 1
    identities:
      - users: [alice, "1000"]          # by name, or by number where a user has none
        groups: [data]
        tasks: ["migrate-*", nightly]
        labels: {team: data, env: [staging, dev]}
        required: [team]

One entry has to cover a whole claim: the task's name and every label, and all `required` labels are there. A user whom
no entry covers can't start a task: otherwise a task could evade a rule about certain tasks by leaving its labels out.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from rules.loading.conditions import read_labels
from rules.loading.document import Listing, Node
from rules.loading.fields import WORD, Key, Reader, Section, many, parse_label, parse_pattern, read_whole
from rules.problems import quote
from rules.values.patterns import Pattern

FILE_KEYS: Final = ("version", "identities")


class Identity(NamedTuple):
    """Entry of `identities.yaml`: users and groups, and the task names and labels that they may use."""

    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    tasks: tuple[Pattern, ...] = ()
    labels: tuple[tuple[str, tuple[Pattern, ...]], ...] = ()
    required: frozenset[str] = frozenset()

    def covers(self, user: str, groups: Iterable[str]) -> bool:
        """Whether a user is meant."""
        return user in self.users or not self.groups.isdisjoint(groups)

    def objection(self, task: str, labels: Mapping[str, str]) -> str:
        """Return why this identity does not cover a claim, or an empty text."""
        if not any(pattern.matches(task) for pattern in self.tasks):
            return f"the task name {quote(task)} is not allowed" if task else "a task needs a name"
        known = dict(self.labels)
        for name, value in labels.items():
            if not any(pattern.matches(value) for pattern in known.get(name, ())):
                return f"the task label {quote(f'{name}={value}')} is not allowed"
        missing = sorted(self.required - set(labels))
        return f"a task needs the label `{missing[0]}`" if missing else ""


class Identities(NamedTuple):
    """The whole file."""

    entries: tuple[Identity, ...]

    def refuse(self, user: str, task: str, labels: Mapping[str, str], groups: Iterable[str] = ()) -> str:
        """Return why a user may not start such a task, or an empty text if they may."""
        groups = tuple(groups)
        own = [entry for entry in self.entries if entry.covers(user, groups)]
        if not own:
            return f"no identity in the file covers the user {quote(user)}: add one, or the user can start no task"
        objections = [entry.objection(task, labels) for entry in own]
        return "" if "" in objections else f"for the user {quote(user)} {objections[0]}"


def read_identities(path: Path) -> Identities:
    """Read the file. Raises RuleFileError with every problem, OSError where it can't be read at all."""
    from rules.files import read_file

    return parse_identities(read_file(path), str(path))


def parse_identities(data: bytes, file: str) -> Identities:
    """Read the text of the file. Raises RuleFileError with every problem."""
    return read_whole(data, file, lambda root, problems: _read(Reader(file, problems), root))


_IDENTITY: Final = Section("identity", "an identity", {
    "users": many("Users, by name or number.", str, WORD, frozenset),
    "groups": many("Groups, by name.", str, WORD, frozenset),
    "tasks": many("Task names that they may use.", parse_pattern, WORD),
    "labels": Key("Labels that they may set.", read_labels, {}),
    "required": many("Labels that a task must have.", parse_label, WORD, frozenset),
})  # fmt: skip


def _read(reader: Reader, root: Node) -> Identities | None:
    fields = reader.versioned(root, "the identities", FILE_KEYS)
    if fields is None:
        return None
    entries = fields.get("identities")
    if not isinstance(entries, Listing):
        reader.complain(entries or root, "`identities` must be a list, each entry after a `-`")
        return None
    return Identities(tuple(entry for node in entries.items if (entry := _identity(reader, node)) is not None))


def _identity(reader: Reader, node: Node) -> Identity | None:
    fields = _IDENTITY.fields(reader, node)
    if fields is None:
        return None
    if "users" not in fields and "groups" not in fields:
        reader.complain(node, "an identity needs `users`, `groups` or both")
    if "tasks" not in fields:
        reader.complain(node, "an identity needs `tasks`: `*` is any name")
    found = Identity(**_IDENTITY.values(reader, fields))
    for name in sorted(found.required - dict(found.labels).keys()):
        reader.complain(fields["required"], f"`{name}` is required, and `labels` does not list its values")
    return found
