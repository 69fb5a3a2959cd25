"""Packets to and from another process, in the registry's loop: nobody who is slow keeps it waiting.

What the other side doesn't take is kept for it, up to a bound; beyond that it is let go. One packet is one JSON object
(`proxy.message`). What people are told has pieces where it takes more than the kernel sends at once: how long a
question is is up to a task, and one that can't be sent would keep all others from being seen.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from proxy import strict_json

if TYPE_CHECKING:
    from enforcer.approvals.peers import Packet

MOST_UNSENT: Final = 4096  # packets
_MOST_KEPT: Final = 32 << 20  # bytes of them
_PIECE: Final = 30_000  # characters: what JSON makes of them fits a packet
_A_TURN: Final = 64  # packets read before others have theirs
_LARGEST: Final = 1 << 17  # bytes

type Said = dict[str, object]


class Line:
    """One end of a SOCK_SEQPACKET socket, taken over. `heard` gets each packet, `ended` is called once, at its end."""

    def __init__(
        self,
        sock: socket.socket,
        heard: Callable[["Line", Said, list[int]], None],
        ended: Callable[["Line"], None],
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
    from enforcer.approvals.peers import Packet

    return Packet(sock.recv(_LARGEST), [])
