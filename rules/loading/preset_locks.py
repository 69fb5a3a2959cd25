"""Reads `presets.lock`: this machine's package registries, as `exeat presets lock` found them.

Only the lock is read, never a network, and never a lock beside a rule file: that may be a workspace, where a task could
choose its own registry. Nothing here guesses: what a lock has wrong is a problem, and nothing of it is used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.addresses import Address, Network, bracketed, parse_host, parse_network
from rules.files import contents, own_configuration, why
from rules.loading.document import Listing, Mapping, Node, parse
from rules.loading.fields import Reader
from rules.loading.sections import TEXT, Key, Section, many, one, text
from rules.problems import Problem, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rules.names import HostName

_SYSTEM_LOCK: Final = Path("/etc/exeat/presets.lock")
_USUAL: Final = {"https": 443, "http": 80}
_PATH: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~+@:,=/")


class Origin(NamedTuple):
    """Where a registry answers: a URL without user, query and final slash."""

    scheme: str
    host: "HostName | Address"
    port: int
    base: str = ""  # its path

    @property
    def url(self) -> str:
        """The URL in its one spelling."""
        port = "" if self.port == _USUAL[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{bracketed(self.host)}{port}{self.base}"

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
            raise ValueError(f"{quoted(text)} must be a URL that begins with `https://` or `http://`")
        authority, slash, path = rest.partition("/")
        base = (slash + path).rstrip("/")
        if "@" in authority:
            raise ValueError("a URL here has no user and no password: a lock is no place for credentials")
        if not _PATH.issuperset(base) or any(part in {"", ".", ".."} for part in base.split("/")[1:]):
            raise ValueError(f"{quoted(text)} has a path that can be read more than one way")
        host, port = authority, str(_USUAL[scheme])
        if not authority.endswith("]") and ":" in authority:
            host, _, port = authority.rpartition(":")
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
            raise ValueError(f"{quoted(text)} has no port between 1 and 65535")
        return cls(scheme, parse_host(host), int(port), base)


class Locked(NamedTuple):
    """An origin, where it was found, and the addresses that are not public and it may have."""

    origin: Origin
    source: str = ""
    resolves_to: tuple[Network, ...] = ()


type Places = dict[str, tuple[Locked, ...]]


def lock_paths() -> tuple[Path, ...]:
    """Where locks are read: the system's, whose word counts first, and the user's own (XDG Base Directory)."""
    own = own_configuration()
    return (_SYSTEM_LOCK,) if own is None else (_SYSTEM_LOCK, own / "presets.lock")


_LOCK: Final = Section("lock", "a lock", {
    "version": text("The version of the file."),
    "locked": Key("By preset and place, what was found.", lambda reader, node, _: _locked(reader, node), {}),
})  # fmt: skip
_ENTRY: Final = Section("origin", "an entry of a lock", {
    "url": one("Where the registry answers.", Origin.parse, TEXT, "origin"),
    "from": text("Where it was found.")._replace(field="source"),
    "resolves_to": many("The addresses that are not public and it may have.", parse_network, TEXT),
}, needed=("url",))  # fmt: skip


def read_lock(reader: Reader, root: Node | None) -> dict[str, Places]:
    """Read a lock: which preset has what in which place; what is wrong has been told and is left out."""
    fields = None if root is None else _LOCK.fields(reader, root)
    if root is None or fields is None:
        return {}
    if "version" not in fields or reader.text(fields["version"], "version") != "1":
        reader.complain(root, "this version of exeat reads locks of `version: 1`: run `exeat presets lock` again")
        return {}
    found: dict[str, Places] = _LOCK.values(reader, fields).get("locked", {})
    return found


def _locked(reader: Reader, node: Node) -> dict[str, Places]:
    return {
        name: {place: _origins(reader, value) for place, value in _named(reader, places, name).items()}
        for name, places in _named(reader, node, "locked").items()
    }


def _named(reader: Reader, node: Node, of: str) -> dict[str, Node]:
    if not isinstance(node, Mapping):
        reader.complain(node, f"`{of}` must be a mapping")
        return {}
    return {word: value for word, (_, value) in node.pairs.items()}


def _origins(reader: Reader, node: Node) -> tuple[Locked, ...]:
    if not isinstance(node, Listing):
        reader.complain(node, "what is locked is a list of `{url, from}`")
        return ()
    every = [_ENTRY.read(reader, item) for item in node.items]
    return tuple(Locked(**said) for said in every if said and "origin" in said)


def read_locks(paths: "Sequence[Path]", problems: list[Problem]) -> dict[str, tuple[Path, Places]]:
    """Read locks: what each preset is locked to, and by which file. The first file that has a preset is the one."""
    found: dict[str, tuple[Path, Places]] = {}
    for path in paths:
        try:
            data = contents(path, trusted=True)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problems.append(Problem(str(path), 1, 1, f"`{path}` can't be used: {why(error)}"))
            continue
        for name, places in read_lock(Reader(str(path), problems), parse(data, str(path), problems)).items():
            found.setdefault(name, (path, places))
    return found
