"""Base of connections that the gate answers itself: socket, deadline and end."""

import time
from typing import TYPE_CHECKING, ClassVar, Final

from proxy.event_loop.poller import IN, reset

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.event_loop.poller import Poller
    from proxy.gate.record import ConnectionRecord
    from proxy.telemetry.events import Component

PATIENCE: Final = 10.0  # seconds between one thing that the client does and the next


class ServedConnection:
    """A connection that the gate answers itself. Its socket is in no poller before `begin`."""

    __slots__ = ("_client", "_forget", "_over", "_poller", "_record", "_since")

    where: ClassVar["Component"]  # what went wrong, if something does

    def __init__(
        self,
        poller: "Poller",
        client: "socket.socket",
        record: "ConnectionRecord",
        forget: "Callable[[ServedConnection], None]",
    ) -> None:
        """`forget` is called once it is closed."""
        self._poller = poller
        self._client = client
        self._record = record
        self._forget = forget
        self._since = record.opened  # time.monotonic() of what its client did last
        self._over = False

    def begin(self) -> None:
        """Start to wait for the client's bytes."""
        self._poller.watch(self._client.fileno(), IN, self)

    def ready(self, events: int) -> None:
        """Handle an event: the client has sent something, can take more, or has left."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Check the deadline (time.monotonic())."""
        if now - self._since >= PATIENCE:
            self.abort()

    def review(self) -> None:
        """Do nothing: each answer is decided when it is made."""

    def abort(self) -> None:
        """End it now."""
        self._end(reset)

    def failed(self, error: Exception) -> None:
        """End it after an unexpected exception."""
        self._record.record_error(self.where, error)
        self.abort()

    def _heard(self) -> None:
        self._since = time.monotonic()

    def _end(self, close: "Callable[[socket.socket], None]") -> None:
        """Close it. Idempotent."""
        if self._over:
            return
        self._over = True
        self._poller.forget(self._client.fileno())
        close(self._client)
        self._ended()
        self._forget(self)

    def _ended(self) -> None:
        """Clean up after the close; subclasses override it."""
