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
_START_TIME: Final = 0.25  # seconds after a request without a report that its task runs: refilling would delay it
_IDLE_DELAY: Final = 0.1  # seconds after a task has started: refilling would delay the end of short tasks
_RULES_DELAY: Final = 0.05  # seconds after a change of rules
_MOUNTS_DELAY: Final = 0.5  # seconds after a change of mounts: each further one would drop the pool again
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

    def is_starting(self) -> bool:
        """Whether its sandbox is being made; False once that takes too long."""
        return not self.ready and not self.busy and time.monotonic() < self.since + _PATIENCE


class WarmPool:
    """The waiting processes. `start` forks one; when `current_state` changes, earlier ones are dropped."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        start: Callable[[], tuple[int, socket.socket]],
        current_state: Callable[[], object],
        size: int = MOST,
    ) -> None:
        self._selector = selector
        self._start = start
        self._read_state = current_state
        self._size = size
        self._processes: list[WarmProcess] = []
        self._dropped: list[int] = []
        self._shared_state: object = None
        self._due = 0.0
        self._starts_until = 0.0  # until then a start may be running
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._mounts, select.POLLPRI)

    def take(self) -> WarmProcess | None:
        """Return a process that is ready, or else one that is starting; it is the caller's. None if there is neither.

        A process that is starting is further than one started now.
        """
        self._starts_until = time.monotonic() + _START_TIME
        self._drop_old()
        for each in sorted(self._processes, key=lambda each: not each.ready):
            if each.ready or each.is_starting():
                self._processes.remove(each)
                return each
        return None

    def note_idle(self) -> None:
        """Record that no start is waiting; with more than half of the pool filled, refilling can wait."""
        self._starts_until = time.monotonic() + _IDLE_DELAY if 2 * len(self._processes) > self._size else 0.0

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        if len(self._processes) >= self._size:
            return 60.0
        if any(each.is_starting() for each in self._processes):  # one after the other
            return _PATIENCE
        return max(self._due, self._starts_until) - time.monotonic()

    def turn(self) -> None:
        """Start one process, if one is missing and no start is waiting."""
        self._drop_old()
        if self.wait() > 0:
            return
        self._due = time.monotonic() + _PATIENCE  # after a failure, wait before the next
        pid, channel = self._start()
        process = WarmProcess(pid, Channel(channel, self._selector, lambda _said, _given: None, descriptors=True))

        def on_message(said: Mapping[str, object], _given: list[int]) -> None:
            process.ready, process.busy = "ready" in said, "ready" not in said  # an empty message: it is gone

        process.channel.on_message = on_message
        self._processes.append(process)
        self._due = 0.0

    def reap(self) -> bool:
        """Record ended processes; returns whether one ended that was not dropped."""
        before = len(self._processes)
        for each in tuple(self._processes):
            if os.waitpid(each.pid, os.WNOHANG)[0]:
                self._processes.remove(each)
                self._due = time.monotonic() + _PATIENCE  # the cause may persist
                each.channel.close()
        self._dropped = [pid for pid in self._dropped if not os.waitpid(pid, os.WNOHANG)[0]]
        return len(self._processes) < before

    def drop(self) -> None:
        """Drop all: each removes what it has made."""
        for each in self._processes:
            self._dropped.append(each.pid)
            each.channel.close()
        self._processes.clear()

    def close(self) -> None:
        """Start no more, and end all. Idempotent."""
        self._size = 0
        self.drop()
        deadline = time.monotonic() + _PATIENCE
        while self._dropped and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.01)
        for pid in self._dropped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._dropped.clear()

    def _drop_old(self) -> None:
        current_state = self._read_state()
        # proc_pid_mounts(5): poll reports a change of mounts as an exceptional condition.
        mounts_changed = any(events & (select.POLLPRI | select.POLLERR) for _, events in self._poll.poll(0))
        if self._processes and (mounts_changed or current_state != self._shared_state):
            self.drop()
            self._due = time.monotonic() + (_MOUNTS_DELAY if mounts_changed else _RULES_DELAY)
        self._shared_state = current_state
