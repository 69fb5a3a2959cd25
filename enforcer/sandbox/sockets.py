"""Sockets of a sandbox's network namespace for who made it: the sandbox's outermost process opens them there.

All that can be done with them can be done from outside, by who owns the namespace.
"""

import os
import socket
from collections.abc import Iterable

from enforcer.sandbox.calls import ANY, Register
from enforcer.sandbox.player import Player

type Kind = tuple[int, int, int]  # family, type and protocol: socket(2)


class Maker:
    """Opens them. `ahead` are those that will be asked for: one word brings them all."""

    def __init__(self, player: Player) -> None:
        self._player = player
        self._there: list[tuple[Kind, int]] = []

    def expect(self, kinds: Iterable[Kind]) -> None:
        """Have these opened now; one that can't be is missed when it is asked for. Raises OSError."""
        wanted = tuple(kinds)
        opened = [self._open(*each) for each in wanted]
        for each, register, descriptor in zip(wanted, opened, self._player.do(*opened), strict=True):
            self._there.append((each, self._player.value(register) if descriptor < 0 else descriptor))

    def __call__(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return one. Raises OSError."""
        wanted = (family, kind, protocol)
        if all(each != wanted for each, _ in self._there):
            self.expect([wanted])
        at = next(number for number, (each, _) in enumerate(self._there) if each == wanted)
        _, descriptor = self._there.pop(at)
        if descriptor < 0:
            raise OSError(-descriptor, os.strerror(-descriptor))
        return socket.socket(family, kind, protocol, fileno=descriptor)

    def _open(self, family: int, kind: int, protocol: int) -> Register:
        return self._player.calls.get("socket", family, kind | socket.SOCK_CLOEXEC, protocol, but=(ANY,))

    def close(self) -> None:
        """Close those that nobody has asked for."""
        while self._there:
            if (descriptor := self._there.pop()[1]) >= 0:
                os.close(descriptor)
