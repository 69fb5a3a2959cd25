"""Loop of the seccomp supervisor: records refused calls, and holds program starts until the worker decides.

A call that the filter refuses stays refused, whatever is recorded; a program starts only after the worker has allowed
it; a flood or stall affects only its own task. Refused calls of one kind are recorded at most once a minute, a few
kinds at once; the rest is counted (`EventBudget`).
"""

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from enforcer.sandbox.seccomp import Filter, Hold, Refuse
from enforcer.sandbox.system_calls import NUMBERS
from enforcer.seccomp_supervisor import performed_calls
from enforcer.seccomp_supervisor.notification_listener import Listener, Notification
from enforcer.seccomp_supervisor.pending_programs import PendingExecs
from enforcer.seccomp_supervisor.performed_calls import ATTRIBUTE_CALLS, LOCK_CALL, MODE_CALLS, Locks
from enforcer.seccomp_supervisor.task_processes import Caller, SocketOwnerLookup
from proxy.supervisor_channel import messages

EACH: Final = 60.0  # seconds between two events of one kind
AT_ONCE: Final = 20  # events
REFILLED: Final = 3.0  # seconds for another one
_MOST_KINDS: Final = 256  # kinds that are remembered


class EventBudget:
    """Rate limit of events about refused calls: bounded in time and memory, whatever the task does."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._room = float(AT_ONCE)
        self._at = clock()
        self._told: dict[tuple[str, bytes], float] = {}  # when the last event was sent
        self._untold: dict[tuple[str, bytes], int] = {}  # how many were suppressed since

    def take(self, call: str, exe: bytes) -> int | None:
        """Return how many like it were suppressed since the last event; None: suppress this one, too."""
        now = self._clock()
        self._room = min(AT_ONCE, self._room + (now - self._at) / REFILLED)
        self._at = now
        key = (call, exe)
        if key not in self._untold and key not in self._told and len(self._told) + len(self._untold) >= _MOST_KINDS:
            self._forget(now)
        told = self._told.get(key)
        if self._room < 1 or (told is not None and now - told < EACH):
            if key in self._untold or len(self._untold) < _MOST_KINDS:
                self._untold[key] = self._untold.get(key, 0) + 1
            return None
        self._room -= 1
        self._told[key] = now
        return self._untold.pop(key, 0)

    def _forget(self, now: float) -> None:
        """Forget kinds whose pause is over; if that isn't enough, all: the rate limit still holds."""
        self._told = {key: at for key, at in self._told.items() if now - at < EACH}
        if len(self._told) >= _MOST_KINDS // 2:
            self._told.clear()
        self._untold.clear()


_A_TURN: Final = 64  # calls answered in a row
_COUNTED_EVERY: Final = 0.2  # seconds
_FREE: Final = 500  # refused calls in a burst; beyond it each turn ends with a pause
_A_SECOND: Final = 2000  # refused calls a second that are answered without a pause
_REST: Final = 0.02  # seconds
_MOST_QUESTIONS: Final = 64


class SeccompSupervisor:
    """Answers the kernel's notifications from `listener`, and asks the worker through `channel`.

    `proc`: a descriptor of /proc of the host; `first`: the sandbox's first process, by its pid there.
    """

    def __init__(  # noqa: PLR0917  what it is asked by, and what it looks at
        self, filters: Filter, machine: str, listener: int, channel: socket.socket, proc: int, first: int
    ) -> None:
        self._filter = filters
        self._names = {number: name for name, number in NUMBERS[machine].items()}
        self._listener = Listener(listener)
        self._channel = channel
        self._proc = proc
        self._first = first
        self._budget = EventBudget()
        self._counts: dict[str, int] = {}
        self._counted = time.monotonic()
        self._programs = PendingExecs(self._listener, proc, self._tell)
        self._whose: list[messages.ProcessLookup] = []
        self._looking = SocketOwnerLookup()
        self._locks = Locks(proc, first)
        self._free, self._freed = float(_FREE), time.monotonic()
        self._spent = 0  # the cost of refused calls since then
        if any(isinstance(line, Hold) for line in filters.lines):
            self._tell(messages.HoldsPrograms())

    def serve(self, init: int, over: Callable[[], None]) -> None:
        """Answer until the process of the pidfd `init` has ended.

        `over` is called once no process has the filter and all counts are reported.
        """
        poll = select.poll()
        poll.register(init, select.POLLIN)
        poll.register(self._listener.descriptor, select.POLLIN)
        poll.register(self._channel, select.POLLIN)
        listening, full, held = True, False, self._programs.open
        while True:
            if (
                listening and bool(held and self._programs.is_full) is not full
            ):  # calls that can't be held yet wait in the kernel
                full = not full
                poll.modify(self._listener.descriptor, 0 if full else select.POLLIN)
            ready = dict(poll.poll(self._patience()))
            if init in ready:
                break
            if self._channel.fileno() in ready and not self._hear():
                poll.unregister(self._channel)
                self._programs.lost()
            self._go_on()
            events = ready.get(self._listener.descriptor, 0)
            if events & select.POLLIN:
                if not self._turn(init):
                    break
            elif events:  # no process has the filter any more
                poll.unregister(self._listener.descriptor)
                listening = False
                self._tell_counts()
                if not self._counts:
                    over()
            if self._counts and time.monotonic() - self._counted >= _COUNTED_EVERY:
                self._tell_counts()
        self._tell_counts()

    def _patience(self) -> float | None:
        """Return the poll timeout in milliseconds; None: no timeout."""
        if not self._programs.open:
            return _COUNTED_EVERY * 1000 if self._counts else None
        due = self._programs.due
        return 1 + 1000 * (min(due, _COUNTED_EVERY) if self._counts else due)

    def _hear(self) -> bool:
        try:
            packet = self._channel.recv(messages.LONGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        try:
            told = messages.unpack(packet) if packet else None
        except ValueError:
            return False
        if isinstance(told, messages.StartDecision | messages.StartPending | messages.CheckStart | messages.NewWorker):
            self._spent += self._programs.heard(told)
        elif isinstance(told, messages.ProcessLookup) and len(self._whose) < _MOST_QUESTIONS:
            self._whose.append(told)
        return bool(packet)

    def _go_on(self) -> None:
        """Check held programs, and answer the worker's process look-ups."""
        if self._programs.open:
            self._spent += self._programs.look()
        asked, self._whose = self._whose, []
        for each in asked:
            found = self._looking.holder(self._proc, self._first, each.inode)
            self._tell(messages.ProcessFound(each.number, *(found or (None,))))

    def _turn(self, init: int) -> bool:
        """Answer waiting calls, up to a bound; False when the sandbox has ended."""
        for _ in range(_A_TURN):
            call = self._listener.receive()
            if call is None:
                break
            name = self._names.get(call.number, "")
            if name == LOCK_CALL:
                self._lock(call)
                continue
            line = self._filter.line(name, call.arguments)
            if name in ATTRIBUTE_CALLS:
                self._spent += 1
                self._perform(call, partial(performed_calls.set_attribute, self._proc, name, call))
            elif isinstance(line, Hold):
                self._spent += self._programs.hold(name, call)
            elif name in MODE_CALLS and (directory := self._directory(name, call)) >= 0:
                self._perform(call, partial(self._change, directory, name, call))
            else:
                self._refuse(name, call, line.error if isinstance(line, Refuse) else errno.EPERM)
            if self._spent > _A_TURN or self._programs.is_full:
                break
        return not self._resting(init)

    def _lock(self, call: Notification) -> None:
        if self._locks.allows(call.arguments[1] & 0xFFFFFFFF):
            self._listener.let_go_on(call)
        else:
            self._spent += 1
            self._listener.refuse(call, errno.ENOLCK)

    def _directory(self, name: str, call: Notification) -> int:
        """Open the directory whose mode a call changes; -1 if it isn't one that we can open."""
        self._spent += 1
        try:
            return performed_calls.open_directory(self._proc, name, call)
        except (OSError, ValueError):  # ValueError: the path contains a zero byte
            return -1

    def _change(self, directory: int, name: str, call: Notification, waits: Callable[[], bool]) -> None:
        try:
            ids = Caller(self._proc, call.thread).owns()
            if waits():  # otherwise the memory read may be another process's
                performed_calls.change_mode(directory, name, call, ids)
        finally:
            os.close(directory)

    def _perform(self, call: Notification, make: Callable[[Callable[[], bool]], None]) -> None:
        """Make a call for the task, and answer with its result.

        `make` gets a function: whether the call still waits.
        """
        error = errno.EPERM
        try:
            make(lambda: self._listener.waits(call))
            error = 0
        except OSError as failed:
            error = failed.errno or errno.EPERM
        except ValueError:  # a zero byte in a path, or ids that aren't numbers
            error = errno.EINVAL
        finally:
            self._listener.refuse(call, error)  # 0 reports success

    def _resting(self, init: int) -> bool:
        """Pause after too many refused calls, which slows a flood; returns whether the sandbox ended meanwhile."""
        now = time.monotonic()
        self._free = min(_FREE, self._free + (now - self._freed) * _A_SECOND) - self._spent
        self._freed, self._spent = now, 0
        if self._free >= 0:
            return False
        poll = select.poll()
        poll.register(init, select.POLLIN)
        return bool(poll.poll(_REST * 1000))

    def _refuse(self, name: str, call: Notification, error: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1
        self._spent += 1
        who = None
        try:
            caller = Caller(self._proc, call.thread)
            exe = caller.executable()
            more = self._budget.take(name, exe)
            if more is not None:
                found = caller.who()
                who = found if self._listener.waits(call) else None
        finally:
            self._listener.refuse(call, error)
        if more is not None and who is not None:
            self._tell(messages.SyscallDenied(name.encode(), who, more))

    def _tell(self, told: messages.FromSupervisor) -> bool:
        """Send a message to the worker; False if it takes none now. Counts still include what was missed."""
        try:
            self._channel.send(messages.pack(told), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def _tell_counts(self) -> None:
        self._counted = time.monotonic()
        if not self._counts:
            return
        counted = messages.SyscallCounts(tuple((name.encode(), times) for name, times in self._counts.items()))
        try:
            self._channel.send(messages.pack(counted), socket.MSG_DONTWAIT)
        except OSError:
            return
        self._counts.clear()
