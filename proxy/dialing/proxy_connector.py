"""Connects through the upstream proxy: looks it up as the host would, dials it, and asks it for the checked name.

Which proxy that is comes from the rules alone, never from a sandbox. Whatever goes wrong here is a failed connection:
nothing is ever dialled in the proxy's place. Not a byte behind its answer is touched, so the socket that is handed on
is as if it had been connected directly.
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
from rules.names import HostName
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.dialing.connect_race import Done, Hop
    from proxy.dialing.proxy_auth import Login
    from proxy.dns.lookup import Lookup, LookupResult
    from proxy.event_loop.poller import Poller
    from proxy.sandbox.sandbox_state import DescriptorQuota
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.addresses import Address
    from rules.settings import ProxyDestination

_PIECE = 4096  # bytes looked at at a time


class ProxyConnector:
    """One connection through the upstream proxy. `done` is called once, never from the constructor or `cancel`."""

    __slots__ = (
        "_connecting", "_descriptors", "_done", "_login", "_lookup", "_metrics", "_over", "_poller", "_port",
        "_sending", "_sock", "_started", "_tunnel", "_via",
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
        self._via = via
        self._port = port
        self._done = done
        self._metrics = metrics
        self._started = time.monotonic()
        self._tunnel = open_tunnel(via, port, login)
        self._sending = self._tunnel.first
        self._sock: socket.socket | None = None
        self._connecting: ConnectRace | None = None
        self._over = False
        host = via.upstream.host
        if not isinstance(host, HostName):
            self._dial((host,))
        elif (found := lookup.known(host)) is not None:
            asyncio.get_running_loop().call_soon(self._found, found)
        else:
            lookup.ask(host, self._found)

    def take(self) -> None:
        """Return None: a connection through a proxy is never there at once."""

    def cancel(self) -> None:
        """Close everything that isn't handed over. Idempotent."""
        self._over = True
        if self._connecting is not None:
            self._connecting.cancel()
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
            while not self._sending and not self._tunnel.open:
                data = sock.recv(_PIECE, socket.MSG_PEEK)
                if not data:
                    self._fail("it ended the connection instead of an answer")
                    return
                taken, self._sending = self._tunnel.take(data)
                sock.recv(taken)
                self._send(sock)
        except BlockingIOError:
            self._poller.change(sock.fileno(), OUT if self._sending else IN)
            return
        except OSError as error:
            self._fail(os.strerror(error.errno or 0).lower())
            return
        except TunnelError as refused:
            self._fail(str(refused))
            return
        if self._tunnel.open:
            self._open(sock)
        else:
            self._poller.change(sock.fileno(), OUT)

    def failed(self, error: Exception) -> None:
        """End the attempt: `ready` raised, which is a bug."""
        self._fail(type(error).__name__)

    def _found(self, found: "LookupResult") -> None:
        if self._over:
            return
        if found.addresses:
            self._dial(found.addresses)
        else:
            self._fail(found.problem or "it has no address")

    def _dial(self, addresses: "tuple[Address, ...]") -> None:
        self._connecting = ConnectRace(
            self._poller, addresses, self._via.upstream.port, self._reached, descriptors=self._descriptors
        )

    def _reached(self, got: "socket.socket | DialError", _address: "Hop | None") -> None:
        self._connecting = None
        if isinstance(got, DialError):
            self._fail(got.detail)
            return
        self._sock = got
        self._poller.watch(got.fileno(), OUT, self)

    def _send(self, sock: socket.socket) -> None:
        while self._sending:
            self._sending = self._sending[sock.send(self._sending) :]

    def _open(self, sock: socket.socket) -> None:
        self._poller.forget(sock.fileno())
        self._sock = None
        self._over = True
        self._count(None)
        self._done(sock, self._via)

    def _fail(self, why: str) -> None:
        """Report the failure. The text names the proxy and contains nothing that it or the task sent."""
        if self._over:
            return
        self.cancel()
        self._count(Reason.UPSTREAM_FAILED)
        self._done(DialError(Reason.UPSTREAM_FAILED, f"the proxy `{self._via}`: {why}"), None)

    def _count(self, reason: Reason | None) -> None:
        if self._metrics is not None:
            self._metrics.dialled(reason, time.monotonic() - self._started)
