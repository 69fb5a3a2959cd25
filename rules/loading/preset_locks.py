"""Reads `presets.lock`, and writes discovered presets out with what it has.

The lock says which package registries `exeat presets lock` found on this machine. Only it is read, never a network, and
never a lock in the directory of a rule file: that may be a workspace, where a task could choose its own registry. A
faulty lock is a problem, and none of it is used.

Discovered presets are templates, written out before they are read as rule files. `to: {locked: index}` stands for the
hosts that are locked under `index`, `{base}` in a path for the path of their URL, `{parent}` for that path without its
last segment, `{index}` in a test for the first URL itself, `{index.parent}` for the URL without its last segment. What
a lock has no entry for is not allowed, and has no substitute.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rules.files import describe_error, read_file, user_configuration
from rules.loading.document import Listing, Mapping, Node, Scalar, parse
from rules.loading.fields import TEXT, Key, Reader, Section, many, one, text
from rules.problems import Problem, quote
from rules.values.addresses import Address, Network, bracket_host, parse_host, parse_network
from rules.values.names import HostName
from rules.verdicts import Verdict

_SYSTEM_LOCK: Final = Path("/etc/exeat/presets.lock")
_USUAL: Final = {"https": 443, "http": 80}
_PATH: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~+@:,=/")


class Origin(NamedTuple):
    """Where a registry answers: a URL without user, query and final slash."""

    scheme: str
    host: HostName | Address
    port: int
    base: str = ""  # its path

    @property
    def url(self) -> str:
        """The URL in its one spelling."""
        port = "" if self.port == _USUAL[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{bracket_host(self.host)}{port}{self.base}"

    @property
    def parent(self) -> "Origin":
        """The origin without the last segment of its path."""
        return self._replace(base=self.base.rpartition("/")[0])

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """Read a URL. Raises ValueError with what no lock can have."""
        scheme, separator, rest = text.partition("://")
        scheme = scheme.lower()
        if not separator or scheme not in _USUAL:
            raise ValueError(f"{quote(text)} must be a URL that begins with `https://` or `http://`")
        authority, slash, path = rest.partition("/")
        base = (slash + path).rstrip("/")
        if "@" in authority:
            raise ValueError("a URL in a lock may not contain a user or a password: remove them")
        if not _PATH.issuperset(base) or any(part in {"", ".", ".."} for part in base.split("/")[1:]):
            raise ValueError(f"{quote(text)} has a path that can be read more than one way")
        host, port = authority, str(_USUAL[scheme])
        if not authority.endswith("]") and ":" in authority:
            host, _, port = authority.rpartition(":")
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
            raise ValueError(f"{quote(text)} has no port between 1 and 65535")
        return cls(scheme, parse_host(host), int(port), base)


class LockedPlace(NamedTuple):
    """An origin, where it was found, and the addresses that are not public and it may have."""

    origin: Origin
    source: str = ""
    resolves_to: tuple[Network, ...] = ()


type Places = dict[str, tuple[LockedPlace, ...]]


def lock_paths() -> tuple[Path, ...]:
    """Return the paths of the locks: the system's, which takes precedence, and the user's (XDG Base Directory)."""
    own = user_configuration()
    return (_SYSTEM_LOCK,) if own is None else (_SYSTEM_LOCK, own / "presets.lock")


_LOCK: Final = Section("lock", "a lock", {
    "version": text("The version of the file."),
    "locked": Key("By preset and place, what was found.", lambda reader, node, _: _read_locked(reader, node), {}),
})  # fmt: skip
_ENTRY: Final = Section("origin", "an entry of a lock", {
    "url": one("Where the registry answers.", Origin.parse, TEXT, "origin"),
    "from": text("Where it was found.")._replace(field="source"),
    "resolves_to": many("Non-public addresses that the registry may have.", parse_network, TEXT),
}, needed=("url",))  # fmt: skip


def read_lock(reader: Reader, root: Node | None) -> dict[str, Places]:
    """Read a lock: hosts by preset and placeholder; wrong entries have been reported and are left out."""
    fields = None if root is None else _LOCK.fields(reader, root)
    if root is None or fields is None:
        return {}
    if "version" not in fields or reader.text(fields["version"], "version") != "1":
        reader.complain(root, "this version of exeat reads locks of `version: 1`: run `exeat presets lock` again")
        return {}
    found: dict[str, Places] = _LOCK.values(reader, fields).get("locked", {})
    return found


def _read_locked(reader: Reader, node: Node) -> dict[str, Places]:
    return {
        name: {place: _origins(reader, value) for place, value in _read_mapping(reader, places, name).items()}
        for name, places in _read_mapping(reader, node, "locked").items()
    }


def _read_mapping(reader: Reader, node: Node, of: str) -> dict[str, Node]:
    if not isinstance(node, Mapping):
        reader.complain(node, f"`{of}` must be a mapping")
        return {}
    return {word: value for word, (_, value) in node.pairs.items()}


def _origins(reader: Reader, node: Node) -> tuple[LockedPlace, ...]:
    if not isinstance(node, Listing):
        reader.complain(node, "what is locked is a list of `{url, from}`")
        return ()
    every = [_ENTRY.read(reader, item) for item in node.items]
    return tuple(LockedPlace(**entry) for entry in every if entry and "origin" in entry)


def read_locks(paths: Sequence[Path], problems: list[Problem]) -> dict[str, tuple[Path, Places]]:
    """Read locks: what each preset is locked to, and by which file. The first file that has a preset is the one."""
    found: dict[str, tuple[Path, Places]] = {}
    for path in paths:
        try:
            data = read_file(path, trusted=True)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problems.append(Problem(str(path), 1, 1, f"`{path}` can't be used: {describe_error(error)}"))
            continue
        for name, places in read_lock(Reader(str(path), problems), parse(data, str(path), problems)).items():
            found.setdefault(name, (path, places))
    return found


_PROTOCOLS: Final = {"https": "tls", "http": "http"}
_LETTING_OUT: Final = frozenset(verdict.value for verdict in Verdict if verdict.allows)


class FilledPreset(NamedTuple):
    """A preset written out. `ids`: how the preset itself calls a rule, where one of it had to become several."""

    root: Node
    ids: dict[str, str]


def list_places(root: Node) -> tuple[str, ...]:
    """List the places that the rules of a document name, in their order."""
    found = [_place(target) for rule in _entries(root, "rules") if (target := _value(rule, "to")) is not None]
    return tuple(dict.fromkeys(place for place in found if place is not None))


def fill_places(root: Node, places: Places) -> FilledPreset:
    """Write a preset out for what is locked: a rule for each port, path and list of addresses."""
    if not isinstance(root, Mapping):
        return FilledPreset(root, {})
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
    return FilledPreset(copy, ids)


def _rule(rule: Node, places: Places, ids: dict[str, str]) -> list[Node]:
    target = _value(rule, "to")
    place = None if target is None else _place(target)
    if place is None or not isinstance(rule, Mapping):
        return [rule]
    groups: dict[tuple[object, ...], list[LockedPlace]] = {}
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
        written.append(_replace_keys(rule, lines, first.origin))
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
    return [_replace_keys(test, {"attempt": text}, None)] if isinstance(test, Mapping) and text else [test]


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


def _replace_keys(rule: Mapping, lines: dict[str, str | list[str]], origin: Origin | None) -> Mapping:
    """Copy a rule with some keys replaced, and `{base}` and `{parent}` written out for an origin."""
    copy = Mapping(rule.line, rule.column)
    for word, (key, value) in rule.pairs.items():
        copy.pairs[word] = key, value if origin is None else _with_base_path(value, origin)
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


def _with_base_path(node: Node, origin: Origin) -> Node:
    if isinstance(node, Scalar):
        text = node.text.replace("{base}", origin.base).replace("{parent}", origin.parent.base)
        return Scalar(node.line, node.column, text, plain=node.plain)
    if isinstance(node, Listing):
        listing = Listing(node.line, node.column)
        listing.items = [_with_base_path(item, origin) for item in node.items]
        return listing
    copy = Mapping(node.line, node.column)
    assert isinstance(node, Mapping)
    copy.pairs = {word: (key, _with_base_path(value, origin)) for word, (key, value) in node.pairs.items()}
    return copy
