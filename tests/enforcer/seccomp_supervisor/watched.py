"""A process under a filter that is listened to, the watcher that listens, and the test in the worker's place."""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct

from enforcer.sandbox.seccomp import watched_filter
from enforcer.sandbox.step_lists import NUMBERS
from enforcer.seccomp_supervisor import pending_programs, performed_calls, supervisor
from enforcer.system import linux
from proxy.supervisor_channel import messages

MACHINE = linux.platform_machine()
PATIENCE = 20.0  # seconds, for what has to happen


def call(name, *arguments):
    """Make a system call; its errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return ctypes.get_errno() if libc.syscall(NUMBERS[MACHINE][name], *numbers) < 0 else 0


def execute(*words):
    """Try to become another program; the errno, or what the program exits with."""
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(words[0], words)
        except OSError as error:
            os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Watched:
    """`attempt` runs under the filter in a process of its own; what it returns is `result`, which JSON can say."""

    def __init__(
        self,
        attempt,
        *,
        commands=False,
        killable=True,
        patience=None,
        waiting=None,
        at_once=None,
        most_locks=None,
        **streams,
    ):
        self._attempt = attempt
        self._wanted = watched_filter(commands=commands)
        self._killable = killable
        self._bounds = {"DECISION_TIMEOUT": patience, "_MAX_WAITING": waiting, "_MAX_UNDECIDED": at_once}
        self._most_locks = most_locks
        self._streams = streams
        self.asked = []
        self.gone = []
        self.refused = []
        self.counted = {}

    def __enter__(self):
        self.worker, self._channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker.settimeout(PATIENCE)
        self._reader, writer = os.pipe()
        arrival, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.task = os.fork()
        if self.task == 0:
            arrival.close()
            self._be_task(writer, theirs)
        os.close(writer)
        theirs.close()
        self.watcher = os.fork()
        if self.watcher == 0:
            self._be_watcher(arrival)
        arrival.close()
        self._channel.close()
        return self

    def _be_task(self, writer, theirs):
        try:
            self.worker.close()
            self._channel.close()
            signal.alarm(int(3 * PATIENCE))
            for number, descriptor in self._streams.items():
                os.dup2(descriptor, int(number.removeprefix("fd")))
            if not self._killable:
                linux.FILTER_WAIT_KILLABLE = 0
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            listener = linux.load_seccomp_with_listener(self._wanted.program)
            socket.send_fds(theirs, [b"l"], [listener])
            os.close(listener)
            theirs.close()
            os.write(writer, json.dumps(self._attempt()).encode())
        finally:
            os._exit(0)

    def _be_watcher(self, arrival):
        try:
            self.worker.close()
            for name, bound in self._bounds.items():
                if bound is not None:
                    setattr(pending_programs, name, bound)
            performed_calls.MAX_LOCKS = self._most_locks or performed_calls.MAX_LOCKS
            _, (listener,), _, _ = socket.recv_fds(arrival, 16, 1)
            proc = os.open("/proc", os.O_RDONLY)
            made = supervisor.SeccompSupervisor(self._wanted.filters, MACHINE, listener, self._channel, proc, self.task)
            made.serve(os.pidfd_open(self.task), lambda: None)
        finally:
            os._exit(0)

    def hear(self):
        """Take one packet, keep what it says, and return it; None when the watcher has ended."""
        packet = self.worker.recv(messages.LONGEST)
        if not packet:
            return None
        told = messages.unpack(packet)
        if isinstance(told, messages.StartRequest):
            self.asked.append(told)
        elif isinstance(told, messages.StartGone):
            self.gone.append(told.number)
        elif isinstance(told, messages.SyscallDenied):
            self.refused.append(told)
        elif isinstance(told, messages.SyscallCounts):
            for name, times in told.calls:
                self.counted[name] = self.counted.get(name, 0) + times
        return told

    def until_asked(self):
        """Hear until a program asks for leave."""
        while not isinstance(told := self.hear(), messages.StartRequest):
            assert told is not None
        return told

    def answer(self, number, go, says=b""):
        self.worker.send(messages.pack(messages.StartDecision(number, go, says)))

    def answer_all(self, decide):
        """Answer whatever is asked by `decide(asked)`, until the watcher ends."""
        while (told := self.hear()) is not None:
            if isinstance(told, messages.StartRequest):
                self.answer(told.number, *decide(told))

    def result(self):
        """What the attempt returned."""
        assert select.select([self._reader], [], [], PATIENCE)[0], "it hangs"
        text = os.read(self._reader, 1 << 16)
        return json.loads(text) if text else None

    def __exit__(self, *_):
        for pid in (self.task, self.watcher):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(self._reader)
        self.worker.close()


def filter_that_answers(action):
    """BPF that says the same to every call."""
    return struct.pack("=HBBI", 0x06, 0, 0, action)
