"""Where the watcher sits: in the outermost process of a sandbox, which has nothing else to do than to wait for its end.

    the task ── its filter's listener ──► outermost process ── what it is asked ──► the gate's worker
                                                            ◄── whether it may go on ──

It is in the sandbox's namespaces but for the pid namespace, so no process of the task can so much as name it. Of the
rights over the sandbox that it made it keeps two: to look into its processes, and to look files up as they do.
"""

import contextlib
import functools
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from enforcer import linux
from enforcer.notify import kernel
from enforcer.sandbox import bpf, seccomp, shipping

_CAP_DAC_READ_SEARCH, _CAP_SYS_PTRACE = 2, 19
_KEPT: Final = 1 << _CAP_DAC_READ_SEARCH | 1 << _CAP_SYS_PTRACE
SOCKET: Final = "watch"  # what the worker knows it by


class Watching(NamedTuple):
    """What is watched of a task: the filter that asks, and what it was made of. `needed`: without it, no start."""

    filters: bpf.Filter
    program: bytes
    needed: bool


@functools.cache
def watching(*, commands: bool, reviewed: bool = False) -> Watching:
    """Return what to watch; with `commands`, programs are held until they are answered for."""
    filters = seccomp.task(commands=commands, reviewed=reviewed)
    program = bpf.assemble(filters, linux.platform_machine(), watched=True)
    made = Watching(filters, program, needed=commands)
    shipping.keep(filters, made)
    return made


def load(plain: bytes, wanted: Watching | None, to: socket.socket | None) -> None:
    """Load the filter of this process, the task to be, and give its listener away; `plain` where nobody can listen.

    Raises OSError when it can't be loaded, or can't be listened to and has to be.
    """
    if wanted is None or to is None:
        linux.load_seccomp(plain)
        return
    if wanted.needed:
        # Our memory is Exeat's until the first program is executed, and may be read only if it may be dumped; giving up
        # uids has taken that back. Nobody else is in this user namespace yet.
        linux.prctl(linux.PR_SET_DUMPABLE, 1)
    try:
        listener = kernel.install(wanted.program)
    except OSError as error:
        if wanted.needed:
            said = (
                f"the rules have `commands`, and system calls can't be watched here ({error.strerror}): `exeat doctor`"
            )
            raise OSError(error.errno, said) from error
        linux.load_seccomp(plain)
        return
    socket.send_fds(to, [b"l"], [listener])
    os.close(listener)
    to.close()


class Seat:
    """Taken before the sandbox's own processes are made; `serve` is what the outermost one does from then on."""

    @staticmethod
    def prepare() -> None:
        """Import what it is served with, while that can be read."""
        from enforcer.notify import watcher  # noqa: F401

    def __init__(self) -> None:
        """Open what is needed. /proc is the host's still."""
        from enforcer.notify import watcher

        self._make = watcher.Watcher
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._channel, self._workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._arrival, self.task = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def join(self, said: dict[str, object], sockets: Sequence[int]) -> tuple[dict[str, object], list[int]]:
        """Add the worker's end to the sockets that it is sent; whoever sends them closes them."""
        names = said.get("sockets", [])
        assert isinstance(names, list)
        return {**said, "sockets": [*names, SOCKET]}, [*sockets, self._workers.detach()]

    def leave(self) -> socket.socket:
        """Close, in a process made after us, all but the end that is the task's."""
        os.close(self._proc)
        self._channel.close()
        self._arrival.close()
        return self.task

    def serve(self, pid: int, filters: bpf.Filter | None, over: Callable[[], None]) -> None:
        """Watch until the sandbox's first process has ended. Whatever goes wrong refuses what is asked.

        `filters` is what its task's filter is made of; None: it isn't watched. `over` is called once or twice: nothing
        of the task is left then, and what was watched is told.
        """
        self.task.close()
        with contextlib.suppress(OSError):
            linux.drop_capabilities(_KEPT)
        init = os.pidfd_open(pid)
        listener = self._listener(init)
        if listener >= 0 and filters is not None:
            try:
                machine = linux.platform_machine()
                self._make(filters, machine, listener, self._channel, self._proc, pid).serve(init, over)
            except Exception as error:  # noqa: BLE001 - the worst that may come of it is that nothing is let go on
                from proxy.watched import wire  # which the watcher has imported

                with contextlib.suppress(OSError):
                    self._channel.send(wire.pack(wire.Broken(f"{type(error).__name__}: {error}".encode()[:500])))
            os.close(listener)
        os.waitpid(pid, 0)
        over()

    def _listener(self, init: int) -> int:
        poll = select.poll()
        poll.register(init, select.POLLIN)
        poll.register(self._arrival, select.POLLIN)
        poll.poll()
        self._arrival.setblocking(False)
        try:
            _, descriptors, _, _ = socket.recv_fds(self._arrival, 16, 1)
        except OSError:
            return -1
        return descriptors[0] if descriptors else -1
