"""Fork server for task runners: keeps a clean copy of the service to fork from.

A fork of the service itself would have to close copies of every sandbox's descriptors, and the service would copy
memory pages after each fork. Forked processes are children of the service (clone(2), CLONE_PARENT), and end with it.
"""

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from enforcer.sandbox import init
from enforcer.service.messages import ForkReply, ForkRequest
from enforcer.system import linux, processes
from proxy.wire import message

PATIENCE: Final = 5.0  # seconds for one fork; beyond it the fork server counts as stopped


class ForkServer:
    """The service's end. The process is started for the first fork, and replaced when it ends."""

    def __init__(
        self,
        main: Callable[[int, socket.socket, bool], NoReturn],
        prepare: Callable[[], None],
        shared_state: Callable[[], object],
    ) -> None:
        """Start no process yet.

        `main`: the main function of a forked process, called with its parent's pid, its end of a pair, and whether it
        is made in advance; `prepare`: called in the fork server before each fork. `shared_state` returns the service's
        state that children inherit: when it changes, a new fork server starts.
        """
        self._main = main
        self._prepare = prepare
        self._shared_state = shared_state
        self._forked_state: object = None
        self._channel: socket.socket | None = None
        self.pid = 0  # 0: none runs
        # The kernel writes the forked pid here, so it is known even if the fork server is killed before it replies. No
        # other process of the service maps the page: a worker could forge the pid.
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._page.madvise(mmap.MADV_DONTFORK)
        self._forked = ctypes.c_int.from_buffer(self._page)

    def fork(self, *, ahead: bool) -> tuple[int, socket.socket]:
        """Fork one process; returns its pid and our end of a pair. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                return self._fork(theirs, ahead=ahead), ours
            except BaseException:
                ours.close()
                raise

    def reap(self) -> None:
        """Record its end; the next fork starts another."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0
            self.close()

    def close(self) -> None:
        """End it. Idempotent."""
        processes.kill_and_wait(self.pid)
        self.pid = 0
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _fork(self, theirs: socket.socket, *, ahead: bool) -> int:
        for _ in range(2):  # the fork server may have ended unnoticed: try a new one
            channel = self._running_channel()
            self._forked.value = 0
            reply: Mapping[str, object] = {}
            try:
                message.send(channel, ForkRequest(ahead=ahead), [theirs.fileno()])
                reply, _ = message.receive(channel)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass
            except BaseException:
                self.close()
                processes.kill_and_wait(self._forked.value)
                raise
            if not reply:  # a late reply would be taken for the next fork's
                self.close()
            if "failed" in reply:
                number = int(str(reply["failed"]))
                raise OSError(number, f"a process for a run can't be forked: {os.strerror(number)}")
            if pid := int(str(reply.get("forked", 0))) or self._forked.value:  # a killed fork server forks no more
                return pid
        raise OSError(errno.EAGAIN, "a process for a run can't be forked: the fork server ends, or hangs")

    def _running_channel(self) -> socket.socket:
        shared_state = self._shared_state()
        if self._channel is None or shared_state != self._forked_state:
            self.close()
            self._forked_state = shared_state
            self._page.madvise(mmap.MADV_DOFORK)
            try:
                self.pid, self._channel = processes.fork(self._run_fork_server)
            finally:
                self._page.madvise(mmap.MADV_DONTFORK)
            self._channel.settimeout(PATIENCE)
        return self._channel

    # --- the process ---

    def _run_fork_server(self, service: int, channel: socket.socket) -> NoReturn:
        try:
            linux.die_with_parent(signal.SIGKILL, service)
            gc.disable()  # it would write to memory shared with the service and with each forked process
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            linux.keep_only({0, 1, 2, channel.fileno(), *init.shared_descriptors()})
            self._page.madvise(mmap.MADV_DONTFORK)  # forked processes must not write to it
            while True:
                request, descriptors = message.receive(channel, 1)
                if not request:
                    break
                message.send(channel, self._fork_child(request, descriptors, service, channel))
        except BaseException as error:  # noqa: BLE001 - the child must never run the service's loop
            with contextlib.suppress(OSError):
                os.write(2, f"exeat: {type(error).__name__}: {error}\n".encode("utf-8", "backslashreplace"))
        finally:
            os._exit(0)

    def _fork_child(
        self, request: Mapping[str, object], descriptors: list[int], service: int, channel: socket.socket
    ) -> ForkReply:
        if not descriptors:
            return ForkReply(failed=errno.EMFILE)  # at the limit of open files the kernel drops descriptors (unix(7))
        with socket.socket(fileno=descriptors[0]) as theirs:
            try:
                self._prepare()
                pid = linux.fork_sibling(ctypes.addressof(self._forked))
                if pid == 0:
                    channel.close()
                    self._main(service, theirs, request["ahead"] is True)
            except OSError as error:
                return ForkReply(failed=error.errno or errno.EIO)
        return ForkReply(forked=pid)
