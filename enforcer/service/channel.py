"""Non-blocking channel of the service: keeps what the other side doesn't take yet, up to a bound."""

import contextlib
import os
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from proxy.wire import message

MOST_UNSENT: Final = 8192  # messages: a worker that takes none of so many is not working
_MOST_DESCRIPTORS: Final = 16  # in one message


class ChannelOverflowError(Exception):
    """The other side has taken nothing for too long."""


class Channel:
    """One end of a SOCK_SEQPACKET pair in the service's loop. `heard` gets each message with its descriptors.

    Who is heard takes the descriptors out of the list that it wants to keep; the others are closed. An empty message is
    the end of the other side, and the last that is heard.
    """

    def __init__(
        self,
        sock: socket.socket,
        selector: selectors.BaseSelector,
        heard: Callable[[dict[str, object], list[int]], None],
        *,
        descriptors: bool = False,
    ) -> None:
        """Take over `sock`. Without `descriptors` none is accepted: the other side is not to be trusted with any."""
        self._sock = sock
        self._selector = selector
        self.heard = heard
        self._descriptors = descriptors
        self._unsent: deque[tuple[Mapping[str, object], list[int]]] = deque()
        self._waits = False  # for room
        self.closed = False
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, self.turn)

    def tell(self, what: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send a message, now or when there is room; copies of the descriptors are kept until then.

        One that is gone hears nothing. Raises Overflowed, OSError where there is no room for copies.
        """
        if self.closed:
            return
        if len(self._unsent) >= MOST_UNSENT:
            raise ChannelOverflowError
        self._unsent.append((what, copy_descriptors(descriptors)))
        if len(self._unsent) == 1:
            self._send()

    def turn(self) -> None:
        """Send what waits, and hear what has come."""
        self._send()
        if self.closed:
            return
        descriptors: list[int] = []
        try:
            said, descriptors = message.receive(self._sock, _MOST_DESCRIPTORS if self._descriptors else 0)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            said = {}
        if not self._descriptors:
            _close(descriptors)
        try:
            self.heard(said, descriptors)
        finally:
            _close(descriptors)
        if not said:
            self.close()

    def close(self) -> None:
        """Say and hear no more. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._selector.unregister(self._sock)
        self._sock.close()
        for _, descriptors in self._unsent:
            _close(descriptors)
        self._unsent.clear()

    def _send(self) -> None:
        while self._unsent and not self.closed:
            what, descriptors = self._unsent[0]
            try:
                message.send(self._sock, what, descriptors)
            except BlockingIOError:
                self._wait_for_room(True)
                return
            except message.MessageNotSentError:
                self.close()  # and not go by rules that were: it ends, and what takes its place is told all anew
                return
            except OSError:
                pass  # it is gone, and its end will be heard
            _close(descriptors)
            self._unsent.popleft()
        if not self.closed:
            self._wait_for_room(False)

    def _wait_for_room(self, wanted: bool) -> None:  # noqa: FBT001
        if wanted != self._waits:
            self._waits = wanted
            self._selector.modify(
                self._sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0), self.turn
            )


def copy_descriptors(descriptors: Iterable[int]) -> list[int]:
    """Return copies of descriptors: of all, or of none. Raises OSError."""
    made: list[int] = []
    try:
        for descriptor in descriptors:
            made.append(os.dup(descriptor))  # noqa: PERF401  what is made is closed where one can't be
    except OSError:
        _close(made)
        raise
    return made


def _close(descriptors: list[int]) -> None:
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.pop())
