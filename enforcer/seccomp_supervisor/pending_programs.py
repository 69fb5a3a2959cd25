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

from enforcer.seccomp_supervisor.notification_listener import PATH_MAX, ProgramArguments, read_arguments, read_text
from enforcer.seccomp_supervisor.task_processes import Caller, File, Program
from enforcer.system import linux
from proxy.supervisor_channel import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from enforcer.seccomp_supervisor.notification_listener import Listener, Notification

_STDERR: Final = 2
_LINE_MAX: Final = 512  # bytes: the least PIPE_BUF, so that a pipe takes all or nothing


def write_to_stderr(pid: int, line: bytes) -> None:
    """Write one line to the process's standard error, if it can be written at once. Never raises."""
    text = line[: _LINE_MAX - 1] + b"\n"
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


DECISION_TIMEOUT: Final = 20.0  # seconds for the worker's first answer; then the call is refused
REFUSAL_COST: Final = 10  # the cost of a refused program start, in refused calls: each one is an event
_MAX_UNDECIDED: Final = 32  # calls without a first answer; further ones wait in the kernel
_MAX_WAITING: Final = 64  # calls that wait for an approval
_MAX_WAIT: Final = 7 * 86400.0  # seconds
_CHECK_INTERVAL: Final = 0.5  # seconds between checks whether the processes still wait
_GONE_AFTER: Final = 1.0  # seconds; before Linux 5.19 a signal interrupts a call, which is then made again
_MAX_INTERRUPTED: Final = 64
_INTERRUPTED_FOR: Final = 5.0  # seconds for an interrupted call to come back for its answer
_ARGUMENTS_PER_COST: Final = 64  # arguments whose reading costs as much as a refused call
_AT_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100
_WORKER_GONE: Final = b"exeat: this program can't start: the gate that decides about it has ended"
_TOO_MANY_WAITING: Final = b"exeat: this program can't start: too many programs of this task wait for an approval"
_REQUEST_CHANGED: Final = b"exeat: the program's file or arguments changed while it waited for an approval"

_UNREADABLE: Final = b"exeat: the program's file can't be read to check that it is unchanged"


class _ExecRequest(NamedTuple):
    """A program start: names, arguments and file of the program; or the errno that the kernel would return."""

    names: tuple[bytes, ...] = ()
    words: ProgramArguments = ProgramArguments((), is_complete=False)
    file: File | None = None
    error: int = 0


type _Key = tuple[int, _ExecRequest]


class _PendingExec:
    """One execve(2) that waits. `waiting`: for a person's approval; `checked`: the worker asks whether it changed."""

    __slots__ = ("call", "caller", "checked", "deadline", "gone_since", "key", "name", "number", "waiting")

    def __init__(self, name: str, call: "Notification", caller: Caller, key: _Key) -> None:
        self.name = name
        self.call = call
        self.caller = caller
        self.key = key
        self.deadline = time.monotonic() + DECISION_TIMEOUT
        self.number = 0
        self.waiting = self.checked = False
        self.gone_since: float | None = None  # since when the process doesn't wait any more


class PendingExecs:
    """All waiting execve(2) calls.

    `send` sends to the worker, and returns whether it was sent; `proc`: /proc of the host.
    """

    def __init__(self, listener: "Listener", proc: int, send: "Callable[[messages.FromSupervisor], bool]") -> None:
        self._listener = listener
        self._proc = proc
        self._send = send
        self._last_number = 0
        self._worker_is_gone = False
        self.open: dict[int, _PendingExec] = {}
        # Answers for calls that a signal had interrupted: they are made again.
        self._interrupted: dict[_Key, tuple[messages.StartDecision, float]] = {}
        self._last_check = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no further call can be held before the worker answers."""
        return sum(not pending.waiting for pending in self.open.values()) >= _MAX_UNDECIDED

    @property
    def due(self) -> float:
        """Seconds until `check` has something to do, while calls are `open`."""
        now = time.monotonic()
        delay = min(pending.deadline for pending in self.open.values()) - now
        if any(pending.waiting for pending in self.open.values()):
            delay = min(delay, self._last_check + _CHECK_INTERVAL - now)
        return max(0.0, delay)

    def hold(self, name: str, call: "Notification") -> int:
        """Ask the worker about a call; returns the cost, in refused calls."""
        caller = Caller(self._proc, call.thread)
        try:
            request = self._read(name, call, caller)
        except OSError as unreadable:
            # These errors the kernel would return; after others the worker is asked without names.
            is_kernel_error = unreadable.errno in (errno.EFAULT, errno.ENAMETOOLONG)
            request = _ExecRequest(error=(unreadable.errno or 0) if is_kernel_error else 0)
        cost = len(request.words.values) // _ARGUMENTS_PER_COST
        if request.error:
            self._listener.refuse(call, request.error)
            return cost + 1
        return cost + self._submit(
            _PendingExec(name, call, caller, (call.thread, request)), request.names, request.words
        )

    def _submit(self, pending: _PendingExec, names: tuple[bytes, ...], arguments: ProgramArguments) -> int:
        interrupted = self._interrupted.pop(pending.key, None)
        if interrupted is not None and time.monotonic() - interrupted[1] < _INTERRUPTED_FOR:
            return self._answer(pending, interrupted[0])
        earlier = next((pending_exec for pending_exec in self.open.values() if pending_exec.key == pending.key), None)
        if earlier is not None:  # a thread makes one call at a time, so this is the same call, made again
            earlier.call, earlier.gone_since = pending.call, None
            if earlier.checked:
                self._report_check(earlier)
            return 0
        process = pending.caller.info()
        if not self._listener.is_waiting(pending.call):
            return 0  # interrupted: it is made again, or its process is gone
        self._last_number += 1
        pending.number = self._last_number
        request = messages.StartRequest(
            self._last_number, process, names, arguments.values[1:], arguments.is_complete, bool(names)
        )
        if self._worker_is_gone or not self._send(request):
            return self._answer(pending, messages.StartDecision(self._last_number, go=False, says=_WORKER_GONE))
        self.open[self._last_number] = pending
        return 0

    def handle(
        self, message: "messages.StartDecision | messages.StartPending | messages.CheckStart | messages.NewWorker"
    ) -> int:
        """Handle a message of the worker; returns the cost."""
        if isinstance(message, messages.NewWorker):
            return self._refuse_all([number for number, pending in self.open.items() if pending.waiting])
        pending = self.open.get(message.number)
        if pending is None:
            return 0
        if isinstance(message, messages.CheckStart):
            self._report_check(pending)
            return 0
        if isinstance(message, messages.StartDecision):
            del self.open[message.number]
            if message.go and pending.waiting and (change := self._change_since_request(pending)):
                message = messages.StartDecision(message.number, go=False, says=change)
            return self._answer(pending, message)
        if not pending.waiting and sum(pending_exec.waiting for pending_exec in self.open.values()) >= _MAX_WAITING:
            self._send(messages.StartGone(message.number))
            del self.open[message.number]
            return self._answer(pending, messages.StartDecision(message.number, go=False, says=_TOO_MANY_WAITING))
        pending.waiting = True
        pending.deadline = time.monotonic() + min(message.seconds, _MAX_WAIT)
        return 0

    def check(self) -> int:
        """Refuse calls past their deadline, and report those whose process is gone; returns the cost."""
        now = time.monotonic()
        cost = self._refuse_all([number for number, pending in self.open.items() if pending.deadline <= now])
        if now - self._last_check < _CHECK_INTERVAL:
            return cost
        self._last_check = now
        for number, pending in tuple(self.open.items()):
            if self._listener.is_waiting(pending.call):
                pending.gone_since = None
                if pending.checked:
                    self._report_check(pending)
            elif pending.gone_since is None:
                pending.gone_since = now
            elif now - pending.gone_since >= _GONE_AFTER:
                del self.open[number]
                self._send(messages.StartGone(number))
        return cost

    def refuse_all(self) -> None:
        """Refuse every call, now and later: the worker is gone."""
        self._worker_is_gone = True
        self._refuse_all(list(self.open))

    def _refuse_all(self, numbers: list[int]) -> int:
        cost = 0
        for number in numbers:
            self._send(messages.StartGone(number))
            cost += self._answer(self.open.pop(number), messages.StartDecision(number, go=False, says=_WORKER_GONE))
        return cost

    def _answer(self, pending: _PendingExec, answer: messages.StartDecision) -> int:
        """Allow the call, or refuse it and write the reason to its standard error."""
        if answer.go:
            was_waiting = self._listener.allow(pending.call)
        else:
            if answer.says and self._listener.is_waiting(pending.call):
                write_to_stderr(pending.caller.pid, answer.says)
            was_waiting = self._listener.refuse(pending.call, errno.EACCES)
        if not was_waiting:
            while len(self._interrupted) >= _MAX_INTERRUPTED:
                self._interrupted.pop(next(iter(self._interrupted)))
            self._interrupted[pending.key] = answer, time.monotonic()
        return 0 if answer.go else REFUSAL_COST

    def _report_check(self, pending: _PendingExec) -> None:
        """Tell the worker whether the request is unchanged.

        For an interrupted call that waits until it is made again.
        """
        change = self._change_since_request(pending)
        # Otherwise the memory that was read may be another process's.
        pending.checked = not self._listener.is_waiting(pending.call)
        if not pending.checked:
            self._send(messages.CheckResult(pending.number, change))

    def _change_since_request(self, pending: _PendingExec) -> bytes:
        """Return an empty text if the request is unchanged: its arguments are in the task's memory all the while."""
        request = pending.key[1]
        if request.file is None:
            return _UNREADABLE
        try:
            return b"" if self._read(pending.name, pending.call, pending.caller) == request else _REQUEST_CHANGED
        except OSError:
            return _REQUEST_CHANGED

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
        full_path = caller.path(os.fsdecode(path), directory)
        if path:
            program = caller.program(full_path)
        elif directory is not None and flags & _AT_EMPTY_PATH:
            program = caller.open_file(full_path, directory)
        else:
            program = Program(full_path, errno.ENOENT)
        if program.error:
            return _ExecRequest(error=program.error)
        program_arguments = read_arguments(call.thread, arguments[1])
        return _ExecRequest(
            (os.fsencode(full_path), os.fsencode(program.path), *program_arguments.values[:1]),
            program_arguments,
            program.file,
        )
