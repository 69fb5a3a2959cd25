"""Empty sandbox: namespaces, network and the first mount steps, before a task is assigned to it.

    exeat ── spawns ──► the outermost process, which owns the outer user namespace and all that belongs to it
                          └── FORK ──► init, process 1, which makes the file system view and later starts the task

Both only execute call lists (`init`); the runner decides everything.

So a sandbox can be made before its task is known, while the rest of a start is worked out, or by a service before a
request arrives. It is used for one task or none, and holds nothing of its maker. Every process ends with the one above
it. The view is built in a new mount namespace and made the root, which leaves no path to the host's tree.
"""

import contextlib
import errno
import functools
import operator
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

from enforcer.limits.resource_limits import ResourceLimits
from enforcer.network import install
from enforcer.network.gate_sockets import read_counters
from enforcer.sandbox import init, overlays
from enforcer.sandbox.devices import Devices
from enforcer.sandbox.identity import Identity, namespace_permission, namespace_remedy, namespace_used, write_map
from enforcer.sandbox.init import Executor, ProcessGoneError, RemoteExecutor, SocketMaker
from enforcer.sandbox.mount_steps import Mask, Step, mount
from enforcer.sandbox.overlays import Show
from enforcer.sandbox.path_scan import LAYERS, NEW, OLD, STAGE
from enforcer.sandbox.step_lists import FORKED_PID, HOST_PROC, CallFailedError
from enforcer.system import linux, processes
from enforcer.system.errors import HostError

# Any directory that exists everywhere: it is mounted over only in this namespace, and only until the pivot.
_BASE = "/tmp"
_FIRST_MOUNT = "nothing can be mounted here"


class StepFailedError(OSError):
    """A mount step failed."""

    def __init__(self, step: Any, error: OSError) -> None:
        """Keep the errno of `error`, and name the step (a `Step`)."""
        error = explain(error) if (explain := getattr(step, "explain", None)) else error
        super().__init__(error.errno or 0, f"could not {step.describe()}: {error.strerror or error}")


def enter(steps: Iterable[Step]) -> None:
    """Make the view of these steps the root of the calling process.

    The caller owns a mount namespace with nothing shared in it. An init process in that namespace executes the steps
    and ends; pivot_root(2) moves every process with the old root. Raises HostError, OSError; then the caller must end,
    since it is between two roots.
    """
    os.chdir("/")
    old_root = os.stat("/")
    linux.raise_ambient_capability(linux.CAP_SYS_ADMIN)
    pid, executor = init.start()
    try:
        begin_view(executor)
        execute_steps(executor, steps)
        finish_view(executor)
        executor.run()
    except CallFailedError as error:
        raise step_error(error) from error
    finally:
        executor.close()
        processes.kill_and_wait(pid)
    if os.path.samestat(os.stat("/"), old_root):
        raise HostError("the worker's file system view was made, but its root is still the host's")


def begin_view(executor: Executor) -> None:
    """Move the host's tree to `/old`. From here until `finish_view` the process is between two roots."""
    calls = executor.calls
    calls.step(_FIRST_MOUNT)
    calls.call("umask", 0o022)
    calls.call("mount", "none", "/", 0, linux.MS_REC | linux.MS_PRIVATE, purpose="mount none on /")
    mount(calls, "tmpfs", _BASE, linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    for name in (OLD, NEW, STAGE, LAYERS):
        calls.call("mkdirat", linux.AT_FDCWD, _BASE + name, 0o755)
    calls.call("pivot_root", _BASE, _BASE + OLD)
    calls.call("chdir", "/")
    mount(calls, "tmpfs", NEW, linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    overlays.make_layers(calls)


def begin_view_with(executor: Executor, steps: tuple[Step, ...]) -> None:
    """Begin a view and execute its first steps. Those before the sandbox's own devices are shared by many sandboxes.

    They are not shared where file systems are mounted inside shown directories, since that takes waiting for results.
    """
    first_own = next((at for at, step in enumerate(steps) if isinstance(step, Devices)), len(steps))

    def write(executor: Executor) -> None:
        begin_view(executor)
        execute_steps(executor, steps[:first_own])

    if overlays.has_mounts_below(*(step.source for step in steps if isinstance(step, Show))):
        write(executor)
    else:
        init.execute_shared(executor, repr(steps[:first_own]), write)  # some steps can't be hashed
    execute_steps(executor, steps[first_own:])
    executor.submit()


def execute_steps(executor: Executor, steps: Iterable[Step]) -> None:
    """Write the calls of these steps. Raises StepFailedError for one that inspects the host first and fails."""
    for group in group_steps(steps):
        if isinstance(group[0], Mask):
            init.execute_shared(executor, group, partial(_execute_in_order, steps=group))
        else:
            _execute_in_order(executor, group)


def group_steps(steps: Iterable[Step]) -> Iterator[tuple[Step, ...]]:
    """Group steps that are executed together: masks of one sandbox are mostly the same in the next."""
    for is_mask, group in groupby(steps, lambda step: isinstance(step, Mask)):
        if is_mask:
            yield tuple(group)
        else:
            yield from ((step,) for step in group)


def _execute_in_order(executor: Executor, steps: Sequence[Step]) -> None:
    for step in steps:
        executor.calls.step(step)
        try:
            step.execute(executor)
        except CallFailedError:
            raise
        except OSError as error:
            raise StepFailedError(step, error) from error


def finish_view(executor: Executor) -> None:
    """Make the new tree the root, and detach the host's tree."""
    calls = executor.calls
    calls.step(None)
    # pivot_root(2), "pivot_root(".", ".")": the old root lies over the new one, and is then detached.
    calls.call("chdir", NEW)
    calls.call("pivot_root", ".", ".")
    calls.call("umount2", ".", linux.MNT_DETACH)
    calls.call("chdir", "/")


def step_error(error: CallFailedError) -> OSError | HostError:
    """Return the exception for a failed call of a mount step.

    A filter or security module may deny all of it, as docker's do.
    """
    if error.step == _FIRST_MOUNT and error.errno in (errno.EPERM, errno.EACCES):
        message = f"{_FIRST_MOUNT} ({os.strerror(error.errno)})"
        return HostError(message, namespace_permission(error.errno))
    return StepFailedError(error.step, error) if hasattr(error.step, "describe") else error


_UNSHARE_FLAGS = {
    "mount": os.CLONE_NEWNS,
    "pid": os.CLONE_NEWPID,
    "network": os.CLONE_NEWNET,
    "IPC": os.CLONE_NEWIPC,
    "UTS": os.CLONE_NEWUTS,
}
NAMESPACES = ("user", *_UNSHARE_FLAGS, "cgroup")  # in the order in which they are entered
_RLIMIT_COUNT = 16  # RLIM_NLIMITS
END_TIMEOUT = 1.0  # seconds for a sandbox to end
_USE_NAMESPACE: Final = "use its user namespace"
_NOT_MADE: Final = "the sandbox could not be made"
_RLIMIT: Final = struct.Struct("=2Q")  # struct rlimit64, getrlimit(2)


class SandboxNamespaces:
    """A sandbox that is being made: its outermost process, and its init."""

    __slots__ = (
        "counter_socket",
        "executed_steps",
        "init",
        "init_pid",
        "is_empty",
        "is_ended",
        "outer",
        "pid",
        "sockets",
    )

    def __init__(self, pid: int, outer: RemoteExecutor, init: RemoteExecutor, executed_steps: tuple[Step, ...]) -> None:
        self.pid = pid
        self.outer = outer
        self.init = init
        self.executed_steps = executed_steps  # mount steps executed in advance
        self.init_pid = 0  # pid of its init
        self.sockets: dict[str, int] | None = None
        self.counter_socket: socket.socket | None = None  # a socket in its network, for `counters`
        self.is_empty = False  # no process of a task is left in it
        self.is_ended = False

    def wait_until_ready(self) -> dict[str, int]:
        """Wait until its network is set up; returns its sockets by name. Raises HostError."""
        if self.sockets is None:
            with explain_errors():
                make = SocketMaker(self.outer)
                try:
                    make.open_all(install.SOCKETS_USED)
                    self.sockets, self.counter_socket = install.install(make)
                finally:
                    make.close()
            self.init_pid = self.outer.value(FORKED_PID)
        return self.sockets

    def take_sockets(self) -> dict[str, int]:
        """Return the sockets of its network by name, once; they become the caller's. Raises HostError."""
        given, self.sockets = self.wait_until_ready(), {}
        return given

    def descriptors(self) -> set[int]:
        """Return the descriptors that have to stay open for a sandbox that is ready."""
        counter_socket = () if self.counter_socket is None else (self.counter_socket.fileno(),)
        return {
            self.outer.channel.fileno(),
            self.init.channel.fileno(),
            *self.wait_until_ready().values(),
            *counter_socket,
        }

    def counters(self) -> Mapping[str, int]:
        """Return how many packets the kernel has denied, by kind. Raises OSError."""
        return {} if self.counter_socket is None else read_counters(self.counter_socket)

    def execute_in_advance(self, steps: tuple[Step, ...]) -> None:
        """Send init these mount steps, while the caller works out the rest.

        A failure is raised by a later call.
        """
        with explain_errors():
            execute_steps(self.init, steps)
            self.init.submit()
        self.executed_steps += steps

    def inherit_limits(self) -> None:
        """Give its processes this process's limits and priority, as a fork would."""
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        for pid in (self.pid, self.init_pid):
            for number in range(_RLIMIT_COUNT):
                soft, hard = resource.getrlimit(number)
                if number == resource.RLIMIT_NOFILE:
                    soft = hard  # passing descriptors counts against it: `proxy.wire.message`
                with contextlib.suppress(OSError, ValueError):  # an ordinary user can't raise a hard limit
                    resource.prlimit(pid, number, (soft, hard))
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, pid, nice)

    def end(self) -> None:
        """Kill the sandbox; its namespaces end with its processes. Idempotent."""
        if not self.is_ended:  # else its pid may be another process's
            self.is_ended = True
            self._kill()

    def end_later(self, others: contextlib.ExitStack) -> None:
        """Where no process of the task is left, end the sandbox when `others` closes."""
        if self.is_empty and not self.is_ended:
            self.is_ended = True
            others.callback(self._kill)

    def _kill(self) -> None:
        self.init.close()
        self.outer.close()
        if self.counter_socket is not None:
            self.counter_socket.close()
        for descriptor in (self.sockets or {}).values():
            os.close(descriptor)
        self.sockets = {}
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def wait_until_empty(self) -> bool:
        """Have init end, and wait until no process of the task is left; False if that takes over a second."""
        self.init.close()
        poll = select.poll()
        poll.register(self.outer.channel, select.POLLIN)
        with contextlib.suppress(OSError):  # the outermost process is gone, too
            while self.outer.ended is None:
                if not poll.poll(END_TIMEOUT * 1000):
                    return False
                self.outer.turn()
        self.is_empty = True
        return True


def start_empty(identity: Identity, resource_limits: ResourceLimits, steps: tuple[Step, ...] = ()) -> SandboxNamespaces:
    """Start an empty sandbox, which goes on making itself; `steps` of a mount plan are executed in advance.

    Raises HostError when the namespaces can't be made.
    """
    control, child_control = init.channel_pair()
    try:
        pid, outer = init.start()
    except OSError as error:
        for end in (control, child_control):
            end.close()
        raise HostError(f"{_NOT_MADE}: {error.strerror}") from error
    sandbox = SandboxNamespaces(pid, outer, RemoteExecutor(control), steps)
    try:
        with child_control:
            _enter_user_namespace(sandbox, identity)
            _enter_other_namespaces(outer, identity)
            # The kernel takes a while for this; meanwhile the sandbox makes its namespaces. It forks only afterwards.
            resource_limits.admit(pid)
            _start_init(outer, child_control)
        with explain_errors():
            begin_view_with(sandbox.init, steps)
    except BaseException as error:
        sandbox.end()
        if isinstance(error, OSError):
            raise HostError(f"{_NOT_MADE}: {error.strerror or error}") from error
        raise
    return sandbox


def _enter_user_namespace(sandbox: SandboxNamespaces, identity: Identity) -> None:
    """Have the outermost process enter its user namespace, and map its ids. Raises HostError."""
    sandbox.outer.calls.call("unshare", os.CLONE_NEWUSER)
    try:
        sandbox.outer.run()
    except ProcessGoneError as error:
        raise HostError("the sandbox's first process ended before it had a namespace") from error
    except OSError as error:
        reason = f"no user namespace can be made here ({os.strerror(error.errno or errno.EPERM)})"
        raise HostError(reason, namespace_remedy(error.errno)) from error
    map_ids(sandbox.pid, identity)


def map_ids(pid: int, identity: Identity) -> None:
    """Map the ids of a sandbox's outermost process. Raises HostError."""
    with namespace_used():
        write_map(pid, identity.outer_uids, identity.outer_gids, deny_setgroups=not identity.privileged)


def _enter_other_namespaces(outer: RemoteExecutor, identity: Identity) -> None:
    calls = outer.calls
    calls.step(_USE_NAMESPACE)
    if identity.slot >= 0:
        calls.take(identity.slot)  # a lock that lasts as long as a process of the sandbox
    if identity.privileged:
        calls.call("setgroups", 0, 0)
    calls.call("setresgid", 0, 0, 0)
    calls.call("setresuid", 0, 0, 0)
    calls.call("prctl", linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    calls.call("prctl", linux.PR_SET_DUMPABLE, 0)
    calls.call("unshare", functools.reduce(operator.or_, _UNSHARE_FLAGS.values()))
    calls.step(None)
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    calls.call("openat", linux.AT_FDCWD, "/proc", flags, into=HOST_PROC)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Passing descriptors counts against this limit: `proxy.wire.message`.
    limit = _RLIMIT.pack(*(number & (1 << 64) - 1 for number in (files, files)))
    calls.call("prlimit64", 0, resource.RLIMIT_NOFILE, limit, 0)
    outer.submit()


def _start_init(outer: RemoteExecutor, channel: socket.socket) -> None:
    calls = outer.calls
    # Only now: the group at this moment is the root of what the sandbox sees (cgroup_namespaces(7)).
    calls.call("unshare", os.CLONE_NEWCGROUP)
    init_channel = calls.take(channel.fileno())
    calls.fork(init_channel, FORKED_PID, leaf=False)
    calls.close(init_channel)
    outer.submit()


@contextlib.contextmanager
def explain_errors() -> Iterator[None]:
    """Raise a HostError that explains why a process of a sandbox failed."""
    try:
        yield
    except HostError as error:
        raise HostError(f"{_NOT_MADE}: {error.what}", error.remedy) from error
    except CallFailedError as error:
        explained = _namespace_error(error) if error.step == _USE_NAMESPACE else step_error(error)
        if isinstance(explained, HostError):
            raise HostError(f"{_NOT_MADE}: {explained.what}", explained.remedy) from error
        raise HostError(f"{_NOT_MADE}: {explained.strerror}") from error
    except OSError as error:
        raise HostError(f"{_NOT_MADE}: {error.strerror or error}") from error


def _namespace_error(error: CallFailedError) -> OSError | HostError:
    try:
        with namespace_used():
            raise OSError(error.errno, os.strerror(error.errno or errno.EPERM))
    except HostError as explained:
        return explained
