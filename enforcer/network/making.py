"""How a sandbox's first process makes its network, and reads in it what the kernel refused.

Imported in that process, if nobody has worked it out before: a run goes on meanwhile, and needs none of it.
"""

from collections.abc import Sequence
from pathlib import Path

from enforcer.network.cache import cached
from enforcer.network.counters import open_counter_socket, read_counters
from enforcer.network.execute import execute
from enforcer.network.plan import network_plan
from enforcer.network.sockets import open_gate_sockets
from enforcer.sandbox.hull import Network


def making(cache: Path) -> Network:
    """Work it out; `cache` is where the bytes are kept that it takes. Raises OSError."""
    plan = network_plan()
    encoded = cached(plan, cache)

    def prepare() -> tuple[dict[str, object], Sequence[int]]:
        installed = execute(plan, encoded)
        sockets = open_gate_sockets(plan.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6)
        found = sockets.named()
        return {"sockets": list(found)}, [sock.detach() for sock in found.values()]

    def counters() -> dict[str, int]:
        with open_counter_socket() as sock:
            return read_counters(sock)

    return Network(prepare, counters)
