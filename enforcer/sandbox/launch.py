"""From a plan to a running task: the two forks, the namespaces and who maps whose ids.

    exeat ── fork ──► outer (owns the outer user namespace and everything in it; waits)
                        └── fork ──► init, process 1 ── fork ──► the task, in the inner user namespace

Fork only from a process with one thread (KERNEL notes). Every process here ends when the one above it does.
"""

import contextlib
import functools
import operator
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from enforcer import linux, userns
from enforcer.errors import HostError
from enforcer.limits.fence import Fence
from enforcer.notify.seat import Seat
from enforcer.sandbox import init
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
_LAST_WORDS = 1.0  # seconds
# A terminal sends these to everyone in the foreground; only the task is to act on them.
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP, signal.SIGTTOU)


@dataclass(frozen=True, slots=True)
class Network:
    """What the sandbox does for its network once it has a namespace: returns a message and sockets for the worker.

    `counters` reads what the kernel refused; it is called in init, which has the rights to.
    """

    prepare: Callable[[], tuple[dict[str, object], Sequence[int]]]
    counters: Callable[[], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a sandbox is made of. `gate` is where the sockets made inside are sent."""

    identity: Identity
    steps: Sequence[Step]
    program: init.Program
    stdio: tuple[int, int, int]
    network: Network
    gate: socket.socket
    hostname: str
    fence: Fence
    held: tuple[int, ...] = ()  # locks that last as long as anything of the sandbox does
    given: Mapping[str, int] = field(default_factory=dict)  # what the worker gets with the sandbox's sockets, by name


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A launched sandbox: its outermost process and the channel to its init."""

    pid: int
    control: socket.socket


def launch(recipe: Recipe) -> Sandbox:
    """Fork the sandbox. It reports over the returned channel: `started`, `failed`, then `ended`.

    Raises HostError when not even the namespaces can be had.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _outer(parent, theirs, recipe)
        except BaseException as error:  # noqa: BLE001 - a half-made sandbox must never go on
            text = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"
            with contextlib.suppress(OSError):
                message.send(theirs, {"failed": text or type(error).__name__})
        finally:
            os._exit(init.CANNOT_MAKE)
    theirs.close()
    sandbox = Sandbox(pid, ours)
    try:
        _map_ids(sandbox, recipe.identity)
        # Takes the kernel a while; meanwhile the sandbox makes its network. It goes no further until this is done.
        recipe.fence.admit(pid)
        message.send(ours, {"admitted": True})
    except BaseException:
        end(sandbox)
        raise
    return sandbox


def settle(sandbox: Sandbox) -> None:
    """Give the outermost process, once init has ended, the moment that it needs to count up what it watched."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(sandbox.pid)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.poll(_LAST_WORDS * 1000)
        os.close(process)


def end(sandbox: Sandbox) -> None:
    """Kill whatever is left of a sandbox. Its namespaces go with its processes. Idempotent."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(sandbox.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(sandbox.pid, 0)
    sandbox.control.close()


def _joined(
    said: dict[str, object], sockets: Sequence[int], given: Mapping[str, int]
) -> tuple[dict[str, object], list[int]]:
    """Add what comes from outside to the sockets that the worker is sent; whoever sends them closes them."""
    names = said.get("sockets", [])
    assert isinstance(names, list)
    return {**said, "sockets": [*names, *given]}, [*sockets, *given.values()]


def _map_ids(sandbox: Sandbox, identity: Identity) -> None:
    said, _ = message.receive(sandbox.control)
    if "unshared" not in said:
        raise HostError(str(said.get("failed", "the sandbox's first process ended before it had a namespace")))
    try:
        write_map(sandbox.pid, identity.outer_uids, identity.outer_gids, deny_setgroups=not identity.privileged)
    except OSError as error:
        raise HostError(f"the ids of a user namespace cannot be mapped here: {error.strerror}") from error
    message.send(sandbox.control, {"mapped": True})


def _outer(parent: int, control: socket.socket, recipe: Recipe) -> NoReturn:
    identity, steps, gate = recipe.identity, recipe.steps, recipe.gate
    for number in _FROM_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    trees = [tree for step in steps if (tree := getattr(step, "tree", None)) is not None]
    staged = [tree for step in steps if (tree := getattr(step, "staged", None)) is not None]
    linux.keep_only(
        {
            *recipe.stdio,
            recipe.program.terminal,
            0,
            1,
            2,
            control.fileno(),
            gate.fileno(),
            identity.slot,
            *recipe.held,
            *recipe.given.values(),
            *trees,
            *staged,
        }
    )
    userns.enter_new()
    message.send(control, {"unshared": True})
    mapped, _ = message.receive(control)
    if not mapped:
        os._exit(init.CANNOT_MAKE)
    if identity.privileged:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    linux.die_with_parent(signal.SIGKILL, parent)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.unshare(functools.reduce(operator.or_, _AT_ONCE.values()))
    socket.sethostname(recipe.hostname)
    said, sockets = recipe.network.prepare()
    watcher = None if recipe.program.watching is None else Seat(recipe.program.watching)
    if watcher is not None:
        said, sockets = watcher.join(said, sockets)
    said, sockets = _joined(said, sockets, recipe.given)
    message.send(gate, said, sockets)
    for descriptor in sockets:
        os.close(descriptor)
    gate.close()
    admitted, _ = message.receive(control)
    if not admitted:
        os._exit(init.CANNOT_MAKE)
    os.unshare(os.CLONE_NEWCGROUP)  # only now: what it is in at this moment is all that can be seen from inside
    pid = os.fork()
    if pid == 0:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        watch = None if watcher is None else watcher.leave()
        init.run(
            control,
            steps,
            identity,
            recipe.program,
            stdio=recipe.stdio,
            counters=recipe.network.counters,
            watch=watch,
        )
    control.close()
    for descriptor in {*recipe.stdio, recipe.program.terminal, 0, 1, 2, *trees, *staged} - {-1}:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    # Only locks stay open here, on the id range and on caches: they are let go when nothing of it runs any more.
    if watcher is None:
        os.waitpid(pid, 0)
    else:
        watcher.serve(pid)
    os._exit(0)
