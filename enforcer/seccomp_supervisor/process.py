"""Process of the seccomp supervisor, forked when there is something to watch, or before what needs it.

    the task ── its filter's listener ──► supervisor ── what is asked ──► the gate's worker
                                                     ◄── its decision ──

It is in the sandbox's namespaces but for the pid namespace, so the task can't name it. It keeps the rights to look into
the sandbox's processes, to look files up as they do, to change modes of their directories, and to take on their ids for
a moment (`performed_calls`). What it costs counts as the task's.
"""

import contextlib
import os
import select
import selectors
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from enforcer.sandbox.seccomp import WatchedFilter
from enforcer.sandbox.system_calls import OUTSIDE
from enforcer.system import linux, processes
from enforcer.system.errors import HostError

if TYPE_CHECKING:
    from enforcer.limits.resource_limits import ResourceLimits
    from enforcer.sandbox.namespaces import SandboxNamespaces

# CAP_DAC_READ_SEARCH, _FOWNER, _FSETID, _SETGID, _SETUID and _SYS_PTRACE, over the sandbox alone
_KEPT: Final = sum(1 << number for number in (2, 3, 4, 6, 7, 19))
_LAST_WORDS: Final = 1.0  # seconds
GREETING: Final = b"\x91\xa4anew"  # `messages.NewWorker`; the start doesn't import msgspec for it, which takes 14 ms
_LONGEST: Final = 500  # bytes of an error that is told
# The user namespace first: it gives the rights to enter the others.
_NAMESPACES: Final = ("user", "net", "ipc", "uts", "cgroup", "mnt")
SOCKET: Final = "watch"  # what the worker knows it by


class SupervisorProcess:
    """Of one sandbox. Whatever goes wrong with it refuses what is asked: a listener that is closed answers nothing."""

    def __init__(self, watching: WatchedFilter, made: "SandboxNamespaces", resource_limits: "ResourceLimits") -> None:
        self._watching = watching
        self._namespaces = made
        self._resource_limits = resource_limits
        self._channel, self._workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener = -1
        self._selector: selectors.BaseSelector | None = None
        self._pid = 0
        self._over: socket.socket | None = None
        self._has_worker = True  # whether a worker may still ask something

    def give(self) -> int:
        """Return the worker's end of what is asked and answered; it is the caller's."""
        return self._workers.detach()

    def listen(self, listener: int) -> None:
        """Take over what its filter is heard by. Raises OSError, HostError where it must be watched and can't."""
        self._listener = listener
        if self._watching.needed:
            self._begin()

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Have `hear` called when somebody asks something, the task's filter or the worker."""
        if not self._pid:
            self._selector = selector
            for asks in self._asking():
                selector.register(asks, selectors.EVENT_READ, self.hear)

    def hear(self) -> None:
        """Begin to watch, unless a worker says that it is there, or has closed its end, or nobody is left to ask."""
        if self._has_worker and self._worker_asks_nothing():
            return
        if self._selector is not None:
            for asks in self._asking():
                self._selector.unregister(asks)
        if self._is_over():
            self._let_go()
            return
        try:
            self._begin()
        except (OSError, HostError) as error:
            self._tell_broken(error)
            self._let_go()

    def see_out(self) -> None:
        """Wait until what was watched is told, for a moment: nothing of the task is left."""
        if self._over is not None:
            poll = select.poll()
            poll.register(self._over, select.POLLIN)
            poll.poll(_LAST_WORDS * 1000)

    def close(self) -> None:
        """Watch no more. Idempotent."""
        self._let_go()
        self._workers.close()
        if self._over is not None:
            self._over.close()
        pid, self._pid = self._pid, 0
        processes.kill_and_wait(pid)

    def _worker_asks_nothing(self) -> bool:
        """Take a worker's greeting, or its end, after which only the filter is heard; False: someone asks something."""
        try:
            packet = self._channel.recv(len(GREETING) + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # it closed with something unread: unix(7)
            packet = b""
        if not packet:
            if self._selector is not None:
                self._selector.unregister(self._channel)
            self._has_worker = False
            return True
        if packet == GREETING:  # who begins to watch now tells the worker all that there is
            self._channel.recv(len(GREETING) + 1)
            return True
        return False

    def _is_over(self) -> bool:
        """Whether nobody is left who could ask: no process has the filter any more, as is heard before a task's end."""
        if self._listener < 0:
            return True
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        return poll.poll(0) == [(self._listener, select.POLLHUP)]

    def _asking(self) -> list[int]:
        channel = self._channel.fileno() if self._has_worker else -1
        return [each for each in (self._listener, channel) if each >= 0]

    def _tell_broken(self, error: Exception) -> None:
        from proxy.supervisor_channel import messages  # saves a start msgspec: 14 ms

        with contextlib.suppress(OSError):
            self._channel.send(
                messages.pack(messages.SupervisorFailed(f"{type(error).__name__}: {error}".encode()[:_LONGEST]))
            )

    def _let_go(self) -> None:
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1
        self._channel.close()

    def _begin(self) -> None:
        outer, flags = self._namespaces.outer, os.O_RDONLY | os.O_CLOEXEC
        namespaces = outer.do(*(outer.calls.get("openat", OUTSIDE, f"self/ns/{name}", flags) for name in _NAMESPACES))
        try:
            self._pid, self._over = processes.fork(lambda parent, over: self._be_watcher(parent, over, namespaces))
        finally:
            for namespace in namespaces:
                os.close(namespace)
        try:
            self._resource_limits.admit_more(self._pid)
        except BaseException:
            pid, self._pid = self._pid, 0
            processes.kill_and_wait(pid)  # what it costs would be nobody's
            raise
        self._let_go()

    def _be_watcher(self, parent: int, over: socket.socket, namespaces: Sequence[int]) -> NoReturn:
        try:
            linux.set_process_name("exeat-watcher")
            init = os.pidfd_open(self._namespaces.first)
            linux.keep_only({self._listener, self._channel.fileno(), over.fileno(), init, *namespaces})
            proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            from enforcer.seccomp_supervisor.supervisor import SeccompSupervisor  # while it can be read

            _enter(namespaces)
            os.fchdir(proc)  # a path is all that names a file to set an attribute of
            linux.die_with_parent(signal.SIGKILL, parent)
            machine = linux.platform_machine()
            watcher = SeccompSupervisor(
                self._watching.filters, machine, self._listener, self._channel, proc, self._namespaces.first
            )
            watcher.serve(init, lambda: _say(over))
            _say(over)
        except Exception as error:  # noqa: BLE001 - the worst that may come of it is that nothing is let go on
            self._tell_broken(error)
        finally:
            os._exit(0)


def _enter(namespaces: Sequence[int]) -> None:
    """Be in a sandbox's namespaces, as root there, with some of its rights and no more."""
    for namespace in namespaces:
        os.setns(namespace)
    with contextlib.suppress(PermissionError):  # where they can't be given, an ordinary user has none to give up
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.drop_capabilities(_KEPT)


def _say(over: socket.socket) -> None:
    """Tell whoever waits that all is told: to end takes longer."""
    with contextlib.suppress(OSError):
        over.send(b"o")
