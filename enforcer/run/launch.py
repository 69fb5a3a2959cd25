"""Launches a task: completes an empty sandbox by its spec, starts the task, and sends its sockets to the worker."""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from enforcer.limits.limit_monitor import SandboxProbe
from enforcer.limits.resource_limits import ResourceLimits
from enforcer.sandbox import namespaces, task_start
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.init import RemoteExecutor
from enforcer.sandbox.mount_steps import Step
from enforcer.sandbox.namespaces import SandboxNamespaces
from enforcer.sandbox.overlays import Review
from enforcer.sandbox.path_scan import restore_mask
from enforcer.sandbox.stdio import SANDBOX_TERMINAL, TerminalSettings, make_terminal
from enforcer.sandbox.step_lists import ANY, QUOTA
from enforcer.sandbox.task_start import Program
from enforcer.seccomp_supervisor.process import SOCKET as WATCH
from enforcer.seccomp_supervisor.process import SupervisorProcess
from enforcer.system import linux
from enforcer.system.errors import HostError
from proxy.udp.sockets import allow_datagrams
from proxy.wire import message

_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})
_ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})


class SandboxSpec(NamedTuple):
    """Everything that a sandbox is made from. `gate`: the channel for the sandbox's sockets."""

    identity: Identity
    steps: Sequence[Step]
    program: Program
    stdio: tuple[int, int, int]
    gate: socket.socket
    hostname: str
    resource_limits: ResourceLimits
    locks: tuple[int, ...] = ()  # locks that last as long as a process of the sandbox
    worker_descriptors: Mapping[str, int] = _NOTHING  # descriptors for the worker beside the sandbox's sockets, by name
    named: bool = True  # rules or options set the host name
    terminal: TerminalSettings | None = None  # settings of the task's terminal; None: it has none
    umask: int = 0o022
    may_allow_udp: bool = False  # a rule allows UDP, or needs an approval for it


class Sandbox:
    """A launched sandbox. `task`: the pid of its task in there."""

    __slots__ = ("_probe", "namespaces", "supervisor", "task")

    def __init__(self, made: SandboxNamespaces, probe: SandboxProbe, supervisor: SupervisorProcess | None) -> None:
        self.namespaces = made
        self.supervisor = supervisor
        self.task = 0
        self._probe = probe

    @property
    def init(self) -> RemoteExecutor:
        """The init process, which reports the end of the task."""
        return self.namespaces.init

    def probe(self) -> tuple[dict[str, int], dict[str, object]]:
        """Return the kernel's packet counters, and which limits the task is at."""
        counters: dict[str, int] = {}
        with contextlib.suppress(OSError):
            counters = dict(self.namespaces.counters())
        return counters, self._probe.probe()

    def signal(self, number: int, *, group: bool) -> None:
        """Send the task a signal, or its whole process group, as a terminal does.

        SIGCONT goes to the group. It also follows signals that end a task, since a stopped one can't act on them and
        has no shell to continue it.
        """
        whom, calls = -self.task if group or number == signal.SIGCONT else self.task, self.init.calls
        calls.call("kill", whom, number, ignored=(ANY,))
        if number in _ENDING:
            calls.call("kill", whom, signal.SIGCONT, ignored=(ANY,))
        self.init.submit_silently()

    def mask(self, paths: Sequence[str]) -> None:
        """Mask rule files again that the host has replaced, and pin the directories above; outermost first."""
        for path in paths:
            self.init.calls.step(None)
            restore_mask(self.init.calls, path)
        self.init.submit_silently()

    def settle(self) -> None:
        """Wait a second or two until no process of the task is left, and the supervisor has reported all."""
        settled = self.namespaces.wait_until_empty()
        if self.supervisor is not None:
            self.supervisor.see_out()
        if not settled:
            self.end()

    def end(self) -> None:
        """Kill the sandbox; its namespaces end with its processes. Idempotent."""
        self.namespaces.end()
        self._probe.close()
        if self.supervisor is not None:
            self.supervisor.close()


def launch(
    spec: SandboxSpec, empty: SandboxNamespaces | None = None, relay: Callable[[int], None] = os.close
) -> Sandbox:
    """Start the sandbox, in `empty` if that has executed the first steps of this mount plan. The caller calls `end`.

    `relay` gets the primary side of the task's terminal, and returns once it is relayed. Raises HostError.
    """
    if empty is not None and not _starts_with(spec.steps, empty.executed_steps):
        empty.end()
        empty = None
    made = empty or namespaces.start_empty(spec.identity, spec.resource_limits)
    supervisor = sandbox = None
    try:
        made.wait_until_ready()
        if empty is not None:
            made.inherit_limits()
        if spec.program.supervised is not None:
            supervisor = SupervisorProcess(spec.program.supervised, made, spec.resource_limits)
        _send_sockets(spec, made.take_sockets(), supervisor)
        with namespaces.explain_errors():
            sandbox = _complete(spec, made, supervisor)
            stdio, task_side = _make_terminal(spec, made.init, relay)
            has_keys = spec.terminal is not None and spec.terminal.has_keys
            program = spec.program._replace(terminal=task_side if has_keys else -1)
            try:
                made.init.calls.call("umask", spec.umask)
                sandbox.task = task_start.start_task(
                    made.init, spec.identity, program, stdio, _listener_handler(supervisor)
                )
            finally:
                if task_side >= 0:
                    os.close(task_side)
    except BaseException:
        made.end()
        if sandbox is not None:
            sandbox.end()
        if supervisor is not None:
            supervisor.close()
        raise
    return sandbox


def _starts_with(steps: Sequence[Step], done: Sequence[Step]) -> bool:
    """Whether the plan begins with these steps, compared by type, too: equal tuples may be different steps."""
    first = steps[: len(done)]
    return len(first) == len(done) and all(type(a) is type(b) and a == b for a, b in zip(first, done, strict=True))


def _send_sockets(spec: SandboxSpec, sockets: Mapping[str, int], supervisor: SupervisorProcess | None) -> None:
    """Send the worker the sandbox's sockets and the spec's descriptors, and close them here.

    Datagrams wait in their socket until the worker serves it, as connections do. If a rule may allow UDP, the socket is
    opened here, before the task runs; the worker closes it again if its rules have changed.
    """
    worker_descriptors = dict(sockets) if supervisor is None else {**sockets, WATCH: supervisor.give()}
    try:
        if spec.may_allow_udp:
            with contextlib.suppress(OSError):  # it stays shut until the worker opens it
                allow_datagrams(worker_descriptors["udp"])
        everything = {**worker_descriptors, **spec.worker_descriptors}
        message.send(spec.gate, {"sockets": list(everything)}, list(everything.values()))
    finally:
        for descriptor in worker_descriptors.values():
            os.close(descriptor)


def _complete(spec: SandboxSpec, made: SandboxNamespaces, supervisor: SupervisorProcess | None) -> Sandbox:
    """Execute the rest of the mount plan, and make it the root."""
    for lock in spec.locks:
        made.outer.calls.take(lock)
    made.outer.submit_silently()
    namespaces.execute_steps(made.init, spec.steps[len(made.executed_steps) :])
    namespaces.finish_view(made.init)
    calls, name = made.init.calls, os.fsencode(spec.hostname)
    sethostname_result = calls.get("sethostname", name, len(name), ignored=(errno.EPERM,))
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    proc = calls.get("openat", linux.AT_FDCWD, "/proc", flags)
    root = calls.get("openat", linux.AT_FDCWD, "/", flags)
    room, proc_of, root_of = made.init.run(QUOTA, proc, root)
    # A container's filter may deny it: a default name is left out then.
    if made.init.value(sethostname_result) < 0 and spec.named and socket.gethostname() != spec.hostname:
        raise _hostname_error(spec.hostname)
    reviewed = next((step.source for step in spec.steps if isinstance(step, Review)), "")
    return Sandbox(made, SandboxProbe(room, proc_of, root_of, spec.program.rlimits, reviewed), supervisor)


def _hostname_error(name: str) -> HostError:
    """Return the error for a filter that denies the host name of rules or options."""
    why = f"`hostname` can't be `{name}`: the filter that this runs under refuses sethostname(2)"
    return HostError(why, "in a container, leave it out, or say the same to the container's engine (`--hostname`)")


def _make_terminal(
    spec: SandboxSpec, init: RemoteExecutor, relay: Callable[[int], None]
) -> tuple[tuple[int, int, int], int]:
    """Make the task's terminal, and start relaying it; returns the task's streams, and its side of the terminal.

    Until keys are relayed they go to the caller's terminal, where ^C means the run.
    """
    if spec.terminal is None:
        return spec.stdio, -1
    try:
        primary, task_side = make_terminal(init, spec.terminal, spec.identity.kernel_uid)
    except OSError as error:
        raise OSError(error.errno, f"could not make its terminal: {error.strerror}") from error
    try:
        relay(primary)
    except OSError as error:
        os.close(task_side)
        why = f"nobody can carry what passes through its terminal: {error.strerror or error}"
        raise OSError(error.errno, why) from error
    first, second, third = (task_side if number == SANDBOX_TERMINAL else number for number in spec.stdio)
    return (first, second, third), task_side


def _listener_handler(supervisor: SupervisorProcess | None) -> Callable[[int], None]:
    return os.close if supervisor is None else supervisor.listen
