"""A sandbox's network as a plan of netlink messages, and how they are installed in its namespace.

Only sockets and bytes, so that it takes a millisecond. The caller owns the network namespace, or is root in there.

IPv4 and IPv6 stand apart because a kernel (or its administrator) may have switched IPv6 off: then IPv4 alone works,
and there is no IPv6 route for anything to take.

The kernel reports each statement that fails, and acknowledges the last of a batch. An acknowledgement of each would say
no more: the kernel answers every message that fails, whether or not it asks for that, in order and before the last
(netlink(7); net/netlink/af_netlink.c, net/netfilter/nfnetlink.c). What was installed before a failure is closed:
without its last step, the ruleset's atomic batch, the namespace has no gate and no way out either.
"""

import errno
import functools
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from enforcer.network.constants import GATE_PORT, OWN_IPV4, OWN_IPV6, MakeSocket
from enforcer.network.gate_sockets import SOCKETS, open_counter_socket, open_gate_sockets
from enforcer.network.ruleset import Statement, ruleset
from proxy.wire.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    message,
    messages,
)

_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
# The sockets that `install` takes where the kernel has everything.
USED: Final = (
    (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE),
    (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER),
    (socket.AF_INET6, socket.SOCK_DGRAM, 0),
    *SOCKETS,
)
_PATIENCE = 5.0  # seconds; the kernel answers before sendmsg returns, so this only ends a hang
_LARGEST_ANSWER = 65536

# linux/rtnetlink.h, if_addr.h, if_link.h, nfnetlink.h
_NEWLINK, _NEWADDR, _NEWROUTE = 16, 20, 24
_LO: Final = 1  # the index of `lo` in every namespace
_IFF_UP, _IFA_F_NODAD = 1, 0x02  # without NODAD the address is tentative and the route below it fails now and then
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_PREFSRC, _RTA_TABLE = 4, 7, 15
_TABLE_LOCAL, _TYPE_LOCAL, _SCOPE_HOST, _PROTO_STATIC = 255, 2, 254, 4
_BATCH_BEGIN, _BATCH_END, _NFTABLES = 0x10, 0x11, 10
EDGE: Final = struct.pack("!BBH", socket.AF_UNSPEC, 0, _NFTABLES)


class Batch(NamedTuple):
    """Statements that go to the kernel in one message. They are numbered from `first` on; the last is acknowledged."""

    statements: tuple[Statement, ...]
    first: int
    data: bytes

    @property
    def last(self) -> int:
        """The sequence number of the last statement."""
        return self.first + len(self.statements) - 1


def batch(*statements: Statement) -> Batch:
    """Put statements into one message."""
    return Batch(statements, 1, _encoded(statements, 1))


def ruleset_batch(statements: tuple[Statement, ...]) -> Batch:
    """Put a ruleset into one message, between a begin and an end, which make it all or nothing."""
    edges = ((_BATCH_BEGIN, 1), (_BATCH_END, len(statements) + 2))
    begin, end = (message(kind, NLM_F_REQUEST, EDGE, number) for kind, number in edges)
    return Batch(statements, 2, begin + _encoded(statements, 2) + end)


def _encoded(statements: tuple[Statement, ...], first: int) -> bytes:
    *others, last = enumerate(statements, first)
    numbered = [*((number, each, 0) for number, each in others), (*last, NLM_F_ACK)]
    return b"".join(
        message(each.kind, NLM_F_REQUEST | each.flags | ack, each.payload, number) for number, each, ack in numbered
    )


class NetworkPlan(NamedTuple):
    """The steps, in order."""

    gate_port: int
    link: Batch
    ipv4: Batch
    ipv6: Batch
    ruleset: Batch

    @property
    def unlogged(self) -> Batch:
        """What takes the place of `ruleset` where the kernel has no NFLOG."""
        return ruleset_batch(tuple(each for each in self.ruleset.statements if not each.logs))

    def describe(self) -> tuple[str, ...]:
        """Say what executing this does on a kernel that has everything, a line a step."""
        return tuple(each.describe() for batch in self[1:] for each in batch.statements)


class Installed(NamedTuple):
    """What this kernel made of a plan."""

    ipv6: bool
    refusal_log: bool


class StepFailedError(OSError):
    """The kernel refused a step of the plan. `errno` is its own."""

    statement = 0  # the step's place in its batch


@functools.cache
def network_plan(gate_port: int = GATE_PORT) -> NetworkPlan:
    """Return the plan of a sandbox's network whose gate listens on `gate_port`."""
    return NetworkPlan(
        gate_port=gate_port,
        link=batch(_link_up()),
        ipv4=batch(_own_address(OWN_IPV4), _everything_is_local(OWN_IPV4)),
        ipv6=batch(_own_address(OWN_IPV6), _everything_is_local(OWN_IPV6)),
        ruleset=ruleset_batch(ruleset(gate_port)),
    )


def _link_up() -> Statement:
    """Bring `lo` up: it is the first device of every network namespace."""
    header = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, _LO, _IFF_UP, _IFF_UP)  # struct ifinfomsg
    return Statement("bring `lo` up", _NEWLINK, 0, header)


def _own_address(address: IPv4Address | IPv6Address) -> Statement:
    """Give the sandbox an address that connections come from."""
    flags = _IFA_F_NODAD if address.version == 6 else 0
    header = struct.pack("=BBBBI", _family(address), address.max_prefixlen, flags, 0, _LO)  # struct ifaddrmsg
    own = attribute(_IFA_ADDRESS, address.packed) + attribute(_IFA_LOCAL, address.packed)
    return Statement(f"add the address {address} to `lo`", _NEWADDR, NLM_F_CREATE | NLM_F_EXCL, header + own)


def _everything_is_local(source: IPv4Address | IPv6Address) -> Statement:
    """Route every address of a family to `lo`, so that the kernel delivers here what is sent anywhere."""
    everything = "0.0.0.0/0" if source.version == 4 else "::/0"
    kinds = _TABLE_LOCAL, _PROTO_STATIC, _SCOPE_HOST, _TYPE_LOCAL
    header = struct.pack("=8BI", _family(source), 0, 0, 0, *kinds, 0)  # struct rtmsg
    numbers = (
        attribute(kind, struct.pack("=I", value)) for kind, value in ((_RTA_TABLE, _TABLE_LOCAL), (_RTA_OIF, _LO))
    )
    payload = b"".join((header, *numbers, attribute(_RTA_PREFSRC, source.packed)))
    said = f"route {everything} to `lo`, from {source}"
    return Statement(said, _NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, payload)


def _family(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def install(make: MakeSocket) -> tuple[dict[str, int], socket.socket]:
    """Make the network of the namespace that `make` makes sockets in: of those `USED`, each once.

    Returns descriptors of the gate's sockets, by name, and a socket for `read_counters`. Raises OSError.
    """
    plan = network_plan()
    installed = execute(plan, make=make)
    sockets = open_gate_sockets(plan.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6, make=make)
    counting = open_counter_socket(make)
    return {name: sock.detach() for name, sock in sockets.named().items()}, counting


def execute(plan: NetworkPlan, *, again: bool = False, make: MakeSocket = socket.socket) -> Installed:
    """Make the network of the namespace that `make` makes sockets in.

    `again`: addresses and routes may be there already, of an earlier time. Raises `StepFailedError`, `OSError`.
    """
    there = errno.EEXIST if again else 0
    with _opened(make, NETLINK_ROUTE) as route:
        _send(route, plan.link)
        _send(route, plan.ipv4, there)
        has_ipv6 = ipv6_works(make)
        if has_ipv6:
            _send(route, plan.ipv6, there)
    with _opened(make, NETLINK_NETFILTER) as netfilter:
        try:
            _send(netfilter, plan.ruleset)
        except StepFailedError as error:
            # ENOENT is what nf_tables says of an expression or a logger that the kernel doesn't have and can't load.
            if error.errno != errno.ENOENT or not plan.ruleset.statements[error.statement].logs:
                raise
        else:
            return Installed(has_ipv6, refusal_log=True)
    with _opened(make, NETLINK_NETFILTER) as netfilter:  # the other may have more to say of what failed
        _send(netfilter, plan.unlogged)
    return Installed(has_ipv6, refusal_log=False)


def ipv6_works(make: MakeSocket = socket.socket) -> bool:
    """Whether the namespace has IPv6, once `lo` is up: not without it in the kernel, nor with lo.disable_ipv6."""
    try:
        with make(socket.AF_INET6, socket.SOCK_DGRAM, 0) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return False
        raise
    return True


def _opened(make: MakeSocket, protocol: int) -> socket.socket:
    sock = make(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        sock.settimeout(_PATIENCE)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # don't send the failed message back
        sock.bind((0, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _send(sock: socket.socket, batch: Batch, no_matter: int = 0) -> None:
    """Send one batch and read until its last statement is acknowledged, or has this error, which is none."""
    sock.send(batch.data)
    done = False
    while not done:
        for answer in messages(sock.recv(_LARGEST_ANSWER)):
            if answer.kind != NLMSG_ERROR:
                continue
            if answer.errno and answer.errno != no_matter:
                statement = min(max(answer.sequence - batch.first, 0), len(batch.statements) - 1)
                raise _step_failed(answer.errno, batch, statement)
            done = done or answer.sequence == batch.last


def _step_failed(number: int, batch: Batch, statement: int) -> StepFailedError:
    error = StepFailedError(number, f"cannot {batch.statements[statement].says}: {os.strerror(number)}")
    error.statement = statement
    return error
