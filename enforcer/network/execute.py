"""Do what a plan says, from bytes that `encode` made: called by who owns the network namespace or is root in there.

Only sockets and bytes: no pyroute2, no asyncio, so that it takes a millisecond.
Every step is acknowledged by the kernel; one that isn't ends it with an OSError that names the step. What was done by
then is closed: without its last step, the ruleset's atomic batch, the namespace has no gate and no way out either.
"""

import errno
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
    *(_ROUTE,) * 3,
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
    _send(make, plan.link, link)
    _send(make, plan.ipv4, ipv4, there)
    has_ipv6 = ipv6_works(make)
    if has_ipv6:
        _send(make, plan.ipv6, ipv6, there)
    try:
        _send(make, plan.ruleset, ruleset)
    except StepFailedError as error:
        if not _only_nflog_is_missing(plan.ruleset, error):
            raise
        _send(make, plan.unlogged, unlogged)
        return Installed(has_ipv6, refusal_log=False)
    return Installed(has_ipv6, refusal_log=True)


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


def _send(make: MakeSocket, batch: "Batch", encoded: tuple[bytes, ...], no_matter: int = 0) -> None:
    """Send one batch and read an acknowledgement for every statement, or this error, which is none."""
    steps = [number for number, message in enumerate(encoded) if _wants_ack(message)]
    if len(steps) != len(batch.statements):
        raise ValueError(f"{len(steps)} encoded messages for a batch of {len(batch.statements)} statements")
    with make(socket.AF_NETLINK, socket.SOCK_RAW, batch.protocol) as sock:
        sock.settimeout(_PATIENCE)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # don't send the failed message back
        sock.bind((0, 0))
        sock.send(b"".join(_numbered(message, number + 1) for number, message in enumerate(encoded)))
        waiting = {number + 1 for number in steps}
        while waiting:
            for answer in messages(sock.recv(_LARGEST_ANSWER)):
                if answer.kind != NLMSG_ERROR:
                    continue
                if answer.errno and answer.errno != no_matter:
                    statement = min(max(answer.sequence - 1 - steps[0], 0), len(batch.statements) - 1)
                    raise _step_failed(answer.errno, batch, statement)
                waiting.discard(answer.sequence)


def _step_failed(number: int, batch: "Batch", statement: int) -> StepFailedError:
    error = StepFailedError(number, f"cannot {batch.statements[statement].describe()}: {os.strerror(number)}")
    error.statement = statement
    return error


def _wants_ack(message: bytes) -> bool:
    return bool(HEADER.unpack_from(message)[2] & NLM_F_ACK)


def _numbered(message: bytes, sequence: int) -> bytes:
    length, kind, flags, _, port = HEADER.unpack_from(message)
    return HEADER.pack(length, kind, flags, sequence, port) + message[HEADER.size :]
