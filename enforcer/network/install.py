"""Installs a sandbox's network in its namespace, from cached netlink bytes: pyroute2 isn't imported.

It only uses sockets and bytes, so that it takes a millisecond. The caller owns the network namespace, or is root in it.

The kernel reports each statement that fails, and acknowledges the last of a batch. Further acknowledgements would add
nothing: the kernel answers every failing message in order, before the last, also without a request (netlink(7);
net/netlink/af_netlink.c, net/netfilter/nfnetlink.c). A failure leaves the namespace closed: without the last step, the
ruleset's atomic batch, it has no gate and no way out.

The cache file decides what a sandbox's ruleset is: it is used only if it is private (`enforcer.system.state`) and
intact (SHA-256), and is otherwise made again.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from enforcer.network.constants import GATE_PORT, MakeSocket
from enforcer.network.gate_sockets import SOCKETS, open_counter_socket, open_gate_sockets
from enforcer.system import state
from proxy.wire.netlink import HEADER, NETLINK_NETFILTER, NETLINK_ROUTE, NLM_F_ACK, NLMSG_ERROR, messages

_MAX_FILE = 1 << 20
_ENCODER_FILES = ("constants.py", "encode.py", "install.py", "plan.py", "ruleset.py")  # the code that makes the bytes
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
# The sockets that `install` takes where the kernel has everything.
SOCKETS_USED: Final = (
    (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE),
    (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER),
    (socket.AF_INET6, socket.SOCK_DGRAM, 0),
    *SOCKETS,
)
_TIMEOUT = 5.0  # seconds; the kernel answers before sendmsg returns, so this only ends a hang
_MAX_ANSWER = 65536


class Batch(NamedTuple):
    """Netlink messages that are sent at once. `first`, `last`: sequence numbers of its statements."""

    data: bytes
    first: int
    last: int  # the one that is acknowledged
    statements: tuple[str, ...]  # descriptions
    logging: tuple[int, ...] = ()  # indexes of statements that need NFLOG


class EncodedNetwork(NamedTuple):
    """A `NetworkPlan` as bytes. `unlogged` replaces `ruleset` on a kernel without NFLOG."""

    gate_port: int
    link: Batch
    ipv4: Batch
    ipv6: Batch
    ruleset: Batch
    unlogged: Batch


class Installed(NamedTuple):
    """Which parts of a plan this kernel supports."""

    ipv6: bool
    refusal_log: bool


class StepFailedError(OSError):
    """The kernel denied a step of the plan; `errno` is the kernel's."""

    statement = 0  # index of the step in its batch


def install(make: MakeSocket) -> tuple[dict[str, int], socket.socket]:
    """Set up the network of the namespace that `make` makes sockets in, each of `SOCKETS_USED` once.

    Returns descriptors of the gate's sockets, by name, and a socket for `read_counters`. Raises OSError.
    """
    network = encoded(state.make_private(state.cache_directory()))
    installed = execute(network, make=make)
    sockets = open_gate_sockets(network.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6, make=make)
    counter_socket = open_counter_socket(make)
    return {name: sock.detach() for name, sock in sockets.named().items()}, counter_socket


@functools.cache
def encoded(directory: Path) -> EncodedNetwork:
    """Return the network of every sandbox, read once a process."""
    return cached(directory)


def cached(directory: Path, gate_port: int = GATE_PORT) -> EncodedNetwork:
    """Return the encoded network, from a private file in `directory`, or encoded now and saved there.

    A directory that can't be written only costs time.
    """
    path = directory / f"network-{_key(gate_port)}"
    encoded = _unpack(state.read_private(path, _MAX_FILE) or b"")
    if encoded is None:
        from enforcer.network.encode import encode  # 140 ms, only when there is nothing to use
        from enforcer.network.plan import network_plan

        encoded = encode(network_plan(gate_port))
        with contextlib.suppress(OSError):
            state.write_private(path, _pack(encoded))
    return encoded


def _key(gate_port: int) -> str:
    """Return a hash of everything that the bytes depend on: input, encoder (ours and pyroute2), byte order."""
    from proxy.wire.refusal_log import Kind

    directory = Path(__file__).parent
    inputs = [(directory / name).read_bytes() for name in _ENCODER_FILES]
    inputs += [text.encode() for text in (_pyroute2_version(), sys.byteorder, str(gate_port), *Kind)]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in inputs)).hexdigest()[:32]


def _pyroute2_version() -> str:
    """Return the name of its distribution directory: importing `importlib.metadata` takes 35 ms."""
    spec = importlib.util.find_spec("pyroute2")
    if spec is not None and spec.origin is not None:
        for path in Path(spec.origin).parent.parent.glob("pyroute2-*.dist-info"):
            return path.name
    from importlib.metadata import version

    return version("pyroute2")


def _pack(encoded: EncodedNetwork) -> bytes:
    """Encode as JSON with the messages in base64, after the SHA-256 of that."""
    body = msgspec.json.encode(encoded)
    return hashlib.sha256(body).digest() + body


def _unpack(content: bytes) -> EncodedNetwork | None:
    """Decode what `_pack` wrote; None if it is damaged."""
    digest, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        return msgspec.json.decode(body, type=EncodedNetwork)
    except msgspec.ValidationError:
        return None  # of another version


def make_batch(parts: Sequence[bytes], statements: tuple[str, ...], logging: tuple[int, ...] = ()) -> Batch:
    """Make a batch: number its messages, and have only the last statement acknowledged.

    Each statement's message asks for an acknowledgement. Raises ValueError if their number differs from the
    statements'.
    """
    acknowledged = [number for number, part in enumerate(parts, 1) if HEADER.unpack_from(part)[2] & NLM_F_ACK]
    if len(acknowledged) != len(statements):
        raise ValueError(f"{len(acknowledged)} encoded messages for a batch of {len(statements)} statements")
    data = b""
    for number, part in enumerate(parts, 1):
        length, kind, flags, _, port = HEADER.unpack_from(part)
        flags = flags if number == acknowledged[-1] else flags & ~NLM_F_ACK
        data += HEADER.pack(length, kind, flags, number, port) + part[HEADER.size :]
    return Batch(data, acknowledged[0], acknowledged[-1], statements, logging)


def execute(encoded: EncodedNetwork, *, is_repeated: bool = False, make: MakeSocket = socket.socket) -> Installed:
    """Set up the network of the namespace that `make` makes sockets in.

    `is_repeated`: addresses and routes may exist from an earlier service. Raises `StepFailedError`, `OSError`.
    """
    ignored_errno = errno.EEXIST if is_repeated else 0
    with _open_netlink(make, NETLINK_ROUTE) as route:
        _send(route, encoded.link)
        _send(route, encoded.ipv4, ignored_errno)
        has_ipv6 = ipv6_works(make)
        if has_ipv6:
            _send(route, encoded.ipv6, ignored_errno)
    with _open_netlink(make, NETLINK_NETFILTER) as netfilter:
        try:
            _send(netfilter, encoded.ruleset)
        except StepFailedError as error:
            # ENOENT is what nf_tables says of an expression or a logger that the kernel doesn't have and can't load.
            if error.errno != errno.ENOENT or error.statement not in encoded.ruleset.logging:
                raise
        else:
            return Installed(has_ipv6, refusal_log=True)
    with _open_netlink(make, NETLINK_NETFILTER) as netfilter:  # the first socket may have further errors queued
        _send(netfilter, encoded.unlogged)
    return Installed(has_ipv6, refusal_log=False)


def ipv6_works(make: MakeSocket = socket.socket) -> bool:
    """Whether the namespace has IPv6, once `lo` is up: in the kernel, and not disabled by lo.disable_ipv6."""
    try:
        with make(socket.AF_INET6, socket.SOCK_DGRAM, 0) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return False
        raise
    return True


def _open_netlink(make: MakeSocket, protocol: int) -> socket.socket:
    sock = make(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        sock.settimeout(_TIMEOUT)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # don't send the failed message back
        sock.bind((0, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _send(sock: socket.socket, batch: Batch, ignored_errno: int = 0) -> None:
    """Send a batch and read until its last statement is acknowledged; the errno `ignored_errno` is ignored."""
    sock.send(batch.data)
    is_acknowledged = False
    while not is_acknowledged:
        for answer in messages(sock.recv(_MAX_ANSWER)):
            if answer.kind != NLMSG_ERROR:
                continue
            if answer.errno and answer.errno != ignored_errno:
                statement = min(max(answer.sequence - batch.first, 0), len(batch.statements) - 1)
                raise _step_failed(answer.errno, batch, statement)
            is_acknowledged = is_acknowledged or answer.sequence == batch.last


def _step_failed(number: int, batch: Batch, statement: int) -> StepFailedError:
    error = StepFailedError(number, f"cannot {batch.statements[statement]}: {os.strerror(number)}")
    error.statement = statement
    return error
