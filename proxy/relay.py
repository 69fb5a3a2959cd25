"""Passing bytes on, both ways, until both ends have ended or one breaks.

A cut is not an end (invariant 12): a reset on one side is a reset on the other, an end on one side is an end on the
other and the opposite way goes on. What a side said before it broke is heard still. Urgent data is passed on inline
(RFC 6093; the sockets have SO_OOBINLINE). All connections of a process share one buffer, because whatever is read is
written before anything else is read: only what a full socket didn't take is kept, and its other side isn't read until
it is gone. So idle connections hold no buffer, and no byte of one tenant is ever found by another (invariant 11).

Where it is compiled (`proxy.compiled`) and no limit counts the bytes, C does it, and Python hears of the end: the same
in all but what it costs.
"""

import socket
import struct
from typing import TYPE_CHECKING, Final

from proxy.compiled.library import Over
from proxy.poller import COMPILED, IN
from proxy.side import Side

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.backlog import Backlog
    from proxy.limits import Meter
    from proxy.poller import Poller

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


class Relay:
    """Two connected, non-blocking sockets: what one says the other hears, as long as its meter lets it."""

    __slots__ = (
        "_backlog", "_ended", "_ends", "_far", "_moved", "_near", "_pair", "_poller", "done", "far_broke", "meter",
        "over_limit",
    )  # fmt: skip

    def __init__(
        self,
        poller: "Poller",
        backlog: "Backlog",
        near: socket.socket,
        far: socket.socket,
        ended: "Callable[[Exception | None], None]",
        *,
        meter: "Meter | None" = None,
    ) -> None:
        """Take both sockets over, from the poller too.

        `ended` is called once, when both are closed; with an exception if that was a bug.
        """
        self._poller = poller
        self._backlog = backlog
        self._near = near
        self._far = far
        self._ended = ended
        self.meter = meter
        self.done = False
        self.far_broke = False  # whether it ended because the far side did not end properly
        self.over_limit = False  # whether it ended because no more may pass
        self._pair = 0  # where compiled code has it
        self._ends: tuple[Side, Side] | None = None  # where that has not: the near and the far one
        self._moved = 0, 0  # bytes up and down, once it is done

    def start(self, said: bytes = b"") -> None:
        """Begin, with what the near side has said already: what was `said` as it was judged, and then the rest.

        Until it is read a program can change what it has sent (sendfile(2), splice(2)), so that is thrown away instead.
        """
        if COMPILED is None or self.meter is not None:
            near, far = self._interpret()
            for side in (near, far):
                side.waits_for = IN
                self._poller.watch(side.fd, IN, side)
            near.begin(said)
            return
        near_fd, far_fd = self._near.fileno(), self._far.fileno()
        self._poller.watch(near_fd, IN, self)
        self._poller.watch(far_fd, IN, self)
        self._pair = COMPILED.adopt(self._poller.number, near_fd, far_fd, self._backlog.address, self._backlog.most)
        if COMPILED.start(self._pair, said):
            self.ready(0)

    @property
    def up(self) -> int:
        """Bytes that the near side said and the far side was given."""
        return self._counts()[0]

    @property
    def down(self) -> int:
        """Bytes that the far side said and the near side was given."""
        return self._counts()[1]

    def count(self, meter: "Meter | None") -> None:
        """Ask another meter from now on; None: there is no limit any more."""
        self.meter = meter
        if self._pair and meter is not None and not self._is_over():
            self._take_back()
        if self._ends is not None:
            for side, may_say in zip(self._ends, _may_say(meter), strict=True):
                side.may_say = may_say

    def abort(self, error: Exception | None = None) -> None:
        """End with a reset on both sides. Idempotent, also after an end."""
        self._end(_RESET, error)

    # for the poller, where compiled code has the sockets

    def ready(self, _events: int) -> None:
        """Carry out how it is over, if it is; the descriptor that told may have been another's a moment ago."""
        over = self._is_over()
        if over == Over.FAILED:
            raise OSError("a socket could not be watched, or there is no memory to keep what it doesn't take")
        if over:
            self.far_broke = over == Over.FAR_BROKE
            self._end(_IN_PEACE if over == Over.IN_PEACE else _RESET)

    def failed(self, error: Exception) -> None:
        """End it: that was a bug."""
        self.abort(error)

    # for the two sides, where the interpreter has them

    def used_up(self) -> None:
        """End it: what one side said was more than may pass, and none of that was passed on."""
        self.over_limit = True
        self._end(_RESET)

    def broke(self, side: Side) -> None:
        """Carry a reset over: nothing more can be read from or written to one side."""
        self.far_broke = self._ends is not None and side is self._ends[1]
        side.hear_out()
        self._end(_RESET)

    def fell_silent(self, side: Side) -> None:
        """Carry an end over; the second one is the end of both."""
        if side.other.silent:
            self._end(_IN_PEACE)
            return
        try:
            side.other.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.broke(side.other)

    def _interpret(self) -> tuple[Side, Side]:
        """Have both sides done by the interpreter."""
        up, down = _may_say(self.meter)
        near = Side(self, self._poller, self._backlog, self._near, up)
        far = Side(self, self._poller, self._backlog, self._far, down)
        near.other, far.other = far, near
        self._ends = near, far
        return self._ends

    def _is_over(self) -> int:
        """Return how compiled code has it over, told in its turn: a reset that was read once reads as an end."""
        assert COMPILED is not None
        return COMPILED.over(self._pair) if self._pair else Over.OPEN

    def _take_back(self) -> None:
        """Go on where compiled code was: the bytes are counted from now on."""
        assert COMPILED is not None
        pair, self._pair = self._pair, 0
        counts, sides = COMPILED.counts(pair), [COMPILED.side(pair, far=far) for far in (False, True)]
        COMPILED.release(pair)
        for end, side, taken in zip(self._interpret(), sides, reversed(counts), strict=True):
            end.waits_for, end.silent, end.taken = side.waits_for, side.silent, taken
            if side.kept:
                end.kept = memoryview(side.kept)
                self._backlog.kept += len(side.kept)
            if side.waits_for:
                self._poller.watch(end.fd, side.waits_for, end)
            else:
                self._poller.drop(end.fd)

    def _counts(self) -> tuple[int, int]:
        if self._pair:
            assert COMPILED is not None
            return COMPILED.counts(self._pair)
        if self._ends is not None:
            return self._ends[1].taken, self._ends[0].taken
        return self._moved

    def _end(self, linger: bytes, error: Exception | None = None) -> None:
        if self.done:
            return
        self.done = True
        self._moved = self._counts()
        pair, self._pair = self._pair, 0
        if pair:
            assert COMPILED is not None
            COMPILED.release(pair)
        # Nothing goes round any more: all of it is freed at once, and the next connection finds its memory warm.
        ends, self._ends = self._ends, None
        for side in ends or ():  # of which nothing is needed any more
            side.give_up()
        for sock in (self._near, self._far):
            self._poller.drop(sock.fileno())
            _close(sock, linger)
        ended = self._ended
        del self._ended
        ended(error)


def _may_say(meter: "Meter | None") -> "tuple[Callable[[int], bool] | None, Callable[[int], bool] | None]":
    """Give what the near and the far side are asked with."""
    return (None, None) if meter is None else (meter.up, meter.down)
