"""Passing bytes on, both ways, until both ends have ended or one breaks.

A cut is not an end (invariant 12): a reset on one side is a reset on the other, an end on one side is an end on the
other and the opposite way goes on. Urgent data is passed on inline (RFC 6093; the sockets have SO_OOBINLINE). All
connections of a process share one buffer, because whatever is read is written before anything else is read: only what a
full socket didn't take is kept, and its other side isn't read until it is gone. So idle connections hold no buffer, and
no byte of one tenant is ever found by another (invariant 11).
"""

import socket
import struct
from typing import TYPE_CHECKING, Final

from proxy.poller import ERR, HUP, IN, OUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.limits import Meter
    from proxy.poller import Poller

_BUFFER: Final = bytearray(256 * 1024)
_WHOLE: Final = memoryview(_BUFFER)
_SMALL: Final = _WHOLE[:4096]
_NOTHING: Final = memoryview(b"")
_UNKNOWN: Final = -1  # what a socket waits for that was handed over
MOST_KEPT: Final = 32 * 1024 * 1024  # bytes waiting for a tenant's full sockets; beyond, they are read in small pieces
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger, on with no time: close sends a reset (socket(7))
_IN_PEACE: Final = struct.pack("ii", 0, 0)
_closed = socket.SocketType.close  # the C type's: a socket's own goes through two functions, for makefile(), first


def reset(sock: socket.socket) -> None:
    """Close so that the other side can't take it for an end."""
    _close(sock, _RESET)


def finish(sock: socket.socket) -> None:
    """Close in peace: what was sent is delivered, and the other side sees an end."""
    _close(sock, _IN_PEACE)


def cut_if_killed(sock: socket.socket) -> None:
    """Have the kernel reset the connection should this process end without closing it (invariant 12).

    What a listener has set, its accepted sockets inherit. `finish` closes in peace. Source: socket(7), SO_LINGER.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _close(sock: socket.socket, linger: bytes) -> None:
    try:  # noqa: SIM105  contextlib.suppress is three calls, twice a connection
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    except OSError:
        pass  # it is broken already
    _closed(sock)


class Backlog:
    """How much one tenant's full sockets have waiting."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Relay:
    """Two connected, non-blocking sockets: what one says the other hears, as long as its meter lets it."""

    __slots__ = ("_ended", "_far", "_near", "done", "far_broke", "over_limit")

    def __init__(
        self,
        poller: "Poller",
        backlog: Backlog,
        near: socket.socket,
        far: socket.socket,
        ended: "Callable[[Exception | None], None]",
        *,
        meter: "Meter | None" = None,
    ) -> None:
        """Take both sockets over, from the poller too.

        `ended` is called once, when both are closed; with an exception if that was a bug.
        """
        self._ended = ended
        self.done = False
        self.far_broke = False  # whether it ended because the far side did not end properly
        self.over_limit = False  # whether it ended because no more may pass
        self._near = _End(self, poller, backlog, near, None if meter is None else meter.up)
        self._far = _End(self, poller, backlog, far, None if meter is None else meter.down)
        self._near.other, self._far.other = self._far, self._near

    def start(self) -> None:
        """Begin, with what the near side has said already."""
        for side in (self._near, self._far):
            side.waits_for = IN
            side.poller.watch(side.fd, IN, side)
        self._near.ready(IN)

    @property
    def up(self) -> int:
        """Bytes that the near side said and the far side was given."""
        return self._far.taken

    @property
    def down(self) -> int:
        """Bytes that the far side said and the near side was given."""
        return self._near.taken

    def count(self, meter: "Meter | None") -> None:
        """Ask another meter from now on; None: there is no limit any more."""
        self._near.may_say = None if meter is None else meter.up
        self._far.may_say = None if meter is None else meter.down

    def abort(self, error: Exception | None = None) -> None:
        """End with a reset on both sides. Idempotent, also after an end."""
        self._end(_RESET, error)

    def used_up(self) -> None:
        """End it: what one side said was more than may pass, and none of that was passed on."""
        self.over_limit = True
        self._end(_RESET)

    def broke(self, side: "_End") -> None:
        """Carry a reset over: nothing more can be read from or written to one side."""
        self.far_broke = side is self._far
        self._end(_RESET)

    def fell_silent(self, side: "_End") -> None:
        """Carry an end over; the second one is the end of both."""
        if side.other.silent:
            self._end(_IN_PEACE)
            return
        try:
            side.other.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.broke(side.other)

    def _end(self, linger: bytes, error: Exception | None = None) -> None:
        if self.done:
            return
        self.done = True
        for side in (self._near, self._far):  # of which nothing but the sockets is needed any more
            side.waits_for = 0
            side.poller.drop(side.fd)
            if side.kept:
                side.backlog.bytes -= len(side.kept)
                side.kept = _NOTHING
            _close(side.sock, linger)
        self._ended(error)
        # Nothing goes round any more: all of it is freed at once, and the next connection finds its memory warm.
        del self._ended, self._near.relay, self._near.other, self._far.relay, self._far.other


class _End:
    """One side's socket: read for the other side, given what the other side said."""

    __slots__ = (
        "backlog", "fd", "kept", "may_say", "other", "poller", "relay", "silent", "sock", "taken", "waits_for",
    )  # fmt: skip

    other: "_End"

    def __init__(
        self,
        relay: Relay,
        poller: "Poller",
        backlog: Backlog,
        sock: socket.socket,
        may_say: "Callable[[int], bool] | None",
    ) -> None:
        self.relay = relay
        self.may_say = may_say  # asked with the bytes of each piece; None: there is no limit
        self.poller = poller
        self.backlog = backlog
        self.sock = sock
        self.fd = sock.fileno()
        self.waits_for = _UNKNOWN
        self.silent = False  # it has said all it will
        self.kept = _NOTHING  # what it was given and didn't take yet
        self.taken = 0  # bytes

    def ready(self, events: int) -> None:  # noqa: C901  one function: this is done with each piece of each connection
        """Give the other side what this one has said: once, so that a busy connection leaves the others their turn."""
        if self.kept and events & (OUT | ERR | HUP):
            self._give_kept()
        if not (self.waits_for & IN and events & (IN | ERR | HUP)):
            return
        view = _WHOLE if self.backlog.bytes < MOST_KEPT else _SMALL
        try:
            size = self.sock.recv_into(view)
        except BlockingIOError:
            return
        except OSError:
            self.relay.broke(self)
            return
        other = self.other
        if not size:
            self.silent = True
            if not other.silent:  # else both are closed now
                self.wait(self.waits_for & ~IN)  # nothing is kept for the other side: else this one would not be read
            self.relay.fell_silent(self)
            return
        if self.may_say is not None and not self.may_say(size):
            self.relay.used_up()
            return
        try:
            sent = other.sock.send(view[:size])
        except BlockingIOError:
            sent = 0
        except OSError:
            self.relay.broke(other)
            return
        other.taken += sent
        if sent < size:
            other.keep(view[sent:size])

    def failed(self, error: Exception) -> None:
        self.relay.abort(error)

    def keep(self, data: memoryview) -> None:
        """Keep what doesn't go now; the other side then waits."""
        self.kept = memoryview(bytes(data))  # a copy: the buffer is everybody's
        self.backlog.bytes += len(self.kept)
        self.wait(self.waits_for | OUT)
        self.other.wait(self.other.waits_for & ~IN)

    def wait(self, events: int) -> None:
        """Wait for `events`; for none means to be out of the set, or an error would be told over and over."""
        before, self.waits_for = self.waits_for, events
        if before == events:
            return
        if before <= 0:
            self.poller.watch(self.fd, events, self)
        elif not events:
            self.poller.forget(self.fd)
        else:
            self.poller.change(self.fd, events)

    def _give_kept(self) -> None:
        try:
            sent = self.sock.send(self.kept)
        except BlockingIOError:
            return
        except OSError:
            self.relay.broke(self)
            return
        self.taken += sent
        self.backlog.bytes -= sent
        self.kept = self.kept[sent:]
        if not self.kept:
            self.kept = _NOTHING  # an empty slice still holds all of it
            self.wait(self.waits_for & ~OUT)
            self.other.wait(self.other.waits_for | IN)
