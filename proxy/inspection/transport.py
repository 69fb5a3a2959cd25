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

_PEER_ENDED: Final = select.EPOLLRDHUP  # the peer has ended its side (epoll_ctl(2))
SMALL_PIECE: Final = 32 * 1024  # bytes read at a time: a client can put hundreds of requests into it
PIECE: Final = 256 * 1024  # bytes read at a time at most, from a server that always has more
FIRST_PIECE: Final = 8 * 1024  # bytes read at first, from a new client
LEAST_PIECE: Final = 1024  # bytes read at a time at least, if handling takes long
TURN: Final = 0.01  # seconds of thread time that handling a piece should take at most; tiny frames take long
FULL: Final = 256 * 1024  # unsent bytes from which a send buffer counts as full
JOINED: Final = 16 * 1024  # bytes up to which small pieces are joined
ROOM: Final = 64 * 1024  # unsent bytes below which a full send buffer no longer counts as full
LINGER: Final = (
    2.0  # seconds to wait for more data of a client that is still sending; many read the response only afterwards
)
MOST_LINGERED: Final = 15  # how often to wait like that
THROWN_AWAY: Final = 64 * 1024 * 1024  # bytes discarded while waiting
LAST_WORDS: Final = 30.0  # seconds for a peer to receive the unsent data of a closing connection
_NOTSENT_LOWAT: Final = 25  # TCP_NOTSENT_LOWAT (tcp(7), linux/tcp.h): Python's `socket` doesn't have it


class Tls(Protocol):
    """TLS without I/O (`proxy.inspection.tls`)."""

    is_open: bool  # the handshake succeeded
    has_ended: bool  # nothing more can be read
    is_broken: bool  # ... because the peer violated the protocol

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
        "_closing",
        "_discarded_bytes",
        "_ends_half",
        "_events",
        "_has_reported_end",
        "_loop",
        "_owner",
        "_piece_size",
        "_poller",
        "_resets_when_sent",
        "_sock",
        "_timer",
        "_unsent",
        "_watched",
        "_watches_peer_end",
        "client",
        "connection",
        "cut",
        "down",
        "full",
        "kept",
        "new",
        "over",
        "paused",
        "tls",
        "up",
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
        """Create the transport of `connection`. The socket of a `client` is only closed after a lingering read."""
        self._loop = loop
        self._poller = poller
        self._sock = sock
        self._owner = owner
        self._unsent: deque[memoryview] = deque()
        self._closing = False
        self._ends_half = False  # end only our side, once everything is sent
        self._resets_when_sent = False  # reset, once the socket has sent everything
        self._timer: asyncio.TimerHandle | None = None
        self._piece_size = FIRST_PIECE if client else SMALL_PIECE
        self._events = IN
        self._watched = False
        self._watches_peer_end = False  # report the end of the peer's side while nothing is read
        self._has_reported_end = False  # the end of the data was reported
        self._discarded_bytes = 0
        self.connection = connection
        self.client = client
        self.tls = tls
        self.new: list[bytes] = []  # data of this turn, which `flush` sends together
        self.kept = 0  # unsent bytes
        self.full = False  # the send buffer is full
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
            data = self._sock.recv(self._piece_size)
        except BlockingIOError:
            return
        except OSError:
            self._handle_end(cut=True)
            return
        if self._closing:
            self._discard(data)
        elif not data:
            self._handle_end(cut=self.cut)
        elif len(data) < LEAST_PIECE:
            self.down += len(data)
            self._handle_data(data)
        else:
            self.down += len(data)
            started = thread_time()
            self._handle_data(data)
            self._adjust_piece_size(len(data), thread_time() - started)

    def _ready_while_paused(self, events: int) -> None:
        if events & ERR and not (self.client or self._has_reported_end or self._closing):
            self._unwatch()  # data that the server sent before its reset is read later
        elif events & ERR or (self._has_reported_end and events & HUP):
            self._handle_end(cut=True)
        elif events & _PEER_ENDED and self._watches_peer_end:
            self.watch_out(on=False)
            self._owner.leaving(self)
        elif events & HUP:  # epoll would report it again and again: handled when reading continues
            self._unwatch()

    def failed(self, error: Exception) -> None:
        """Close everything: `ready` raised, which is a bug."""
        self._owner.crashed(error)

    def _handle_data(self, data: bytes) -> None:
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
        if answer:  # includes our alert if the handshake failed
            self._write(answer)
        if problem is not None:
            tls.has_ended = True
            self._owner.opened(self, problem)
        elif tls.is_open:
            self._owner.opened(self, None)
            if not self.over:
                self._handle_data(b"")  # data that arrived with the end of the handshake

    def _adjust_piece_size(self, size: int, took: float) -> None:
        """Read smaller pieces if handling them takes long, so that other connections get their turn."""
        if took > TURN:
            self._piece_size = max(size // 4, LEAST_PIECE)
        elif size < self._piece_size // 4:
            self._piece_size = min(self._piece_size, SMALL_PIECE)
        elif size == self._piece_size and took < TURN / 4:
            self._piece_size = min(2 * self._piece_size, SMALL_PIECE if self.client else PIECE)

    def _handle_end(self, *, cut: bool) -> None:
        """Report the end of the data, once. After a reset nothing can be sent either."""
        self.cut = self.cut or cut
        if self._closing or self._has_reported_end:
            self._release(cut=cut)
            return
        self._has_reported_end = self.paused = True
        if cut:
            self._unwatch()
        else:
            self.watch()
        self._owner.ended(self)

    def pause(self, *, paused: bool) -> None:
        """Stop or continue reading."""
        if paused is not self.paused and not self._has_reported_end and not self._closing:
            self.paused = paused
            self.watch()

    def watch_out(self, *, on: bool) -> None:
        """Report when the peer ends its side, even while nothing is read."""
        if on is not self._watches_peer_end:
            self._watches_peer_end = on
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
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self.cut = True  # the next read reports it
                return
            self.up += sent
        if sent < len(data):
            self._buffer(memoryview(data)[sent:])
            self.full = self.full or self.kept > FULL
            self.watch()

    def _buffer(self, data: memoryview) -> None:
        """Buffer bytes; small pieces are joined, since each costs many times its size."""
        self.kept += len(data)
        if self._unsent and len(self._unsent[-1]) + len(data) <= JOINED:
            self._unsent[-1] = memoryview(b"".join((self._unsent[-1], data)))
        else:
            self._unsent.append(data)

    def _send_unsent(self) -> None:
        """Send as much of the buffer as the socket takes."""
        while self._unsent:
            data = self._unsent[0]
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                break
            except OSError:
                self.cut, sent = True, len(data)  # nothing can be sent any more; the next read reports it
            else:
                self.up += sent
            self.kept -= sent
            if sent < len(data):
                self._unsent[0] = data[sent:]
                break
            self._unsent.popleft()

    def _ready_to_send(self) -> None:
        if not self._unsent:
            if self._resets_when_sent:
                self.reset()
            return
        self._send_unsent()
        if self.cut and self.client:  # a client that is gone gets no response; a server may have sent one before
            self._handle_end(cut=True)
            return
        self.watch()
        if self._ends_half and not self._unsent and not self._closing:
            self._end_half()
        if self._closing and not self._unsent:
            self._end_side()
        elif self.full and self.kept < ROOM:
            self.full = False
            self._owner.relieved(self)

    # --- the end ---

    def end_sending(self) -> None:
        """Send the buffer, then end our side only."""
        self._ends_half = True
        self.flush(last=True)
        if not (self._unsent or self._closing or self.over):
            self._end_half()

    def _end_half(self) -> None:
        self._ends_half = False
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.cut = True  # the next read reports it

    def close(self) -> None:
        """Send the buffer, then close; keep reading from a client for a moment, and discard that."""
        self.flush(last=True)
        if self._closing or self.over:
            return
        self._closing = True
        if self.cut:
            self.reset()
            return
        self.paused = self._has_reported_end
        if self._unsent:
            self._timer = self._loop.call_later(LAST_WORDS, self.reset)
        else:
            self._end_side()

    def cut_off(self) -> None:
        """Send the buffer, then reset: the peer receives everything sent before."""
        self.flush()
        if self._closing or self.over:
            return
        if self.cut:
            self.reset()
            return
        self._closing = self._resets_when_sent = self.paused = True
        self._timer = self._loop.call_later(LAST_WORDS, self.reset)
        if not self._unsent:
            self._end_side()

    def reset(self) -> None:
        """Reset at once; unsent data is lost."""
        self._release(cut=True)

    def _end_side(self) -> None:
        """End our side. A client's own end is awaited."""
        if self._resets_when_sent:  # from now on, EPOLLOUT means that the kernel has sent everything
            self._sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, 1)
            self.watch()
            return
        if self._timer is not None:
            self._timer.cancel()
        if not self.client or self._has_reported_end:
            self._release()  # closing also ends our side
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._release()
            return
        self._timer = self._loop.call_later(LINGER, self._check_lingering, 1, 0)
        self.watch()

    def _discard(self, data: bytes) -> None:
        """Discard data after the last response, until the client ends or sends too much."""
        if not data and self._unsent:
            self.paused = self._has_reported_end = True
            self.watch()
            return
        self._discarded_bytes += len(data)
        if not data or self._discarded_bytes > THROWN_AWAY:
            self._release()

    def _check_lingering(self, times: int, had: int) -> None:
        """Keep waiting for a client that has sent something since."""
        if self._discarded_bytes > had and times < MOST_LINGERED:
            self._timer = self._loop.call_later(LINGER, self._check_lingering, times + 1, self._discarded_bytes)
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
        self._unsent.clear()
        if cut:
            reset(self._sock)
        else:
            finish(self._sock)
        self._owner.gone(self)

    # --- what is watched ---

    def watch(self) -> None:
        """Register for the events needed now; the first call starts reading."""
        events = (0 if self.paused else IN) | (OUT if self._unsent or self._resets_when_sent else 0)
        if self._watches_peer_end and self.paused:
            events |= _PEER_ENDED
        if not self._watched:
            if not (self.cut and self._has_reported_end):
                self._watched = True
                self._poller.watch(self._sock.fileno(), events, self)
        elif events != self._events:
            self._poller.change(self._sock.fileno(), events)
        self._events = events

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._poller.forget(self._sock.fileno())
