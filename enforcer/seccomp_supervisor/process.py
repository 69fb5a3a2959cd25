"""Process of the seccomp supervisor, forked at the first notification, or before the start of a task that needs it.

    the task ── its filter's listener ──► supervisor ── questions ──► the gate's worker
                                                     ◄── decisions ──

It is in the sandbox's namespaces except the pid namespace, so the task can't name it. It keeps the rights to inspect
the sandbox's processes, to look up files as they do, to change modes of their directories, and to take on their ids for
a moment (`performed_calls`). Its cost counts as the task's.
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
from enforcer.sandbox.step_lists import HOST_PROC
from enforcer.system import linux, processes
from enforcer.system.errors import HostError

if TYPE_CHECKING:
    from enforcer.limits.resource_limits import ResourceLimits
    from enforcer.sandbox.namespaces import SandboxNamespaces

# CAP_DAC_READ_SEARCH, _FOWNER, _FSETID, _SETGID, _SETUID and _SYS_PTRACE, over the sandbox alone
_CAPABILITIES: Final = sum(1 << number for number in (2, 3, 4, 6, 7, 19))
_REPORT_TIMEOUT: Final = 1.0  # seconds
GREETING: Final = b"\x91\xa4anew"  # `messages.NewWorker`; the start doesn't import msgspec for it, which takes 14 ms
_MAX_ERROR: Final = 500  # bytes of a reported error
# The user namespace first: it gives the rights to enter the others.
_NAMESPACES: Final = ("user", "net", "ipc", "uts", "cgroup", "mnt")
SOCKET: Final = "watch"  # the name of the worker's end among the sandbox's sockets


class SupervisorProcess:
    """The supervisor process of one sandbox. When it fails, calls are refused: a closed listener allows nothing."""

    def __init__(
        self, watching: WatchedFilter, namespaces: "SandboxNamespaces", resource_limits: "ResourceLimits"
    ) -> None:
        self._watching = watching
        self._namespaces = namespaces
        self._resource_limits = resource_limits
        self._channel, self._workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener = -1
        self._selector: selectors.BaseSelector | None = None
        self._pid = 0
        self._runner_channel: socket.socket | None = None
        self._has_worker = True  # the worker's end is open

    def give(self) -> int:
        """Return the worker's end of the channel; it is the caller's."""
        return self._workers.detach()

    def listen(self, listener: int) -> None:
        """Take over the listener of the filter. Raises OSError, HostError where a supervisor is required and fails."""
        self._listener = listener
        if self._watching.is_required:
            self._start()

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Have `hear` called when the task's filter or the worker sends something."""
        if not self._pid:
            self._selector = selector
            for source in self._event_sources():
                selector.register(source, selectors.EVENT_READ, self.hear)

    def hear(self) -> None:
        """Start the supervisor, unless the worker only greets or has closed its end, or no process has the filter."""
        if self._has_worker and self._is_only_greeting():
            return
        if self._selector is not None:
            for source in self._event_sources():
                self._selector.unregister(source)
        if self._is_filter_gone():
            self._close_listener()
            return
        try:
            self._start()
        except (OSError, HostError) as error:
            self._report_failure(error)
            self._close_listener()

    def see_out(self) -> None:
        """Wait up to 1 s until the supervisor has reported everything: no process of the task is left."""
        if self._runner_channel is not None:
            poll = select.poll()
            poll.register(self._runner_channel, select.POLLIN)
            poll.poll(_REPORT_TIMEOUT * 1000)

    def close(self) -> None:
        """End the supervisor. Idempotent."""
        self._close_listener()
        self._workers.close()
        if self._runner_channel is not None:
            self._runner_channel.close()
        pid, self._pid = self._pid, 0
        processes.kill_and_wait(pid)

    def _is_only_greeting(self) -> bool:
        """Receive a worker's greeting, or the end of its channel. False: the worker has sent a look-up."""
        try:
            packet = self._channel.recv(len(GREETING) + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # closed with unread data: unix(7)
            packet = b""
        if not packet:
            if self._selector is not None:
                self._selector.unregister(self._channel)
            self._has_worker = False
            return True
        if packet == GREETING:  # a supervisor that starts later reports everything anyway
            self._channel.recv(len(GREETING) + 1)
            return True
        return False

    def _is_filter_gone(self) -> bool:
        """Whether no process has the filter any more, which is reported before a task's end."""
        if self._listener < 0:
            return True
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        return poll.poll(0) == [(self._listener, select.POLLHUP)]

    def _event_sources(self) -> list[int]:
        channel = self._channel.fileno() if self._has_worker else -1
        return [descriptor for descriptor in (self._listener, channel) if descriptor >= 0]

    def _report_failure(self, error: Exception) -> None:
        from proxy.supervisor_channel import messages  # saves a start msgspec: 14 ms

        with contextlib.suppress(OSError):
            self._channel.send(
                messages.pack(messages.SupervisorFailed(f"{type(error).__name__}: {error}".encode()[:_MAX_ERROR]))
            )

    def _close_listener(self) -> None:
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1
        self._channel.close()

    def _start(self) -> None:
        outer, flags = self._namespaces.outer, os.O_RDONLY | os.O_CLOEXEC
        namespaces = outer.run(
            *(outer.calls.get("openat", HOST_PROC, f"self/ns/{name}", flags) for name in _NAMESPACES)
        )
        try:
            self._pid, self._runner_channel = processes.fork(
                lambda parent, runner_channel: self._run_supervisor(parent, runner_channel, namespaces)
            )
        finally:
            for namespace in namespaces:
                os.close(namespace)
        try:
            self._resource_limits.admit_supervisor(self._pid)
        except BaseException:
            pid, self._pid = self._pid, 0
            processes.kill_and_wait(pid)  # its cost would count for no task
            raise
        self._close_listener()

    def _run_supervisor(self, parent: int, runner_channel: socket.socket, namespaces: Sequence[int]) -> NoReturn:
        try:
            linux.set_process_name("exeat-watcher")
            init = os.pidfd_open(self._namespaces.init_pid)
            linux.keep_only({self._listener, self._channel.fileno(), runner_channel.fileno(), init, *namespaces})
            proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            from enforcer.seccomp_supervisor.supervisor import SeccompSupervisor  # while its file can be read

            _enter(namespaces)
            os.fchdir(proc)  # setxattr(2) takes only a path
            linux.die_with_parent(signal.SIGKILL, parent)
            machine = linux.platform_machine()
            supervisor = SeccompSupervisor(
                self._watching.filters, machine, self._listener, self._channel, proc, self._namespaces.init_pid
            )
            supervisor.serve(init, lambda: _report_done(runner_channel))
            _report_done(runner_channel)
        except Exception as error:  # noqa: BLE001 - then no held call continues
            self._report_failure(error)
        finally:
            os._exit(0)


def _enter(namespaces: Sequence[int]) -> None:
    """Enter a sandbox's namespaces as root there, with only the capabilities that the supervisor needs."""
    for namespace in namespaces:
        os.setns(namespace)
    with contextlib.suppress(PermissionError):  # an ordinary user's namespace has setgroups denied
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.drop_capabilities(_CAPABILITIES)


def _report_done(runner_channel: socket.socket) -> None:
    """Notify the runner that everything is reported, since ending the process takes longer."""
    with contextlib.suppress(OSError):
        runner_channel.send(b"o")
