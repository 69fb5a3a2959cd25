"""Installs a sandbox's network in its namespace, from cached netlink bytes: pyroute2 isn't imported.

Only sockets and bytes, so that it takes a millisecond. The caller owns the network namespace, or is root in there.

The kernel reports each statement that fails, and acknowledges the last of a batch. An acknowledgement of each would say
no more: the kernel answers every message that fails, whether or not it asks for that, in order and before the last
(netlink(7); net/netlink/af_netlink.c, net/netfilter/nfnetlink.c). What was installed before a failure is closed:
without its last step, the ruleset's atomic batch, the namespace has no gate and no way out either.

The kept file decides what a sandbox's ruleset is: it is used only when it is ours alone (`enforcer.system.state`) and
whole (SHA-256). Anything else is not repaired but made again.
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

_LARGEST_FILE = 1 << 20
_ENCODERS = ("constants.py", "encode.py", "install.py", "plan.py", "ruleset.py")  # what the bytes are made by
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


class Batch(NamedTuple):
    """Netlink messages as they are sent at once. `first` and `last` are sequence numbers of its statements."""

    data: bytes
    first: int
    last: int  # which is acknowledged
    statements: tuple[str, ...]  # in words
    logging: tuple[int, ...] = ()  # which of the statements need the kernel's NFLOG


class EncodedNetwork(NamedTuple):
    """A `NetworkPlan` as bytes. `unlogged` takes the place of `ruleset` where the kernel has no NFLOG."""

    gate_port: int
    link: Batch
    ipv4: Batch
    ipv6: Batch
    ruleset: Batch
    unlogged: Batch


class Installed(NamedTuple):
    """What this kernel made of a plan."""

    ipv6: bool
    refusal_log: bool


class StepFailedError(OSError):
    """The kernel refused a step of the plan. `errno` is its own."""

    statement = 0  # the step's place in its batch


def install(make: MakeSocket) -> tuple[dict[str, int], socket.socket]:
    """Make the network of the namespace that `make` makes sockets in: of those `USED`, each once.

    Returns descriptors of the gate's sockets, by name, and a socket for `read_counters`. Raises OSError.
    """
    network = encoded(state.make_private(state.cache_directory()))
    installed = execute(network, make=make)
    sockets = open_gate_sockets(network.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6, make=make)
    counting = open_counter_socket(make)
    return {name: sock.detach() for name, sock in sockets.named().items()}, counting


@functools.cache
def encoded(directory: Path) -> EncodedNetwork:
    """Return the network of every sandbox: read once a process, so a service's tasks find it in memory."""
    return cached(directory)


def cached(directory: Path, gate_port: int = GATE_PORT) -> EncodedNetwork:
    """Return the encoded network, from `directory` where it lies there safely, else made now and put there.

    A directory that can't be written costs time, not the start.
    """
    path = directory / f"network-{_key(gate_port)}"
    encoded = _unpack(state.read_private(path, _LARGEST_FILE) or b"")
    if encoded is None:
        from enforcer.network.encode import encode  # 140 ms, only when there is nothing to use
        from enforcer.network.plan import network_plan

        encoded = encode(network_plan(gate_port))
        with contextlib.suppress(OSError):
            state.write_private(path, _pack(encoded))
    return encoded


def _key(gate_port: int) -> str:
    """Everything that the bytes depend on: what is encoded, the encoder (ours and pyroute2's), the byte order."""
    from proxy.wire.refusal_log import Kind

    here = Path(__file__).parent
    parts = [(here / name).read_bytes() for name in _ENCODERS]
    parts += [part.encode() for part in (_pyroute2_version(), sys.byteorder, str(gate_port), *Kind)]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def _pyroute2_version() -> str:
    """From the name of the installed distribution's directory: `importlib.metadata` alone would cost 35 ms."""
    found = importlib.util.find_spec("pyroute2")
    if found is not None and found.origin is not None:
        for path in Path(found.origin).parent.parent.glob("pyroute2-*.dist-info"):
            return path.name
    from importlib.metadata import version

    return version("pyroute2")


def _pack(encoded: EncodedNetwork) -> bytes:
    """SHA-256 of the rest, which is JSON with the messages in base64."""
    body = msgspec.json.encode(encoded)
    return hashlib.sha256(body).digest() + body


def _unpack(content: bytes) -> EncodedNetwork | None:
    """Read what `_pack` wrote; None: it is not whole."""
    digest, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        return msgspec.json.decode(body, type=EncodedNetwork)
    except msgspec.ValidationError:
        return None  # another version's


def numbered(parts: Sequence[bytes], statements: tuple[str, ...], logging: tuple[int, ...] = ()) -> Batch:
    """Make a batch of messages: numbers them, and has only the last statement acknowledged.

    Each message of a statement asks for an acknowledgement. Raises ValueError where those aren't as many as statements.
    """
    asking = [number for number, part in enumerate(parts, 1) if HEADER.unpack_from(part)[2] & NLM_F_ACK]
    if len(asking) != len(statements):
        raise ValueError(f"{len(asking)} encoded messages for a batch of {len(statements)} statements")
    data = b""
    for number, part in enumerate(parts, 1):
        length, kind, flags, _, port = HEADER.unpack_from(part)
        flags = flags if number == asking[-1] else flags & ~NLM_F_ACK
        data += HEADER.pack(length, kind, flags, number, port) + part[HEADER.size :]
    return Batch(data, asking[0], asking[-1], statements, logging)


def execute(encoded: EncodedNetwork, *, again: bool = False, make: MakeSocket = socket.socket) -> Installed:
    """Make the network of the namespace that `make` makes sockets in.

    `again`: addresses and routes may be there already, of an earlier time. Raises `StepFailedError`, `OSError`.
    """
    there = errno.EEXIST if again else 0
    with _opened(make, NETLINK_ROUTE) as route:
        _send(route, encoded.link)
        _send(route, encoded.ipv4, there)
        has_ipv6 = ipv6_works(make)
        if has_ipv6:
            _send(route, encoded.ipv6, there)
    with _opened(make, NETLINK_NETFILTER) as netfilter:
        try:
            _send(netfilter, encoded.ruleset)
        except StepFailedError as error:
            # ENOENT is what nf_tables says of an expression or a logger that the kernel doesn't have and can't load.
            if error.errno != errno.ENOENT or error.statement not in encoded.ruleset.logging:
                raise
        else:
            return Installed(has_ipv6, refusal_log=True)
    with _opened(make, NETLINK_NETFILTER) as netfilter:  # the other may have more to say of what failed
        _send(netfilter, encoded.unlogged)
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
    error = StepFailedError(number, f"cannot {batch.statements[statement]}: {os.strerror(number)}")
    error.statement = statement
    return error
