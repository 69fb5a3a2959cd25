"""Parts of a rule, as they are written: `for`, `limits`, `approval`, `http` and `git`.

`rules.matching.requests` says what `http` and `git` mean.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from rules.attempt import Change
from rules.limits import ApprovalTerms, Covers, Limits, Per
from rules.loading.document import Mapping, Node
from rules.loading.fields import Reader, count, duration, header_name, label, pattern, size, slug
from rules.loading.keys import APPROVAL_KEYS, COMMAND_KEYS, FOR_KEYS, GIT_KEYS, HTTP_KEYS, LIMITS_KEYS
from rules.paths import PathPattern
from rules.patterns import For, Pattern
from rules.problems import did_you_mean, quoted
from rules.rule import GitRule, Http, Presence, RefPattern, RepoPattern, Values
from rules.sandbox import Command
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from rules.loading.document import Scalar


_COUNTS: Final = ("connections", "requests", "bytes_up", "bytes_down")


def read_for(reader: Reader, node: Node) -> For | None:
    """Read `for`."""
    fields = reader.mapping(node, "`for`", FOR_KEYS)
    if fields is None:
        return None
    if not isinstance(node, Mapping) or not node.pairs:
        reader.complain(node, "`for` says nothing: leave it out, and the rule is for everybody")
    tasks = tuple(reader.each(fields["tasks"], "tasks", pattern)) if "tasks" in fields else ()
    return For(_sorted(tasks), read_labels(reader, fields["labels"]) if "labels" in fields else ())


def read_labels(reader: Reader, node: Node) -> tuple[tuple[str, tuple[Pattern, ...]], ...]:
    """Read names of labels with their values."""
    if not isinstance(node, Mapping) or not node.pairs:
        reader.complain(node, "`labels` is a mapping of names to values, as in `{team: data}`")
        return ()
    found: dict[str, tuple[Pattern, ...]] = {}
    for key, value in node.pairs.values():
        name = reader.parsed(key, "labels", label)
        if name is not None:
            found[name] = _sorted(tuple(reader.each(value, name, pattern)))
    return tuple(sorted(found.items()))


def _sorted(patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    return tuple(sorted(set(patterns), key=lambda found: found.text))


def read_limits(reader: Reader, node: Node) -> Limits | None:
    """Read `limits`."""
    fields = reader.mapping(node, "`limits`", LIMITS_KEYS)
    if fields is None:
        return None
    if not any(key in fields for key in _COUNTS) and isinstance(node, Mapping):
        reader.complain(node, f"`limits` limits nothing: it needs one of {', '.join(f'`{key}`' for key in _COUNTS)}")
    return Limits(
        reader.parsed(fields["connections"], "connections", count) if "connections" in fields else None,
        reader.parsed(fields["requests"], "requests", count) if "requests" in fields else None,
        reader.parsed(fields["bytes_up"], "bytes_up", size) if "bytes_up" in fields else None,
        reader.parsed(fields["bytes_down"], "bytes_down", size) if "bytes_down" in fields else None,
        reader.parsed(fields["window"], "window", duration) if "window" in fields else None,
        (reader.choice(fields["per"], "per", Per) or Per.RULE) if "per" in fields else Per.TASK,
    )


def read_approval(reader: Reader, node: Node, keys: tuple[str, ...] = APPROVAL_KEYS) -> ApprovalTerms | None:
    """Read `approval`; `keys` are those that it may have there."""
    fields = reader.mapping(node, "`approval`" if keys == APPROVAL_KEYS else "`approval` of a sandbox", keys)
    if fields is None:
        return None
    if not isinstance(node, Mapping) or not node.pairs:
        reader.complain(node, "`approval` says nothing: leave it out")
    by = reader.parsed(fields["by"], "by", slug) if "by" in fields else None
    needed = reader.parsed(fields["count"], "count", count) if "count" in fields else 1
    by_self = reader.boolean(fields["self"], "self") if "self" in fields else "by" not in fields and needed == 1
    if "self" in fields and by_self and "by" in fields:
        reader.complain(
            fields["self"], "`self: true` can't stand beside `by`: who starts a task may not be of that group"
        )
    once = "for" in fields and reader.text(fields["for"], "for") == "once"
    usual = ApprovalTerms()
    return ApprovalTerms(
        by,
        needed or 1,
        bool(by_self),
        (reader.parsed(fields["hold"], "hold", duration) or usual.hold) if "hold" in fields else usual.hold,
        (reader.parsed(fields["open"], "open", duration) or usual.open) if "open" in fields else usual.open,
        (reader.choice(fields["covers"], "covers", Covers) or usual.covers) if "covers" in fields else usual.covers,
        0.0 if once else reader.parsed(fields["for"], "for", duration) if "for" in fields else None,
    )


_MOST_WORDS: Final = 64


def read_command(reader: Reader, node: Node, name: str) -> Command | None:
    """Read one entry of `commands`, of a file that is called `name`; None if it is wrong, which has been told then."""
    before = len(reader.problems)
    fields = reader.mapping(node, "a command", COMMAND_KEYS)
    if fields is None:
        return None
    for key in reader.lacking(node, "a command", ("id", "run", "action"), COMMAND_KEYS):
        reader.complain(node, f"a command needs `{key}`")
    ident = reader.parsed(fields["id"], "id", slug) if "id" in fields else None
    words = reader.parsed(fields["run"], "run", _words) if "run" in fields else None
    action = reader.choice(fields["action"], "action", Verdict) if "action" in fields else None
    if action is Verdict.ALLOW:
        reader.complain(fields["action"], "a command is held back: `deny`, `ask` or `flag`; what none names may run")
    why = reader.text(fields["why"], "why") if "why" in fields else ""
    for_ = read_for(reader, fields["for"]) if "for" in fields else None
    approval = read_approval(reader, fields["approval"]) if "approval" in fields else None
    if "approval" in fields and action is not None and action is not Verdict.ASK:
        reader.complain(fields["approval"], f"`approval` belongs to commands that ask, and this is `{action}`")
    if approval is not None and approval.covers is Covers.DESTINATION:
        message = "a command has no destination: its approval `covers` the `attempt`, or the `rule`"
        reader.complain(fields["approval"], message)
    if ident is None or words is None or action is None or why is None or len(reader.problems) > before:
        return None
    return Command(ident, f"{name}:{ident}", words, action, why, for_, approval)


def _words(text: str) -> tuple[str, ...]:
    """Read a program's name or path and globs of its arguments, with spaces between; no shell reads it."""
    words = tuple(text.split())
    if not words or not text.isprintable():
        raise ValueError(f"{quoted(text)} has characters that don't show, or no word at all")
    if len(words) > _MOST_WORDS:
        raise ValueError(f"{quoted(text)} has more than {_MOST_WORDS} words")
    program = words[0]
    if "/" in program and not program.startswith("/"):
        raise ValueError(f"{quoted(program)} must be a program's name or its whole path, as in `/usr/bin/terraform`")
    return words


_METHOD_TOKEN: Final = frozenset(
    "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)  # RFC 9110 section 5.6.2, upper case
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
    if not _METHOD_TOKEN.issuperset(text):
        raise ValueError(f"{quoted(text)} is not a method; methods are written like `{text.upper()[:20]}`")
    return text
