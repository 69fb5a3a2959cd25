"""Finds the sandbox process that opened a connection.

The kernel knows which socket it is, the seccomp supervisor which process has that open.

The kernel is asked with the exact tuple (inet_diag, no capability needed) over a socket that belongs to the sandbox's
namespace; the supervisor looks for the process with that inode open (`enforcer.seccomp_supervisor.task_processes`).
Asked while the connection waits on its decision: afterwards the process may be gone. Whatever is not certain is None,
"unknown" and never a guess.

Off the hot path: some connections are asked about, so many at once and then so many a second, and none waits for the
answer but one that is refused anyway, for a moment, since its process closes the socket as soon as it hears of that.
"""

import asyncio
import contextlib
import os
import socket
import struct
import time
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.sandbox.rate_limiter import Bucket
from proxy.supervisor_channel import messages
from proxy.telemetry.events import Process
from proxy.wire import netlink
from proxy.wire.netlink import HEADER, NLM_F_REQUEST, MalformedMessageError

if TYPE_CHECKING:
    from collections.abc import Callable

type Endpoint = tuple[IPv4Address | IPv6Address, int]

_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2: family, protocol, extensions, states; then the id
_ID = struct.Struct("!HH16s16s")  # struct inet_diag_sockid: source port, destination port, source, destination
_ID_END = struct.Struct("=III")  # its interface, and the cookie: INET_DIAG_NOCOOKIE
_ANSWER_ID, _ANSWER_END = 4, struct.Struct("=IIIII")  # struct inet_diag_msg: expires, rqueue, wqueue, uid, inode
_ID_BYTES = _ID.size + _ID_END.size
_NO_COOKIE, _EVERY_STATE = 0xFFFFFFFF, 0xFFFFFFFF
_LO = 1  # the only interface of a sandbox; a socket bound to it is found only under it


class Owner(NamedTuple):
    """What the kernel knows of a socket: its inode, and the uid of its maker as the asking namespace sees it."""

    inode: int
    uid: int


def ask_owner(diag: socket.socket, protocol: int, local: Endpoint, remote: Endpoint) -> Owner | None:
    """Return whose socket has these two ends; None when that isn't known. Never blocks.

    `local` is the task's end (accept's peer), `remote` where it connected to (getsockname of the accepted socket).
    `protocol` is IPPROTO_TCP or IPPROTO_UDP.
    """
    for interface in (0, _LO):
        request = encode_query(protocol, local, remote, interface=interface)
        sequence = HEADER.unpack_from(request)[3]
        with contextlib.suppress(OSError, MalformedMessageError):
            diag.send(request, socket.MSG_DONTWAIT)
            while True:  # the kernel answers before send returns; what an earlier, failed question left is skipped
                data = diag.recv(8192, socket.MSG_DONTWAIT)
                answer = next(netlink.messages(data), None)
                if answer is not None and answer.sequence == sequence:
                    break
            if owner := parse_owner(data, protocol, local, remote):
                return owner
    return None


def encode_query(protocol: int, local: Endpoint, remote: Endpoint, *, interface: int = 0) -> bytes:
    """Return the netlink request for the one socket with these ends."""
    # The kernel swaps the two for UDP, "for historical reasons" (udp_diag.c, udp_dump_one).
    first, second = (local, remote) if protocol == socket.IPPROTO_TCP else (remote, local)
    family = socket.AF_INET if first[0].version == 4 else socket.AF_INET6
    tuple_ = _ID.pack(first[1], second[1], first[0].packed, second[0].packed)
    payload = (
        _REQUEST.pack(family, protocol, 0, _EVERY_STATE) + tuple_ + _ID_END.pack(interface, _NO_COOKIE, _NO_COOKIE)
    )
    return netlink.message(_SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, payload, int.from_bytes(os.urandom(4)))


def parse_owner(data: bytes, protocol: int, local: Endpoint, remote: Endpoint) -> Owner | None:
    """Return the owner that one answer names, if it is the answer for exactly these ends.

    Where no connection has them the kernel falls back to a listener on the port: that is another socket.
    """
    for answer in netlink.messages(data):
        if answer.kind != _SOCK_DIAG_BY_FAMILY or len(answer.payload) < _ANSWER_ID + _ID_BYTES + _ANSWER_END.size:
            continue
        family = answer.payload[0]
        sport, dport, source, destination = _ID.unpack_from(answer.payload, _ANSWER_ID)
        here, there = (_address(family, source), sport), (_address(family, destination), dport)
        exact = here == local and there == remote
        # An unconnected UDP socket has no remote end, and often no local address.
        unconnected = protocol == socket.IPPROTO_UDP and sport == local[1] and not dport
        if exact or (unconnected and (here == local or not int(here[0]))):
            *_, uid, inode = _ANSWER_END.unpack_from(answer.payload, _ANSWER_ID + _ID_BYTES)
            return Owner(inode, uid) if inode else None  # 0: the process has closed it
    return None


def _address(family: int, packed: bytes) -> IPv4Address | IPv6Address:
    if family == socket.AF_INET:
        return IPv4Address(packed[:4])
    address = IPv6Address(packed)
    return address.ipv4_mapped or address


AT_ONCE: Final = 20
A_SECOND: Final = 10.0
PATIENCE: Final = 0.05  # seconds that a refusal waits
_MOST_OPEN: Final = 64  # questions without an answer


class Whose:
    """One connection's question. `process` is None as long as it isn't known, which may be for ever."""

    __slots__ = ("_then", "_timer", "process", "waiting")

    def __init__(self) -> None:
        self.process: Process | None = None
        self.waiting = True
        self._then: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def then(self, act: "Callable[[], None]") -> None:
        """Call `act` once, when it is known or a moment has passed. It must not raise."""
        self._then = act
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._go_on)

    def answered(self, process: Process | None) -> None:
        """Take the answer."""
        self.process = process
        self.waiting = False
        self._go_on()

    def _go_on(self) -> None:
        act, self._then = self._then, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if act is not None:
            act()


class ProcessAttribution:
    """Asks about one sandbox's connections. `diag` is of its network namespace, `channel` leads to its watcher."""

    def __init__(
        self, diag: socket.socket, channel: socket.socket, clock: "Callable[[], float]" = time.monotonic
    ) -> None:
        self._diag = diag
        self._channel = channel
        self._room = Bucket(AT_ONCE, A_SECOND, clock)
        self._number = 0
        self._open: dict[int, Whose] = {}

    def ask(self, local: "Endpoint", remote: "Endpoint") -> Whose | None:
        """Ask whose connection has these ends. None: this one is not asked about."""
        if not self._room.take():
            return None
        owner = ask_owner(self._diag, socket.IPPROTO_TCP, local, remote)
        if owner is None:
            return None
        self._number += 1
        try:
            self._channel.send(messages.pack(messages.WhoseAsked(self._number, owner.inode)), socket.MSG_DONTWAIT)
        except OSError:
            return None
        while len(self._open) >= _MOST_OPEN:
            self._open.pop(next(iter(self._open)))
        whose = self._open[self._number] = Whose()
        return whose

    def answered(self, found: messages.WhoseFound) -> None:
        """Take an answer of the watcher's."""
        whose = self._open.pop(found.number, None)
        if whose is not None:
            whose.answered(None if found.who is None else process_of(found.who, found.ancestors))


def process_of(who: messages.Who, ancestors: tuple[messages.Ancestor, ...] = ()) -> Process:
    """Return what events say of a process that the watcher has named."""
    uid, sandbox_uid = [each if each >= 0 else None for each in (who.uid, who.sandbox_uid)]
    argv = tuple(map(os.fsdecode, who.argv))
    above = tuple(map(os.fsdecode, [each.exe for each in ancestors]))
    pids = (*[each.pid for each in ancestors],)
    return Process(who.pid, os.fsdecode(who.exe), argv, uid, above, pids, sandbox_uid)
