"""Warm pool: processes with an empty sandbox that wait for requests for runs.

Making the sandbox is the longest part of a start. They are replaced when mounts change, or the rules in the service's
memory, which they share as of their fork.
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
_START: Final = 0.25  # seconds after a request without a report that its task runs: refilling would delay it
_LULL: Final = 0.1  # seconds after a task has started: most end by then, and callers wait for that, too
_REST: Final = 0.05  # seconds after a change of rules
_CALM: Final = 0.5  # seconds after a change of mounts: each further one would drop the pool again
_PATIENCE: Final = 2.0  # seconds for one to be made, and for dropped ones to end


class WarmProcess:
    """A process with an empty sandbox, waiting for a request.

    `ready`: its sandbox is made; `busy`: it is running its self-test, which a request needn't wait for.
    """

    __slots__ = ("busy", "channel", "pid", "ready", "since")

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.channel = channel
        self.ready = self.busy = False
        self.since = time.monotonic()

    def in_the_making(self) -> bool:
        """Whether its sandbox is being made; False once that takes too long."""
        return not self.ready and not self.busy and time.monotonic() < self.since + _PATIENCE


class WarmPool:
    """The waiting processes. `start` forks one; when `known` changes, earlier ones are dropped."""

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
        self._asked = 0.0  # until then a start may be waiting
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._mounts, select.POLLPRI)

    def take(self) -> WarmProcess | None:
        """Return a process that is ready, or one in the making; it is the caller's. None if there is neither.

        One in the making is ahead of one started now.
        """
        self._asked = time.monotonic() + _START
        self._drop_old()
        for each in sorted(self._there, key=lambda each: not each.ready):
            if each.ready or each.in_the_making():
                self._there.remove(each)
                return each
        return None

    def calm(self) -> None:
        """Record that no start is waiting; with more than half of the pool filled, refilling can wait."""
        self._asked = time.monotonic() + _LULL if 2 * len(self._there) > self._size else 0.0

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        if len(self._there) >= self._size:
            return 60.0
        if any(each.in_the_making() for each in self._there):  # one after the other
            return _PATIENCE
        return max(self._due, self._asked) - time.monotonic()

    def turn(self) -> None:
        """Start one process, if one is missing and no start is waiting."""
        self._drop_old()
        if self.wait() > 0:
            return
        self._due = time.monotonic() + _PATIENCE  # after a failure, wait before the next
        pid, channel = self._start()
        made = WarmProcess(pid, Channel(channel, self._selector, lambda _said, _given: None, descriptors=True))

        def heard(said: Mapping[str, object], _given: list[int]) -> None:
            made.ready, made.busy = "ready" in said, "ready" not in said  # an empty message: it is gone

        made.channel.heard = heard
        self._there.append(made)
        self._due = 0.0

    def reap(self) -> bool:
        """Record ended processes; returns whether one ended that was not dropped."""
        before = len(self._there)
        for each in tuple(self._there):
            if os.waitpid(each.pid, os.WNOHANG)[0]:
                self._there.remove(each)
                self._due = time.monotonic() + _PATIENCE  # the cause may persist
                each.channel.close()
        self._leaving = [pid for pid in self._leaving if not os.waitpid(pid, os.WNOHANG)[0]]
        return len(self._there) < before

    def drop(self) -> None:
        """Drop all: each removes what it has made."""
        for each in self._there:
            self._leaving.append(each.pid)
            each.channel.close()
        self._there.clear()

    def close(self) -> None:
        """Start no more, and end all. Idempotent."""
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
        # proc_pid_mounts(5): poll reports a change of mounts as an exceptional condition.
        changed = any(events & (select.POLLPRI | select.POLLERR) for _, events in self._poll.poll(0))
        if self._there and (changed or known != self._under):
            self.drop()
            self._due = time.monotonic() + (_CALM if changed else _REST)
        self._under = known
