"""What a rule asks of requests, as it is written: `http` and `git`. What that means, `matching.requests` says."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from rules.attempt import Change
from rules.loading.document import Mapping, Node
from rules.loading.fields import Reader
from rules.loading.keys import GIT_KEYS, HTTP_KEYS
from rules.loading.values import header_name, pattern, size
from rules.paths import PathPattern
from rules.problems import did_you_mean, quoted
from rules.rule import GitRule, Http, Presence, RefPattern, RepoPattern, Values

if TYPE_CHECKING:
    from rules.loading.document import Scalar

_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # RFC 9110 section 5.6.2, upper case
_PRESENCES: Final = {presence.value: presence for presence in Presence}


def read_http(reader: Reader, node: Node, *, lets_out: bool) -> Http | None:
    """Read `http`. `lets_out`: of a rule that lets out, or of an exemption from being held back."""
    fields = reader.mapping(node, "`http`", HTTP_KEYS)
    if fields is None:
        return None
    if not isinstance(node, Mapping) or not node.pairs:
        reader.complain(node, "`http` says nothing: it needs `methods`, `paths` or another of its keys")
    if "max_url" in fields and not lets_out:
        message = "`max_url` says how much may go out, and this doesn't let out: what is longer is denied by itself"
        reader.complain(fields["max_url"], message)
    return Http(
        frozenset(reader.each(fields["methods"], "methods", _method)) if "methods" in fields else None,
        tuple(reader.each(fields["paths"], "paths", PathPattern.parse)) if "paths" in fields else None,
        _named(reader, fields.get("query"), "query", str),
        _named(reader, fields.get("headers"), "headers", header_name),
        reader.boolean(fields["body"], "body") if "body" in fields else None,
        reader.parsed(fields["max_url"], "max_url", size) if "max_url" in fields else None,
        reader.boolean(fields["websocket"], "websocket") if "websocket" in fields else None,
    )


def read_git(reader: Reader, node: Node, *, lets_out: bool) -> GitRule | None:
    """Read `git`. What lets out creates and updates where it doesn't say; what holds back holds back every change."""
    fields = reader.mapping(node, "`git`", GIT_KEYS)
    if fields is None:
        return None
    if "repos" not in fields:
        reader.complain(node, "`git` needs `repos`")
    fetch = bool(reader.boolean(fields["fetch"], "fetch")) if "fetch" in fields else False
    push = tuple(reader.each(fields["push"], "push", RefPattern.parse)) if "push" in fields else None
    if not fetch and push is None:
        reader.complain(node, "`git` covers nothing: it needs `fetch: true`, `push` or both")
    if "changes" in fields and push is None:
        reader.complain(fields["changes"], "`changes` are what a push does to a ref, and this has no `push`")
    changes = frozenset({Change.CREATE, Change.UPDATE} if lets_out else Change)
    if "changes" in fields:
        changes = frozenset(c for item in reader.items(fields["changes"], "changes") if (c := _change(reader, item)))
    repos = tuple(reader.each(fields["repos"], "repos", RepoPattern.parse)) if "repos" in fields else ()
    return GitRule(repos, fetch, push, changes if push is not None else frozenset())


def _change(reader: Reader, item: Node) -> Change | None:
    return reader.choice(item, "changes", Change)


def _named(reader: Reader, node: Node | None, of: str, parse: Callable[[str], str]) -> tuple[tuple[str, Values], ...]:
    """Read names with what is wanted of their values."""
    if node is None:
        return ()
    if not isinstance(node, Mapping) or not node.pairs:
        reader.complain(node, f"`{of}` is a mapping of names to values, `present` or `absent`")
        return ()
    found: dict[str, Values] = {}
    for key, value in node.pairs.values():
        name = reader.parsed(key, of, parse)
        wanted = _values(reader, value, key)
        if name is None or wanted is None:
            continue
        if name in found:
            reader.complain(key, f"{quoted(key.text)} is here twice, once in another case")
        found[name] = wanted
    return tuple(sorted(found.items()))


def _values(reader: Reader, node: Node, key: "Scalar") -> Values | None:
    items = reader.items(node, key.text)
    if len(items) == 1 and items[0] is node:
        text = reader.text(node, key.text)
        if text in _PRESENCES:
            return _PRESENCES[text]
        if text is not None and did_you_mean(text, _PRESENCES):
            reader.complain(
                node, f"{quoted(text)} looks like a mistake{did_you_mean(text, _PRESENCES)}; a value is a list"
            )
            return None
        items = [node] if text is not None else []
    patterns = [reader.parsed(item, key.text, pattern) for item in items]
    return tuple(sorted({found for found in patterns if found is not None}, key=lambda found: found.text)) or None


def _method(text: str) -> str:
    if not _TOKEN.issuperset(text):
        raise ValueError(f"{quoted(text)} is not a method; methods are written like `{text.upper()[:20]}`")
    return text
