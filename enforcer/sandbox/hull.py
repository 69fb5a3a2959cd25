"""An empty sandbox: its namespaces, its network, and what every task's view begins with. It is nobody's yet.

    exeat ── fork ──► outer (owns the outer user namespace and everything in it; later the watcher)
                        └── fork ──► init, process 1, which waits to be told what task it is for

Made like this it can be made before it is known what for, while the rest of a start is worked out, or by a service
before anybody asks. It is used for one task or for none, and holds nothing of whoever made it.

Fork only from a process with one thread (KERNEL notes). Every process here ends when the one above it does.
"""

import contextlib
import functools
import operator
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from enforcer import linux, userns
from enforcer.errors import HostError
from enforcer.limits.fence import Fence
from enforcer.notify.seat import Seat
from enforcer.sandbox import init, shipping
from enforcer.sandbox.begin import CANNOT_MAKE
from enforcer.sandbox.identity import Identity, write_map
from enforcer.sandbox.steps import Step
from proxy import message

_AT_ONCE = {
    "mount": os.CLONE_NEWNS,
    "pid": os.CLONE_NEWPID,
    "network": os.CLONE_NEWNET,
    "IPC": os.CLONE_NEWIPC,
    "UTS": os.CLONE_NEWUTS,
}
NAMESPACES = ("user", *_AT_ONCE, "cgroup")  # in the order in which they are entered
_MOST_SOCKETS = 32
_LIMITS = 16  # RLIM_NLIMITS
LAST_WORDS = 1.0  # seconds that a sandbox has for what it does at its end
# A terminal sends these to everyone in the foreground; only the task is to act on them.
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP, signal.SIGTTOU)


class Network(NamedTuple):
    """What the sandbox does for its network once it has a namespace: returns a message and sockets for the worker.

    `counters` reads what the kernel refused; it is called in init, which has the rights to.
    """

    prepare: Callable[[], tuple[dict[str, object], Sequence[int]]]
    counters: Callable[[], Mapping[str, int]]


class Hull:
    """One that is being made: its outermost process, and the channels to that one and to its init."""

    __slots__ = ("control", "done", "has", "made", "over", "pid", "settled", "steer")

    def __init__(
        self, pid: int, steer: socket.socket, control: socket.socket, done: tuple[Step, ...], has: int = 0
    ) -> None:
        self.pid = pid
        self.steer = steer
        self.control = control
        self.done = done  # the steps of a view that it begins with
        self.has = has  # of what needn't be sent to it (`shipping.keep`)
        self.made: tuple[list[str], list[int], int] | None = None
        self.settled = False  # whether all that is left is about to end by itself
        self.over = False

    def ready(self) -> tuple[list[str], list[int], int]:
        """Wait until it has its network. Returns its sockets, by name, and the id of its init. Raises HostError."""
        if self.made is None:
            said, sockets = message.receive(self.steer, _MOST_SOCKETS)
            names, first = said.get("sockets"), said.get("init")
            if not isinstance(names, list) or not isinstance(first, int):
                why = said.get("failed", "its first process ended unexpectedly")
                raise HostError(f"the sandbox could not be made: {why}")
            if len(sockets) != len(names):  # the kernel passes no more than may be open here: unix(7), MSG_CTRUNC
                for descriptor in sockets:
                    os.close(descriptor)
                raise HostError("the sandbox could not be made: too many open files", "raise `ulimit -n`")
            self.made = names, sockets, first
        return self.made

    def take(self, steps: tuple[Step, ...]) -> None:
        """Have its init go on with these steps of a view while what comes after them is worked out.

        None may have a descriptor in it. Why it has ended, if it has, is heard when it is told what it is for.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            shipping.ship(self.control, steps, has=self.has)
        self.done += steps

    def adopt(self, first: int) -> None:
        """Give its processes this one's limits and priority, as if they were forked now; `first`: its init."""
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        for pid in (self.pid, first):
            for number in range(_LIMITS):
                with contextlib.suppress(OSError, ValueError):  # less than it has, an ordinary user can't give back
                    resource.prlimit(pid, number, resource.getrlimit(number))
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, pid, nice)

    def end(self) -> None:
        """Kill it. Its namespaces go with its processes. Idempotent."""
        if not self.over:  # or else its id may be another's
            self.over = True
            self._end()

    def end_later(self, others: contextlib.ExitStack) -> None:
        """Where all that is left is about to end by itself, see to that with `others`: nobody waits for it before."""
        if self.settled and not self.over:
            self.over = True
            others.callback(self._end)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.settled:
                self._wait()
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.steer.close()
        self.control.close()

    def _wait(self) -> None:
        """Let its outermost process see its init out, for a moment: in which order they are killed nobody knows."""
        process = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.poll(LAST_WORDS * 1000)
        os.close(process)


def prepare(identity: Identity, fence: Fence, network: Callable[[], Network], steps: tuple[Step, ...] = ()) -> Hull:
    """Fork an empty sandbox, which goes on making itself; `steps` of a view are taken ahead.

    Raises HostError when not even the namespaces can be had.
    """
    steer, its_steer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control, its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _outer(parent, its_steer, its_control, identity, network, steps)
        except BaseException as error:  # noqa: BLE001 - a half-made sandbox must never go on
            text = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"
            with contextlib.suppress(OSError):
                message.send(its_steer, {"failed": text or type(error).__name__})
        finally:
            os._exit(CANNOT_MAKE)
    its_steer.close()
    its_control.close()
    hull = Hull(pid, steer, control, steps, shipping.kept())
    try:
        _map_ids(hull, identity)
        # Takes the kernel a while; meanwhile the sandbox makes its network. It goes no further until this is done.
        fence.admit(pid)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # why it ended it has said: `ready`
            message.send(steer, {"admitted": True})
    except BaseException:
        hull.end()
        raise
    return hull


def _map_ids(hull: Hull, identity: Identity) -> None:
    said, _ = message.receive(hull.steer)
    if "unshared" not in said:
        raise HostError(str(said.get("failed", "the sandbox's first process ended before it had a namespace")))
    with userns.used():
        write_map(hull.pid, identity.outer_uids, identity.outer_gids, deny_setgroups=not identity.privileged)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # likewise
        message.send(hull.steer, {"mapped": True})


def _outer(  # noqa: PLR0917  what it is made of
    parent: int,
    steer: socket.socket,
    control: socket.socket,
    identity: Identity,
    network: Callable[[], Network],
    steps: Sequence[Step],
) -> NoReturn:
    for number in _FROM_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    linux.keep_only({0, 1, 2, steer.fileno(), control.fileno(), identity.slot})
    # What this imports may be ours alone to read, or lie where only the rights that we have now lead to.
    worked_out = network()
    Seat.prepare()
    userns.enter_new()
    message.send(steer, {"unshared": True})
    mapped, _ = message.receive(steer)
    if not mapped:
        os._exit(CANNOT_MAKE)
    with userns.used():
        if identity.privileged:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        linux.die_with_parent(signal.SIGKILL, parent)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        os.unshare(functools.reduce(operator.or_, _AT_ONCE.values()))
    said, sockets = worked_out.prepare()
    watcher = Seat()
    said, sockets = watcher.join(said, sockets)
    admitted, _ = message.receive(steer)
    if not admitted:
        os._exit(CANNOT_MAKE)
    os.unshare(os.CLONE_NEWCGROUP)  # only now: what it is in at this moment is all that can be seen from inside
    pid = os.fork()
    if pid == 0:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        steer.close()
        for descriptor in sockets:
            os.close(descriptor)
        init.run(control, steps, counters=worked_out.counters, watch=watcher.leave())
    control.close()
    message.send(steer, {**said, "init": pid}, sockets)
    for descriptor in (0, 1, 2, *sockets):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    # Only locks stay open here, on the id range and on caches: they are let go when nothing of it runs any more.
    watching, _locks = shipping.unpack(steer)
    watcher.serve(pid, watching, lambda: _say_over(steer))
    os._exit(0)


def _say_over(steer: socket.socket) -> None:
    """Tell whoever waits that the task is gone: for what made its sandbox to go takes longer."""
    with contextlib.suppress(OSError):
        message.send(steer, {"over": True})
