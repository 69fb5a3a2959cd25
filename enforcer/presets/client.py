"""Description of a package client for discovery: how to read its settings, and where its registry serves files."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple
from urllib.parse import urljoin

from enforcer.presets.fetch import Answer, FetchError, Web
from enforcer.presets.machine import Machine
from rules.loading.preset_locks import LockedPlace, Origin

_MOST_HOSTS: Final = 16  # that one registry may name


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
    from rules.addresses import why_not_public
    from rules.names import HostName

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


def find_redirect(place: str, answer: Answer, asked: Origin) -> list[DiscoveredHost]:
    """Return the host that a registry redirected to: its clients are redirected there, too."""
    scheme, _, rest = answer.url.partition("?")[0].partition("://")
    authority, _, path = rest.partition("/")
    origin = Origin.parse(f"{scheme}://{authority}")
    if (origin.scheme, origin.host, origin.port) == (asked.scheme, asked.host, asked.port):
        return []
    base = find_common_base(["/" + path.rstrip("/")])
    return [DiscoveredHost(place, origin._replace(base=base), f"{asked.url} redirects there")]


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
