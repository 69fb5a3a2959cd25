"""How a sandbox's network is made by who made the sandbox, through sockets that were opened in there.

Worked out once, for every sandbox.
"""

import socket
from collections.abc import Mapping
from pathlib import Path

from enforcer.network.cache import cached
from enforcer.network.counters import open_counter_socket, read_counters
from enforcer.network.execute import USED, execute, written
from enforcer.network.plan import network_plan
from enforcer.network.sockets import SOCKETS, open_gate_sockets
from enforcer.sandbox.hull import Network
from enforcer.sandbox.sockets import Maker


def making(cache: Path) -> Network:
    """Work it out; `cache` is where the bytes are kept that it takes. Raises OSError."""
    plan = network_plan()
    encoded = cached(plan, cache)
    for batch in encoded:
        written(batch)  # once, for who is forked

    def prepare(make: Maker) -> tuple[Mapping[str, int], socket.socket]:
        make.expect((*USED, *SOCKETS))
        try:
            installed = execute(plan, encoded, make=make)
            sockets = open_gate_sockets(
                plan.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6, make=make
            ).named()
            counting = open_counter_socket(make)
        finally:
            make.close()
        return {name: sock.detach() for name, sock in sockets.items()}, counting

    return Network(prepare, read_counters)
