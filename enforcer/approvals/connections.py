"""Connections of the approvals server: packets of JSON (`proxy.wire.message`), their senders, and gates' socket pairs.

What the other side doesn't take is kept, up to a bound; beyond that the connection is closed. The sender of each packet
is known from the socket (unix(7), SCM_CREDENTIALS). A task has its user's uid, but a user namespace of its own: it is
refused, as is a process that uses another one's connection. A gate is known by the descriptor that came with its
introduction (invariant 4).
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.system.control_socket import is_peer_alive
from enforcer.system.peers import namespace
from proxy.approvals.approval_request import MalformedMessageError
from proxy.approvals.protocol import read_worker_message
from proxy.wire import strict_json

if TYPE_CHECKING:
    from proxy.approvals.protocol import RegistryMessage, WorkerMessage

MOST_UNSENT: Final = 4096  # packets
_MOST_KEPT: Final = 32 << 20  # bytes of them
_PIECE: Final = 30_000  # characters: what JSON makes of them fits a packet
_A_TURN: Final = 64  # packets read before others have theirs
_LARGEST: Final = 1 << 17  # bytes

type Said = dict[str, object]


class PacketConnection:
    """One end of a SOCK_SEQPACKET socket, taken over. `heard` gets each packet, `ended` is called once, at its end."""

    def __init__(
        self,
        sock: socket.socket,
        heard: Callable[["PacketConnection", Said, list[int]], None],
        ended: Callable[["PacketConnection"], None],
        receive: "Callable[[socket.socket], Packet] | None" = None,
        *,
        pieces: bool = False,
    ) -> None:
        """`receive` says who sent it, for a socket that strangers connect to. `pieces`: the other side joins them."""
        self._sock = sock
        self._heard = heard
        self._ended = ended
        self._receive = receive or _plain
        self._loop = asyncio.get_running_loop()
        self._pieces = pieces
        self._unsent: deque[bytes] = deque()
        self._kept = 0  # bytes of that
        self._room: asyncio.Future[None] | None = None
        self._last = False
        self._paused = False
        self.closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def say(self, what: Mapping[str, object]) -> None:
        """Send a packet, now or when there is room. One that is gone hears nothing."""
        if self.closed:
            return
        packets = [_packed(what)]
        if self._pieces and len(packets[0]) > 2 * _PIECE:
            text = json.dumps(what)
            starts = range(0, len(text), _PIECE)
            packets = [_packed({"piece": text[at : at + _PIECE], "more": at != starts[-1]}) for at in starts]
        self._unsent += packets
        self._kept += sum(map(len, packets))
        if len(self._unsent) > MOST_UNSENT or self._kept > _MOST_KEPT:
            self.close()
            return
        self._send()

    async def drained(self) -> None:
        """Wait until the other side has taken what was said, or is gone."""
        while self._unsent and not self.closed:
            self._room = self._loop.create_future()
            await self._room

    def pause(self) -> None:
        """Hear nothing until `resume`: the other side waits."""
        self._paused = True
        if not self.closed:
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Hear again."""
        self._paused = False
        if not self.closed:
            self._loop.add_reader(self._sock, self._readable)

    def finish(self) -> None:
        """Close it when all is sent."""
        self._last = True
        self._send()

    def close(self) -> None:
        """Say and hear no more. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._unsent.clear()
        self._has_room()
        self._ended(self)

    def _send(self) -> None:
        try:
            while self._unsent and not self.closed:
                self._sock.send(self._unsent[0])
                self._kept -= len(self._unsent.popleft())
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._send)
            return
        except OSError:
            self.close()
            return
        if self.closed:
            return
        self._loop.remove_writer(self._sock)
        self._has_room()
        if self._last:
            self.close()

    def _has_room(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def _readable(self) -> None:
        for _ in range(_A_TURN):
            if self.closed or self._paused:
                return
            descriptors: list[int] = []
            try:
                data, descriptors = self._receive(self._sock)
                said = strict_json.loads(data) if data else {}
                if not isinstance(said, dict) or not said:
                    self.close()
                    return
                self._heard(self, said, descriptors)
            except BlockingIOError:
                return
            except (OSError, ValueError, RecursionError):
                self.close()
                return
            finally:
                for descriptor in descriptors:  # those that nobody took
                    with contextlib.suppress(OSError):
                        os.close(descriptor)


def _packed(what: Mapping[str, object]) -> bytes:
    return json.dumps(what, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _plain(sock: socket.socket) -> "Packet":
    return Packet(sock.recv(_LARGEST), [])


_SCM_CREDENTIALS: Final = 2  # bits/socket.h
_CREDENTIALS = struct.Struct("3i")
_LARGEST_REQUEST: Final = 1 << 16  # bytes of a packet
_MOST_DESCRIPTORS: Final = 2


class UntrustedPeerError(Exception):
    """The peer may not use this server."""


class Peer(NamedTuple):
    """The process at the other end."""

    pid: int
    uid: int


class Packet(NamedTuple):
    """Packet of a peer; empty: the end of the connection."""

    data: bytes
    descriptors: list[int]


def check(connection: socket.socket, *, stranger: bool = False) -> Peer:
    """Return who has connected. `stranger`: it may be another user. Raises UntrustedPeerError."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.geteuid() and not stranger:
        raise UntrustedPeerError(f"this approvals server is uid {os.geteuid()}'s, and serves nobody else here")
    try:
        apart = namespace(str(pid), "user") != namespace("self", "user")
        alive = is_peer_alive(connection)  # else the number may be another's by now
    except OSError as error:
        raise UntrustedPeerError(f"whether you are in a sandbox can't be told: {error.strerror}") from error
    if not alive:
        raise UntrustedPeerError("who asked is gone")
    if apart:
        raise UntrustedPeerError("you are in another user namespace")
    return Peer(pid, uid)


def receive(connection: socket.socket, peer: Peer) -> Packet:
    """Return a peer's next packet. Raises BlockingIOError, OSError, and UntrustedPeerError for another sender.

    The connection has SO_PASSCRED from its listener (`client.bind`): a packet without a sender is a stranger's.
    """
    space = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS)
    data, ancillary, flags, _ = connection.recvmsg(_LARGEST_REQUEST, space, socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    sender: tuple[int, ...] = ()
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
        elif (level, kind) == (socket.SOL_SOCKET, _SCM_CREDENTIALS):
            sender = _CREDENTIALS.unpack(content)
    whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    if data and (sender[:2] != peer or not whole):
        for descriptor in descriptors:
            os.close(descriptor)
        raise UntrustedPeerError("this connection is another process's" if whole else "that is too long")
    return Packet(data, descriptors)


_MOST_WAITING: Final = 256  # words


class GateConnection:
    """One gate's pair; its words are taken in order, one after the other, and while too many wait no more are read.

    What doesn't read as a word ends it: it was taken over. `hear` gets its words, and None at its end; `say` is told
    what an admin should know.
    """

    def __init__(
        self, end: socket.socket, hear: "Callable[[WorkerMessage | None], Awaitable[None]]", say: Callable[[str], None]
    ) -> None:
        self._hear = hear
        self._say = say
        self._words: deque[WorkerMessage | None] = deque()
        self._paused = False
        self._task: asyncio.Task[None] | None = None
        self._line = PacketConnection(end, self._heard, lambda _line: self._put(None))

    def reply(self, reply: "RegistryMessage") -> None:
        """Tell its worker something."""
        self._line.say(reply.packed())

    def close(self) -> None:
        """Hear no more of it: its sandbox is gone. Idempotent."""
        self._line.close()

    async def ended(self) -> None:
        """Wait until all that was said is seen to."""
        if self._task is not None:
            await self._task

    def _heard(self, _line: PacketConnection, said: dict[str, object], _descriptors: list[int]) -> None:
        try:
            word = read_worker_message(said)
        except MalformedMessageError as error:
            self._say(f"a gate's channel was closed: {error}")
            self._line.close()
            return
        self._put(word)

    def _put(self, word: "WorkerMessage | None") -> None:
        self._words.append(word)
        if len(self._words) >= _MOST_WAITING and not self._paused:
            self._paused = True
            self._line.pause()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._act())

    async def _act(self) -> None:
        while self._words:
            word = self._words.popleft()
            if self._paused and len(self._words) < _MOST_WAITING // 2:
                self._paused = False
                self._line.resume()
            try:
                await self._hear(word)
            except Exception as error:  # noqa: BLE001 - whoever waits for an answer is told that there is none
                self._say(f"a gate's channel was closed after an error: {type(error).__name__}: {error}")
                self._line.close()
