"""Description of a package client for discovery: how to read its settings, and where its registry serves files.

Configuration is read only from files that no task can have written. A file counts if root or this user owns it and
every directory above it, nobody else may write them, and it is in no workspace. This module must never run a program:
the one on the path may be the checkout's own.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urljoin

from enforcer.presets.fetch import Answer, FetchError, Web
from rules.loading.preset_locks import LockedPlace, Origin

_MOST_HOSTS: Final = 16  # that one registry may name
_LARGEST_FILE: Final = 4 << 20  # bytes of a configuration file
_OTHERS_WRITE: Final = 0o022


@dataclass(slots=True)
class Machine:
    """Machine with its configuration files. `notes` collects files that were ignored."""

    home: Path
    workspaces: tuple[Path, ...] = ()
    root: Path = Path("/")
    notes: list[str] = field(default_factory=list)

    def system(self, path: str) -> Path:
        """Return a path of the system, given without its first slash."""
        return self.root / path

    def find(self, *patterns: str) -> list[Path]:
        """List the existing paths of the system that match globs with `*` and `**`."""
        return [Path(path) for pattern in patterns for path in sorted(glob(str(self.root / pattern), recursive=True))]

    def text(self, path: Path) -> str | None:
        """Read a file; None if it does not exist, or may not be trusted."""
        data = self.data(path)
        if data is None:
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.notes.append(f"{path} was not read: it is not UTF-8")
            return None

    def data(self, path: Path) -> bytes | None:
        """Read the bytes of a file; None if it does not exist, or may not be trusted."""
        try:
            real = path.resolve(strict=True)
            why = self._explain_distrust(real)
            if why is None:
                with real.open("rb") as file:
                    data = file.read(_LARGEST_FILE + 1)
                if len(data) <= _LARGEST_FILE:
                    return data
                why = f"it is larger than {_LARGEST_FILE >> 20} MiB"
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, RuntimeError) as error:
            why = str(getattr(error, "strerror", None) or error).lower()
        self.notes.append(f"{path} was not read: {why}")
        return None

    def _explain_distrust(self, real: Path) -> str | None:
        inside = next((place for place in self.workspaces if real.is_relative_to(place)), None)
        if inside is not None:
            return f"it lies in the workspace {inside}, where a task can write"
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):
            return "it is not a file"
        sticky = False
        for place in (real, *real.parents):
            if place == self.root.parent:
                break
            status = place.stat()
            if status.st_uid not in {0, os.geteuid()}:
                return f"{place} belongs to uid {status.st_uid}"
            sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
            if status.st_mode & _OTHERS_WRITE and not sticky:
                return f"{place} can be written by others"
        return None


def this_machine(workspaces: Iterable[Path]) -> Machine:
    """Return this machine. A workspace that `exeat run` refuses, such as a home, does not count."""
    import pwd

    from enforcer.sandbox.system_paths import refuse_workspace
    from enforcer.system.errors import ExeatError, HostError

    try:
        home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        # `HOME` comes from the environment, which a task may have set
        message = f"uid {os.geteuid()} is no user of this machine, so nobody knows where its clients' settings are"
        raise HostError(f"{message}: give it a line in `/etc/passwd`, or let root lock for everybody") from None
    places: list[Path] = []
    for path in workspaces:
        real = path.resolve()
        try:
            refuse_workspace(str(real), str(home))
        except ExeatError:
            continue
        places.append(real)
    return Machine(home, tuple(places))


class Setting(NamedTuple):
    """Registry URL in a client's configuration, for one place of its preset; `source` says where it is written."""

    place: str
    url: str
    source: str
    built_in: bool = False  # the client's own default: it is installed, and nobody has configured it


class DiscoveredHost(NamedTuple):
    """Host that a registry named."""

    place: str
    origin: Origin
    source: str


class Client(NamedTuple):
    """Client of one preset. `variables` could configure it too, and are ignored."""

    preset: str
    places: tuple[str, ...]  # the first is what is configured, the others may be learnt from it
    configured: Callable[[Machine], Iterable[Setting]]
    learn: Callable[[Web, LockedPlace], list[DiscoveredHost]] | None = None
    variables: tuple[str, ...] = ()


def is_internal(locked: LockedPlace) -> bool:
    """Whether a registry is on a private network; then the hosts that it names may be, too."""
    from rules.values.addresses import why_not_public
    from rules.values.names import HostName

    if isinstance(locked.origin.host, HostName):
        return bool(locked.resolves_to)
    return why_not_public(locked.origin.host) is not None


def find_hosts(urls: Iterable[str], answered: str, registry: Origin) -> list[Origin]:
    """Return the hosts of an answer's links, each with the path above all of its links.

    On the registry's own host the path is what they have in common with the registry's: enough for a mirror's files,
    and not for its other repositories. On another host it is none. Raises FetchError.
    """
    found: dict[tuple[str, str, int], list[str]] = {}
    links: dict[tuple[str, str, int], Origin] = {}
    for url in urls:
        full = urljoin(answered, url)
        scheme, separator, rest = full.partition("#")[0].partition("?")[0].partition("://")
        authority, _, path = rest.partition("/")
        try:
            origin = Origin.parse(f"{scheme}{separator}{authority}")
        except ValueError as error:
            raise FetchError(f"{registry.url} names a host that can't be locked: {error}") from error
        if registry.scheme == "https" and origin.scheme != "https":
            raise FetchError(f"{registry.url} names {origin.url}, which is not https")
        key = (origin.scheme, str(origin.host), origin.port)
        links[key] = origin
        found.setdefault(key, []).append("/" + path)
        if len(found) > _MOST_HOSTS:
            raise FetchError(f"{registry.url} names more than {_MOST_HOSTS} hosts")
    own = (registry.scheme, str(registry.host), registry.port)
    return [
        origin._replace(base=find_common_base([registry.base + "/", *found[key]]) if key == own else "")
        for key, origin in links.items()
    ]


def find_redirect(place: str, answer: Answer, requested: Origin) -> list[DiscoveredHost]:
    """Return the host that a registry redirected to: its clients are redirected there, too."""
    scheme, _, rest = answer.url.partition("?")[0].partition("://")
    authority, _, path = rest.partition("/")
    origin = Origin.parse(f"{scheme}://{authority}")
    if (origin.scheme, origin.host, origin.port) == (requested.scheme, requested.host, requested.port):
        return []
    base = find_common_base(["/" + path.rstrip("/")])
    return [DiscoveredHost(place, origin._replace(base=base), f"{requested.url} redirects there")]


def find_common_base(paths: Iterable[str]) -> str:
    """Return the directories that all paths begin with; none if one is not plain."""
    split = [path.split("/")[1:-1] for path in paths]
    base = ""
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1 or re.fullmatch(r"[\w.~+@-]+", parts[0], re.ASCII) is None or parts[0].startswith("."):
            break
        base += "/" + parts[0]
    return base


def read_urls(
    place: str, urls: Iterable[str], source: str, machine: Machine, *, built_in: bool = False
) -> Iterator[Setting]:
    """Yield the URLs that can be locked; others become notes."""
    for url in urls:
        if url.lower().startswith(("https://", "http://")):
            yield Setting(place, url, source, built_in)
        else:
            machine.notes.append(f"{source}: `{ascii(url)[1:-1][:100]}` is no registry on the network, and left out")
