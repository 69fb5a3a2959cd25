"""Setup of a run in the service: its command, its caller's settings, and an empty sandbox made in advance.

The empty sandbox has the default limits and is for one task, or none. Where it can't be made, the run makes one itself
and reports the problem.
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

    from enforcer.policy.rule_files import LoadedRules
    from enforcer.policy.run_request import RunRequest
    from enforcer.run.host import Host
    from enforcer.service import protocol


class RunCommand(NamedTuple):
    """The functions of `exeat run` on the command line, which the service gets once and each run inherits."""

    read: "Callable[[Sequence[str]], Namespace]"  # raises SystemExit after printing a usage error
    make_request: "Callable[[Namespace, Path, Callable[[Sequence[Path], Path], LoadedRules]], RunRequest]"
    perform: "Callable[[Namespace, Path, Host], int]"  # returns a wait status
    status_if_unwritable: "Callable[[OSError], int | None]"  # the status if our output can't be written


def take_settings(request: "protocol.Run") -> None:
    """Take over the caller's settings: environment, umask, limits, priority and ignored signals."""
    _take_environment(request.environment)
    os.umask(request.umask)
    for number, (soft, hard) in enumerate(request.limits):
        with contextlib.suppress(OSError, ValueError):  # the caller's limit may exceed the service's
            resource.setrlimit(number, (soft, hard))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, request.nice)
    reset_signals({signal.SIGPIPE, *(number for number in range(1, 65) if request.ignored >> (number - 1) & 1)})


def _take_environment(variables: "Mapping[str, str]") -> None:
    """Set exactly these variables, writing only differences: each putenv(3) copies shared memory."""
    for name in [name for name in os.environ if name not in variables]:
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


class EmptySandbox(NamedTuple):
    """An empty sandbox with its ids, the `limits` it was made for, and what keeps them."""

    ids: Identity
    limits: Limits
    resource_limits: ResourceLimits
    namespaces: SandboxNamespaces

    def descriptors(self) -> set[int]:
        """Return the descriptors that have to stay open."""
        locks = (group.lock for group in self.resource_limits.groups)
        return {self.ids.slot, *self.namespaces.descriptors(), *identity.idmap_descriptors(), *locks}

    def close(self) -> None:
        """Remove it unused."""
        self.namespaces.end()
        self.resource_limits.remove()
        if self.ids.slot >= 0:
            os.close(self.ids.slot)


def prepare_empty_sandbox(service: socket.socket) -> tuple[EmptySandbox | None, socket.socket]:
    """Close everything of the service except the channel to it, and make an empty sandbox."""
    moved = socket.socket(fileno=os.dup(service.detach()))
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    linux.keep_only({0, 1, 2, moved.fileno(), *init.shared_descriptors()})
    reset_signals(())
    try:
        empty = make_empty_sandbox(with_limits=True)
    except (ExeatError, OSError):
        return None, moved
    if empty.ids.privileged:  # most shown files belong to this user
        owner = os.geteuid(), os.getegid()
        with contextlib.suppress(HostError):
            identity.make_idmap_ahead(owner, (empty.ids.kernel_uid, empty.ids.kernel_gid))
    return empty, moved


def make_empty_sandbox(*, with_limits: bool) -> EmptySandbox:
    """Make an empty sandbox; the caller calls `close`. Raises ExeatError, OSError.

    Without `with_limits` it has no limits, so no task may have it.
    """
    with contextlib.ExitStack() as made:
        ids, limits = identity.choose(), limits_of(NO_SANDBOX_SETTINGS)
        if ids.slot >= 0:
            made.callback(os.close, ids.slot)
        resource_limits = make_resource_limits(limits) if with_limits else ResourceLimits(limits, (), (), {})
        made.callback(resource_limits.remove)
        namespaces = sandbox_spec.start_empty_sandbox(ids, resource_limits)
        made.callback(namespaces.end)
        namespaces.wait_until_ready()
        made.pop_all()
    return EmptySandbox(ids, limits, resource_limits, namespaces)
