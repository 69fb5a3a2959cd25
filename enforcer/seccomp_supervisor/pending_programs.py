"""Pending program starts: holds execve(2) calls until the worker decides, each with its own deadline.

A call continues only after the worker has allowed this very file with these arguments. A call without an answer, or
whose worker is gone, is refused; the number of waiting calls is bounded. The reason is written to the calling process's
standard error, through a copy of its own descriptor (pidfd_getfd(2)): so nothing is written where the process itself
could not write.
"""

import contextlib
import errno
import os
import select
import socket
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.seccomp_supervisor.notification_listener import PATH_MAX, Words, read_text, read_words
from enforcer.seccomp_supervisor.task_processes import Caller, File, Program
from enforcer.system import linux
from proxy.supervisor_channel import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from enforcer.seccomp_supervisor.notification_listener import Listener, Notification

_STDERR: Final = 2
_AT_MOST: Final = 512  # bytes: the least PIPE_BUF, so that a pipe takes all or nothing


def write_to_stderr(pid: int, line: bytes) -> None:
    """Write one line to the process's standard error, if it can be written at once. Never raises."""
    text = line[: _AT_MOST - 1] + b"\n"
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            descriptor = linux.pidfd_getfd(process, _STDERR)
        finally:
            os.close(process)
        try:
            _write_line(descriptor, text)
        finally:
            os.close(descriptor)


def _write_line(descriptor: int, text: bytes) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            sock.send(text, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or os.isatty(descriptor)):
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if any(events & select.POLLOUT for _, events in poll.poll(0)):
        os.write(descriptor, text)


PATIENCE: Final = 20.0  # seconds for the worker's first answer; then the call is refused
COST: Final = 10  # the cost of a refused program start, in refused calls: each one is an event
_MOST_OPEN: Final = 32  # calls without a first answer; further ones wait in the kernel
_MOST_WAITING: Final = 64  # calls that wait for an approval
_LONGEST_WAIT: Final = 7 * 86400.0  # seconds
_LOOKED_AT_EVERY: Final = 0.5  # seconds between checks whether the processes still wait
_GONE_FOR: Final = 1.0  # seconds; before Linux 5.19 a signal interrupts a call, which is then made again
_MOST_DECIDED: Final = 64
_DECIDED_FOR: Final = 5.0  # seconds for an interrupted call to come back for its answer
_WORDS: Final = 64  # arguments whose reading costs as much as a refused call
_AT_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100
_NOBODY: Final = b"exeat: this program can't start: the gate that decides about it has ended"
_TOO_MANY: Final = b"exeat: this program can't start: too many programs of this task wait for an approval"
_CHANGED: Final = b"exeat: the program's file or arguments changed while it waited for an approval"

_UNKNOWN: Final = b"exeat: the program's file can't be read to check that it is unchanged"


class _ExecRequest(NamedTuple):
    """What a process asks to execute: names, arguments and file; or the errno that the kernel would return."""

    names: tuple[bytes, ...] = ()
    words: Words = Words((), whole=False)
    file: File | None = None
    error: int = 0


type _Key = tuple[int, _ExecRequest]


class _PendingExec:
    """One execve(2) that waits. `waiting`: for a person's approval; `checked`: the worker asks whether it changed."""

    __slots__ = ("call", "caller", "checked", "deadline", "gone", "key", "name", "number", "waiting")

    def __init__(self, name: str, call: "Notification", caller: Caller, key: _Key) -> None:
        self.name = name
        self.call = call
        self.caller = caller
        self.key = key
        self.deadline = time.monotonic() + PATIENCE
        self.number = 0
        self.waiting = self.checked = False
        self.gone: float | None = None  # since when the process doesn't wait any more


class PendingExecs:
    """All waiting execve(2) calls.

    `tell` sends to the worker, and returns whether it was sent; `proc`: /proc of the host.
    """

    def __init__(self, listener: "Listener", proc: int, tell: "Callable[[messages.FromSupervisor], bool]") -> None:
        self._listener = listener
        self._proc = proc
        self._tell = tell
        self._asked = 0
        self._lost = False
        self.open: dict[int, _PendingExec] = {}
        # Answers for calls that a signal had interrupted: they are made again.
        self._decided: dict[_Key, tuple[messages.StartDecision, float]] = {}
        self._looked = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no further call can be held before the worker answers."""
        return sum(not held.waiting for held in self.open.values()) >= _MOST_OPEN

    @property
    def due(self) -> float:
        """Seconds until `look` has something to do, while calls are `open`."""
        now = time.monotonic()
        first = min(held.deadline for held in self.open.values()) - now
        if any(held.waiting for held in self.open.values()):
            first = min(first, self._looked + _LOOKED_AT_EVERY - now)
        return max(0.0, first)

    def hold(self, name: str, call: "Notification") -> int:
        """Ask the worker about a call; returns the cost, in refused calls."""
        caller = Caller(self._proc, call.thread)
        try:
            read = self._read(name, call, caller)
        except OSError as unreadable:
            # These errors the kernel would return; after others the worker is asked without names.
            known = unreadable.errno in (errno.EFAULT, errno.ENAMETOOLONG)
            read = _ExecRequest(error=(unreadable.errno or 0) if known else 0)
        cost = len(read.words.words) // _WORDS
        if read.error:
            self._listener.refuse(call, read.error)
            return cost + 1
        return cost + self._hold(_PendingExec(name, call, caller, (call.thread, read)), read.names, read.words)

    def _hold(self, held: _PendingExec, names: tuple[bytes, ...], words: Words) -> int:
        known = self._decided.pop(held.key, None)
        if known is not None and time.monotonic() - known[1] < _DECIDED_FOR:
            return self._answer(held, known[0])
        before = next((other for other in self.open.values() if other.key == held.key), None)
        if before is not None:  # a thread makes one call at a time, so this is the same call, made again
            before.call, before.gone = held.call, None
            if before.checked:
                self._check(before)
            return 0
        who = held.caller.who()
        if not self._listener.waits(held.call):
            return 0  # interrupted: it is made again, or its process is gone
        self._asked += 1
        held.number = self._asked
        asked = messages.StartRequest(self._asked, who, names, words.words[1:], words.whole, bool(names))
        if self._lost or not self._tell(asked):
            return self._answer(held, messages.StartDecision(self._asked, go=False, says=_NOBODY))
        self.open[self._asked] = held
        return 0

    def heard(
        self, told: "messages.StartDecision | messages.StartPending | messages.CheckStart | messages.NewWorker"
    ) -> int:
        """Handle a message of the worker; returns the cost."""
        if isinstance(told, messages.NewWorker):
            return self._refuse_all([number for number, held in self.open.items() if held.waiting])
        held = self.open.get(told.number)
        if held is None:
            return 0
        if isinstance(told, messages.CheckStart):
            self._check(held)
            return 0
        if isinstance(told, messages.StartDecision):
            del self.open[told.number]
            if told.go and held.waiting and (changed := self._changed(held)):
                told = messages.StartDecision(told.number, go=False, says=changed)
            return self._answer(held, told)
        if not held.waiting and sum(other.waiting for other in self.open.values()) >= _MOST_WAITING:
            self._tell(messages.StartGone(told.number))
            del self.open[told.number]
            return self._answer(held, messages.StartDecision(told.number, go=False, says=_TOO_MANY))
        held.waiting = True
        held.deadline = time.monotonic() + min(told.seconds, _LONGEST_WAIT)
        return 0

    def look(self) -> int:
        """Refuse calls past their deadline, and report those whose process is gone; returns the cost."""
        now = time.monotonic()
        cost = self._refuse_all([number for number, held in self.open.items() if held.deadline <= now])
        if now - self._looked < _LOOKED_AT_EVERY:
            return cost
        self._looked = now
        for number, held in tuple(self.open.items()):
            if self._listener.waits(held.call):
                held.gone = None
                if held.checked:
                    self._check(held)
            elif held.gone is None:
                held.gone = now
            elif now - held.gone >= _GONE_FOR:
                del self.open[number]
                self._tell(messages.StartGone(number))
        return cost

    def lost(self) -> None:
        """Refuse every call, now and later: the worker is gone."""
        self._lost = True
        self._refuse_all(list(self.open))

    def _refuse_all(self, numbers: list[int]) -> int:
        cost = 0
        for number in numbers:
            self._tell(messages.StartGone(number))
            cost += self._answer(self.open.pop(number), messages.StartDecision(number, go=False, says=_NOBODY))
        return cost

    def _answer(self, held: _PendingExec, answer: messages.StartDecision) -> int:
        """Continue the call, or refuse it and write the reason to its standard error."""
        if answer.go:
            there = self._listener.let_go_on(held.call)
        else:
            if answer.says and self._listener.waits(held.call):
                write_to_stderr(held.caller.pid, answer.says)
            there = self._listener.refuse(held.call, errno.EACCES)
        if not there:
            while len(self._decided) >= _MOST_DECIDED:
                self._decided.pop(next(iter(self._decided)))
            self._decided[held.key] = answer, time.monotonic()
        return 0 if answer.go else COST

    def _check(self, held: _PendingExec) -> None:
        """Tell the worker whether the request is unchanged.

        For an interrupted call that waits until it is made again.
        """
        changed = self._changed(held)
        held.checked = not self._listener.waits(held.call)  # otherwise the memory read may be another process's
        if not held.checked:
            self._tell(messages.CheckResult(held.number, changed))

    def _changed(self, held: _PendingExec) -> bytes:
        """Return an empty text if the request is unchanged: its arguments are in the task's memory all the while."""
        asked = held.key[1]
        if asked.file is None:
            return _UNKNOWN
        try:
            return b"" if self._read(held.name, held.call, held.caller) == asked else _CHANGED
        except OSError:
            return _CHANGED

    def _read(self, name: str, call: "Notification", caller: Caller) -> _ExecRequest:
        arguments = call.arguments
        directory: int | None = None
        flags = 0
        if name == "execveat":
            number = arguments[0] & 0xFFFFFFFF
            number -= (number & 0x80000000) << 1  # an int
            directory = None if number == _AT_FDCWD else number
            flags, arguments = arguments[4], arguments[1:]
        path = read_text(call.thread, arguments[0], PATH_MAX)
        if path is None:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        whole = caller.path(os.fsdecode(path), directory)
        if path:
            program = caller.program(whole)
        elif directory is not None and flags & _AT_EMPTY_PATH:
            program = caller.opened(whole, directory)
        else:
            program = Program(whole, errno.ENOENT)
        if program.error:
            return _ExecRequest(error=program.error)
        words = read_words(call.thread, arguments[1])
        return _ExecRequest((os.fsencode(whole), os.fsencode(program.path), *words.words[:1]), words, program.file)
