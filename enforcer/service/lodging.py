"""A sandbox's place in a worker of the service, as the process that looks after its task sees it.

It takes the part of a worker of its own (`enforcer.worker.worker`): what is said to it the service passes on, and a
worker that died and was replaced is never noticed here.
"""

import os
import socket
from typing import TYPE_CHECKING

from enforcer.worker.worker import Worker

if TYPE_CHECKING:
    from enforcer.policy.run_request import Wanted
    from proxy.tenant import Tenant


class Lodging(Worker):
    """A place in the service. Its channel is also what the sandbox's sockets are sent through."""

    def kill(self) -> None:
        """Give the place up: the service sees to the rest."""
        self.alive = False
        self.control.close()


def take(service: socket.socket, tenant: "Tenant", wanted: "Wanted", *, shared: bool, known: int) -> Lodging:
    """Ask for a place. `shared`: the rules may be those of other runs too, and are watched by the service.

    `known` is the set that they were found in there; 0: they were read here.
    """
    request: dict[str, object] = {
        "lodge": tenant.sandbox,
        "id": tenant.task.id,
        "name": tenant.task.name,
        "labels": dict(tenant.task.labels),
        "workspace": wanted.workspace,
    }
    lodging = Lodging(-1, service, service, watches_rules=shared)
    if known:
        lodging.tell({**request, "known": known})
        if not lodging.hear() or "unknown" not in lodging.said:
            return lodging
        del lodging.said["unknown"]  # it was dropped in this very moment
    request |= {
        "files": [os.path.join(os.getcwd(), path) for path in wanted.rules],
        "asked": list(wanted.asked),
        "seen": wanted.seen,
        "system": str(wanted.system),
        "shared": shared,
    }
    policy = _written(tenant)
    try:
        lodging.tell(request, [policy])
    finally:
        os.close(policy)
    return lodging


def _written(tenant: "Tenant") -> int:
    """Put the policy into a memory file. There is no login beside it: who has one has a worker of its own."""
    from proxy import handover
    from proxy.dialling import proxy_auth

    policy = os.memfd_create("policy", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(policy), "wb") as file:
        proxy_auth.send(None, file)
        handover.send(tenant.policy, file)
    return policy
