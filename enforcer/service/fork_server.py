"""Fork server for task runners: keeps a clean copy of the service to fork from.

Forked from the service itself, each process would have to close copies of all that is open for all sandboxes, and the
service would copy memory after each fork. What it forks is the service's child (clone(2), CLONE_PARENT), and ends with
it.
"""

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import signal
import socket
from collections.abc import Callable
from typing import Final, NoReturn

from enforcer.sandbox import init
from enforcer.system import linux, processes
from proxy.wire import message

PATIENCE: Final = 5.0  # seconds in which it is to have forked: more means that it is stopped


class ForkServer:
    """The service's end of it. The process is there once there is something to fork, and is replaced if it ends."""

    def __init__(
        self,
        be: Callable[[int, socket.socket, bool], NoReturn],
        before: Callable[[], None],
        known: Callable[[], object],
    ) -> None:
        """Fork nothing yet.

        `be` is what a forked process is, called with its parent's pid, its end of a pair, and whether it is made ahead;
        `before` what the zygote does each time before it forks. `known` says what is shared with the service: when that
        is another, another zygote is forked.
        """
        self._be = be
        self._before = before
        self._known = known
        self._under: object = None
        self._channel: socket.socket | None = None
        self.pid = 0  # 0: there is none just now
        # Where the kernel writes whom it has forked: known even of a zygote that is killed before it can say so. Nobody
        # else that the service forks has it: a worker could say there which processes are the service's own.
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._page.madvise(mmap.MADV_DONTFORK)
        self._forked = ctypes.c_int.from_buffer(self._page)

    def fork(self, *, ahead: bool) -> tuple[int, socket.socket]:
        """Fork one process; returns its pid, and our end of a pair. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                return self._fork(theirs, ahead=ahead), ours
            except BaseException:
                ours.close()
                raise

    def reap(self) -> None:
        """Take note if it has ended; another takes its place when there is something to fork."""
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
        for _ in range(2):  # one that has ended may not be known to have, and another is as good
            channel = self._there()
            self._forked.value = 0
            said: dict[str, object] = {}
            try:
                message.send(channel, {"ahead": ahead}, [theirs.fileno()])
                said, _ = message.receive(channel)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass
            except BaseException:
                self.close()
                processes.kill_and_wait(self._forked.value)
                raise
            if not said:  # what it would still say is of this fork, and would be taken for the next one's
                self.close()
            if "failed" in said:
                number = int(str(said["failed"]))
                raise OSError(number, f"a process for a run can't be forked: {os.strerror(number)}")
            if pid := int(str(said.get("forked", 0))) or self._forked.value:  # what is dead forks nothing any more
                return pid
        raise OSError(errno.EAGAIN, "a process for a run can't be forked: what forks it ends, or doesn't go on")

    def _there(self) -> socket.socket:
        known = self._known()
        if self._channel is None or known != self._under:
            self.close()
            self._under = known
            self._page.madvise(mmap.MADV_DOFORK)
            try:
                self.pid, self._channel = processes.fork(self._be_it)
            finally:
                self._page.madvise(mmap.MADV_DONTFORK)
            self._channel.settimeout(PATIENCE)
        return self._channel

    # --- the process ---

    def _be_it(self, service: int, channel: socket.socket) -> NoReturn:
        try:
            linux.die_with_parent(signal.SIGKILL, service)
            gc.disable()  # it would write to all that is shared with the service, and in each process that is forked
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            linux.keep_only({0, 1, 2, channel.fileno(), *init.kept_files()})
            self._page.madvise(mmap.MADV_DONTFORK)  # what is forked is not to tell the service what it has forked
            while True:
                asked, given = message.receive(channel, 1)
                if not asked:
                    break
                message.send(channel, self._do(asked, given, service, channel))
        except BaseException as error:  # noqa: BLE001 - nothing gets from here to where the service goes on
            with contextlib.suppress(OSError):
                os.write(2, f"exeat: {type(error).__name__}: {error}\n".encode("utf-8", "backslashreplace"))
        finally:
            os._exit(0)

    def _do(
        self, asked: dict[str, object], given: list[int], service: int, channel: socket.socket
    ) -> dict[str, object]:
        if not given:
            return {"failed": errno.EMFILE}  # the kernel leaves out what there is no room for (unix(7))
        with socket.socket(fileno=given[0]) as theirs:
            try:
                self._before()
                pid = linux.fork_sibling(ctypes.addressof(self._forked))
                if pid == 0:
                    channel.close()
                    self._be(service, theirs, asked["ahead"] is True)
            except OSError as error:
                return {"failed": error.errno or errno.EIO}
        return {"forked": pid}
