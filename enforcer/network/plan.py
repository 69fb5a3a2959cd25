"""Network plan of a sandbox as values, which `encode` turns into netlink messages and `install` sends.

IPv4 and IPv6 stand apart because a kernel (or its administrator) may have switched IPv6 off: then IPv4 alone works,
and there is no IPv6 route for anything to take.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from enforcer.network.constants import GATE_PORT, OWN_IPV4, OWN_IPV6
from enforcer.network.ruleset import Statement, ruleset
from proxy.wire.netlink import NETLINK_NETFILTER, NETLINK_ROUTE


class BringUpLoopback(NamedTuple):
    """Bring `lo` up: it is the first device of every network namespace."""

    def describe(self) -> str:
        return "bring `lo` up"


class AddAddress(NamedTuple):
    """Give the sandbox an address that connections come from."""

    address: IPv4Address | IPv6Address

    def describe(self) -> str:
        return f"add the address {self.address} to `lo`"


class RouteToLoopback(NamedTuple):
    """Route every address of a family to `lo`, so that the kernel delivers here what is sent anywhere."""

    source: IPv4Address | IPv6Address

    def describe(self) -> str:
        everything = "0.0.0.0/0" if self.source.version == 4 else "::/0"
        return f"route {everything} to `lo`, from {self.source}"


class Batch(NamedTuple):
    """Statements that go to the kernel in one message, over one netlink protocol."""

    protocol: int
    statements: tuple[BringUpLoopback | AddAddress | RouteToLoopback | Statement, ...]

    def describe(self) -> tuple[str, ...]:
        """Say what this does, a line a statement."""
        return tuple(statement.describe() for statement in self.statements)


class NetworkPlan(NamedTuple):
    """The steps, in order. `unlogged` takes the place of `ruleset` where the kernel has no NFLOG."""

    gate_port: int
    link: Batch
    ipv4: Batch
    ipv6: Batch
    ruleset: Batch
    unlogged: Batch

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Every batch, in the order in which `encode` encodes them."""
        return self.link, self.ipv4, self.ipv6, self.ruleset, self.unlogged

    def describe(self) -> tuple[str, ...]:
        """Say what executing this does on a kernel that has everything, a line a step."""
        return tuple(line for batch in self.batches[:-1] for line in batch.describe())


def network_plan(gate_port: int = GATE_PORT) -> NetworkPlan:
    """Return the plan of a sandbox's network whose gate listens on `gate_port`."""
    return NetworkPlan(
        gate_port=gate_port,
        link=Batch(NETLINK_ROUTE, (BringUpLoopback(),)),
        ipv4=Batch(NETLINK_ROUTE, (AddAddress(OWN_IPV4), RouteToLoopback(OWN_IPV4))),
        ipv6=Batch(NETLINK_ROUTE, (AddAddress(OWN_IPV6), RouteToLoopback(OWN_IPV6))),
        ruleset=Batch(NETLINK_NETFILTER, ruleset(gate_port)),
        unlogged=Batch(NETLINK_NETFILTER, ruleset(gate_port, log=False)),
    )
