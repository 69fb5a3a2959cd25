"""Who in the sandbox opened a connection: the kernel says which socket it is, the watcher which process has that open.

Off the hot path: some connections are asked about, so many at once and then so many a second, and none waits for the
answer but one that is refused anyway, for a moment, since its process closes the socket as soon as it hears of that.
What is not known in time is unknown.
"""

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING, Final

from proxy.attribution import ask_owner
from proxy.bucket import Bucket
from proxy.telemetry.events import Process
from proxy.watched import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.attribution import Endpoint

AT_ONCE: Final = 20
A_SECOND: Final = 10.0
PATIENCE: Final = 0.05  # seconds that a refusal waits
_MOST_OPEN: Final = 64  # questions without an answer


class Whose:
    """One connection's question. `process` is None as long as it isn't known, which may be for ever."""

    __slots__ = ("_then", "_timer", "process", "waiting")

    def __init__(self) -> None:
        self.process: Process | None = None
        self.waiting = True
        self._then: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def then(self, act: "Callable[[], None]") -> None:
        """Call `act` once, when it is known or a moment has passed. It must not raise."""
        self._then = act
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._go_on)

    def answered(self, process: Process | None) -> None:
        """Take the answer."""
        self.process = process
        self.waiting = False
        self._go_on()

    def _go_on(self) -> None:
        act, self._then = self._then, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if act is not None:
            act()


class Attributing:
    """Asks about one sandbox's connections. `diag` is of its network namespace, `channel` leads to its watcher."""

    def __init__(
        self, diag: socket.socket, channel: socket.socket, clock: "Callable[[], float]" = time.monotonic
    ) -> None:
        self._diag = diag
        self._channel = channel
        self._room = Bucket(AT_ONCE, A_SECOND, clock)
        self._number = 0
        self._open: dict[int, Whose] = {}

    def ask(self, local: "Endpoint", remote: "Endpoint") -> Whose | None:
        """Ask whose connection has these ends. None: this one is not asked about."""
        if not self._room.take():
            return None
        owner = ask_owner(self._diag, socket.IPPROTO_TCP, local, remote)
        if owner is None:
            return None
        self._number += 1
        try:
            self._channel.send(wire.pack(wire.WhoseAsked(self._number, owner.inode)), socket.MSG_DONTWAIT)
        except OSError:
            return None
        while len(self._open) >= _MOST_OPEN:
            self._open.pop(next(iter(self._open)))
        whose = self._open[self._number] = Whose()
        return whose

    def answered(self, found: wire.WhoseFound) -> None:
        """Take an answer of the watcher's."""
        whose = self._open.pop(found.number, None)
        if whose is not None:
            whose.answered(None if found.who is None else process_of(found.who, found.ancestors))


def process_of(who: wire.Who, ancestors: tuple[wire.Ancestor, ...] = ()) -> Process:
    """Return what events say of a process that the watcher has named."""
    uid, sandbox_uid = (each if each >= 0 else None for each in (who.uid, who.sandbox_uid))
    argv = tuple(map(os.fsdecode, who.argv))
    above = tuple(os.fsdecode(each.exe) for each in ancestors)
    return Process(who.pid, os.fsdecode(who.exe), argv, uid, above, tuple(each.pid for each in ancestors), sandbox_uid)
