"""Transport of one inspected client or server: a socket with send buffer, TLS, and the way it ended.

A transport reads only while its data can be forwarded, buffers what a full socket didn't take, and tells a reset from
an end. Closing a client's socket with unread data sends a reset, which discards the last response. So the transport
first reads and discards data for a moment (RFC 9112 section 9.6). `cut_off` delivers earlier data before its reset; a
plain reset discards everything unsent.
"""

import select
import socket
from collections import deque
from time import thread_time
from typing import TYPE_CHECKING, Final, Protocol

from proxy.event_loop.poller import ERR, HUP, IN, OUT, finish, reset

if TYPE_CHECKING:
    import asyncio

    from proxy.event_loop.poller import Poller

_LEAVING: Final = select.EPOLLRDHUP  # the peer has ended its side (epoll_ctl(2))
SMALL_PIECE: Final = 32 * 1024  # bytes read at a time: a client can put hundreds of requests into it
PIECE: Final = 256 * 1024  # ... at most, from a server that always has more
FIRST_PIECE: Final = 8 * 1024  # ... from a client that nothing is known of
LEAST_PIECE: Final = 1024  # ... at least, of what takes its time
TURN: Final = 0.01  # seconds of this thread that a piece should take at most: a flood of tiny frames takes many
FULL: Final = 256 * 1024  # bytes waiting for a socket, from which it counts as full
JOINED: Final = 16 * 1024  # bytes of small pieces that wait as one
ROOM: Final = 64 * 1024  # ... and from which it doesn't any more
LINGER: Final = 2.0  # seconds in which a client that goes on sending has to send more; many read an answer only then
MOST_LINGERED: Final = 15  # ... times that
THROWN_AWAY: Final = 64 * 1024 * 1024  # bytes of what it sends meanwhile
LAST_WORDS: Final = 30.0  # seconds that a peer has to take what waits for it when its connection is closed
_NOTSENT_LOWAT: Final = 25  # TCP_NOTSENT_LOWAT (tcp(7), linux/tcp.h): Python's `socket` doesn't have it


class Tls(Protocol):
    """TLS without I/O (`proxy.inspection.tls`)."""

    is_open: bool  # the handshake is over, and went well
    has_ended: bool  # nothing more can be read
    is_broken: bool  # ... as the peer broke the protocol

    def shake_hands(self, data: bytes) -> tuple[str | None, bytes]:
        """Continue the handshake; returns the problem, if there is one, and the bytes to send."""

    def receive(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Decrypt received bytes; returns the data, the bytes to send, and whether the peer has ended."""

    def seal(self, data: bytes, *, last: bool = False) -> bytes:
        """Encrypt `data`, followed by a close_notify if it is the `last`."""


class TransportOwner[End](Protocol):
    """Receives the events of its transports."""

    def opened(self, transport: "Transport[End]", problem: str | None) -> None:
        """Handle the end of the TLS handshake, with its problem."""

    def received(self, transport: "Transport[End]", data: bytes) -> None:
        """Handle received data, decrypted."""

    def finished(self, transport: "Transport[End]", *, broken: bool) -> None:
        """Handle the peer's close_notify, or a TLS protocol error."""

    def ended(self, transport: "Transport[End]") -> None:
        """Handle the end of the data: the peer ended, or the connection was reset (`transport.cut`)."""

    def relieved(self, transport: "Transport[End]") -> None:
        """Handle a send buffer that is no longer full."""

    def leaving(self, transport: "Transport[End]") -> None:
        """Handle a peer that ended its side, where that is watched; data may still be unread."""

    def gone(self, transport: "Transport[End]") -> None:
        """Remove the transport: its socket is closed."""

    def crashed(self, error: Exception) -> None:
        """Close everything: an unexpected exception was raised."""


class Transport[End]:
    """A connected, non-blocking socket with TCP_NODELAY and a send buffer."""

    __slots__ = (
        "_closing", "_cutting", "_events", "_half", "_kept", "_loop", "_owner", "_piece", "_poller", "_sock",
        "_thrown_away", "_timer", "_told", "_watched", "_watching_out", "client", "connection", "cut", "down", "full",
        "kept", "new", "over", "paused", "tls", "up",
    )  # fmt: skip

    def __init__(
        self,
        loop: "asyncio.AbstractEventLoop",
        poller: "Poller",
        sock: socket.socket,
        owner: TransportOwner[End],
        connection: End,
        *,
        client: bool,
        tls: Tls | None = None,
    ) -> None:
        """Make one for the bytes of `connection`. A `client` is closed with consideration."""
        self._loop = loop
        self._poller = poller
        self._sock = sock
        self._owner = owner
        self._kept: deque[memoryview] = deque()
        self._closing = False
        self._half = False  # our half alone ends, once everything is sent
        self._cutting = False  # closes with a reset, once the socket has sent everything
        self._timer: asyncio.TimerHandle | None = None
        self._piece = FIRST_PIECE if client else SMALL_PIECE
        self._events = IN
        self._watched = False
        self._watching_out = False  # whether the end of the peer's side is of interest though nothing is read
        self._told = False  # that nothing more comes
        self._thrown_away = 0
        self.connection = connection
        self.client = client
        self.tls = tls
        self.new: list[bytes] = []  # of this turn, to be sent together by `flush`
        self.kept = 0  # bytes that wait for the socket to take them
        self.full = False  # what is to be sent has to wait
        self.paused = False
        self.over = False  # the socket is closed
        self.cut = False
        self.up = self.down = 0  # bytes sent, received

    # --- in ---

    def ready(self, events: int) -> None:
        """Handle an event of the socket."""
        if events & OUT and not self.over:
            self._ready_to_send()
        if self.over:
            return
        if self.paused:
            self._ready_while_paused(events)
            return
        if not events & (IN | ERR | HUP):
            return
        try:
            data = self._sock.recv(self._piece)
        except BlockingIOError:
            return
        except OSError:
            self._ended(cut=True)
            return
        if self._closing:
            self._throw_away(data)
        elif not data:
            self._ended(cut=self.cut)
        elif len(data) < LEAST_PIECE:
            self.down += len(data)
            self._arrived(data)
        else:
            self.down += len(data)
            started = thread_time()
            self._arrived(data)
            self._adjust(len(data), thread_time() - started)

    def _ready_while_paused(self, events: int) -> None:
        if events & ERR and not (self.client or self._told or self._closing):
            self._unwatch()  # what the server sent before its reset is read when there is room for it
        elif events & ERR or (self._told and events & HUP):
            self._ended(cut=True)
        elif events & _LEAVING and self._watching_out:
            self.watch_out(on=False)
            self._owner.leaving(self)
        elif events & HUP:  # epoll says it again and again: looked at when there is room
            self._unwatch()

    def failed(self, error: Exception) -> None:
        """Close everything: `ready` raised, which is a bug."""
        self._owner.crashed(error)

    def _arrived(self, data: bytes) -> None:
        """Pass received data to the owner, decrypted if there is TLS."""
        tls = self.tls
        if tls is None:
            self._owner.received(self, data)
        elif tls.has_ended:
            return
        elif not tls.is_open:
            self.shake_hands(data)
        else:
            plain, answer, ended = tls.receive(data)
            if answer:  # to a key update, or an alert
                self._write(answer)
            if plain:
                self._owner.received(self, plain)
            if ended and not self.over:  # the owner may have closed it
                self._owner.finished(self, broken=tls.is_broken)

    def shake_hands(self, data: bytes = b"") -> None:
        """Start or continue a TLS handshake; its end calls the owner."""
        tls = self.tls
        assert tls is not None
        problem, answer = tls.shake_hands(data)
        if answer:  # with our alert, where something is wrong: the peer shall know why
            self._write(answer)
        if problem is not None:
            tls.has_ended = True
            self._owner.opened(self, problem)
        elif tls.is_open:
            self._owner.opened(self, None)
            if not self.over:
                self._arrived(b"")  # what came together with the end of the handshake

    def _adjust(self, size: int, took: float) -> None:
        """Read smaller pieces if handling them takes long, so that other connections get their turn."""
        if took > TURN:
            self._piece = max(size // 4, LEAST_PIECE)
        elif size < self._piece // 4:
            self._piece = min(self._piece, SMALL_PIECE)
        elif size == self._piece and took < TURN / 4:
            self._piece = min(2 * self._piece, SMALL_PIECE if self.client else PIECE)

    def _ended(self, *, cut: bool) -> None:
        """Report the end of the data, once. After a reset nothing can be sent either."""
        self.cut = self.cut or cut
        if self._closing or self._told:
            self._release(cut=cut)
            return
        self._told = self.paused = True
        if cut:
            self._unwatch()
        else:
            self.watch()
        self._owner.ended(self)

    def pause(self, *, paused: bool) -> None:
        """Stop or continue reading."""
        if paused is not self.paused and not self._told and not self._closing:
            self.paused = paused
            self.watch()

    def watch_out(self, *, on: bool) -> None:
        """Report when the peer ends its side, even while nothing is read."""
        if on is not self._watching_out:
            self._watching_out = on
            if self._watched:
                self.watch()

    # --- out ---

    def flush(self, *, last: bool = False) -> None:
        """Send the data in `new`, encrypted if there is TLS; the `last` adds a close_notify (RFC 8446 section 6.1)."""
        data = self.new[0] if len(self.new) == 1 else b"".join(self.new)
        self.new.clear()
        if self.tls is not None and (data or (last and self.tls.is_open)) and not (self.over or self._closing):
            data = self.tls.seal(data, last=last and self.tls.is_open)
        self._write(data)

    def _write(self, data: bytes) -> None:
        """Send bytes, and buffer what the socket doesn't take."""
        if not data or self.over or self._closing:
            return
        sent = 0
        if not self._kept:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self.cut = True  # reading tells
                return
            self.up += sent
        if sent < len(data):
            self._keep(memoryview(data)[sent:])
            self.full = self.full or self.kept > FULL
            self.watch()

    def _keep(self, data: memoryview) -> None:
        """Buffer bytes; small pieces are joined, since each costs many times its size."""
        self.kept += len(data)
        if self._kept and len(self._kept[-1]) + len(data) <= JOINED:
            self._kept[-1] = memoryview(b"".join((self._kept[-1], data)))
        else:
            self._kept.append(data)

    def _send_kept(self) -> None:
        """Send as much of the buffer as the socket takes."""
        while self._kept:
            data = self._kept[0]
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                break
            except OSError:
                self.cut, sent = True, len(data)  # it takes nothing ever again; reading tells
            else:
                self.up += sent
            self.kept -= sent
            if sent < len(data):
                self._kept[0] = data[sent:]
                break
            self._kept.popleft()

    def _ready_to_send(self) -> None:
        if not self._kept:
            if self._cutting:
                self.reset()
            return
        self._send_kept()
        if self.cut and self.client:  # who is gone gets no answers; a server may have left one before it went
            self._ended(cut=True)
            return
        self.watch()
        if self._half and not self._kept and not self._closing:
            self._end_half()
        if self._closing and not self._kept:
            self._shut()
        elif self.full and self.kept < ROOM:
            self.full = False
            self._owner.relieved(self)

    # --- the end ---

    def end_sending(self) -> None:
        """Send the buffer, then end our side only."""
        self._half = True
        self.flush(last=True)
        if not (self._kept or self._closing or self.over):
            self._end_half()

    def _end_half(self) -> None:
        self._half = False
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.cut = True  # reading tells

    def close(self) -> None:
        """Send the buffer, then close; keep reading from a client for a moment, and discard that."""
        self.flush(last=True)
        if self._closing or self.over:
            return
        self._closing = True
        if self.cut:
            self.reset()
            return
        self.paused = self._told
        if self._kept:
            self._timer = self._loop.call_later(LAST_WORDS, self.reset)
        else:
            self._shut()

    def cut_off(self) -> None:
        """Send the buffer, then reset: the peer receives everything sent before."""
        self.flush()
        if self._closing or self.over:
            return
        if self.cut:
            self.reset()
            return
        self._closing = self._cutting = self.paused = True
        self._timer = self._loop.call_later(LAST_WORDS, self.reset)
        if not self._kept:
            self._shut()

    def reset(self) -> None:
        """Reset at once; unsent data is lost."""
        self._release(cut=True)

    def _shut(self) -> None:
        """End our side. A client's own end is awaited."""
        if self._cutting:  # writable (EPOLLOUT) from now on means that the kernel has sent everything
            self._sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, 1)
            self.watch()
            return
        if self._timer is not None:
            self._timer.cancel()
        if not self.client or self._told:
            self._release()  # closing is the end of our half, too
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._release()
            return
        self._timer = self._loop.call_later(LINGER, self._look, 1, 0)
        self.watch()

    def _throw_away(self, data: bytes) -> None:
        """Discard data after the last response, until the client ends or sends too much."""
        if not data and self._kept:
            self.paused = self._told = True
            self.watch()
            return
        self._thrown_away += len(data)
        if not data or self._thrown_away > THROWN_AWAY:
            self._release()

    def _look(self, times: int, had: int) -> None:
        """Keep waiting for a client that has sent something since."""
        if self._thrown_away > had and times < MOST_LINGERED:
            self._timer = self._loop.call_later(LINGER, self._look, times + 1, self._thrown_away)
        else:
            self._release()

    def _release(self, *, cut: bool = False) -> None:
        if self.over:
            return
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._watched:
            self._watched = False
            self._poller.drop(self._sock.fileno())
        self._kept.clear()
        if cut:
            reset(self._sock)
        else:
            finish(self._sock)
        self._owner.gone(self)

    # --- what is watched ---

    def watch(self) -> None:
        """Register for the events needed now; the first call starts reading."""
        events = (0 if self.paused else IN) | (OUT if self._kept or self._cutting else 0)
        if self._watching_out and self.paused:
            events |= _LEAVING
        if not self._watched:
            if not (self.cut and self._told):
                self._watched = True
                self._poller.watch(self._sock.fileno(), events, self)
        elif events != self._events:
            self._poller.change(self._sock.fileno(), events)
        self._events = events

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._poller.forget(self._sock.fileno())
