"""Splice: passes bytes in both directions until both sides have ended or one breaks.

A cut is not an end (invariant 12): a reset on one side is a reset on the other, an end on one side is an end on the
other, and the opposite direction goes on. Bytes that a side sent before it broke are still relayed. Urgent data is
relayed inline (RFC 6093; the sockets have SO_OOBINLINE).

All connections of a process share one buffer, because each read is written before the next read. Only bytes that a full
socket didn't take are copied, and its other side isn't read until they are sent. So idle connections hold no buffer,
and no byte of one sandbox ever reaches another (invariant 11).

Where the relay is compiled (`proxy.compiled`) and no limit counts the bytes, C passes them. It behaves the same, and
reports only the end to Python.
"""

import contextlib
import socket
from array import array
from typing import TYPE_CHECKING, Final

from proxy.compiled.library import PairState
from proxy.event_loop.poller import COMPILED, ERR, HUP, IN, OUT, finish, reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.event_loop.poller import Poller
    from proxy.sandbox.rule_limits import Meter

MAX_BUFFERED: Final = 32 * 1024 * 1024  # bytes, of one sandbox

_BUFFER: Final = bytearray(256 * 1024)
_WHOLE: Final = memoryview(_BUFFER)
_SMALL: Final = _WHOLE[:4096]
_NOTHING: Final = memoryview(b"")
_MAX_LAST_READS: Final = 64  # reads of a side that broke
_NOT_REGISTERED: Final = -1  # events of a socket that isn't registered yet


class BufferQuota:
    """Bytes buffered for one sandbox's full sockets, in memory that `relay.c` counts in, too.

    Above `most`, sockets are read in small pieces. A partly sent piece counts in full until all of it is sent,
    since its memory is freed only then.
    """

    __slots__ = ("_count", "address", "most")

    def __init__(self, most: int = MAX_BUFFERED) -> None:
        self._count = array("q", (0,))
        self.address = self._count.buffer_info()[0]  # of an int64
        self.most = most

    @property
    def used(self) -> int:
        """Bytes buffered now."""
        return self._count[0]

    @used.setter
    def used(self, count: int) -> None:
        self._count[0] = count


class Half:
    """One side of a splice, relayed by the interpreter: reads its socket and writes the other one."""

    __slots__ = (
        "buffers",
        "fd",
        "has_ended",
        "may_relay",
        "other",
        "poller",
        "sent",
        "sock",
        "splice",
        "unsent",
        "waits_for",
    )  # fmt: skip

    other: "Half"

    def __init__(
        self,
        splice: "Splice",
        poller: "Poller",
        buffers: "BufferQuota",
        sock: "socket.socket",
        may_relay: "Callable[[int], bool] | None",
    ) -> None:
        self.splice = splice
        self.may_relay = may_relay  # called with the size of each piece; None: no limit
        self.poller = poller
        self.buffers = buffers
        self.sock = sock
        self.fd = sock.fileno()
        self.waits_for = _NOT_REGISTERED
        self.has_ended = False  # it has sent its end
        self.unsent = _NOTHING  # bytes that its socket didn't take yet
        self.sent = 0  # bytes written to its socket

    def begin(self, first_bytes: bytes) -> None:
        """Relay `first_bytes`, the bytes that the decision was made on, which are still unread in the socket."""
        if not first_bytes:
            self.ready(IN)
            return
        remaining = len(first_bytes)
        try:
            while remaining and (size := self.sock.recv_into(_WHOLE, min(remaining, len(_WHOLE)))):
                remaining -= size
        except OSError:
            pass
        if remaining:
            self.splice.abort_unreadable_first_bytes()
        else:
            self._relay(memoryview(first_bytes))

    def ready(self, events: int) -> None:
        """Relay one read to the other side, so that a busy connection leaves other sockets their turn."""
        if self.unsent and events & (OUT | ERR | HUP):
            self._send_unsent()
        if not (self.waits_for & IN and events & (IN | ERR | HUP)):
            return
        view = _WHOLE if self.buffers.used < self.buffers.most else _SMALL
        try:
            size = self.sock.recv_into(view)
        except BlockingIOError:
            return
        except OSError:
            self.splice.reset_both(self)
            return
        if not size:
            self.has_ended = True
            if not self.other.has_ended:  # else both are closed now
                self.wait(self.waits_for & ~IN)  # the other side has nothing unsent, or this one would not be read
            self.splice.relay_end(self)
            return
        self._relay(view[:size])

    def failed(self, error: Exception) -> None:
        """End both sides: `ready` raised, which is a bug."""
        self.splice.abort(error)

    def detach(self) -> None:
        """Drop the buffer and the references to the other side."""
        self.waits_for = 0
        self._clear_unsent()
        del self.splice, self.other

    def relay_last_bytes(self) -> None:
        """Relay what this side sent before it broke: it is still readable, and may say why."""
        other = self.other
        with contextlib.suppress(OSError):
            for _ in range(_MAX_LAST_READS):
                if other.unsent or not (size := self.sock.recv_into(_WHOLE)):
                    return
                if self.may_relay is not None and not self.may_relay(size):
                    return
                sent = other.sock.send(_WHOLE[:size])
                other.sent += sent
                if sent < size:
                    return  # the socket is full, and is reset now

    def buffer_unsent(self, data: memoryview) -> None:
        """Buffer what the socket didn't take; the other side is then not read."""
        self.unsent = memoryview(bytes(data))  # a copy: all connections share the buffer
        self.buffers.used += len(self.unsent)
        self.wait(self.waits_for | OUT)
        self.other.wait(self.other.waits_for & ~IN)

    def wait(self, events: int) -> None:
        """Register for `events`; with none, leave the set, or epoll would report an error without end."""
        before, self.waits_for = self.waits_for, events
        if before == events:
            return
        if before <= 0:
            self.poller.watch(self.fd, events, self)
        elif not events:
            self.poller.forget(self.fd)
        else:
            self.poller.change(self.fd, events)

    def _relay(self, piece: memoryview) -> None:
        other = self.other
        if self.may_relay is not None and not self.may_relay(len(piece)):
            self.splice.end_over_limit()
            return
        try:
            sent = other.sock.send(piece)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.splice.reset_both(other)
            return
        other.sent += sent
        if sent < len(piece):
            other.buffer_unsent(piece[sent:])

    def _send_unsent(self) -> None:
        try:
            sent = self.sock.send(self.unsent)
        except BlockingIOError:
            return
        except OSError:
            self.splice.reset_both(self)
            return
        self.sent += sent
        if sent < len(self.unsent):
            self.unsent = self.unsent[sent:]  # a view: the whole copy stays in memory
        else:
            self._clear_unsent()
            self.wait(self.waits_for & ~OUT)
            self.other.wait(self.other.waits_for | IN)

    def _clear_unsent(self) -> None:
        self.buffers.used -= len(self.unsent.obj)  # type: ignore[arg-type]  # the copied bytes
        self.unsent = _NOTHING


class Splice:
    """Two connected, non-blocking sockets whose bytes are relayed in both directions, as far as the meter allows."""

    __slots__ = (
        "_buffers",
        "_client",
        "_final_counts",
        "_halves",
        "_on_end",
        "_pair",
        "_poller",
        "_server",
        "is_done",
        "meter",
        "over_limit",
        "server_broke",
    )  # fmt: skip

    def __init__(
        self,
        poller: "Poller",
        buffers: "BufferQuota",
        client: socket.socket,
        server: socket.socket,
        on_end: "Callable[[Exception | None], None]",
        *,
        meter: "Meter | None" = None,
    ) -> None:
        """Take both sockets over, from the poller too.

        `on_end` is called once, when both are closed; with an exception if that was a bug.
        """
        self._poller = poller
        self._buffers = buffers
        self._client = client
        self._server = server
        self._on_end = on_end
        self.meter = meter
        self.is_done = False
        self.server_broke = False  # whether it ended because the server did not end properly
        self.over_limit = False  # whether it ended because no more may pass
        self._pair = 0  # handle of the compiled relay; 0: Python relays
        self._halves: tuple[Half, Half] | None = None  # relayed in Python: the client's and the server's
        self._final_counts = 0, 0  # bytes up and down, once it is done

    def start(self, first_bytes: bytes = b"") -> None:
        """Start to relay: first `first_bytes`, which the decision was made on, then later bytes.

        A program can change bytes it has sent until they are read (sendfile(2), splice(2)). So the same number of bytes
        is read from the socket and discarded.
        """
        if COMPILED is None or self.meter is not None:
            client, server = self._relay_in_python()
            for half in (client, server):
                half.waits_for = IN
                self._poller.watch(half.fd, IN, half)
            client.begin(first_bytes)
            return
        client_fd, server_fd = self._client.fileno(), self._server.fileno()
        self._poller.watch(client_fd, IN, self)
        self._poller.watch(server_fd, IN, self)
        self._pair = COMPILED.adopt(
            self._poller.number, client_fd, server_fd, self._buffers.address, self._buffers.most
        )
        state = COMPILED.start(self._pair, first_bytes)
        if first_bytes and state == PairState.CLIENT_BROKE:  # at the start it only reads the client for `first_bytes`
            self.abort_unreadable_first_bytes()
        elif state:
            self.ready(0)

    def byte_counts(self) -> tuple[int, int]:
        """Return the bytes sent to the server and to the client."""
        if self._pair:
            assert COMPILED is not None
            return COMPILED.counts(self._pair)
        if self._halves is not None:
            return self._halves[1].sent, self._halves[0].sent
        return self._final_counts

    def set_meter(self, meter: "Meter | None") -> None:
        """Count with another meter from now on; None: there is no limit any more."""
        self.meter = meter
        if self._pair and meter is not None and COMPILED is not None and not COMPILED.state(self._pair):
            self._take_over()
        if self._halves is not None:
            for half, may_relay in zip(self._halves, _limit_checks(meter), strict=True):
                half.may_relay = may_relay

    def abort(self, error: Exception | None = None) -> None:
        """End with a reset on both sides. Idempotent."""
        self._end(reset, error)

    def abort_unreadable_first_bytes(self) -> None:
        """Abort: the bytes that the decision was made on can't be read again, and no others may be relayed."""
        self.abort(RuntimeError("the first bytes of a connection could not be read again after its decision"))

    # for the poller, where compiled code relays

    def ready(self, _events: int) -> None:
        """Handle the end of a pair that compiled code relays; the event may be of an earlier descriptor."""
        state = COMPILED.state(self._pair) if COMPILED is not None and self._pair else PairState.OPEN
        if state == PairState.FAILED:
            raise OSError("a socket could not be watched, or there is no memory to buffer unsent bytes")
        if state:
            self.server_broke = state == PairState.SERVER_BROKE
            self._end(finish if state == PairState.ENDED else reset)

    def failed(self, error: Exception) -> None:
        """End it: `ready` raised, which is a bug."""
        self.abort(error)

    # for the halves, where Python relays

    def end_over_limit(self) -> None:
        """End it: a side sent more than its limit allows; none of the excess was relayed."""
        self.over_limit = True
        self._end(reset)

    def reset_both(self, half: Half) -> None:
        """Reset both sides: one side can't be read or written any more."""
        self.server_broke = self._halves is not None and half is self._halves[1]
        half.relay_last_bytes()
        self._end(reset)

    def relay_end(self, half: Half) -> None:
        """Relay an end of stream; the second one ends the splice."""
        if half.other.has_ended:
            self._end(finish)
            return
        try:
            half.other.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.reset_both(half.other)

    def _relay_in_python(self) -> tuple[Half, Half]:
        """Relay both sides in the interpreter."""
        up, down = _limit_checks(self.meter)
        client = Half(self, self._poller, self._buffers, self._client, up)
        server = Half(self, self._poller, self._buffers, self._server, down)
        client.other, server.other = server, client
        self._halves = client, server
        return self._halves

    def _take_over(self) -> None:
        """Take the pair over from compiled code, so that bytes are counted from now on."""
        assert COMPILED is not None
        pair, self._pair = self._pair, 0
        counts, sides = COMPILED.counts(pair), [COMPILED.side(pair, server=is_server) for is_server in (False, True)]
        COMPILED.release(pair)
        for half, side, sent in zip(self._relay_in_python(), sides, reversed(counts), strict=True):
            half.waits_for, half.has_ended, half.sent = side.waits_for, side.has_ended, sent
            if side.unsent:
                half.unsent = memoryview(side.unsent)
                self._buffers.used += len(side.unsent)
            if side.waits_for:
                self._poller.watch(half.fd, side.waits_for, half)
            else:
                self._poller.drop(half.fd)

    def _end(self, close: "Callable[[socket.socket], None]", error: Exception | None = None) -> None:
        if self.is_done:
            return
        self.is_done = True
        self._final_counts = self.byte_counts()
        pair, self._pair = self._pair, 0
        if pair:
            assert COMPILED is not None
            COMPILED.release(pair)
        # Break reference cycles, so that memory is freed at once and the next connection reuses it while it is cached.
        halves, self._halves = self._halves, None
        for half in halves or ():
            half.detach()
        for sock in (self._client, self._server):
            self._poller.drop(sock.fileno())
            close(sock)
        on_end = self._on_end
        del self._on_end
        on_end(error)


def _limit_checks(meter: "Meter | None") -> "tuple[Callable[[int], bool] | None, Callable[[int], bool] | None]":
    """Return the limit checks for the client's and the server's half."""
    return (None, None) if meter is None else (meter.up, meter.down)
