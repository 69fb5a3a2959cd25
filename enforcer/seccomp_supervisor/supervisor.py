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
from enforcer.sandbox.step_lists import NUMBERS
from enforcer.seccomp_supervisor import performed_calls
from enforcer.seccomp_supervisor.notification_listener import Listener, Notification
from enforcer.seccomp_supervisor.pending_programs import PendingExecs
from enforcer.seccomp_supervisor.performed_calls import ATTRIBUTE_CALLS, LOCK_CALL, MODE_CALLS, Locks
from enforcer.seccomp_supervisor.task_processes import Caller, SocketOwnerLookup
from proxy.supervisor_channel import messages

EACH: Final = 60.0  # seconds between two events of one kind
AT_ONCE: Final = 20  # events
REFILLED: Final = 3.0  # seconds for another one
_MAX_KINDS: Final = 256  # kinds that are remembered


class EventBudget:
    """Rate limit of events about refused calls: bounded in time and memory, whatever the task does."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = float(AT_ONCE)
        self._at = clock()
        self._last_sent: dict[tuple[str, bytes], float] = {}  # when the last event was sent
        self._suppressed: dict[tuple[str, bytes], int] = {}  # how many since the last event

    def take(self, call: str, exe: bytes) -> int | None:
        """Return how many events of its kind were suppressed since the last one; None: suppress this one, too."""
        now = self._clock()
        self._tokens = min(AT_ONCE, self._tokens + (now - self._at) / REFILLED)
        self._at = now
        key = (call, exe)
        if (
            key not in self._suppressed
            and key not in self._last_sent
            and len(self._last_sent) + len(self._suppressed) >= _MAX_KINDS
        ):
            self._drop_old_kinds(now)
        last = self._last_sent.get(key)
        if self._tokens < 1 or (last is not None and now - last < EACH):
            if key in self._suppressed or len(self._suppressed) < _MAX_KINDS:
                self._suppressed[key] = self._suppressed.get(key, 0) + 1
            return None
        self._tokens -= 1
        self._last_sent[key] = now
        return self._suppressed.pop(key, 0)

    def _drop_old_kinds(self, now: float) -> None:
        """Drop kinds whose pause is over; if too many are left, drop all. The rate limit still holds."""
        self._last_sent = {key: at for key, at in self._last_sent.items() if now - at < EACH}
        if len(self._last_sent) >= _MAX_KINDS // 2:
            self._last_sent.clear()
        self._suppressed.clear()


_CALLS_PER_TURN: Final = 64  # calls answered in a row
_COUNTS_INTERVAL: Final = 0.2  # seconds
_FREE_REFUSALS: Final = 500  # refused calls in a burst; beyond it each turn ends with a pause
_REFUSALS_PER_SECOND: Final = 2000  # refused calls a second that are answered without a pause
_PAUSE: Final = 0.02  # seconds
_MAX_LOOKUPS: Final = 64


class SeccompSupervisor:
    """Answers the kernel's notifications from `listener`, and asks the worker through `channel`.

    `proc`: a descriptor of /proc of the host; `first`: the sandbox's first process, by its pid there.
    """

    def __init__(  # noqa: PLR0917
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
        self._programs = PendingExecs(self._listener, proc, self._send)
        self._lookups: list[messages.ProcessLookup] = []
        self._socket_owners = SocketOwnerLookup()
        self._locks = Locks(proc, first)
        self._refusal_budget, self._refilled = float(_FREE_REFUSALS), time.monotonic()
        self._spent = 0  # the cost of refused calls since then
        if any(isinstance(line, Hold) for line in filters.lines):
            self._send(messages.HoldsPrograms())

    def serve(self, init: int, on_filter_gone: Callable[[], None]) -> None:
        """Answer until the process of the pidfd `init` has ended.

        `on_filter_gone` is called once no process has the filter and all counts are reported.
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
            ready = dict(poll.poll(self._poll_timeout()))
            if init in ready:
                break
            if self._channel.fileno() in ready and not self._receive_from_worker():
                poll.unregister(self._channel)
                self._programs.refuse_all()
            self._check_programs_and_answer_lookups()
            events = ready.get(self._listener.descriptor, 0)
            if events & select.POLLIN:
                if not self._answer_calls(init):
                    break
            elif events:  # no process has the filter any more
                poll.unregister(self._listener.descriptor)
                listening = False
                self._send_counts()
                if not self._counts:
                    on_filter_gone()
            if self._counts and time.monotonic() - self._counted >= _COUNTS_INTERVAL:
                self._send_counts()
        self._send_counts()

    def _poll_timeout(self) -> float | None:
        """Return the poll timeout in milliseconds; None: no timeout."""
        if not self._programs.open:
            return _COUNTS_INTERVAL * 1000 if self._counts else None
        due = self._programs.due
        return 1 + 1000 * (min(due, _COUNTS_INTERVAL) if self._counts else due)

    def _receive_from_worker(self) -> bool:
        try:
            packet = self._channel.recv(messages.LONGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        try:
            message = messages.unpack(packet) if packet else None
        except ValueError:
            return False
        if isinstance(
            message, messages.StartDecision | messages.StartPending | messages.CheckStart | messages.NewWorker
        ):
            self._spent += self._programs.handle(message)
        elif isinstance(message, messages.ProcessLookup) and len(self._lookups) < _MAX_LOOKUPS:
            self._lookups.append(message)
        return bool(packet)

    def _check_programs_and_answer_lookups(self) -> None:
        """Check pending program starts, and answer the worker's look-ups of socket owners."""
        if self._programs.open:
            self._spent += self._programs.check()
        lookups, self._lookups = self._lookups, []
        for lookup in lookups:
            owner = self._socket_owners.find(self._proc, self._first, lookup.inode)
            self._send(messages.ProcessFound(lookup.number, *(owner or (None,))))

    def _answer_calls(self, init: int) -> bool:
        """Answer waiting calls, up to a bound; False when the sandbox has ended."""
        for _ in range(_CALLS_PER_TURN):
            call = self._listener.receive()
            if call is None:
                break
            name = self._names.get(call.number, "")
            if name == LOCK_CALL:
                self._answer_lock_call(call)
                continue
            line = self._filter.line(name, call.arguments)
            if name in ATTRIBUTE_CALLS:
                self._spent += 1
                self._perform(call, partial(performed_calls.set_attribute, self._proc, name, call))
            elif isinstance(line, Hold):
                self._spent += self._programs.hold(name, call)
            elif name in MODE_CALLS and (directory := self._open_mode_directory(name, call)) >= 0:
                self._perform(call, partial(self._change_mode, directory, name, call))
            else:
                self._refuse(name, call, line.error if isinstance(line, Refuse) else errno.EPERM)
            if self._spent > _CALLS_PER_TURN or self._programs.is_full:
                break
        return not self._pause_after_flood(init)

    def _answer_lock_call(self, call: Notification) -> None:
        if self._locks.allows(call.arguments[1] & 0xFFFFFFFF):
            self._listener.allow(call)
        else:
            self._spent += 1
            self._listener.refuse(call, errno.ENOLCK)

    def _open_mode_directory(self, name: str, call: Notification) -> int:
        """Open the directory whose mode a call changes; -1 for anything but a directory that we can open."""
        self._spent += 1
        try:
            return performed_calls.open_directory(self._proc, name, call)
        except (OSError, ValueError):  # ValueError: the path contains a zero byte
            return -1

    def _change_mode(self, directory: int, name: str, call: Notification, is_waiting: Callable[[], bool]) -> None:
        try:
            ids = Caller(self._proc, call.thread).file_access_ids()
            if is_waiting():  # otherwise the memory read may be another process's
                performed_calls.change_mode(directory, name, call, ids)
        finally:
            os.close(directory)

    def _perform(self, call: Notification, make: Callable[[Callable[[], bool]], None]) -> None:
        """Make a call for the task, and answer with its result.

        `make` gets a function: whether the call still waits.
        """
        error = errno.EPERM
        try:
            make(lambda: self._listener.is_waiting(call))
            error = 0
        except OSError as failed:
            error = failed.errno or errno.EPERM
        except ValueError:  # a zero byte in a path, or ids that aren't numbers
            error = errno.EINVAL
        finally:
            self._listener.refuse(call, error)  # 0 reports success

    def _pause_after_flood(self, init: int) -> bool:
        """Pause after too many refused calls, which slows a flood. Returns whether the sandbox has ended meanwhile."""
        now = time.monotonic()
        self._refusal_budget = (
            min(_FREE_REFUSALS, self._refusal_budget + (now - self._refilled) * _REFUSALS_PER_SECOND) - self._spent
        )
        self._refilled, self._spent = now, 0
        if self._refusal_budget >= 0:
            return False
        poll = select.poll()
        poll.register(init, select.POLLIN)
        return bool(poll.poll(_PAUSE * 1000))

    def _refuse(self, name: str, call: Notification, error: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1
        self._spent += 1
        process = None
        try:
            caller = Caller(self._proc, call.thread)
            exe = caller.executable()
            suppressed = self._budget.take(name, exe)
            if suppressed is not None:
                info = caller.info()
                process = info if self._listener.is_waiting(call) else None
        finally:
            self._listener.refuse(call, error)
        if suppressed is not None and process is not None:
            self._send(messages.SyscallDenied(name.encode(), process, suppressed))

    def _send(self, message: messages.FromSupervisor) -> bool:
        """Send a message to the worker; False if its buffer is full. The counts include the call anyway."""
        try:
            self._channel.send(messages.pack(message), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def _send_counts(self) -> None:
        self._counted = time.monotonic()
        if not self._counts:
            return
        counted = messages.SyscallCounts(tuple((name.encode(), times) for name, times in self._counts.items()))
        try:
            self._channel.send(messages.pack(counted), socket.MSG_DONTWAIT)
        except OSError:
            return
        self._counts.clear()
