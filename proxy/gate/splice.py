"""Splice: passes bytes in both directions until both sides have ended or one breaks.

A cut is not an end (invariant 12): a reset on one side is a reset on the other, an end on one side is an end on the
other and the opposite way goes on. What a side sent before it broke is still passed on. Urgent data is passed on inline
(RFC 6093; the sockets have SO_OOBINLINE). All connections of a process share one buffer, because whatever is read is
written before anything else is read: only what a full socket didn't take is kept, and its other side isn't read until
it is gone. So idle connections hold no buffer, and no byte of one sandbox ever reaches another (invariant 11).

Where the relay is compiled (`proxy.compiled`) and no limit counts the bytes, C passes them. It behaves the same, and
reports only the end to Python.
"""

import contextlib
import socket
from array import array
from typing import TYPE_CHECKING, Final

from proxy.compiled.library import Over
from proxy.event_loop.poller import COMPILED, ERR, HUP, IN, OUT, finish, reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.event_loop.poller import Poller
    from proxy.sandbox.rule_limits import Meter

MOST_KEPT: Final = 32 * 1024 * 1024  # bytes, of one sandbox

_BUFFER: Final = bytearray(256 * 1024)
_WHOLE: Final = memoryview(_BUFFER)
_SMALL: Final = _WHOLE[:4096]
_NOTHING: Final = memoryview(b"")
_LAST_WORDS: Final = 64  # pieces
_UNKNOWN: Final = -1  # what a socket waits for that was handed over


class BufferQuota:
    """Bytes buffered for one sandbox's full sockets, in memory that `relay.c` counts in, too.

    Beyond a bound, what is for full sockets is read in small pieces. What of a piece has gone counts until all of it
    has: it is memory, and a reader may leave the last byte of each.
    """

    __slots__ = ("_count", "address", "most")

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._count = array("q", (0,))
        self.address = self._count.buffer_info()[0]  # of an int64
        self.most = most

    @property
    def kept(self) -> int:
        """Bytes buffered now."""
        return self._count[0]

    @kept.setter
    def kept(self, count: int) -> None:
        self._count[0] = count


class Half:
    """One side of a splice, relayed by the interpreter: reads its socket and writes the other one."""

    __slots__ = (
        "buffers", "fd", "kept", "may_say", "other", "poller", "silent", "sock", "splice", "taken", "waits_for",
    )  # fmt: skip

    other: "Half"

    def __init__(
        self,
        splice: "Splice",
        poller: "Poller",
        buffers: "BufferQuota",
        sock: "socket.socket",
        may_say: "Callable[[int], bool] | None",
    ) -> None:
        self.splice = splice
        self.may_say = may_say  # asked with the bytes of each piece; None: there is no limit
        self.poller = poller
        self.buffers = buffers
        self.sock = sock
        self.fd = sock.fileno()
        self.waits_for = _UNKNOWN
        self.silent = False  # it has sent its end
        self.kept = _NOTHING  # what it was given and didn't take yet
        self.taken = 0  # bytes

    def begin(self, said: bytes) -> None:
        """Relay `said`, the bytes that the decision was made on, which are still unread in the socket."""
        if not said:
            self.ready(IN)
            return
        left = len(said)
        try:
            while left and (size := self.sock.recv_into(_WHOLE, min(left, len(_WHOLE)))):
                left -= size
        except OSError:
            pass
        if left:
            self.splice.abort()  # nothing else that it sent was decided on, so it isn't passed on
        else:
            self._pass(memoryview(said))

    def ready(self, events: int) -> None:
        """Relay one read to the other side, so that a busy connection leaves other sockets their turn."""
        if self.kept and events & (OUT | ERR | HUP):
            self._give_kept()
        if not (self.waits_for & IN and events & (IN | ERR | HUP)):
            return
        view = _WHOLE if self.buffers.kept < self.buffers.most else _SMALL
        try:
            size = self.sock.recv_into(view)
        except BlockingIOError:
            return
        except OSError:
            self.splice.broke(self)
            return
        if not size:
            self.silent = True
            if not self.other.silent:  # else both are closed now
                self.wait(self.waits_for & ~IN)  # nothing is kept for the other side: else this one would not be read
            self.splice.fell_silent(self)
            return
        self._pass(view[:size])

    def failed(self, error: Exception) -> None:
        """End both sides: `ready` raised, which is a bug."""
        self.splice.abort(error)

    def give_up(self) -> None:
        """Drop the buffer and the references to the other side."""
        self.waits_for = 0
        self._forget_kept()
        del self.splice, self.other

    def hear_out(self) -> None:
        """Relay what this side sent before it broke: it is still readable, and may say why."""
        other = self.other
        with contextlib.suppress(OSError):
            for _ in range(_LAST_WORDS):
                if other.kept or not (size := self.sock.recv_into(_WHOLE)):
                    return
                if self.may_say is not None and not self.may_say(size):
                    return
                sent = other.sock.send(_WHOLE[:size])
                other.taken += sent
                if sent < size:
                    return  # what is full is reset now

    def keep(self, data: memoryview) -> None:
        """Buffer what the socket didn't take; the other side is then not read."""
        self.kept = memoryview(bytes(data))  # a copy: the buffer is everybody's
        self.buffers.kept += len(self.kept)
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

    def _pass(self, piece: memoryview) -> None:
        other = self.other
        if self.may_say is not None and not self.may_say(len(piece)):
            self.splice.used_up()
            return
        try:
            sent = other.sock.send(piece)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.splice.broke(other)
            return
        other.taken += sent
        if sent < len(piece):
            other.keep(piece[sent:])

    def _give_kept(self) -> None:
        try:
            sent = self.sock.send(self.kept)
        except BlockingIOError:
            return
        except OSError:
            self.splice.broke(self)
            return
        self.taken += sent
        if sent < len(self.kept):
            self.kept = self.kept[sent:]  # which holds all of it still
        else:
            self._forget_kept()
            self.wait(self.waits_for & ~OUT)
            self.other.wait(self.other.waits_for | IN)

    def _forget_kept(self) -> None:
        self.buffers.kept -= len(self.kept.obj)  # type: ignore[arg-type]  # the bytes that it is of
        self.kept = _NOTHING


class Splice:
    """Two connected, non-blocking sockets whose bytes are relayed in both directions, as far as the meter allows."""

    __slots__ = (
        "_buffers", "_client", "_ended", "_ends", "_moved", "_pair", "_poller", "_server", "done", "meter",
        "over_limit", "server_broke",
    )  # fmt: skip

    def __init__(
        self,
        poller: "Poller",
        buffers: "BufferQuota",
        client: socket.socket,
        server: socket.socket,
        ended: "Callable[[Exception | None], None]",
        *,
        meter: "Meter | None" = None,
    ) -> None:
        """Take both sockets over, from the poller too.

        `ended` is called once, when both are closed; with an exception if that was a bug.
        """
        self._poller = poller
        self._buffers = buffers
        self._client = client
        self._server = server
        self._ended = ended
        self.meter = meter
        self.done = False
        self.server_broke = False  # whether it ended because the server did not end properly
        self.over_limit = False  # whether it ended because no more may pass
        self._pair = 0  # where compiled code has it
        self._ends: tuple[Half, Half] | None = None  # where that has not: the client's and the server's
        self._moved = 0, 0  # bytes up and down, once it is done

    def start(self, said: bytes = b"") -> None:
        """Start with the bytes that the client has sent: first `said`, which was decided on, then the rest.

        Until it is read a program can change what it has sent (sendfile(2), splice(2)), so that is thrown away instead.
        """
        if COMPILED is None or self.meter is not None:
            client, server = self._interpret()
            for half in (client, server):
                half.waits_for = IN
                self._poller.watch(half.fd, IN, half)
            client.begin(said)
            return
        client_fd, server_fd = self._client.fileno(), self._server.fileno()
        self._poller.watch(client_fd, IN, self)
        self._poller.watch(server_fd, IN, self)
        self._pair = COMPILED.adopt(
            self._poller.number, client_fd, server_fd, self._buffers.address, self._buffers.most
        )
        if COMPILED.start(self._pair, said):
            self.ready(0)

    def passed(self) -> tuple[int, int]:
        """Return the bytes sent to the server and to the client."""
        if self._pair:
            assert COMPILED is not None
            return COMPILED.counts(self._pair)
        if self._ends is not None:
            return self._ends[1].taken, self._ends[0].taken
        return self._moved

    def count(self, meter: "Meter | None") -> None:
        """Count with another meter from now on; None: there is no limit any more."""
        self.meter = meter
        if self._pair and meter is not None and COMPILED is not None and not COMPILED.over(self._pair):
            self._take_back()
        if self._ends is not None:
            for half, may_say in zip(self._ends, _may_say(meter), strict=True):
                half.may_say = may_say

    def abort(self, error: Exception | None = None) -> None:
        """End with a reset on both sides. Idempotent."""
        self._end(reset, error)

    # for the poller, where compiled code has the sockets

    def ready(self, _events: int) -> None:
        """Handle the end of a pair that compiled code relays; the event may be of an earlier descriptor."""
        over = COMPILED.over(self._pair) if COMPILED is not None and self._pair else Over.OPEN
        if over == Over.FAILED:
            raise OSError("a socket could not be watched, or there is no memory to keep what it doesn't take")
        if over:
            self.server_broke = over == Over.FAR_BROKE
            self._end(finish if over == Over.IN_PEACE else reset)

    def failed(self, error: Exception) -> None:
        """End it: `ready` raised, which is a bug."""
        self.abort(error)

    # for the two sides, where the interpreter has them

    def used_up(self) -> None:
        """End it: a side sent more than its limit allows; none of the excess was relayed."""
        self.over_limit = True
        self._end(reset)

    def broke(self, half: Half) -> None:
        """Reset both sides: one side can't be read or written any more."""
        self.server_broke = self._ends is not None and half is self._ends[1]
        half.hear_out()
        self._end(reset)

    def fell_silent(self, half: Half) -> None:
        """Relay an end of stream; the second one ends the splice."""
        if half.other.silent:
            self._end(finish)
            return
        try:
            half.other.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.broke(half.other)

    def _interpret(self) -> tuple[Half, Half]:
        """Relay both sides in the interpreter."""
        up, down = _may_say(self.meter)
        client = Half(self, self._poller, self._buffers, self._client, up)
        server = Half(self, self._poller, self._buffers, self._server, down)
        client.other, server.other = server, client
        self._ends = client, server
        return self._ends

    def _take_back(self) -> None:
        """Take the pair over from compiled code, so that bytes are counted from now on."""
        assert COMPILED is not None
        pair, self._pair = self._pair, 0
        counts, sides = COMPILED.counts(pair), [COMPILED.side(pair, far=far) for far in (False, True)]
        COMPILED.release(pair)
        for end, side, taken in zip(self._interpret(), sides, reversed(counts), strict=True):
            end.waits_for, end.silent, end.taken = side.waits_for, side.silent, taken
            if side.kept:
                end.kept = memoryview(side.kept)
                self._buffers.kept += len(side.kept)
            if side.waits_for:
                self._poller.watch(end.fd, side.waits_for, end)
            else:
                self._poller.drop(end.fd)

    def _end(self, close: "Callable[[socket.socket], None]", error: Exception | None = None) -> None:
        if self.done:
            return
        self.done = True
        self._moved = self.passed()
        pair, self._pair = self._pair, 0
        if pair:
            assert COMPILED is not None
            COMPILED.release(pair)
        # Nothing goes round any more: all of it is freed at once, and the next connection finds its memory warm.
        ends, self._ends = self._ends, None
        for half in ends or ():  # of which nothing is needed any more
            half.give_up()
        for sock in (self._client, self._server):
            self._poller.drop(sock.fileno())
            close(sock)
        ended = self._ended
        del self._ended
        ended(error)


def _may_say(meter: "Meter | None") -> "tuple[Callable[[int], bool] | None, Callable[[int], bool] | None]":
    """Return the limit checks for the client's and the server's half."""
    return (None, None) if meter is None else (meter.up, meter.down)
