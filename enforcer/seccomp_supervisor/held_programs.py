"""Programs that are held until the worker decides: many at once, in any order, each with its own deadline.

A program goes on only after the worker has allowed this very file with these words; one without an answer, or whose
worker is gone, is refused; the number that waits is bounded. Its caller reads the reason on its standard error, through
a copy of the process's own descriptor (pidfd_getfd(2)), never one that we open: we can't write where it could not.
"""

import contextlib
import errno
import os
import select
import socket
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.seccomp_supervisor.listener import PATH_MAX, Words, read_text, read_words
from enforcer.seccomp_supervisor.task_processes import Caller, File, Program
from enforcer.system import linux
from proxy.supervisor_channel import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from enforcer.seccomp_supervisor.listener import Listener, Notification

_STDERR: Final = 2
_AT_MOST: Final = 512  # bytes: PIPE_BUF at the least, so that a pipe with any room has room for it


def write_to_stderr(pid: int, line: bytes) -> None:
    """Write one line, if it can be. Never raises."""
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


PATIENCE: Final = 20.0  # seconds for an answer; a worker that is busy for longer starts no program
COST: Final = 10  # what a program that is refused costs, in refused calls: each is an event
_MOST_OPEN: Final = 32  # that wait for the worker's first word; the next ones wait in the kernel
_MOST_WAITING: Final = 64  # that wait for people
_LONGEST_WAIT: Final = 7 * 86400.0  # seconds
_LOOKED_AT_EVERY: Final = 0.5  # seconds, whether they are still there
_GONE_FOR: Final = 1.0  # seconds; a signal takes a call back, and has it made again (Linux before 5.19)
_MOST_DECIDED: Final = 64
_DECIDED_FOR: Final = 5.0  # seconds in which who was gone when it was answered comes back
_WORDS: Final = 64  # that are read at the cost of a refused call
_AT_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100
_NOBODY: Final = b"exeat: nobody can decide whether this may start: the gate is gone"
_TOO_MANY: Final = b"exeat: too many programs of this task wait to be approved"
_CHANGED: Final = b"exeat: what was to start was changed while it was asked about"

_UNKNOWN: Final = b"exeat: nobody can say whether what was to start was changed: its file can't be looked at"


class _ExecRequest(NamedTuple):
    """What the program goes by, its words and its file; or the errno that the kernel has for it."""

    names: tuple[bytes, ...] = ()
    words: Words = Words((), whole=False)
    file: File | None = None
    error: int = 0


type _Key = tuple[int, _ExecRequest]


class _PendingExec:
    """One program that waits. `waiting`: the worker has people asked; `checked`: it wants to know what is there now."""

    __slots__ = ("call", "caller", "checked", "deadline", "gone", "key", "name", "number", "waiting")

    def __init__(self, name: str, call: "Notification", caller: Caller, key: _Key) -> None:
        self.name = name
        self.call = call
        self.caller = caller
        self.key = key
        self.deadline = time.monotonic() + PATIENCE
        self.number = 0
        self.waiting = self.checked = False
        self.gone: float | None = None  # since when nobody waits there any more


class PendingExecs:
    """All programs that wait. `tell` sends to the worker, and returns whether it took it; `proc` is /proc outside."""

    def __init__(self, listener: "Listener", proc: int, tell: "Callable[[messages.FromSupervisor], bool]") -> None:
        self._listener = listener
        self._proc = proc
        self._tell = tell
        self._asked = 0
        self._lost = False
        self.open: dict[int, _PendingExec] = {}
        # What was decided on programs that were gone when they were to be answered: a signal has them ask again.
        self._decided: dict[_Key, tuple[messages.StartDecision, float]] = {}
        self._looked = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no more can be asked about before the worker has said something."""
        return sum(not held.waiting for held in self.open.values()) >= _MOST_OPEN

    @property
    def due(self) -> float:
        """Seconds until `look` has something to look at, while programs are `open`."""
        now = time.monotonic()
        first = min(held.deadline for held in self.open.values()) - now
        if any(held.waiting for held in self.open.values()):
            first = min(first, self._looked + _LOOKED_AT_EVERY - now)
        return max(0.0, first)

    def hold(self, name: str, call: "Notification") -> int:
        """Ask whether a program may go on; what that has cost, in refused calls."""
        caller = Caller(self._proc, call.thread)
        try:
            read = self._read(name, call, caller)
        except OSError as unreadable:
            # As the kernel would say; whatever else keeps us from reading, the worker is asked without names.
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
        if before is not None:  # a thread makes one call at a time: this is the same, made again
            before.call, before.gone = held.call, None
            if before.checked:
                self._check(before)
            return 0
        who = held.caller.who()
        if not self._listener.waits(held.call):
            return 0  # it will ask again, or never
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
        """Take what the worker says; what that has cost."""
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
        """Refuse who has waited long enough, and tell who is gone; what that has cost."""
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
        """Refuse all that wait, and all that come: the worker is gone."""
        self._lost = True
        self._refuse_all(list(self.open))

    def _refuse_all(self, numbers: list[int]) -> int:
        cost = 0
        for number in numbers:
            self._tell(messages.StartGone(number))
            cost += self._answer(self.open.pop(number), messages.StartDecision(number, go=False, says=_NOBODY))
        return cost

    def _answer(self, held: _PendingExec, answer: messages.StartDecision) -> int:
        """Let it go on, or refuse it and say why where its caller reads that."""
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
        """Say whether it still is what people were asked about; of one that is gone that is said when it is back."""
        changed = self._changed(held)
        held.checked = not self._listener.waits(held.call)  # else what was read may be another process's
        if not held.checked:
            self._tell(messages.CheckResult(held.number, changed))

    def _changed(self, held: _PendingExec) -> bytes:
        """Return nothing if it still is what people have approved: its words lie in the task's memory all the while."""
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
