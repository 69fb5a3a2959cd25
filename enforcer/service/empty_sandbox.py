"""Empty sandbox with the usual limits, made by the process of a run before anybody asks for one.

It is for one task, or for none. Where it can't be made, the run makes one itself, and reports what is wrong.
"""

import contextlib
import os
import socket
from typing import NamedTuple

from enforcer.limits.resource_limits import Limits, ResourceLimits, build, limits_of
from enforcer.run import sandbox_spec
from enforcer.sandbox import identity, init
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.namespaces import SandboxNamespaces
from enforcer.system import linux
from enforcer.system.errors import ExeatError, HostError
from enforcer.system.processes import dispose
from rules.sandbox import NO_BOX


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


def prepare(service: socket.socket) -> tuple[EmptySandbox | None, socket.socket]:
    """Let go of all that is the service's but the channel to it, and make an empty sandbox."""
    moved = socket.socket(fileno=os.dup(service.detach()))
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    linux.keep_only({0, 1, 2, moved.fileno(), *init.kept_files()})
    dispose(())
    try:
        spare = make(fenced=True)
    except (ExeatError, OSError):
        return None, moved
    if spare.who.privileged:  # most of what a user shows is that user's own
        owner = os.geteuid(), os.getegid()
        with contextlib.suppress(HostError):
            identity.make_idmap_ahead(owner, (spare.who.kernel_uid, spare.who.kernel_gid))
    return spare, moved


def make(*, fenced: bool) -> EmptySandbox:
    """Make an empty sandbox, which is the caller's to `close`. Raises ExeatError, OSError.

    Not `fenced`, nothing keeps it within its limits: no task may have it.
    """
    with contextlib.ExitStack() as made:
        who, limits = identity.choose(), limits_of(NO_BOX)
        if who.slot >= 0:
            made.callback(os.close, who.slot)
        resource_limits = build(limits) if fenced else ResourceLimits(limits, (), (), {})
        made.callback(resource_limits.remove)
        namespaces = sandbox_spec.empty(who, resource_limits)
        made.callback(namespaces.end)
        namespaces.ready()
        made.pop_all()
    return EmptySandbox(who, limits, resource_limits, namespaces)
