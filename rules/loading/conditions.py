"""Reads parts of a rule: `for`, `limits`, `approval`, `http` and `git`.

`rules.matching.requests` says what `http` and `git` mean.
"""

from collections.abc import Callable, Iterable
from typing import Final

from rules.attempt import METHOD_TOKEN, RefChange
from rules.decision import ApprovalTerms, GrantScope, Limits, LimitScope
from rules.loading.document import Mapping, Node, Scalar
from rules.loading.fields import (
    DURATION,
    PATH,
    TEXT,
    WORD,
    Key,
    Reader,
    Section,
    choice,
    flag,
    many,
    mapping_of,
    one,
    one_of,
    one_or_more,
    parse_count,
    parse_duration,
    parse_header_name,
    parse_label,
    parse_pattern,
    parse_size,
    parse_slug,
)
from rules.problems import did_you_mean, quote
from rules.rule import GitRule, Http, Presence, RefPattern, RepoPattern, Values
from rules.values.paths import PathPattern
from rules.values.patterns import Pattern, TaskSelector

_PRESENCES: Final = {presence.value: presence for presence in Presence}
_NAMED_VALUES: Final = mapping_of({"anyOf": [{"enum": [*_PRESENCES]}, one_or_more(WORD)]}, least=1)


def _sorted(patterns: Iterable[Pattern]) -> tuple[Pattern, ...]:
    return tuple(sorted(set(patterns), key=lambda found: found.text))


def read_labels(reader: Reader, node: Node, _: str = "labels") -> tuple[tuple[str, tuple[Pattern, ...]], ...]:
    """Read names of labels with their values."""
    if not isinstance(node, Mapping) or not node.pairs:
        reader.complain(node, "`labels` is a mapping of names to values, as in `{team: data}`")
        return ()
    found: dict[str, tuple[Pattern, ...]] = {}
    for key, value in node.pairs.values():
        name = reader.parse(key, "labels", parse_label)
        if name is not None:
            found[name] = _sorted(reader.each(value, name, parse_pattern))
    return tuple(sorted(found.items()))


FOR: Final = Section("for", "`for`", {
    "tasks": many("Names of tasks.", parse_pattern, WORD, _sorted),
    "labels": Key("Labels that a task carries, each with its values.",
        read_labels, mapping_of(one_or_more(WORD), least=1)),
}, empty="`for` is empty: leave it out, and the rule is for every task")  # fmt: skip


def read_for(reader: Reader, node: Node, _: str = "for") -> TaskSelector | None:
    """Read `for`."""
    values = FOR.read(reader, node)
    return None if values is None else TaskSelector(**values)


_COUNTS: Final = ("connections", "requests", "bytes_up", "bytes_down")
LIMITS: Final = Section("limits", "`limits`", {
    "connections": one("The number of connections.", parse_count),
    "requests": one("The number of requests.", parse_count),
    "bytes_up": one("The bytes sent.", parse_size),
    "bytes_down": one("The bytes received.", parse_size),
    "window": one("The time window; by default the lifetime of what `per` names.", parse_duration),
    "per": choice("What shares one count.", LimitScope),
})  # fmt: skip


def read_limits(reader: Reader, node: Node, _: str = "limits") -> Limits | None:
    """Read `limits`."""
    fields = LIMITS.fields(reader, node)
    if fields is None:
        return None
    if not any(key in fields for key in _COUNTS):
        reader.complain(node, f"`limits` is empty: it needs one of {', '.join(f'`{key}`' for key in _COUNTS)}")
    return Limits(**{"per": LimitScope.TASK, **LIMITS.values(reader, fields)})


def _lasts(text: str) -> float:
    return 0.0 if text == "once" else parse_duration(text)


APPROVAL: Final = Section("approval", "`approval`", {
    "by": one("The group that approves.", parse_slug),
    "count": one("How many people have to approve.", parse_count, field="needed"),
    "self": flag("Whether the user who started the task may approve; not with `by`.", "by_self"),
    "hold": one("How long the attempt is held.", parse_duration),
    "open": one("How long the approval request stays open.", parse_duration),
    "covers": choice("What one approval covers.", GrantScope),
    "for": one("How long an approval is valid, or `once`.", _lasts, {"anyOf": [DURATION, {"enum": ["once"]}]}, "lasts"),
}, empty="`approval` is empty: leave it out")  # fmt: skip


def read_approval(reader: Reader, node: Node, _: str = "approval", section: Section = APPROVAL) -> ApprovalTerms | None:
    """Read `approval`, with the keys that it may have there."""
    fields = section.fields(reader, node)
    if fields is None:
        return None
    values = section.values(reader, fields)
    if values.get("by_self") and "by" in fields:
        reader.complain(fields["self"], "`self: true` can't be combined with `by`: the user may not be in that group")
    by_anybody = "by" not in fields and values.get("needed", 1) == 1
    return ApprovalTerms(**{"by_self": by_anybody, **values})


def _method(text: str) -> str:
    if not METHOD_TOKEN.issuperset(text):
        raise ValueError(f"{quote(text)} is not a method; methods are written like `{text.upper()[:20]}`")
    return text


def _named_values_key(says: str, parse: Callable[[str], str]) -> Key:
    """Make a key that maps names to required values."""

    def read(reader: Reader, node: Node, of: str) -> tuple[tuple[str, Values], ...]:
        if not isinstance(node, Mapping) or not node.pairs:
            reader.complain(node, f"`{of}` is a mapping of names to values, `present` or `absent`")
            return ()
        found: dict[str, Values] = {}
        for key, value in node.pairs.values():
            name = reader.parse(key, of, parse)
            expected = _values(reader, value, key)
            if name is None or expected is None:
                continue
            if name in found:
                reader.complain(key, f"{quote(key.text)} is here twice, once in another case")
            found[name] = expected
        return tuple(sorted(found.items()))

    return Key(says, read, _NAMED_VALUES)


def _values(reader: Reader, node: Node, key: Scalar) -> Values | None:
    items = reader.items(node, key.text)
    if len(items) == 1 and items[0] is node:
        text = reader.text(node, key.text)
        if text in _PRESENCES:
            return _PRESENCES[text]
        if text is not None and did_you_mean(text, _PRESENCES):
            reader.complain(
                node, f"{quote(text)} looks like a mistake{did_you_mean(text, _PRESENCES)}; a value is a list"
            )
            return None
        items = [node] if text is not None else []
    patterns = [reader.parse(item, key.text, parse_pattern) for item in items]
    return _sorted(found for found in patterns if found is not None) or None


HTTP: Final = Section("http", "`http`", {
    "methods": many("Methods, in upper case.",
        _method, {"type": "string", "pattern": "^[A-Z0-9!#$%&'*+.^_`|~-]+$"}, frozenset),
    "paths": many("Paths: `*` within a segment, `**` any number of segments.", PathPattern.parse, PATH),
    "query": _named_values_key("Parameters of the query, each with its values, `present` or `absent`.", str),
    "headers": _named_values_key("Header fields, each with its values, `present` or `absent`.", parse_header_name),
    "body": flag("Allows bodies; on deny and ask, matches requests with one. By default not with GET and HEAD."),
    "max_url": one("The longest allowed URL, in bytes.", parse_size),
    "websocket": flag("Whether the request opens a WebSocket."),
}, empty="`http` is empty: it needs `methods`, `paths` or another of its keys")  # fmt: skip


def read_http(reader: Reader, node: Node, *, is_allow: bool) -> Http | None:
    """Read `http`. `is_allow`: the rule allows or flags, or the part is an exemption from a deny or ask."""
    fields = HTTP.fields(reader, node)
    if fields is None:
        return None
    if "max_url" in fields and not is_allow:
        message = "`max_url` is for rules that allow or flag: longer URLs are denied anyway"
        reader.complain(fields["max_url"], message)
    return Http(**HTTP.values(reader, fields))


def _read_changes(reader: Reader, node: Node, key: str) -> frozenset[RefChange]:
    return frozenset(c for item in reader.items(node, key) if (c := reader.choice(item, key, RefChange)))


GIT: Final = Section("git", "`git`", {
    "repos": many("Repositories on the host, as in `acme/*`.", RepoPattern.parse, TEXT),
    "fetch": flag("Whether fetching is covered."),
    "push": many("Refs that pushes may change.", RefPattern.parse, {"type": "string", "pattern": "^refs/"}),
    "changes": Key("What a push may do to a ref.", _read_changes, one_or_more(one_of(RefChange))),
}, needed=("repos",))  # fmt: skip


def read_git(reader: Reader, node: Node, *, is_allow: bool) -> GitRule | None:
    """Read `git`. `changes` defaults to create and update on rules that allow, and to all changes on others."""
    fields = GIT.fields(reader, node)
    if fields is None:
        return None
    values = GIT.values(reader, fields)
    if not values.get("fetch") and "push" not in fields:
        reader.complain(node, "`git` covers nothing: it needs `fetch: true`, `push` or both")
    if "changes" in fields and "push" not in fields:
        reader.complain(fields["changes"], "`changes` needs `push` beside it")
    usual = (
        frozenset({RefChange.CREATE, RefChange.UPDATE} if is_allow else RefChange) if "push" in fields else frozenset()
    )
    return GitRule(**{"repos": (), "changes": usual, **values})
