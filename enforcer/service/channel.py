"""Non-blocking channel of the service: queues messages that the peer doesn't read yet, up to a bound."""

import contextlib
import os
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from proxy.wire import message

MOST_UNSENT: Final = 8192  # messages: a worker that has not read that many hangs
_MOST_DESCRIPTORS: Final = 16  # in one message


class ChannelOverflowError(Exception):
    """The peer has not read its messages for too long."""


class Channel:
    """One end of a SOCK_SEQPACKET pair in the service's loop. `on_message` gets each message with its descriptors.

    `on_message` removes the descriptors that it keeps from the list; the others are closed. An empty message reports
    the end of the peer, and is always the last.
    """

    def __init__(
        self,
        sock: socket.socket,
        selector: selectors.BaseSelector,
        on_message: Callable[[dict[str, object], list[int]], None],
        *,
        descriptors: bool = False,
    ) -> None:
        """Take over `sock`. Without `descriptors` none is accepted: the peer is not trusted to send any."""
        self._sock = sock
        self._selector = selector
        self.on_message = on_message
        self._descriptors = descriptors
        self._unsent: deque[tuple[Mapping[str, object], list[int]]] = deque()
        self._waits_for_room = False  # for the peer to read
        self.closed = False
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, self.turn)

    def send(self, fields: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send a message, now or once the peer reads; keeps copies of the descriptors until then.

        Does nothing on a closed channel. Raises ChannelOverflowError, or OSError when a descriptor can't be copied.
        """
        if self.closed:
            return
        if len(self._unsent) >= MOST_UNSENT:
            raise ChannelOverflowError
        self._unsent.append((fields, copy_descriptors(descriptors)))
        if len(self._unsent) == 1:
            self._flush()

    def turn(self) -> None:
        """Send queued messages, and receive one."""
        self._flush()
        if self.closed:
            return
        descriptors: list[int] = []
        try:
            fields, descriptors = message.receive(self._sock, _MOST_DESCRIPTORS if self._descriptors else 0)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            fields = {}
        if not self._descriptors:
            _close(descriptors)
        try:
            self.on_message(fields, descriptors)
        finally:
            _close(descriptors)
        if not fields:
            self.close()

    def close(self) -> None:
        """Close the channel. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._selector.unregister(self._sock)
        self._sock.close()
        for _, descriptors in self._unsent:
            _close(descriptors)
        self._unsent.clear()

    def _flush(self) -> None:
        while self._unsent and not self.closed:
            fields, descriptors = self._unsent[0]
            try:
                message.send(self._sock, fields, descriptors)
            except BlockingIOError:
                self._wait_for_room(True)
                return
            except message.MessageNotSentError:
                self.close()  # so it doesn't keep old rules: the worker ends, and its replacement gets everything
                return
            except OSError:
                pass  # the peer is gone, which the next read reports
            _close(descriptors)
            self._unsent.popleft()
        if not self.closed:
            self._wait_for_room(False)

    def _wait_for_room(self, is_waiting: bool) -> None:  # noqa: FBT001
        if is_waiting != self._waits_for_room:
            self._waits_for_room = is_waiting
            self._selector.modify(
                self._sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if is_waiting else 0), self.turn
            )


def copy_descriptors(descriptors: Iterable[int]) -> list[int]:
    """Return copies of all descriptors, or none. Raises OSError."""
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))  # noqa: PERF401  copies are closed if one fails
    except OSError:
        _close(copies)
        raise
    return copies


def _close(descriptors: list[int]) -> None:
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.pop())
