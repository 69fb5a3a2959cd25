"""Discovered presets are templates, written out with what `presets.lock` has before they are read as rule files.

`to: {locked: index}` stands for the hosts that are locked under `index`, `{base}` in a path for the path of their URL,
`{parent}` for that path without its last segment, `{index}` in a test for the first URL itself, `{index.parent}` for
the URL without its last segment. What a lock has nothing for isn't let out; nothing is put in its place.
"""

from typing import Final, NamedTuple

from rules.loading.document import Listing, Mapping, Node, Scalar
from rules.loading.preset_locks import Locked, Origin, Places
from rules.names import HostName
from rules.verdicts import Verdict

_PROTOCOLS: Final = {"https": "tls", "http": "http"}
_LETTING_OUT: Final = frozenset(verdict.value for verdict in Verdict if verdict.lets_out)


class Filled(NamedTuple):
    """A preset written out. `ids`: how the preset itself calls a rule, where one of it had to become several."""

    root: Node
    ids: dict[str, str]


def places_of(root: Node) -> tuple[str, ...]:
    """List the places that the rules of a document name, in their order."""
    found = [_place(target) for rule in _entries(root, "rules") if (target := _value(rule, "to")) is not None]
    return tuple(dict.fromkeys(place for place in found if place is not None))


def fill(root: Node, places: Places) -> Filled:
    """Write a preset out for what is locked: a rule for each port, path and list of addresses."""
    if not isinstance(root, Mapping):
        return Filled(root, {})
    ids: dict[str, str] = {}
    copy = Mapping(root.line, root.column)
    copy.pairs = dict(root.pairs)
    for word in ("rules", "tests"):
        entries = _entries(root, word)
        if not entries:
            continue
        key, value = root.pairs[word]
        listing = Listing(value.line, value.column)
        for entry in entries:
            listing.items += _rule(entry, places, ids) if word == "rules" else _test(entry, places)
        copy.pairs[word] = key, listing
    return Filled(copy, ids)


def _rule(rule: Node, places: Places, ids: dict[str, str]) -> list[Node]:
    target = _value(rule, "to")
    place = None if target is None else _place(target)
    if place is None or not isinstance(rule, Mapping):
        return [rule]
    groups: dict[tuple[object, ...], list[Locked]] = {}
    for locked in places.get(place, ()):
        origin = locked.origin
        groups.setdefault((origin.scheme, origin.port, origin.base, locked.resolves_to), []).append(locked)
    written: list[Node] = []
    for number, alike in enumerate(groups.values(), 1):
        first = alike[0]
        ident = _text(rule, "id") + (f"-{number}" if number > 1 else "")
        ids[ident] = _text(rule, "id")
        hosts = dict.fromkeys(str(locked.origin.host) for locked in alike)
        lines: dict[str, str | list[str]] = {"id": ident, "to": list(hosts)}
        if _text(rule, "action") in _LETTING_OUT:
            lines["ports"] = f"{first.origin.port}/{_PROTOCOLS[first.origin.scheme]}"
            if first.resolves_to and isinstance(first.origin.host, HostName):
                lines["resolves_to"] = [str(network) for network in first.resolves_to]
        written.append(_written(rule, lines, first.origin))
    return written


def _test(test: Node, places: Places) -> list[Node]:
    text = _text(test, "attempt")
    for place, locked in places.items():
        first = locked[0].origin if locked else None
        for word, url in ((place, first and first.url), (f"{place}.parent", first and first.parent.url)):
            if f"{{{word}}}" in text:
                if url is None:
                    return []
                text = text.replace(f"{{{word}}}", url)
    return [_written(test, {"attempt": text}, None)] if isinstance(test, Mapping) and text else [test]


def _entries(root: Node, word: str) -> list[Node]:
    value = _value(root, word)
    return value.items if isinstance(value, Listing) else []


def _value(node: Node, key: str) -> Node | None:
    return node.pairs[key][1] if isinstance(node, Mapping) and key in node.pairs else None


def _place(target: Node) -> str | None:
    value = _value(target, "locked")
    return value.text if isinstance(value, Scalar) else None


def _text(node: Node, key: str) -> str:
    value = _value(node, key)
    return value.text if isinstance(value, Scalar) else ""


def _written(rule: Mapping, lines: dict[str, str | list[str]], origin: Origin | None) -> Mapping:
    """Copy a rule with some keys replaced, and `{base}` and `{parent}` written out for an origin."""
    copy = Mapping(rule.line, rule.column)
    for word, (key, value) in rule.pairs.items():
        copy.pairs[word] = key, value if origin is None else _based(value, origin)
    for word, content in lines.items():
        key = rule.pairs[word][0] if word in rule.pairs else Scalar(rule.line, rule.column, word, plain=True)
        copy.pairs[word] = key, _node(key, content)
    return copy


def _node(at: Node, content: str | list[str]) -> Node:
    if isinstance(content, str):
        return Scalar(at.line, at.column, content, plain=False)
    listing = Listing(at.line, at.column)
    listing.items = [Scalar(at.line, at.column, text, plain=False) for text in content]
    return listing


def _based(node: Node, origin: Origin) -> Node:
    if isinstance(node, Scalar):
        text = node.text.replace("{base}", origin.base).replace("{parent}", origin.parent.base)
        return Scalar(node.line, node.column, text, plain=node.plain)
    if isinstance(node, Listing):
        listing = Listing(node.line, node.column)
        listing.items = [_based(item, origin) for item in node.items]
        return listing
    copy = Mapping(node.line, node.column)
    assert isinstance(node, Mapping)
    copy.pairs = {word: (key, _based(value, origin)) for word, (key, value) in node.pairs.items()}
    return copy
