"""The loop of the process that is asked about a task's calls: refused ones are told, programs are let go on or not.

It lives in the outermost process of a sandbox, outside the task's reach and with no rights but those over the sandbox.
Home of these rules: a call that the filter refuses is refused, whatever is told of it or can't be; a program goes on
only after the worker has said so; and whatever floods, stalls or confuses this process does so for its own task alone.
"""

import contextlib
import errno
import os
import select
import socket
import time
from typing import Final

from enforcer.notify import memory, saying
from enforcer.notify.budget import Budget
from enforcer.notify.caller import Caller, Program
from enforcer.notify.kernel import Listener, Notification
from enforcer.notify.whose import Looking
from enforcer.sandbox.bpf import Filter, Hold, Refuse
from enforcer.sandbox.syscalls import NUMBERS
from proxy.watched import wire

_A_TURN: Final = 64  # calls before anything else is looked at
_PATIENCE: Final = 20.0  # seconds for an answer; a worker that is busy for longer starts no program
_COUNTED_EVERY: Final = 0.2  # seconds
_FREE: Final = 500  # refused calls at once; beyond that there is a rest after each turn
_A_SECOND: Final = 2000  # refused calls that are answered without one
_PROGRAM: Final = 10  # what a program that is refused costs, in refused calls: each is an event
_WORDS: Final = 64  # that are read at the cost of a refused call
_REST: Final = 0.02  # seconds
_MOST_HELD: Final = 64
_MOST_QUESTIONS: Final = 64
_AT_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100


class Watcher:
    """Asked by the kernel through `listener`, and asking the worker through `channel`; `proc` is /proc outside.

    `first` is the sandbox's first process, by its id there.
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
        self._budget = Budget()
        self._counts: dict[str, int] = {}
        self._counted = time.monotonic()
        self._asked = 0
        self._whose: list[wire.WhoseAsked] = []
        self._looking = Looking()
        # What was decided on programs that were gone when they were to be answered: a signal has them ask again.
        self._held: dict[tuple[int, tuple[bytes, ...], memory.Words], wire.Answer] = {}
        self._free, self._freed = float(_FREE), time.monotonic()
        self._spent = 0  # on what was refused, since
        if any(isinstance(line, Hold) for line in filters.lines):
            self._tell(wire.Holds())

    def serve(self, init: int) -> None:
        """Answer until the process that the pidfd `init` is of has ended."""
        poll = select.poll()
        poll.register(init, select.POLLIN)
        poll.register(self._listener.descriptor, select.POLLIN)
        poll.register(self._channel, select.POLLIN)
        while True:
            # A question that came while a program was held isn't in the channel any more.
            ready = dict(poll.poll(0 if self._whose else _COUNTED_EVERY * 1000 if self._counts else None))
            if init in ready:
                break
            if self._channel.fileno() in ready and not self._hear():
                poll.unregister(self._channel)
            self._say_whose()
            events = ready.get(self._listener.descriptor, 0)
            if events & select.POLLIN:
                if not self._turn(init):
                    break
            elif events:  # nobody is left who could ask
                poll.unregister(self._listener.descriptor)
            if self._counts and time.monotonic() - self._counted >= _COUNTED_EVERY:
                self._tell_counts()
        self._tell_counts()

    def _hear(self) -> bool:
        """Take a question of the worker's; False when it asks no more."""
        try:
            packet = self._channel.recv(wire.LONGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        try:
            if packet:
                self._asked_whose(wire.unpack(packet))
        except ValueError:
            return False
        return bool(packet)

    def _asked_whose(self, told: object) -> None:
        if isinstance(told, wire.WhoseAsked) and len(self._whose) < _MOST_QUESTIONS:
            self._whose.append(told)

    def _say_whose(self) -> None:
        """Answer the worker's questions: best effort, one that is not answered is never waited for."""
        asked, self._whose = self._whose, []
        for each in asked:
            found = self._looking.holder(self._proc, self._first, each.inode)
            self._tell(wire.WhoseFound(each.number, *(found or (None,))))

    def _turn(self, init: int) -> bool:
        """Answer what waits, up to a bound; False when the sandbox is over."""
        for _ in range(_A_TURN):
            call = self._listener.receive()
            if call is None:
                break
            name = self._names.get(call.number, "")
            line = self._filter.line(name, call.arguments)
            if isinstance(line, Hold):
                if not self._hold(name, call, init):
                    return False
            else:
                self._refuse(name, call, line.error if isinstance(line, Refuse) else errno.EPERM)
            if self._spent > _A_TURN:
                break
        return not self._resting(init)

    def _resting(self, init: int) -> bool:
        """Rest if too much was refused lately: whoever floods waits. Whether the sandbox ended meanwhile."""
        now = time.monotonic()
        self._free = min(_FREE, self._free + (now - self._freed) * _A_SECOND) - self._spent
        self._freed, self._spent = now, 0
        if self._free >= 0:
            return False
        poll = select.poll()
        poll.register(init, select.POLLIN)
        return bool(poll.poll(_REST * 1000))

    def _refuse(self, name: str, call: Notification, error: int) -> None:
        """Answer with the errno, and tell who it was if it is told at all."""
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
            self._tell(wire.CallRefused(name.encode(), who, more))

    def _hold(self, name: str, call: Notification, init: int) -> bool:
        """Ask whether a program may go on, and answer; False when the sandbox is over."""
        caller = Caller(self._proc, call.thread)
        names: tuple[bytes, ...] = ()
        words = memory.Words((), whole=False)
        try:
            names, words, error = self._read(name, call, caller)
        except OSError as unreadable:
            # As the kernel would say; whatever else keeps us from reading, the worker is asked without names.
            error = unreadable.errno if unreadable.errno in (errno.EFAULT, errno.ENAMETOOLONG) else 0
        self._spent += len(words.words) // _WORDS
        if error:
            self._spent += 1
            self._listener.refuse(call, error)
            return True
        key = call.thread, names, words
        answer = self._held.pop(key, None)
        if answer is None:
            who = caller.who()
            if not self._listener.waits(call):
                return True  # it will ask again, or never
            answer = self._ask(who, names, words, init)
        if answer is not None and not self._answer(call, caller, answer):
            while len(self._held) >= _MOST_HELD:
                self._held.pop(next(iter(self._held)))
            self._held[key] = answer
        return answer is not None

    def _answer(self, call: Notification, caller: Caller, answer: wire.Answer) -> bool:
        """Let it go on, or refuse it and say why where its caller reads that; whether it was still there."""
        if answer.go:
            return self._listener.let_go_on(call)
        self._spent += _PROGRAM
        if answer.says and self._listener.waits(call):
            saying.say(caller.pid, answer.says)
        return self._listener.refuse(call, errno.EACCES)

    def _read(self, name: str, call: Notification, caller: Caller) -> tuple[tuple[bytes, ...], memory.Words, int]:
        """Return what the program goes by and its words; or the errno that the kernel has for it. Raises OSError."""
        arguments = call.arguments
        directory: int | None = None
        flags = 0
        if name == "execveat":
            number = arguments[0] & 0xFFFFFFFF
            number -= (number & 0x80000000) << 1  # an int
            directory = None if number == _AT_FDCWD else number
            flags, arguments = arguments[4], arguments[1:]
        path = memory.text(call.thread, arguments[0], memory.PATH_MAX)
        if path is None:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        whole = caller.path(os.fsdecode(path), directory)
        if path:
            program = caller.program(whole)
        else:
            program = Program(whole, 0 if directory is not None and flags & _AT_EMPTY_PATH else errno.ENOENT)
        if program.error:
            return (), memory.Words((), whole=True), program.error
        words = memory.words(call.thread, arguments[1])
        return (os.fsencode(whole), os.fsencode(program.path), *words.words[:1]), words, 0

    def _ask(self, who: wire.Who, names: tuple[bytes, ...], words: memory.Words, init: int) -> wire.Answer | None:
        """Ask the worker; None when the sandbox has ended meanwhile. Without an answer it is no."""
        self._asked += 1
        no = wire.Answer(
            self._asked, go=False, says=b"exeat: nobody can decide whether this may start: the gate is gone"
        )
        asked = wire.RunAsked(self._asked, who, names, words.words[1:], words.whole, bool(names))
        try:
            self._channel.send(wire.pack(asked), socket.MSG_DONTWAIT)
        except OSError:
            return no
        poll = select.poll()
        poll.register(init, select.POLLIN)
        poll.register(self._channel, select.POLLIN)
        deadline = time.monotonic() + _PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(left * 1000))
            if init in ready:
                return None
            if not ready:
                break
            try:
                packet = self._channel.recv(wire.LONGEST)
                answer = wire.unpack(packet) if packet else None
            except (OSError, ValueError):
                return no
            if answer is None:
                return no
            if isinstance(answer, wire.Answer) and answer.number == self._asked:
                return answer
            self._asked_whose(answer)
        return no

    def _tell(self, told: wire.Told) -> None:
        """Say something to the worker; one that has no room for it now misses it, and the counts have it still."""
        with contextlib.suppress(OSError):
            self._channel.send(wire.pack(told), socket.MSG_DONTWAIT)

    def _tell_counts(self) -> None:
        self._counted = time.monotonic()
        if not self._counts:
            return
        counted = wire.Counted(tuple((name.encode(), times) for name, times in self._counts.items()))
        try:
            self._channel.send(wire.pack(counted), socket.MSG_DONTWAIT)
        except OSError:
            return
        self._counts.clear()
