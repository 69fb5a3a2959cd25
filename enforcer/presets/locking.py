"""Makes `presets.lock` from the settings of clients: resolves and checks each host, and sends requests to its registry.

Entries given by hand stay until they are given anew. A lock is replaced atomically, and only if its presets load with
it and their tests pass.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from enforcer.presets import npm, other_clients, pip
from enforcer.presets.client import Client, DiscoveredHost, Machine, Setting, is_internal
from enforcer.presets.fetch import FetchError, UnknownHostError, Web
from enforcer.system.errors import HostError
from rules.loading.load import failures, read_preset
from rules.loading.preset_locks import LockedPlace, Origin, Places
from rules.problems import RuleFileError
from rules.values.addresses import Address, find_block, parse_network
from rules.values.names import HostName

CLIENTS: Final = {client.preset: client for client in (pip.CLIENT, npm.CLIENT, *other_clients.CLIENTS)}
BY_HAND: Final = "given by hand"
_HEAD: Final = """\
# Where this machine's package registries are, as `exeat presets lock` found them and showed them. Loading rules reads
# this file and makes no request. To change it, run that command again.
version: 1
"""


class Discovery(NamedTuple):
    """Result of the discovery of one preset's places. `problem`: why it can't be locked."""

    preset: str
    places: Places
    notes: tuple[str, ...] = ()
    problem: str = ""
    unconfigured: bool = False  # nobody has set its client to a registry: a failure only where it was named


def discover(client: Client, machine: Machine, web: Web, given: Mapping[str, Sequence[str]]) -> Discovery:
    """Find the places of a preset. `given`: URLs by place, which replace the client's settings."""
    machine.notes.clear()
    notes = machine.notes
    notes += [
        f"{name} is set in the environment, which is not read: a checkout can set it"
        for name in client.variables
        if name in os.environ
    ]
    settings = _settings(client, machine, given)
    if client.places[0] not in {setting.place for setting in settings}:
        problem = (
            f"nothing on this machine says where it is; "
            f"lock it by hand: `exeat presets lock {client.preset}=https://HOST`"
        )
        return Discovery(client.preset, {}, tuple(notes), problem, unconfigured=True)
    try:
        return Discovery(client.preset, _places(client, machine, web, settings), tuple(notes))
    except (FetchError, ValueError) as error:
        unconfigured = all(setting.built_in for setting in settings)
        return Discovery(client.preset, {}, tuple(notes), str(error), unconfigured)


def _settings(client: Client, machine: Machine, given: Mapping[str, Sequence[str]]) -> list[Setting]:
    """Return the URLs given by hand, and the client's settings for the other places."""
    settings = [Setting(place, url, BY_HAND) for place, urls in given.items() for url in urls]
    if client.places[0] not in given:
        settings += [setting for setting in client.configured(machine) if setting.place not in given]
    return settings


def _places(client: Client, machine: Machine, web: Web, settings: Sequence[Setting]) -> Places:
    places: dict[str, list[LockedPlace]] = {place: [] for place in client.places}
    for setting in settings:
        _add(
            places,
            setting.place,
            _lock_configured(
                _strip_credentials(setting.url, machine), setting.source, web, inside=True, machine=machine
            ),
        )
    if client.learn is not None and any(not places[place] for place in client.places[1:]):
        for locked in tuple(places[client.places[0]]):
            for learnt in client.learn(web, locked):
                if (
                    not any(entry.source == BY_HAND for entry in places[learnt.place])
                    or learnt.place == client.places[0]
                ):
                    _add(places, learnt.place, _lock_learnt(learnt, locked, web))
    return {place: tuple(entries) for place, entries in places.items()}


def _add(places: dict[str, list[LockedPlace]], place: str, locked: LockedPlace) -> None:
    if all(entry.origin != locked.origin for entry in places[place]):
        places[place].append(locked)


def _strip_credentials(url: str, machine: Machine) -> Origin:
    """Read a configured URL without the credentials and the query that it may have."""
    scheme, separator, rest = url.strip().partition("?")[0].partition("://")
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    if host != authority:
        machine.notes.append(f"{scheme}://{host}: the user and password in its URL are not kept")
    return Origin.parse(scheme + separator + host + slash + path)


def _lock_configured(origin: Origin, source: str, web: Web, *, inside: bool, machine: Machine) -> LockedPlace:
    """Lock a configured host. Given by hand, it may have no address yet; then it must become a public one."""
    try:
        addresses = web.addresses(origin, inside=inside)
    except UnknownHostError as error:
        if source != BY_HAND:
            raise
        machine.notes.append(f"{error}; it is locked all the same, and must resolve to public addresses later")
        addresses = ()
    return _lock_place(origin, source, addresses)


def _lock_learnt(learnt: DiscoveredHost, registry: LockedPlace, web: Web) -> LockedPlace:
    """Lock a host that a registry named: on a private network only if the registry is."""
    addresses = web.addresses(learnt.origin, inside=is_internal(registry))
    return _lock_place(learnt.origin, learnt.source, addresses)


def _lock_place(origin: Origin, source: str, addresses: Sequence[Address]) -> LockedPlace:
    closed = any(find_block(address) is not None for address in addresses)
    named = isinstance(origin.host, HostName)
    networks = tuple(parse_network(text) for text in sorted(map(str, addresses))) if closed and named else ()
    return LockedPlace(origin, source, networks)


def format_lock(locked: Mapping[str, Places]) -> str:
    """Format a lock as YAML. JSON strings are valid YAML, and stay on one line."""
    lines = [_HEAD + "locked:"]
    for preset, places in sorted(locked.items()):
        lines.append(f"  {preset}:")
        for place, entries in places.items():
            lines.append(f"    {place}:" + ("" if entries else " []"))
            for origin, source, networks in entries:
                lines.append(f"      - url: {json.dumps(origin.url)}")
                if source:
                    lines.append(f"        from: {json.dumps(source)}")
                if networks:
                    lines.append(f"        resolves_to: {json.dumps([str(network) for network in networks])}")
    return "\n".join(lines) + "\n"


def write(path: Path, locked: Mapping[str, Places], check: Sequence[str]) -> None:
    """Replace a lock, if the presets in `check` load with it and pass their tests. Raises HostError, RuleFileError."""
    directory = path.parent
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o022:
            raise HostError(f"`{directory}` can be written by others; make it yours, and run `chmod go-w {directory}`")
        with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".presets.lock.", delete=False) as file:
            draft = Path(file.name)
            try:
                file.write(format_lock(locked))
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                for name in check:
                    _check_preset(name, draft)
                os.fsync(file.fileno())
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise HostError(f"`{path}` can't be written: {error.strerror}") from error


def _check_preset(name: str, lock: Path) -> None:
    loaded = read_preset(name, [lock])
    failed = failures(loaded)
    if failed:
        raise RuleFileError(failed)
