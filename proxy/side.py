"""One side of a relay, as the interpreter does it: read for the other side, given what the other side said.

All sides of a process share one buffer, because whatever is read is written before anything else is read: only what a
full socket didn't take is kept, and its other side isn't read until it is gone.
"""

import contextlib
from typing import TYPE_CHECKING, Final

from proxy.poller import ERR, HUP, IN, OUT

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.backlog import Backlog
    from proxy.poller import Poller
    from proxy.relay import Relay

_BUFFER: Final = bytearray(256 * 1024)
_WHOLE: Final = memoryview(_BUFFER)
_SMALL: Final = _WHOLE[:4096]
_NOTHING: Final = memoryview(b"")
_LAST_WORDS: Final = 64  # pieces
_UNKNOWN: Final = -1  # what a socket waits for that was handed over


class Side:
    """One side's socket: read for the other side, given what the other side said."""

    __slots__ = (
        "backlog", "fd", "kept", "may_say", "other", "poller", "relay", "silent", "sock", "taken", "waits_for",
    )  # fmt: skip

    other: "Side"

    def __init__(
        self,
        relay: "Relay",
        poller: "Poller",
        backlog: "Backlog",
        sock: "socket.socket",
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

    def begin(self, said: bytes) -> None:
        """Give the other side what this one has `said`, as it was judged; that still has to be read."""
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
            self.relay.abort()  # what else it has said nobody has judged: it isn't heard out
        else:
            self._pass(memoryview(said))

    def ready(self, events: int) -> None:
        """Give the other side what this one has said: once, so that a busy connection leaves the others their turn."""
        if self.kept and events & (OUT | ERR | HUP):
            self._give_kept()
        if not (self.waits_for & IN and events & (IN | ERR | HUP)):
            return
        view = _WHOLE if self.backlog.kept < self.backlog.most else _SMALL
        try:
            size = self.sock.recv_into(view)
        except BlockingIOError:
            return
        except OSError:
            self.relay.broke(self)
            return
        if not size:
            self.silent = True
            if not self.other.silent:  # else both are closed now
                self.wait(self.waits_for & ~IN)  # nothing is kept for the other side: else this one would not be read
            self.relay.fell_silent(self)
            return
        self._pass(view[:size])

    def failed(self, error: Exception) -> None:
        """End both: that was a bug."""
        self.relay.abort(error)

    def give_up(self) -> None:
        """Know of nobody any more, and keep nothing."""
        self.waits_for = 0
        self._forget_kept()
        del self.relay, self.other

    def hear_out(self) -> None:
        """Give the other side what this one said before it broke: it can be read still, and may say why."""
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
        """Keep what doesn't go now; the other side then waits."""
        self.kept = memoryview(bytes(data))  # a copy: the buffer is everybody's
        self.backlog.kept += len(self.kept)
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

    def _pass(self, piece: memoryview) -> None:
        other = self.other
        if self.may_say is not None and not self.may_say(len(piece)):
            self.relay.used_up()
            return
        try:
            sent = other.sock.send(piece)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.relay.broke(other)
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
            self.relay.broke(self)
            return
        self.taken += sent
        if sent < len(self.kept):
            self.kept = self.kept[sent:]  # which holds all of it still
        else:
            self._forget_kept()
            self.wait(self.waits_for & ~OUT)
            self.other.wait(self.other.waits_for | IN)

    def _forget_kept(self) -> None:
        self.backlog.kept -= len(self.kept.obj)  # type: ignore[arg-type]  # the bytes that it is of
        self.kept = _NOTHING
