"""TLS ended on both sides of the gate: mitmproxy's tunnel with our certificates, our checks and proper endings.

In place of mitmproxy's TLS layers: no hooks, no second ClientHello parser, no certificate parsed that nobody looks at,
a close_notify on every clean end (RFC 8446 section 6.1), and the true cause of a failure. TLS in TLS never comes up:
what is inside is HTTP or nothing.
"""

import re
from typing import TYPE_CHECKING, Final

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.tunnel import TunnelLayer, TunnelState
from OpenSSL import SSL

from proxy.inspection import records
from proxy.inspection.contexts import HTTP1, HTTP2, distrust, wants_certificate
from proxy.inspection.signals import Failure, ResetConnection
from rules.verdicts import Reason

if TYPE_CHECKING:
    from mitmproxy.proxy.layer import CommandGenerator

    from proxy.inspection.context import Far, GateContext, Near

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

    def handle_event(self, event: events.Event) -> "CommandGenerator[None]":
        """Handle an event; with the connection open nothing here blocks any more (Direct)."""
        if self.tunnel_state is not TunnelState.OPEN or self._paused is not None:
            return super().handle_event(event)
        if type(event) is events.DataReceived and event.connection is self.conn:
            return self.receive_data(event.data)
        return self._handle_event(event)

    def event_to_child(self, event: events.Event) -> "CommandGenerator[None]":
        """Give an event to what is above; what that sends on this connection goes out encrypted."""
        if self.tunnel_state is TunnelState.ESTABLISHING:
            yield from super().event_to_child(event)
            return
        conn = self.conn
        for command in self.child_layer.handle_event(event):
            if type(command) is commands.SendData and command.connection is conn:
                yield from self.send_data(command.data)
            elif isinstance(command, commands.ConnectionCommand) and command.connection is conn:
                yield from self._handle_command(command)
            else:
                yield command

    def receive_handshake_data(self, data: bytes) -> "CommandGenerator[tuple[bool, str | None]]":
        """Take the next bytes of the handshake; returns whether it is over and what went wrong."""
        records.put(self.tls, data)
        try:
            unfinished = records.shakes_hands(self.tls)
        except SSL.Error as error:
            if out := records.taken(self.tls):  # our alert: the peer shall know why
                yield commands.SendData(self.conn, out)
            return False, self.failed(error)
        if out := records.taken(self.tls):
            yield commands.SendData(self.conn, out)
        if unfinished:
            return False, None
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
        records.put(self.tls, data)
        pieces: list[bytes] = []
        ended = broken = False
        try:
            records.decrypted(self.tls, pieces)
        except SSL.ZeroReturnError:
            ended = True
        except SSL.Error as error:
            self.failed(error)
            broken = True
        if out := records.taken(self.tls):  # answers to key updates, alerts
            yield commands.SendData(self.conn, out)
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
            records.encrypt(self.tls, data)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return  # the peer is gone; its end comes as an event
        if out := records.taken(self.tls):
            yield commands.SendData(self.conn, out)

    def send_close(self, command: commands.CloseConnection) -> "CommandGenerator[None]":
        """End with a close_notify, unless it is to look like the cut that it is."""
        if not isinstance(command, ResetConnection):
            try:  # noqa: SIM105  contextlib.suppress is three calls, twice a connection
                self.tls.shutdown()
            except SSL.Error:
                pass  # before the end of the handshake there is nothing to end
            if out := records.taken(self.tls):
                yield commands.SendData(self.conn, out)
        yield command


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
        group = context.ends.spoken.group(place)
        broker = context.session.recorder.tenant.broker
        self._identity = None if broker is None else broker.identity(place.target, place.port)
        tls = context.ends.far.connection(place.target, offer, context.server.authorities, group, self._identity)
        super().__init__(context, context.server, tls)

    def start_handshake(self) -> "CommandGenerator[None]":
        """Send the ClientHello."""
        yield from self.receive_handshake_data(b"")

    def failed(self, error: SSL.Error) -> str:
        """Tell a certificate that can't be trusted from everything else that can go wrong."""
        result = distrust(self.tls)
        if result:
            return Failure(Reason.UPSTREAM_UNTRUSTED, f"the server's certificate can't be trusted: {result}")
        if wants_certificate(self.tls) and self._identity is None:
            return Failure(Reason.CLIENT_CERTIFICATE, f"the server asks for a client certificate: {_text(error)}")
        return Failure(Reason.UPSTREAM_FAILED, f"the TLS handshake with the server failed: {_text(error)}")

    def settled(self) -> str | None:
        """Note that the server has proved its name, and remember what it speaks."""
        self.context.server.proven = not distrust(self.tls)
        self.context.server.unidentified = self._identity is None and wants_certificate(self.tls)
        spoken, place = self.context.ends.spoken, self.context.session.place
        spoken.note_group(place, self.tls.get_group_name())
        if self.context.client.alpn == HTTP2:
            spoken.note(place, self.conn.alpn)
        return None


def _text(error: SSL.Error) -> str:
    """Return what OpenSSL says, which is a list of (library, function, reason)."""
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(entry[-1] for entry in reasons) or "the connection broke off"
