"""Sets up a run in the service: its command, the settings of its caller, and an empty sandbox made ahead.

The empty sandbox has the usual limits and is for one task, or for none. Where it can't be made, the run makes one
itself, and reports what is wrong.
"""

import contextlib
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING, NamedTuple

from enforcer.limits.resource_limits import Limits, ResourceLimits, limits_of, make_resource_limits
from enforcer.run import sandbox_spec
from enforcer.sandbox import identity, init
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.namespaces import SandboxNamespaces
from enforcer.system import linux
from enforcer.system.errors import ExeatError, HostError
from enforcer.system.processes import reset_signals
from rules.sandbox import NO_SANDBOX_SETTINGS

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from enforcer.policy.rule_files import Seen
    from enforcer.policy.run_request import Wanted
    from enforcer.run.host import Host
    from enforcer.service import protocol


class RunCommand(NamedTuple):
    """`exeat run` as the command line has it: the service is given it, made once, and each run is forked with it."""

    read: "Callable[[Sequence[str]], Namespace]"  # raises SystemExit, having said what is wrong with the words
    wanted: "Callable[[Namespace, Path, Callable[[Sequence[Path], Path], Seen]], Wanted]"
    perform: "Callable[[Namespace, Path, Host], int]"  # returns a wait status
    status_if_unsaid: "Callable[[OSError], int | None]"  # the status where our output can't be written


def take_settings(request: "protocol.Run") -> None:
    """Be to the task what its caller is: environment, umask, limits, priority, and what it has set to be ignored."""
    _take_environment(request.environment)
    os.umask(request.umask)
    for number, (soft, hard) in enumerate(request.limits):
        with contextlib.suppress(OSError, ValueError):  # less than the service itself may have, it can't be given
            resource.setrlimit(number, (soft, hard))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, request.nice)
    reset_signals({signal.SIGPIPE, *(number for number in range(1, 65) if request.ignored >> (number - 1) & 1)})


def _take_environment(wanted: "Mapping[str, str]") -> None:
    """Have these variables and no others, writing what differs: each putenv(3) copies memory that many runs share."""
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


class EmptySandbox(NamedTuple):
    """An empty sandbox, under whose ids it is, and what keeps it within `limits`, which is what was asked for."""

    who: Identity
    limits: Limits
    resource_limits: ResourceLimits
    namespaces: SandboxNamespaces

    def descriptors(self) -> set[int]:
        """Return what has to stay open for it."""
        locks = (group.lock for group in self.resource_limits.groups)
        return {self.who.slot, *self.namespaces.descriptors(), *identity.idmap_descriptors(), *locks}

    def close(self) -> None:
        """Let nobody have it."""
        self.namespaces.end()
        self.resource_limits.remove()
        if self.who.slot >= 0:
            os.close(self.who.slot)


def prepare_empty_sandbox(service: socket.socket) -> tuple[EmptySandbox | None, socket.socket]:
    """Let go of all that is the service's but the channel to it, and make an empty sandbox."""
    moved = socket.socket(fileno=os.dup(service.detach()))
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    linux.keep_only({0, 1, 2, moved.fileno(), *init.kept_files()})
    reset_signals(())
    try:
        spare = make_empty_sandbox(fenced=True)
    except (ExeatError, OSError):
        return None, moved
    if spare.who.privileged:  # most of what a user shows is that user's own
        owner = os.geteuid(), os.getegid()
        with contextlib.suppress(HostError):
            identity.make_idmap_ahead(owner, (spare.who.kernel_uid, spare.who.kernel_gid))
    return spare, moved


def make_empty_sandbox(*, fenced: bool) -> EmptySandbox:
    """Make an empty sandbox, which is the caller's to `close`. Raises ExeatError, OSError.

    Not `fenced`, nothing keeps it within its limits: no task may have it.
    """
    with contextlib.ExitStack() as made:
        who, limits = identity.choose(), limits_of(NO_SANDBOX_SETTINGS)
        if who.slot >= 0:
            made.callback(os.close, who.slot)
        resource_limits = make_resource_limits(limits) if fenced else ResourceLimits(limits, (), (), {})
        made.callback(resource_limits.remove)
        namespaces = sandbox_spec.start_empty_sandbox(who, resource_limits)
        made.callback(namespaces.end)
        namespaces.ready()
        made.pop_all()
    return EmptySandbox(who, limits, resource_limits, namespaces)
