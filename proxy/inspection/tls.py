"""TLS ended on both sides of the gate: mitmproxy's tunnel with our certificates, our checks and proper endings.

In place of mitmproxy's TLS layers: no hooks, no second ClientHello parser, no certificate parsed that nobody looks at,
a close_notify on every clean end (RFC 8446 section 6.1), and the true cause of a failure. TLS in TLS never comes up:
what is inside is HTTP or nothing.
"""

import contextlib
import re
from typing import TYPE_CHECKING, Final

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.tunnel import TunnelLayer
from OpenSSL import SSL

from proxy.inspection.contexts import HTTP1, HTTP2, distrust
from proxy.inspection.signals import Failure, ResetConnection
from rules.verdicts import Reason

if TYPE_CHECKING:
    from mitmproxy.proxy.layer import CommandGenerator

    from proxy.inspection.context import Far, GateContext, Near

CHUNK: Final = 65535

# The alerts by which a peer says that our certificate is the trouble (RFC 8446 section 6.2), as OpenSSL words them
_DISTRUST: Final = re.compile(
    r"alert (?:unknown ca|bad certificate|certificate unknown|certificate expired|certificate revoked"
    r"|unsupported certificate)"
)


class Tls(TunnelLayer):
    """One TLS connection inside one TCP connection; mitmproxy sees them as one."""

    context: "GateContext"
    conn: "Near | Far"
    tls: SSL.Connection

    def __init__(self, context: "GateContext", connection: "Near | Far", tls: SSL.Connection) -> None:
        super().__init__(context, tunnel_connection=connection, conn=connection)
        self.tls = tls
        self._ended = False  # whether what is above knows that nothing more comes

    def receive_handshake_data(self, data: bytes) -> "CommandGenerator[tuple[bool, str | None]]":
        """Take the next bytes of the handshake; returns whether it is over and what went wrong."""
        if data:
            self.tls.bio_write(data)
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            yield from self._flush()
            return False, None
        except SSL.Error as error:
            yield from self._flush()  # our alert: the peer shall know why
            return False, self.failed(error)
        yield from self._flush()
        self.conn.alpn = self.tls.get_alpn_proto_negotiated() or None
        problem = self.settled()
        if problem is None:
            yield from self.receive_data(b"")  # what came together with the end of the handshake
        return problem is None, problem

    def failed(self, error: SSL.Error) -> str:
        """Return why TLS failed, and note it where it matters."""
        raise NotImplementedError

    def settled(self) -> str | None:
        """Look at what was agreed on; returns what is wrong with it."""
        raise NotImplementedError

    def receive_data(self, data: bytes) -> "CommandGenerator[None]":
        """Decrypt, and pass on what there is."""
        tls = self.tls
        if data:
            tls.bio_write(data)
        pieces = []
        ended = broken = False
        while True:
            try:
                pieces.append(tls.recv(CHUNK))
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                ended = True
                break
            except SSL.Error as error:
                self.failed(error)
                broken = True
                break
        yield from self._flush()  # answers to key updates, alerts
        if pieces:
            plain = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            yield from self.event_to_child(events.DataReceived(self.conn, plain))
        if broken:
            self.conn.cut = True
            yield ResetConnection(self.conn)
        if broken or ended:
            self._ended = True
            self.conn.state &= ~ConnectionState.CAN_READ
            yield from self.event_to_child(events.ConnectionClosed(self.conn))

    def receive_close(self) -> "CommandGenerator[None]":
        """TCP has ended: after a close_notify that is old news, without one it is a cut (invariant 12)."""
        if not self._ended:
            self._ended = self.conn.cut = True
            yield from super().receive_close()

    def send_data(self, data: bytes) -> "CommandGenerator[None]":
        """Encrypt and send."""
        try:
            self.tls.sendall(data)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return  # the peer is gone; its end comes as an event
        yield from self._flush()

    def send_close(self, command: commands.CloseConnection) -> "CommandGenerator[None]":
        """End with a close_notify, unless it is to look like the cut that it is."""
        if not isinstance(command, ResetConnection):
            with contextlib.suppress(SSL.Error):  # before the end of the handshake there is nothing to end
                self.tls.shutdown()
            yield from self._flush()
        yield command

    def _flush(self) -> "CommandGenerator[None]":
        while True:
            try:
                data = self.tls.bio_read(CHUNK)
            except SSL.WantReadError:
                return
            yield commands.SendData(self.conn, data)


class NearTls(Tls):
    """TLS with a task's client, under a leaf for the host that it wants."""

    def __init__(self, context: "GateContext", host: str, sni: str | None) -> None:
        """Show a leaf for `host`. `sni` is what the gate read in the ClientHello: another one ends the handshake."""
        offer = context.ends.spoken.offer(context.session.place)
        super().__init__(context, context.client, context.ends.near.connection(host, offer))
        self._sni = sni

    def start_handshake(self) -> "CommandGenerator[None]":
        """Wait for the client: it speaks first."""
        yield from ()

    def failed(self, error: SSL.Error) -> str:
        """Note a client that says it doesn't trust our certificate; nothing else counts as distrust."""
        text = _text(error)
        if _DISTRUST.search(text) and not self.context.session.asked:
            self.context.session.ending = Reason.TLS_CLIENT_DISTRUST
        return text

    def settled(self) -> str | None:
        """Refuse a client that asks for another host than the gate saw."""
        servername = self.tls.get_servername()
        self.conn.sni = servername.decode("latin-1") if servername else None
        if (self.conn.sni or "").lower() != (self._sni or "").lower():
            return "the SNI isn't the one that was decided on"
        return None

    def on_handshake_error(self, err: str) -> "CommandGenerator[None]":
        """Let nothing above begin."""
        self._event_queue.clear()
        yield from super().on_handshake_error(err)


class FarTls(Tls):
    """TLS with a server, which must prove to be the checked name."""

    def __init__(self, context: "GateContext") -> None:
        place = context.session.place
        # HTTP/1.1 in front stays HTTP/1.1 behind; a client without ALPN gets a server without
        http2 = context.client.alpn == HTTP2
        offer = (HTTP2, HTTP1) if http2 else (HTTP1,) if context.client.alpn else ()
        super().__init__(context, context.server, context.ends.far.connection(place.target, offer))

    def start_handshake(self) -> "CommandGenerator[None]":
        """Send the ClientHello."""
        yield from self.receive_handshake_data(b"")

    def failed(self, error: SSL.Error) -> str:
        """Tell a certificate that can't be trusted from everything else that can go wrong."""
        result = distrust(self.tls)
        if result:
            return Failure(Reason.UPSTREAM_UNTRUSTED, f"the server's certificate can't be trusted: {result}")
        return Failure(Reason.UPSTREAM_FAILED, f"the TLS handshake with the server failed: {_text(error)}")

    def settled(self) -> str | None:
        """Remember whether HTTP/2 is worth offering there."""
        if self.context.client.alpn == HTTP2:
            self.context.ends.spoken.note(self.context.session.place, self.conn.alpn)
        return None


def _text(error: SSL.Error) -> str:
    """Return what OpenSSL says, which is a list of (library, function, reason)."""
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(entry[-1] for entry in reasons) or "the connection broke off"
