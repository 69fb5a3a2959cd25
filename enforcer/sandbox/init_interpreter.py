"""Executes call lists in Python, where `compiled/exeat_init.c` isn't compiled; both give the same results.

It runs in a fork of the runner. No process of the task can read its memory.
"""

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
from typing import Final, NoReturn

from enforcer.sandbox import step_lists
from enforcer.sandbox.step_lists import (
    CALL,
    CHANNEL,
    CHECK,
    DATA,
    ENDED,
    EXECUTED,
    FORK,
    HEAD,
    POINT,
    REGISTER,
    REGISTERS,
    REPLY,
    STORE,
)
from enforcer.system import linux
from proxy.wire import message

_SIGNAL_DESCRIPTOR: Final = 4
_TERMINAL_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGTSTP,
    signal.SIGTTOU,
)
_FAILED: Final = 125
_libc: Final = ctypes.CDLL(None, use_errno=True)
_syscall: Final = _libc.syscall
_syscall.restype = ctypes.c_long


class _ForkedChildError(Exception):
    """Raised in a process that `FORK` has just made."""


class Interpreter:
    """The state of an init process: registers, and the child whose exit it reports."""

    def __init__(self) -> None:
        self.registers = [-1] * REGISTERS
        self.child = 0

    def execute(self, program: bytes, descriptors: list[int]) -> tuple[int, int]:
        """Execute one call list; returns the index of the last call, and its errno or 0.

        Raises `_ForkedChildError` in the process that `FORK` makes.
        """
        count, descriptor_count, _, _, registers = HEAD.unpack_from(program)
        if descriptor_count != len(descriptors):
            raise ValueError("descriptors are missing")
        for register, descriptor in zip(registers, descriptors, strict=False):
            self.registers[register] = descriptor
        data = ctypes.create_string_buffer(program[HEAD.size + count * CALL.size :])
        at = 0
        while at < count:
            number, kinds, result, first_ignored, second_ignored, to, *arguments = CALL.unpack_from(
                program, HEAD.size + at * CALL.size
            )
            returned = self._execute_call(number, kinds, arguments, data)
            self.registers[result] = returned
            if returned >= 0:
                at += 1
            elif first_ignored == step_lists.ANY or -returned in (first_ignored, second_ignored):
                at = to
            else:
                return at, -returned
        return at, 0

    def _execute_call(self, number: int, kinds: int, arguments: list[int], data: "ctypes.Array[ctypes.c_char]") -> int:
        start = ctypes.addressof(data)
        for at in range(6):
            kind = kinds >> 2 * at & 3
            if kind == DATA:
                arguments[at] += start
            elif kind == REGISTER:
                arguments[at] = self.registers[arguments[at]]
        if number == CHECK:
            word = ctypes.c_uint32.from_address(arguments[0]).value
            return 0 if word & arguments[1] == arguments[2] else -arguments[3]
        if number == STORE:
            ctypes.c_uint32.from_address(arguments[0]).value = arguments[1]
            return 0
        if number == POINT:
            offsets = (ctypes.c_uint64 * arguments[2]).from_address(arguments[0] + arguments[1])
            offsets[:] = [offset and offset + arguments[0] for offset in offsets]
            return 0
        if number == FORK:
            return self._fork(arguments[0], leaf=bool(arguments[1]))
        result = int(_syscall(number, *(ctypes.c_uint64(argument & (1 << 64) - 1) for argument in arguments)))
        return -ctypes.get_errno() if result < 0 else result

    def _fork(self, channel: int, *, leaf: bool) -> int:
        try:
            pid = os.fork()
        except OSError as error:
            return -(error.errno or errno.EAGAIN)
        if pid:
            self.child = pid
            return pid
        self.child = 0
        os.dup2(channel, CHANNEL, inheritable=False)
        linux.keep_only({0, 1, 2, CHANNEL} if leaf else {0, 1, 2, CHANNEL, _SIGNAL_DESCRIPTOR})
        if not leaf:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        raise _ForkedChildError


def run(channel: socket.socket) -> NoReturn:
    """Execute call lists from `channel`, in a process that was just forked. Never returns."""
    try:
        linux.set_process_name(
            "exeat-init"
        )  # the task may read this command line, so hide the arguments of `exeat run`
        os.dup2(channel.detach(), CHANNEL, inheritable=False)
        null = os.open(os.devnull, os.O_RDWR)  # only now: before, it could get the number of the channel
        for number in range(3):
            os.dup2(null, number)
        linux.keep_only({0, 1, 2, CHANNEL})
        for number in _TERMINAL_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored SIGCHLD leaves no status
        _serve(_open_signalfd())
    finally:
        os._exit(_FAILED)


def _open_signalfd() -> int:
    """Open a descriptor that reports the end of children (signalfd(2))."""
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD})
    mask = (ctypes.c_uint64 * 16)(1 << (signal.SIGCHLD - 1))
    descriptor = int(_libc.signalfd(-1, ctypes.byref(mask), os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor != _SIGNAL_DESCRIPTOR:
        raise OSError("no descriptor for signals")
    return descriptor


def _serve(signals: int) -> NoReturn:
    interpreter, channel = Interpreter(), socket.socket(fileno=CHANNEL)
    while True:
        try:
            poll = select.poll()
            poll.register(CHANNEL, select.POLLIN)
            if signals >= 0:
                poll.register(signals, select.POLLIN)
            while True:
                ready = dict(poll.poll())
                if signals in ready:
                    _reap(interpreter, channel, signals)
                if CHANNEL in ready:
                    _handle_list(interpreter, channel)
        except _ForkedChildError:
            with contextlib.suppress(OSError):
                os.fstat(signals)
                continue
            signals = -1


def _handle_list(interpreter: Interpreter, channel: socket.socket) -> None:
    program, descriptors, flags, _ = socket.recv_fds(channel, step_lists.PACKET, REGISTERS, socket.MSG_CMSG_CLOEXEC)
    if not program or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        os._exit(_FAILED)  # the runner is gone, or the message is truncated
    at, error = interpreter.execute(program, descriptors)
    _, descriptor_count, returned_count, silent, registers = HEAD.unpack_from(program)
    if error or not silent:
        requested = (
            []
            if error
            else [
                interpreter.registers[register]
                for register in registers[descriptor_count : descriptor_count + returned_count]
            ]
        )
        opened = [descriptor for descriptor in requested if descriptor >= 0]
        message.send_packet(channel, REPLY.pack(EXECUTED, at, error, 0, *interpreter.registers), opened)
        for descriptor in opened:
            os.close(descriptor)
    if error:
        os._exit(_FAILED)


def _reap(interpreter: Interpreter, channel: socket.socket, signals: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(signals, 128)
    with contextlib.suppress(ChildProcessError):
        while (exit_status := os.waitpid(-1, os.WNOHANG))[0]:
            if exit_status[0] == interpreter.child:
                channel.send(REPLY.pack(ENDED, exit_status[0], exit_status[1], 0, *interpreter.registers))
