"""`presets.lock`: where this machine's package registries are, as `exeat presets lock` found them.

Only the lock is read, never a network, and never a lock beside a rule file: that may be a workspace, where a task could
choose its own registry. Nothing here guesses: what a lock has wrong is a problem, and nothing of it is used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.addresses import Address, Network, bracketed, parse_host, parse_network
from rules.files import contents, own_configuration, why
from rules.loading.document import Listing, Mapping, Node, parse
from rules.loading.fields import Reader
from rules.problems import Problem, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rules.names import HostName

LOCK_KEYS: Final = ("version", "locked")
ORIGIN_KEYS: Final = ("url", "from", "resolves_to")

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


class LockReader(Reader):
    """Reads a lock: which preset has what in which place."""

    __slots__ = ()

    def read(self, root: Node | None) -> dict[str, Places]:
        """Read the document; what is wrong has been told and is left out."""
        if root is None:
            return {}
        fields = self.mapping(root, "a lock", LOCK_KEYS)
        if fields is None:
            return {}
        if "version" not in fields or self.text(fields["version"], "version") != "1":
            self.complain(root, "this version of exeat reads locks of `version: 1`: run `exeat presets lock` again")
            return {}
        presets = self._named(fields["locked"], "locked") if "locked" in fields else {}
        return {
            name: {place: tuple(self._origins(value)) for place, value in self._named(node, name).items()}
            for name, node in presets.items()
        }

    def _named(self, node: Node, of: str) -> dict[str, Node]:
        if not isinstance(node, Mapping):
            self.complain(node, f"`{of}` must be a mapping")
            return {}
        return {word: value for word, (_, value) in node.pairs.items()}

    def _origins(self, node: Node) -> list[Locked]:
        found: list[Locked] = []
        if not isinstance(node, Listing):
            self.complain(node, "what is locked is a list of `{url, from}`")
            return found
        for item in node.items:
            fields = self.mapping(item, "an entry of a lock", ORIGIN_KEYS)
            if fields is None:
                continue
            if "url" not in fields:
                self.complain(item, "an entry of a lock needs `url`")
                continue
            origin = self.parsed(fields["url"], "url", Origin.parse)
            source = self.text(fields["from"], "from") if "from" in fields else ""
            listed = self.each(fields["resolves_to"], "resolves_to", parse_network) if "resolves_to" in fields else []
            if origin is not None:
                found.append(Locked(origin, source or "", tuple(listed)))
        return found


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
        for name, places in LockReader(str(path), problems).read(parse(data, str(path), problems)).items():
            found.setdefault(name, (path, places))
    return found
