"""Do what a plan says, from bytes that `encode` made: called by who owns the network namespace or is root in there.

Only sockets and bytes: no pyroute2, no asyncio, so that it takes a millisecond.
The kernel tells of each step that fails, and acknowledges the last of a batch: one that fails ends it with an OSError
that names the step. What was done by then is closed: without its last step, the ruleset's atomic batch, the namespace
has no gate and no way out either.
"""

import errno
import functools
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from enforcer.network.nftables import Rule
from enforcer.network.place import MakeSocket
from proxy.netlink import HEADER, NETLINK_NETFILTER, NETLINK_ROUTE, NLM_F_ACK, NLMSG_ERROR, messages

if TYPE_CHECKING:
    from enforcer.network.plan import Batch, NetworkPlan

type Encoded = tuple[tuple[bytes, ...], ...]  # the messages of every batch of a plan

_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_ROUTE = (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
# The sockets that this takes where the kernel has everything.
USED = (
    _ROUTE,
    (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER),
    (socket.AF_INET6, socket.SOCK_DGRAM, 0),
)
_PATIENCE = 5.0  # seconds; the kernel answers before sendmsg returns, so this only ends a hang
_LARGEST_ANSWER = 65536


class Installed(NamedTuple):
    """What this kernel made of a plan."""

    ipv6: bool
    refusal_log: bool


class StepFailedError(OSError):
    """The kernel refused a step of the plan. `errno` is its own."""

    statement = 0  # the step's place in its batch


def execute(
    plan: "NetworkPlan", encoded: Encoded, *, again: bool = False, make: MakeSocket = socket.socket
) -> Installed:
    """Make the network of the namespace that `make` makes sockets in what the plan says.

    `again`: addresses and routes may be there already, of an earlier time. Raises `StepFailedError`, `OSError`.
    """
    link, ipv4, ipv6, ruleset, unlogged = encoded
    there = errno.EEXIST if again else 0
    with _opened(make, NETLINK_ROUTE) as route:
        _send(route, plan.link, link)
        _send(route, plan.ipv4, ipv4, there)
        has_ipv6 = ipv6_works(make)
        if has_ipv6:
            _send(route, plan.ipv6, ipv6, there)
    with _opened(make, NETLINK_NETFILTER) as netfilter:
        try:
            _send(netfilter, plan.ruleset, ruleset)
        except StepFailedError as error:
            if not _only_nflog_is_missing(plan.ruleset, error):
                raise
        else:
            return Installed(has_ipv6, refusal_log=True)
    with _opened(make, NETLINK_NETFILTER) as netfilter:  # the other may have more to say of what failed
        _send(netfilter, plan.unlogged, unlogged)
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


def _only_nflog_is_missing(batch: "Batch", error: StepFailedError) -> bool:
    """ENOENT is what nf_tables says of an expression or a logger that the kernel doesn't have and can't load."""
    statement = batch.statements[error.statement]
    return error.errno == errno.ENOENT and isinstance(statement, Rule) and statement.logs


class Sent(NamedTuple):
    """A batch as it is sent. The first statement's sequence number, and the last one's, which is acknowledged."""

    data: bytes
    first: int
    last: int
    statements: int


@functools.lru_cache(maxsize=16)
def written(encoded: tuple[bytes, ...]) -> Sent:
    """Return the messages of a batch as they are sent: numbered, and the last of its statements to be acknowledged.

    An acknowledgement of each would say no more: the kernel answers every message that fails, whether or not it asks
    for that, in order and before the last (netlink(7); net/netlink/af_netlink.c, net/netfilter/nfnetlink.c).
    """
    steps = [number + 1 for number, message in enumerate(encoded) if _wants_ack(message)]
    data = b"".join(
        _numbered(message, number + 1, ack=number + 1 == steps[-1]) for number, message in enumerate(encoded)
    )
    return Sent(data, steps[0], steps[-1], len(steps))


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


def _send(sock: socket.socket, batch: "Batch", encoded: tuple[bytes, ...], no_matter: int = 0) -> None:
    """Send one batch and read until its last statement is acknowledged, or has this error, which is none."""
    sent = written(encoded)
    if sent.statements != len(batch.statements):
        raise ValueError(f"{sent.statements} encoded messages for a batch of {len(batch.statements)} statements")
    sock.send(sent.data)
    done = False
    while not done:
        for answer in messages(sock.recv(_LARGEST_ANSWER)):
            if answer.kind != NLMSG_ERROR:
                continue
            if answer.errno and answer.errno != no_matter:
                statement = min(max(answer.sequence - sent.first, 0), len(batch.statements) - 1)
                raise _step_failed(answer.errno, batch, statement)
            done = done or answer.sequence == sent.last


def _step_failed(number: int, batch: "Batch", statement: int) -> StepFailedError:
    error = StepFailedError(number, f"cannot {batch.statements[statement].describe()}: {os.strerror(number)}")
    error.statement = statement
    return error


def _wants_ack(message: bytes) -> bool:
    return bool(HEADER.unpack_from(message)[2] & NLM_F_ACK)


def _numbered(message: bytes, sequence: int, *, ack: bool) -> bytes:
    length, kind, flags, _, port = HEADER.unpack_from(message)
    flags = flags if ack else flags & ~NLM_F_ACK
    return HEADER.pack(length, kind, flags, sequence, port) + message[HEADER.size :]
