"""The host's own file of names (hosts(5)): what it says goes before what any name server says."""

import os
from typing import TYPE_CHECKING

from rules.addresses import parse_address

if TYPE_CHECKING:
    from rules.addresses import Address
    from rules.names import HostName


class HostsFile:
    """One hosts file, read again whenever it has changed."""

    __slots__ = ("_entries", "_path", "_version")

    def __init__(self, path: str = "/etc/hosts") -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._entries: dict[str, tuple[str, ...]] = {}

    def refresh(self) -> bool:
        """Read the file if it isn't the one read last; returns whether it was. A missing file has no names."""
        try:
            status = os.stat(self._path)
            version = status.st_mtime_ns, status.st_ino, status.st_size
            if version == self._version:
                return False
            with open(self._path, encoding="utf-8", errors="replace") as file:
                entries = _parse(file.read())
        except OSError:
            changed = bool(self._entries)
            self._version, self._entries = None, {}
            return changed
        self._version, self._entries = version, entries
        return True

    def addresses_of(self, name: "HostName") -> "tuple[Address, ...]":
        """Return the addresses that the file gives `name`, in its order; none: the file doesn't know it."""
        written = (parse_address(text) for text in self._entries.get(name, ()))
        return tuple(dict.fromkeys(address for address in written if address is not None))


def _parse(text: str) -> dict[str, tuple[str, ...]]:
    """Return the addresses of each name, as they are written: most of a long file is never asked for."""
    entries: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            key = name.lower().removesuffix(".")
            entries[key] = (*entries.get(key, ()), address)
    return entries
