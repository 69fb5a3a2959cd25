"""Network plan of a sandbox as values, which `encode` turns into netlink messages and `install` sends.

IPv4 and IPv6 are separate: with IPv6 disabled in the kernel or by an administrator, IPv4 alone works, and there is no
IPv6 route.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from enforcer.network.constants import GATE_PORT, OWN_IPV4, OWN_IPV6
from enforcer.network.ruleset import Statement, ruleset
from proxy.wire.netlink import NETLINK_NETFILTER, NETLINK_ROUTE


class BringUpLoopback(NamedTuple):
    """Bring `lo` up, the first device of every network namespace."""

    def describe(self) -> str:
        return "bring `lo` up"


class AddAddress(NamedTuple):
    """Give the sandbox an address as the source of its connections."""

    address: IPv4Address | IPv6Address

    def describe(self) -> str:
        return f"add the address {self.address} to `lo`"


class RouteToLoopback(NamedTuple):
    """Route every address of a family to `lo`, so that the kernel delivers every packet locally."""

    source: IPv4Address | IPv6Address

    def describe(self) -> str:
        everything = "0.0.0.0/0" if self.source.version == 4 else "::/0"
        return f"route {everything} to `lo`, from {self.source}"


class Batch(NamedTuple):
    """Statements that are sent in one message, over one netlink protocol."""

    protocol: int
    statements: tuple[BringUpLoopback | AddAddress | RouteToLoopback | Statement, ...]

    def describe(self) -> tuple[str, ...]:
        """Return one line for each statement."""
        return tuple(statement.describe() for statement in self.statements)


class NetworkPlan(NamedTuple):
    """The steps, in order. `unlogged` replaces `ruleset` on a kernel without NFLOG."""

    gate_port: int
    link: Batch
    ipv4: Batch
    ipv6: Batch
    ruleset: Batch
    unlogged: Batch

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Every batch, in the order of `encode`."""
        return self.link, self.ipv4, self.ipv6, self.ruleset, self.unlogged

    def describe(self) -> tuple[str, ...]:
        """Return one line for each step on a kernel with every feature."""
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
