"""Warm pool: processes that wait for a request for a run, each with an empty sandbox.

Making that takes longest of a start. They are replaced when mounts change, or the rules in the service's memory, which
they share as it was when they were forked.
"""

import contextlib
import os
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from enforcer.service.channel import Channel

MOST: Final = 8
_START: Final = 0.25  # seconds after a request, if nobody says that its task runs: no start is to wait for the next one
_LULL: Final = 0.1  # seconds after one whose task runs: most are over by then, and their ends are waited for, too
_REST: Final = 0.05  # seconds after other rules
_CALM: Final = 0.5  # seconds after a change of mounts: others may follow, and each would cost all that was made
_PATIENCE: Final = 2.0  # seconds in which one is to be made, and those that are not wanted have to end


class WarmProcess:
    """One process. Whoever takes it says so to the channel.

    It is `ready` once its sandbox is made, and `busy` while it does something that others needn't wait for.
    """

    __slots__ = ("busy", "channel", "pid", "ready", "since")

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.channel = channel
        self.ready = self.busy = False
        self.since = time.monotonic()

    def in_the_making(self) -> bool:
        """Whether its sandbox is in the making; one that takes too long for that isn't waited for."""
        return not self.ready and not self.busy and time.monotonic() < self.since + _PATIENCE


class WarmPool:
    """All of them. `start` forks one, `known` says what it shares with the service: others are of no use any more."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        start: Callable[[], tuple[int, socket.socket]],
        known: Callable[[], object],
        size: int = MOST,
    ) -> None:
        self._selector = selector
        self._start = start
        self._known = known
        self._size = size
        self._there: list[WarmProcess] = []
        self._leaving: list[int] = []
        self._under: object = None
        self._due = 0.0
        self._asked = 0.0  # until then somebody may wait for a start
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._mounts, select.POLLPRI)

    def take(self) -> WarmProcess | None:
        """Return one that is ready or else in the making, if there is one; it is the caller's.

        One in the making is further than one that is begun now, and both would share the processors.
        """
        self._asked = time.monotonic() + _START
        self._drop_old()
        for each in sorted(self._there, key=lambda each: not each.ready):
            if each.ready or each.in_the_making():
                self._there.remove(each)
                return each
        return None

    def calm(self) -> None:
        """Take note that nobody waits for a start any more; with more than half of them there, none is urgent."""
        self._asked = time.monotonic() + _LULL if 2 * len(self._there) > self._size else 0.0

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        if len(self._there) >= self._size:
            return 60.0
        if any(each.in_the_making() for each in self._there):  # one after the other
            return _PATIENCE
        return max(self._due, self._asked) - time.monotonic()

    def turn(self) -> None:
        """Make another, if there is one missing and nobody waits for a start."""
        self._drop_old()
        if self.wait() > 0:
            return
        self._due = time.monotonic() + _PATIENCE  # where this one can't be, the next can't either
        pid, channel = self._start()
        made = WarmProcess(pid, Channel(channel, self._selector, lambda _said, _given: None, descriptors=True))

        def heard(said: Mapping[str, object], _given: list[int]) -> None:
            made.ready, made.busy = "ready" in said, "ready" not in said  # gone, if it says nothing

        made.channel.heard = heard
        self._there.append(made)
        self._due = 0.0

    def reap(self) -> bool:
        """Take note of those that have ended; whether one had that nobody has let go."""
        before = len(self._there)
        for each in tuple(self._there):
            if os.waitpid(each.pid, os.WNOHANG)[0]:
                self._there.remove(each)
                self._due = time.monotonic() + _PATIENCE  # whatever it ended of may be there still
                each.channel.close()
        self._leaving = [pid for pid in self._leaving if not os.waitpid(pid, os.WNOHANG)[0]]
        return len(self._there) < before

    def drop(self) -> None:
        """Let all go: each takes down what it has made."""
        for each in self._there:
            self._leaving.append(each.pid)
            each.channel.close()
        self._there.clear()

    def close(self) -> None:
        """Make no more, and see that all are gone. Idempotent."""
        self._size = 0
        self.drop()
        deadline = time.monotonic() + _PATIENCE
        while self._leaving and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.01)
        for pid in self._leaving:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._leaving.clear()

    def _drop_old(self) -> None:
        known = self._known()
        # proc_pid_mounts(5): exceptional conditions are what has changed since the last look.
        changed = any(events & (select.POLLPRI | select.POLLERR) for _, events in self._poll.poll(0))
        if self._there and (changed or known != self._under):
            self.drop()
            self._due = time.monotonic() + (_CALM if changed else _REST)
        self._under = known
