"""Connects through the upstream proxy: looks up the proxy, dials it, and requests the checked name from it.

Only the rules name the proxy, never a sandbox. Every failure is a failed connection: nothing is dialed instead of the
proxy. The handshake consumes no byte after the proxy's answer, so the socket is like a direct connection.
"""

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

from proxy.dialing.address_check import DialError
from proxy.dialing.connect_race import ConnectRace
from proxy.dialing.tunnel import TunnelError, open_tunnel
from proxy.event_loop.poller import IN, OUT
from rules.values.names import HostName
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.dialing.connect_race import Done, Hop
    from proxy.dialing.proxy_auth import Login
    from proxy.dns.lookup import Lookup, LookupResult
    from proxy.event_loop.poller import Poller
    from proxy.sandbox.sandbox_state import DescriptorQuota
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.settings import ProxyDestination
    from rules.values.addresses import Address

_PIECE = 4096  # bytes peeked at a time


class ProxyConnector:
    """One connection through the upstream proxy. `done` is called once, never from the constructor or `cancel`."""

    __slots__ = (
        "_descriptors",
        "_destination",
        "_done",
        "_is_over",
        "_login",
        "_lookup",
        "_metrics",
        "_poller",
        "_port",
        "_race",
        "_sock",
        "_started",
        "_tunnel",
        "_unsent",
    )  # fmt: skip

    def __init__(
        self,
        poller: "Poller",
        lookup: "Lookup",
        via: "ProxyDestination",
        port: int,
        done: "Done",
        *,
        login: "Login | None" = None,
        metrics: "Metrics | None" = None,
        descriptors: "DescriptorQuota | None" = None,
    ) -> None:
        self._poller = poller
        self._descriptors = descriptors
        self._lookup = lookup
        self._destination = via
        self._port = port
        self._done = done
        self._metrics = metrics
        self._started = time.monotonic()
        self._tunnel = open_tunnel(via, port, login)
        self._unsent = self._tunnel.first
        self._sock: socket.socket | None = None
        self._race: ConnectRace | None = None
        self._is_over = False
        host = via.upstream.host
        if not isinstance(host, HostName):
            self._dial((host,))
        elif (found := lookup.known(host)) is not None:
            asyncio.get_running_loop().call_soon(self._handle_lookup, found)
        else:
            lookup.ask(host, self._handle_lookup)

    def take(self) -> None:
        """Return None: a connection through a proxy is never complete at once."""

    def cancel(self) -> None:
        """Close the sockets of an unfinished connection. Idempotent."""
        self._is_over = True
        if self._race is not None:
            self._race.cancel()
        if self._sock is not None:
            self._poller.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def ready(self, _events: int) -> None:
        """Continue the handshake with the proxy; called by the poller."""
        sock = self._sock
        if sock is None:
            return
        try:
            self._send(sock)
            while not self._unsent and not self._tunnel.open:
                data = sock.recv(_PIECE, socket.MSG_PEEK)
                if not data:
                    self._fail("it ended the connection instead of an answer")
                    return
                consumed, self._unsent = self._tunnel.take(data)
                sock.recv(consumed)
                self._send(sock)
        except BlockingIOError:
            self._poller.change(sock.fileno(), OUT if self._unsent else IN)
            return
        except OSError as error:
            self._fail(os.strerror(error.errno or 0).lower())
            return
        except TunnelError as refused:
            self._fail(str(refused))
            return
        if self._tunnel.open:
            self._finish(sock)
        else:
            self._poller.change(sock.fileno(), OUT)

    def failed(self, error: Exception) -> None:
        """End the attempt: `ready` raised, which is a bug."""
        self._fail(type(error).__name__)

    def _handle_lookup(self, found: "LookupResult") -> None:
        if self._is_over:
            return
        if found.addresses:
            self._dial(found.addresses)
        else:
            self._fail(found.problem or "it has no address")

    def _dial(self, addresses: "tuple[Address, ...]") -> None:
        self._race = ConnectRace(
            self._poller,
            addresses,
            self._destination.upstream.port,
            self._handle_connected,
            descriptors=self._descriptors,
        )

    def _handle_connected(self, result: "socket.socket | DialError", _address: "Hop | None") -> None:
        self._race = None
        if isinstance(result, DialError):
            self._fail(result.detail)
            return
        self._sock = result
        self._poller.watch(result.fileno(), OUT, self)

    def _send(self, sock: socket.socket) -> None:
        while self._unsent:
            self._unsent = self._unsent[sock.send(self._unsent) :]

    def _finish(self, sock: socket.socket) -> None:
        self._poller.forget(sock.fileno())
        self._sock = None
        self._is_over = True
        self._record(None)
        self._done(sock, self._destination)

    def _fail(self, why: str) -> None:
        """Report the failure. The text names the proxy and contains nothing that it or the task sent."""
        if self._is_over:
            return
        self.cancel()
        self._record(Reason.UPSTREAM_FAILED)
        self._done(DialError(Reason.UPSTREAM_FAILED, f"the proxy `{self._destination}`: {why}"), None)

    def _record(self, reason: Reason | None) -> None:
        if self._metrics is not None:
            self._metrics.dialled(reason, time.monotonic() - self._started)
