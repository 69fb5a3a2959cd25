"""Reads `approvers.yaml` as strictly as a rule file, and reports each problem with its place.

version: 1
people:
  - {name: ada, user: ada}
  - {name: bo, uid: 1002, tokens: ["sha256:9f86…"]}
groups:
  release: [ada, bo, linter]
reviewers:
  - {name: linter, command: [/usr/local/bin/review], rules: ["web:*"], kinds: [request], timeout: 30s}
notify:
  - {webhook: "https://chat.corp.example/hook", shape: slack, secret: {file: /etc/exeat/hook.key}}
bounds: {pending_per_task: 20, pending: 1000}
store: {url: "postgresql://exeat@db.corp.example/approvals", password: /etc/exeat/db.password}
"""

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from proxy.approvals.approval_request import Kind
from proxy.approvals.people import NotificationTarget, PendingLimits, People, Person, Reviewer, Secret, StoreLocation
from rules.loading.document import Mapping, Node
from rules.loading.fields import (
    Reader,
    parse_count,
    parse_duration,
    parse_pattern,
    parse_slug,
    parse_variable_name,
    parser_of_shape,
    read_whole,
)
from rules.problems import Problem, RuleFileError, did_you_mean, quote

_LONGEST_REVIEW: Final = 120.0  # seconds
_ANY_UID: Final = (1 << 32) - 2  # the one above means none (setresuid(2))
_MEANT: Final = {
    ("a person", "id"): "name", ("a person", "username"): "user", ("a person", "unix"): "user",
    ("a person", "sha256"): "tokens", ("a person", "token"): "tokens", ("a person", "subject"): "oidc",
    ("a reviewer", "id"): "name", ("a reviewer", "run"): "command", ("a reviewer", "url"): "webhook",
    ("a notifier", "url"): "webhook", ("a notifier", "slack"): "shape",
    ("a notifier", "run"): "command",
    ("the store", "postgresql"): "url", ("the store", "host"): "url",
    ("the approvers", "users"): "people", ("the approvers", "approvers"): "people",
    ("the approvers", "limits"): "bounds", ("the approvers", "approvals"): "store",
    ("the approvers", "webhooks"): "notify",
}  # fmt: skip
_TOKEN: Final = "is no hash of a token: `sha256:` and 64 hexadecimal digits, as `exeat approvals token` prints it"
_token: Final = parser_of_shape(r"sha256:[0-9a-f]{64}", _TOKEN)
_user: Final = parser_of_shape(r"[A-Za-z_][A-Za-z0-9._-]{0,31}\$?", "is no name of a unix user")


class Shape(StrEnum):
    """What a notification looks like."""

    GENERIC = "generic"
    SLACK = "slack"


def read_people(path: Path) -> People:
    """Read the file, which nobody else may be able to write. Raises RuleFileError with every problem, or OSError."""
    from rules.files import read_file

    try:
        data = read_file(path, trusted=True)
    except ValueError as error:
        raise RuleFileError([Problem(str(path), 1, 1, str(error))]) from error
    return parse_people(data, str(path))


def parse_people(data: bytes, file: str) -> People:
    """Read the text of the file. Raises RuleFileError with every problem."""
    return read_whole(data, file, lambda root, problems: _Reader(file, problems).read(root))


class _Reader(Reader):
    """Reads the file by the tables below: a key has the name of the value's field."""

    def record[T: (Person, Reviewer, NotificationTarget, Secret, PendingLimits, StoreLocation)](
        self, node: Node, of: str, make: type[T]
    ) -> tuple[T, dict[str, Node]] | None:
        """Read a mapping into a value; returns also which keys it has. None: it can't be made."""
        self._renamed(node, of)
        readers = KEYS[make]
        fields = self.mapping(node, of, tuple(readers))
        if fields is None:
            return None
        found: dict[str, Any] = {
            key: value for key in fields if (value := readers[key](self, fields[key], key)) is not None
        }
        if "name" in readers and "name" not in fields:
            self.complain(node, f"{of} needs `name`")
        if "name" in readers and "name" not in found:
            return None
        missing: dict[str, Any] = {key: () for key in make._fields if key not in make._field_defaults}
        return make(**{**missing, **found}), fields

    def _renamed(self, node: Node, of: str) -> None:
        """Of a key that has another name here, say which."""
        if isinstance(node, Mapping):
            for word, (key, _) in list(node.pairs.items()):
                if meant := _MEANT.get((of, word.lower())):
                    self.complain(key, f"{quote(word)} is not a key of {of}; did you mean `{meant}`?")
                    del node.pairs[word]

    def read(self, root: Node) -> People | None:
        """Read the whole file."""
        self._renamed(root, "the approvers")
        fields = self.versioned(root, "the approvers", FILE_KEYS)
        if fields is None:
            return None
        people: dict[str, Person] = self._named(fields, "people", self._person)
        reviewers: dict[str, Reviewer] = self._named(fields, "reviewers", self._reviewer)
        notices = [self._notice(node) for node in self.items(fields["notify"], "notify")] if "notify" in fields else []
        for name in sorted(people.keys() & reviewers.keys()):
            self.complain(fields["reviewers"], f"{quote(name)} is a person too: a program needs a name of its own")
        self._distinct(fields, list(people.values()))
        return People(
            people,
            self._groups(fields["groups"], {*people, *reviewers}) if "groups" in fields else {},
            reviewers,
            tuple(notice for notice in notices if notice is not None),
            self._bounds(fields["bounds"]) if "bounds" in fields else PendingLimits(),
            self._store(fields["store"]) if "store" in fields else StoreLocation(),
            self.file,
        )

    def _named[T: (Person, Reviewer)](
        self, fields: dict[str, Node], key: str, read: Callable[[Node], T | None]
    ) -> dict[str, T]:
        found: dict[str, T] = {}
        for node in self.items(fields[key], key) if key in fields else []:
            one = read(node)
            if one is None:
                continue
            if one.name in found:
                self.complain(node, f"{quote(one.name)} is here twice")
            found[one.name] = one
        return found

    def _person(self, node: Node) -> Person | None:
        found = self.record(node, "a person", Person)
        pairs = node.pairs if isinstance(node, Mapping) else {}
        if len(pairs) == ("name" in pairs):
            self.complain(node, "a person needs `user`, `uid`, `tokens` or `oidc`: nobody could be known for them")
        return None if found is None else found[0]

    def _distinct(self, fields: dict[str, Node], people: list[Person]) -> None:
        """Two people who are known by the same thing would be two voices of one."""
        seen: dict[tuple[str, object], str] = {}
        for person in people:
            known = [("user", person.user), ("uid", person.uid), ("oidc", person.oidc)]
            for key, value in (*known, *(("tokens", token) for token in person.tokens)):
                if value in {"", None}:
                    continue
                other = seen.setdefault((key, value), person.name)
                if other != person.name:
                    said = f"`{other}` and `{person.name}` have the same `{key}`, and would be two voices of one"
                    self.complain(fields["people"], said)

    def _groups(self, node: Node, known: set[str]) -> dict[str, frozenset[str]]:
        if not isinstance(node, Mapping):
            self.complain(node, "`groups` is a mapping of names to people, as in `{release: [ada, bo]}`")
            return {}
        found: dict[str, frozenset[str]] = {}
        for key, value in node.pairs.values():
            name = self.parse(key, "groups", parse_slug)
            members = self.each(value, "groups", parse_slug)
            for member in members:
                if member not in known:
                    self.complain(value, f"{quote(member)} is no person and no reviewer{did_you_mean(member, known)}")
            if name is not None:
                found[name] = frozenset(members)
        return found

    def _reviewer(self, node: Node) -> Reviewer | None:
        if (both := self.record(node, "a reviewer", Reviewer)) is None:
            return None
        found, fields = both
        if "rules" not in fields:
            self.complain(node, 'a reviewer needs `rules`: the ids that its word counts for, as in `["web:*"]`')
        self._check_receiver(node, fields, found.command, "a reviewer")
        if found.timeout > _LONGEST_REVIEW:
            self.complain(fields["timeout"], f"a review takes {_LONGEST_REVIEW:g}s at most: people wait for it")
        return found

    def _notice(self, node: Node) -> NotificationTarget | None:
        if (both := self.record(node, "a notifier", NotificationTarget)) is None:
            return None
        found, fields = both
        self._check_receiver(node, fields, found.command, "a notifier")
        if "shape" in fields and found.command:
            self.complain(fields["shape"], "`shape` belongs to a `webhook`")
        return found

    def _check_receiver(self, node: Node, fields: dict[str, Node], command: tuple[str, ...], of: str) -> None:
        if ("command" in fields) == ("webhook" in fields):
            self.complain(node, f"{of} needs either `command` or `webhook`")
        if "secret" in fields and "webhook" not in fields:
            self.complain(fields["secret"], "`secret` signs what a `webhook` gets")
        if command and not command[0].startswith("/"):
            self.complain(fields["command"], f"{quote(command[0])} must be the whole path of a program")

    def secret(self, node: Node, _key: str) -> Secret | None:
        """Read where a secret is."""
        found = self.record(node, "a secret", Secret)
        if found is not None and len(found[1]) != 1:
            self.complain(node, "a secret comes from a `file` or from a variable, `env`")
        return None if found is None else found[0]

    def _bounds(self, node: Node) -> PendingLimits:
        found = self.record(node, "the bounds", PendingLimits)
        bounds = PendingLimits() if found is None else found[0]
        if bounds.pending_per_task > bounds.pending:
            self.complain(node, f"`pending_per_task` is more than `pending`, which is {bounds.pending}")
        return bounds

    def _store(self, node: Node) -> StoreLocation:
        found = self.record(node, "the store", StoreLocation)
        if found is not None and "url" not in found[1]:
            self.complain(node, "the store needs `url`; leave it out and approvals are kept in a file")
        return StoreLocation() if found is None else found[0]


def _uid(text: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", text) or int(text) > _ANY_UID:
        raise ValueError(f"{quote(text)} is no uid")
    return int(text)


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{quote(text)} must be a whole path")
    return text


def _webhook(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username is not None:
        raise ValueError(f"{quote(text)} is no URL of a webhook: `https://chat.corp.example/hook`")
    if parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "::1", "localhost"}:
        raise ValueError(f"{quote(text)} would go over the network in the clear: write `https://`")
    return text


def _store_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError("is no URL of a PostgreSQL server: `postgresql://exeat@db.corp.example/approvals`")
    if parts.password is not None:
        raise ValueError("has a password in it: put that into a file, and name it as `password`")
    asked = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if asked not in ([], ["host"]) or parts.fragment:
        raise ValueError("may have `?host=/run/postgresql` at its end, the directory of a socket, and nothing else")
    if parts.port == 0:
        raise ValueError("has a port that is none")
    if not parts.path.strip("/"):
        raise ValueError("names no database: `postgresql://exeat@db.corp.example/approvals`")
    return text


type _Read = Callable[[_Reader, Node, str], object]  # the value of a key; None: it is wrong, which has been told


def _one(parse: Callable[[str], object]) -> _Read:
    return lambda reader, node, key: reader.parse(node, key, parse)


def _many(parse: Callable[[str], object]) -> _Read:
    return lambda reader, node, key: tuple(reader.each(node, key, parse))


def _kinds(reader: Reader, node: Node, key: str) -> tuple[Kind, ...]:
    found = [reader.choice(item, key, Kind) for item in reader.items(node, key)]
    return tuple(kind for kind in found if kind is not None)


_RECEIVER: Final[dict[str, _Read]] = {"command": _many(str), "webhook": _one(_webhook), "secret": _Reader.secret}
KEYS: Final[dict[type, dict[str, _Read]]] = {
    Person: {
        "name": _one(parse_slug), "user": _one(_user), "uid": _one(_uid), "tokens": _many(_token), "oidc": _one(str),
    },
    Reviewer: {
        "name": _one(parse_slug), **_RECEIVER, "rules": _many(parse_pattern), "kinds": _kinds,
        "timeout": _one(parse_duration),
    },
    NotificationTarget: {**_RECEIVER, "shape": lambda reader, node, key: reader.choice(node, key, Shape)},
    Secret: {"file": _one(_path), "env": _one(parse_variable_name)},
    PendingLimits: {"pending_per_task": _one(parse_count), "pending": _one(parse_count)},
    StoreLocation: {"url": _one(_store_url), "password": _one(_path), "ca": _one(_path)},
}  # fmt: skip
FILE_KEYS: Final = ("version", "people", "groups", "reviewers", "notify", "bounds", "store")
