"""TLS of one TCP connection, ended here with our certificates and our checks, and closed properly.

Sans I/O: what came in goes through `shake_hands` and `receive_data`, what goes out through `sealed` and `outgoing`. TLS
in TLS never comes up: what is inside is HTTP or nothing. A clean end has a close_notify (RFC 8446 section 6.1), and a
failure has its true cause.

pyOpenSSL takes a buffer of its own for every call and raises an exception, with its traceback, whenever there is
nothing more to read, which is the usual end of every step. Here one buffer serves all, and nothing more to read is an
answer; what goes wrong is raised by pyOpenSSL as ever, with what its callbacks have to say. For one thread.
"""

import re
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from proxy.inspection.contexts import FFI, HTTP1, HTTP2, LIB, distrust, wants_certificate
from proxy.inspection.signals import Failure
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.inspection.context import Far, GateContext, Near

# The alerts by which a peer says that our certificate is the trouble (RFC 8446 section 6.2), as OpenSSL words them
_DISTRUST: Final = re.compile(
    r"alert (?:unknown ca|bad certificate|certificate unknown|certificate expired|certificate revoked"
    r"|unsupported certificate)"
)
_PIECE: Final = 65536  # bytes; a record has 16 KB at most
_BUFFER: Final = FFI.new("char[]", _PIECE)
_WANT_READ: Final = LIB.SSL_ERROR_WANT_READ
_read, _write, _error, _handshake = LIB.SSL_read, LIB.SSL_write, LIB.SSL_get_error, LIB.SSL_do_handshake
_bio_read, _bio_write, _contents = LIB.BIO_read, LIB.BIO_write, FFI.buffer


class Tls:
    """One TLS connection inside one TCP connection."""

    def __init__(self, context: "GateContext", connection: "Near | Far", tls: SSL.Connection) -> None:
        self.context = context
        self.conn = connection
        self.tls = tls
        self.is_open = False  # the handshake is over, and went well
        self.has_ended = False  # nothing more can be read
        self.is_broken = False  # ... as the peer broke the protocol

    def shake_hands(self, data: bytes) -> str | None:
        """Take the next bytes of the handshake; returns what went wrong, if it did. Its end is in `is_open`."""
        self._put(data)
        ssl = self.tls._ssl  # noqa: SLF001
        result = _handshake(ssl)
        if result != 1:
            if _error(ssl, result) == _WANT_READ:
                return None
            try:
                self._fail(result)
            except SSL.Error as error:
                return self.failed(error)
            raise AssertionError("a handshake failed without an error")
        self.conn.alpn = self.tls.get_alpn_proto_negotiated() or None
        problem = self.settled()
        self.is_open = problem is None
        return problem

    def failed(self, error: SSL.Error) -> str:
        """Return why TLS failed, and note it where it matters."""
        raise NotImplementedError

    def settled(self) -> str | None:
        """Look at what was agreed on; returns what is wrong with it."""
        raise NotImplementedError

    def receive_data(self, data: bytes) -> bytes:
        """Return what can be decrypted by now; the end, if it has come, is in `has_ended`."""
        self._put(data)
        ssl, pieces = self.tls._ssl, []  # noqa: SLF001
        while (size := _read(ssl, _BUFFER, _PIECE)) > 0:
            pieces.append(_contents(_BUFFER, size)[:])
        if _error(ssl, size) != _WANT_READ:
            self.has_ended = True
            try:
                self._fail(size)
            except SSL.ZeroReturnError:
                pass
            except SSL.Error as error:
                self.failed(error)
                self.is_broken = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def sealed(self, data: bytes, *, last: bool = False) -> bytes:
        """Return the records of `data`, with a close_notify behind them if they are the `last`. Raises SSL.Error."""
        tls = self.tls
        ssl, size, done = tls._ssl, len(data), 0  # noqa: SLF001
        try:
            with FFI.from_buffer(data) as start:
                while done < size:  # a record a call: pyOpenSSL's contexts have SSL_MODE_ENABLE_PARTIAL_WRITE
                    result = _write(ssl, start + done, size - done)
                    if result <= 0:
                        self._fail(result)
                    done += result
        except SSL.Error as error:  # where the peer is gone, its end is heard of by itself
            if not (self.is_broken or isinstance(error, SSL.ZeroReturnError | SSL.SysCallError)):
                raise
        if last:
            try:  # noqa: SIM105  contextlib.suppress is three calls, twice a connection
                tls.shutdown()
            except SSL.Error:
                pass
        return self.outgoing()

    def outgoing(self) -> bytes:
        """Return all that is to be sent to the peer; mostly there is nothing."""
        bio = self.tls._from_ssl  # noqa: SLF001
        size = _bio_read(bio, _BUFFER, _PIECE)
        if size <= 0:
            return b""
        pieces = [_contents(_BUFFER, size)[:]]
        while size == _PIECE and (size := _bio_read(bio, _BUFFER, _PIECE)) > 0:
            pieces.append(_contents(_BUFFER, size)[:])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _put(self, data: bytes) -> None:
        """Take what the peer has sent. Raises MemoryError: nothing else keeps it out of OpenSSL's memory."""
        if data and _bio_write(self.tls._into_ssl, data, len(data)) != len(data):  # noqa: SLF001
            raise MemoryError("OpenSSL didn't take what a peer has sent")

    def _fail(self, result: int) -> None:
        self.tls._raise_ssl_error(self.tls._ssl, result)  # noqa: SLF001


class NearTls(Tls):
    """TLS with a task's client, under a leaf for the host that it wants."""

    def __init__(self, context: "GateContext", host: str, sni: str | None) -> None:
        """Show a leaf for `host`. `sni` is what the gate read in the ClientHello: another one ends the handshake."""
        offer = context.ends.spoken.offer(context.session.place)
        super().__init__(context, context.client, context.ends.near.connection(host, offer))
        self._sni = sni

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


class FarTls(Tls):
    """TLS with a server, which must prove to be the checked name."""

    def __init__(self, context: "GateContext", server: "Far") -> None:
        place = context.session.place
        # HTTP/1.1 in front stays HTTP/1.1 behind; a client without ALPN gets a server without
        http2 = context.client.alpn == HTTP2
        offer = (HTTP2, HTTP1) if http2 else (HTTP1,) if context.client.alpn else ()
        group = context.ends.spoken.group(place)
        broker = context.session.recorder.tenant.broker
        self._identity = None if broker is None else broker.identity(place.target, place.port)
        tls = context.ends.far.connection(place.target, offer, server.authorities, group, self._identity)
        super().__init__(context, server, tls)
        self._server = server

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
        self._server.proven = not distrust(self.tls)
        self._server.unidentified = self._identity is None and wants_certificate(self.tls)
        spoken, place = self.context.ends.spoken, self.context.session.place
        spoken.note_group(place, self.tls.get_group_name())
        if self.context.client.alpn == HTTP2:
            spoken.note(place, self.conn.alpn)
        return None


def _text(error: SSL.Error) -> str:
    """Return what OpenSSL says, which is a list of (library, function, reason)."""
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(entry[-1] for entry in reasons) or "the connection broke off"
