"""TLS of inspected connections: handshakes with our certificates, verification of servers, orderly closing.

Clients get a leaf certificate of Exeat's CA; servers are verified with the host's trusted certificates. Creating a
context costs as much as a handshake, so contexts are cached. Nothing is read from files: the worker can't open any.

Without I/O: received bytes go through `shake_hands` and `receive`, sent data through `seal`. TLS inside TLS is not
supported: the inner data must be HTTP. A clean end has a close_notify (RFC 8446 section 6.1).

pyOpenSSL allocates a buffer for every call, and raises an exception with traceback whenever there is nothing more to
read, which is the usual end of every step. This module uses one buffer and returns instead. pyOpenSSL still raises real
errors, including those of its callbacks. For one thread.
"""

import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from OpenSSL import SSL, crypto

from proxy.inspection.connection_ends import ServerFailure
from rules.values.names import HostName
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.certificates.leaf_certificates import Leaf, LeafCertificates
    from proxy.inspection.connection_ends import ClientEnd, ServerEnd
    from proxy.inspection.session import Session
    from proxy.request.messages import WebOrigin
    from proxy.secrets import Identity
    from rules.values.addresses import Address


# OpenSSL bindings that pyOpenSSL has without public names; `test_mitmproxy_contract.py` checks them
LIB: Final[Any] = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001
FFI: Final[Any] = SSL._ffi  # type: ignore[attr-defined]  # noqa: SLF001

CONTEXTS: Final = 2048  # names; a few KB each
TRUSTING: Final = 64  # sets of additional roots; a few hundred KB each, since each includes the host's roots
HTTP1: Final = b"http/1.1"
HTTP2: Final = b"h2"
_OPTIONS: Final = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION
_CLIENT_GROUPS: Final = b"X25519:P-256:P-384"  # the fast ones suffice: no network lies between a sandbox and its gate
_GROUP_MEMORY: Final = 3600.0  # seconds for which a server's group is remembered
# Groups offered to servers, quantum-safe ones first: OpenSSL's default (SSL_CTX_set1_groups_list(3)). A key share is
# sent for the starred group; a server that prefers another sends a HelloRetryRequest (RFC 8446 section 4.1.4).
_SERVER_GROUPS: Final = (
    "?X25519MLKEM768:?SecP256r1MLKEM768 / ?X25519:?secp256r1 / ?X448:?secp384r1:?secp521r1 / ?ffdhe2048:?ffdhe3072"
)
_PREFERRED_GROUPS: Final = {
    group.lower(): re.sub(rf"\?{group}\b", f"?*{group}", _SERVER_GROUPS).encode()
    for group in ("X25519MLKEM768", "X25519", "secp256r1", "secp384r1")
}


class TrustError(Exception):
    """The host's trusted certificates can't be used; the text says why."""


@dataclass(slots=True)
class AlpnOffer:
    """Protocols that ALPN may select on one connection, for OpenSSL's callback."""

    protocols: tuple[bytes, ...]


class CertificateRequest:
    """Whether a server has requested a client certificate (RFC 8446 section 4.3.2): `received`."""

    def __init__(self, connection: SSL.Connection) -> None:
        self.received = False
        self._handle = FFI.new_handle(self)  # OpenSSL keeps no reference
        LIB.SSL_set_cert_cb(connection._ssl, _record_certificate_request, self._handle)  # noqa: SLF001
        connection.set_app_data(self)


@FFI.callback("int (*)(SSL *, void *)")  # type: ignore[untyped-decorator]
def _record_certificate_request(_ssl: object, request: object) -> int:
    """Record a CertificateRequest of the server; callback of SSL_set_cert_cb(3)."""
    FFI.from_handle(request).received = True
    return 1  # continue with the configured certificate, or none


class _BoundedCache[K, V](OrderedDict[K, V]):
    """Cache of the `most` entries stored last."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def store(self, key: K, value: V) -> None:
        """Store an entry; drops the oldest if there are too many."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)


class ClientContexts:
    """TLS contexts for clients, one for each host name."""

    def __init__(self, leaves: "LeafCertificates") -> None:
        self._leaves = leaves
        self._contexts = _BoundedCache[str, "tuple[Leaf, SSL.Context]"](CONTEXTS)

    def connection(self, host: str, protocols: tuple[bytes, ...]) -> SSL.Connection:
        """Return a connection with a leaf for `host`, which selects the first of `protocols` that the client offers.

        If the client offers only others, none is selected: it may still send HTTP/1.1. Raises NoLeafError.
        """
        leaf = self._leaves.usable(host)
        cached = self._contexts.get(host)
        if cached is None or cached[0] is not leaf:
            cached = leaf, _client_context(leaf)
        self._contexts.store(host, cached)
        connection = SSL.Connection(cached[1])
        connection.set_app_data(AlpnOffer(protocols))
        connection.set_accept_state()
        return connection


class ServerContexts:
    """TLS contexts for servers: one with the host's trusted certificates, others also with those of a rule's `ca`."""

    def __init__(self, roots: bytes) -> None:
        """Trust the PEM certificates in `roots`, the host's own store. Raises TrustError."""
        self._roots = roots
        self._make_context = _server_context(roots)
        self._contexts_with_authorities = _BoundedCache[tuple[bytes, ...], SSL.Context](TRUSTING)

    def connection(
        self,
        target: "HostName | Address",
        protocols: tuple[bytes, ...],
        authorities: tuple[bytes, ...] = (),
        group: str = "",
        identity: "Identity | None" = None,
    ) -> SSL.Connection:
        """Return a connection that accepts only the certificate of `target`; sends SNI if it is a name.

        It also trusts the PEM certificates in `authorities`. `group`: the group that the server selected before; a key
        share for one group instead of several halves the cost of a ClientHello. `identity`: the client certificate for
        a server that requests one. Raises TrustError.
        """
        if identity is not None:
            context = identity.context(authorities, lambda: _server_context(self._roots, *authorities))
        else:
            context = self._context_with_authorities(authorities) if authorities else self._make_context
        connection = SSL.Connection(context)
        CertificateRequest(connection)
        if (groups := _PREFERRED_GROUPS.get(group)) and LIB.SSL_set1_curves_list(connection._ssl, groups) != 1:  # noqa: SLF001
            raise TrustError("OpenSSL doesn't know the usual groups")
        parameters = LIB.SSL_get0_param(connection._ssl)  # noqa: SLF001
        flags = LIB.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | LIB.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
        LIB.X509_VERIFY_PARAM_set_hostflags(parameters, flags)
        if isinstance(target, HostName):
            name = target.encode("ascii")
            connection.set_tlsext_host_name(name)
            ok = LIB.X509_VERIFY_PARAM_set1_host(parameters, name, len(name))
        else:  # RFC 6066 section 3: no literal addresses in SNI
            ok = LIB.X509_VERIFY_PARAM_set1_ip(parameters, target.packed, len(target.packed))
        if ok != 1:
            raise TrustError("OpenSSL doesn't take the name to verify")
        if protocols:
            connection.set_alpn_protos(list(protocols))
        connection.set_connect_state()
        return connection

    def _context_with_authorities(self, authorities: tuple[bytes, ...]) -> SSL.Context:
        context = self._contexts_with_authorities.get(authorities) or _server_context(self._roots, *authorities)
        self._contexts_with_authorities.store(authorities, context)
        return context


class KnownProtocols:
    """Remembers which servers lack HTTP/2, and the key exchange group of each. Bounded.

    Clients of a server without HTTP/2 are offered only HTTP/1.1: otherwise each request of an HTTP/2 client needs a
    connection of its own.
    """

    def __init__(self, clock: "Callable[[], float]" = time.monotonic) -> None:
        self._clock = clock
        self._only_http1 = _BoundedCache["WebOrigin", None](CONTEXTS)
        self._groups = _BoundedCache["WebOrigin", tuple[str, float]](CONTEXTS)

    def note(self, origin: "WebOrigin", protocol: bytes | None) -> None:
        """Record the protocol that a server selected."""
        if protocol == HTTP2:
            self._only_http1.pop(origin, None)
        else:
            self._only_http1.store(origin, None)

    def offer(self, origin: "WebOrigin") -> tuple[bytes, ...]:
        """Return the protocols to offer to a client of this server."""
        return (HTTP1,) if origin in self._only_http1 else (HTTP2, HTTP1)

    def note_group(self, origin: "WebOrigin", group: str | None) -> None:
        """Record the group of a server's key exchange."""
        cached_group = self._groups.get(origin)
        group = (group or "").lower()
        if cached_group is None or cached_group[0] != group:
            self._groups.store(origin, (group, self._clock() + _GROUP_MEMORY))

    def group(self, origin: "WebOrigin") -> str:
        """Return the group that a server will select; empty: unknown, or recorded too long ago."""
        group, until = self._groups.get(origin, ("", 0.0))
        if group and until < self._clock():
            del self._groups[origin]
            return ""
        return group


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """TLS contexts for both sides, and the protocols that servers are known to speak."""

    client: ClientContexts
    server: ServerContexts
    known_protocols: KnownProtocols


def distrust(connection: SSL.Connection) -> str:
    """Return the verification error of the peer's certificate; empty: none (SSL_get_verify_result(3))."""
    result = LIB.SSL_get_verify_result(connection._ssl)  # noqa: SLF001
    return str(FFI.string(LIB.X509_verify_cert_error_string(result)), "ascii") if result else ""


def _make_context(method: int) -> SSL.Context:
    """Return the common context: no resumption, so that sandboxes share no session (invariant 11)."""
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_OPTIONS | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 34 KB less for each idle connection: SSL_CTX_set_mode(3)
    return context


def _client_context(leaf: "Leaf") -> SSL.Context:
    context = _make_context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(leaf.certificate)
    context.use_privatekey(leaf.key)
    context.set_alpn_select_callback(_select_protocol)
    if LIB.SSL_CTX_set1_curves_list(context._context, _CLIENT_GROUPS) != 1:  # noqa: SLF001
        raise TrustError("OpenSSL doesn't know the usual groups")
    return context


def _server_context(*roots: bytes) -> SSL.Context:
    context = _make_context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_PEER)
    store = context.get_cert_store()
    assert store is not None
    try:
        for file in roots:
            for certificate in x509.load_pem_x509_certificates(file) if file.strip() else ():
                store.add_cert(crypto.X509.from_cryptography(certificate))
    except (ValueError, SSL.Error, crypto.Error) as error:
        raise TrustError(f"trusted certificates can't be read: {error}") from error
    return context


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    """Select a protocol for ALPN (RFC 7301 section 3.2), by our order of preference."""
    offer: AlpnOffer = connection.get_app_data()
    for protocol in offer.protocols:
        if protocol in offered:
            return protocol
    return SSL.NO_OVERLAPPING_PROTOCOLS


# Alerts of a peer that rejects our certificate (RFC 8446 section 6.2), in OpenSSL's words
_DISTRUST: Final = re.compile(
    r"alert (?:unknown ca|bad certificate|certificate unknown|certificate expired|certificate revoked"
    r"|unsupported certificate)"
)
_BUFFER_SIZE: Final = 65536  # bytes; a record has 16 KB at most
_BUFFER: Final = FFI.new("char[]", _BUFFER_SIZE)
_WANT_READ: Final = LIB.SSL_ERROR_WANT_READ
_read, _write, _error, _handshake = LIB.SSL_read, LIB.SSL_write, LIB.SSL_get_error, LIB.SSL_do_handshake
_bio_read, _bio_write, _contents = LIB.BIO_read, LIB.BIO_write, FFI.buffer


class Tls:
    """One TLS connection, without I/O."""

    def __init__(
        self, session: "Session", contexts: TlsContexts, connection: "ClientEnd | ServerEnd", tls: SSL.Connection
    ) -> None:
        self._session = session
        self._known = contexts.known_protocols
        self._connection = connection
        self.tls = tls
        self.is_open = False  # the handshake succeeded
        self.has_ended = False  # nothing more can be read
        self.is_broken = False  # nothing more can be read, because the peer violated the protocol

    def shake_hands(self, data: bytes) -> tuple[str | None, bytes]:
        """Continue the handshake with received bytes; returns the problem, if any, and the bytes to send.

        Sets `is_open` when the handshake has succeeded.
        """
        tls, problem = self.tls, None
        ssl = tls._ssl  # noqa: SLF001
        if data and _bio_write(tls._into_ssl, data, len(data)) != len(data):  # noqa: SLF001
            raise MemoryError("OpenSSL didn't take what a peer has sent")  # nothing else keeps it out of its memory
        result = _handshake(ssl)
        if result == 1:
            self._connection.alpn = tls.get_alpn_proto_negotiated() or None
            problem = self.check_handshake()
            self.is_open = problem is None
        elif _error(ssl, result) != _WANT_READ:
            try:
                self._fail(result)
            except SSL.Error as error:
                problem = self.failed(error)
        size = _bio_read(tls._from_ssl, _BUFFER, _BUFFER_SIZE)  # noqa: SLF001
        return problem, self._outgoing(size) if size > 0 else b""

    def failed(self, error: SSL.Error) -> str:
        """Return why TLS failed, and record it where needed."""
        raise NotImplementedError

    def check_handshake(self) -> str | None:
        """Check the result of the handshake; returns the problem, if there is one."""
        raise NotImplementedError

    def receive(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Decrypt received bytes; returns the data, the bytes to send, and whether the peer has ended."""
        tls, plain = self.tls, b""
        ssl = tls._ssl  # noqa: SLF001
        if data and _bio_write(tls._into_ssl, data, len(data)) != len(data):  # noqa: SLF001
            raise MemoryError("OpenSSL didn't take what a peer has sent")  # nothing else keeps it out of its memory
        if (size := _read(ssl, _BUFFER, _BUFFER_SIZE)) > 0:
            plain = _contents(_BUFFER, size)[:]
            pieces = [plain]
            while (size := _read(ssl, _BUFFER, _BUFFER_SIZE)) > 0:
                pieces.append(_contents(_BUFFER, size)[:])
            if len(pieces) > 1:
                plain = b"".join(pieces)
        if _error(ssl, size) != _WANT_READ:
            self.has_ended = True
            try:
                self._fail(size)
            except SSL.ZeroReturnError:
                pass
            except SSL.Error as error:
                self.failed(error)
                self.is_broken = True
        size = _bio_read(tls._from_ssl, _BUFFER, _BUFFER_SIZE)  # noqa: SLF001
        return plain, self._outgoing(size) if size > 0 else b"", self.has_ended

    def seal(self, data: bytes, *, last: bool = False) -> bytes:
        """Encrypt `data`, followed by a close_notify if it is the `last`. Raises SSL.Error."""
        tls = self.tls
        ssl, size, written = tls._ssl, len(data), 0  # noqa: SLF001
        try:
            with FFI.from_buffer(data) as start:
                while written < size:  # one record a call: pyOpenSSL's contexts have SSL_MODE_ENABLE_PARTIAL_WRITE
                    result = _write(ssl, start + written, size - written)
                    if result <= 0:
                        self._fail(result)
                    written += result
        except SSL.Error as error:  # if the peer is gone, the end of its connection is reported separately
            if not (self.is_broken or isinstance(error, SSL.ZeroReturnError | SSL.SysCallError)):
                raise
        if last:
            try:  # noqa: SIM105  contextlib.suppress is three calls, twice a connection
                tls.shutdown()
            except SSL.Error:
                pass
        size = _bio_read(tls._from_ssl, _BUFFER, _BUFFER_SIZE)  # noqa: SLF001
        return _contents(_BUFFER, size)[:] if 0 < size < _BUFFER_SIZE else self._outgoing(size)

    def _outgoing(self, size: int) -> bytes:
        """Return all bytes to send; `size` of them are in the buffer already."""
        bio, pieces = self.tls._from_ssl, []  # noqa: SLF001
        while size > 0:
            pieces.append(_contents(_BUFFER, size)[:])
            size = _bio_read(bio, _BUFFER, _BUFFER_SIZE) if size == _BUFFER_SIZE else 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _fail(self, result: int) -> None:
        """Raise SSL.Error for a failure."""
        self.tls._raise_ssl_error(self.tls._ssl, result)  # noqa: SLF001
        raise AssertionError("TLS failed without an error")


class ClientTls(Tls):
    """TLS with the client, with a leaf certificate for the host that it requests."""

    def __init__(
        self, session: "Session", contexts: TlsContexts, client: "ClientEnd", host: str, sni: str | None
    ) -> None:
        """Use a leaf for `host`. `sni`: the SNI that the gate parsed; another one ends the handshake."""
        offer = contexts.known_protocols.offer(session.origin)
        super().__init__(session, contexts, client, contexts.client.connection(host, offer))
        self._sni = sni

    def failed(self, error: SSL.Error) -> str:
        """Record a client that doesn't trust our certificate; other alerts have other causes."""
        text = _error_text(error)
        if _DISTRUST.search(text) and not self._session.request_count:
            self._session.ending = Reason.TLS_CLIENT_DISTRUST
        return text

    def check_handshake(self) -> str | None:
        """Reject a client whose SNI is not the one the gate saw."""
        name = (self.tls.get_servername() or b"").decode("latin-1")
        return None if name.lower() == (self._sni or "").lower() else "the SNI isn't the one that was decided on"


class ServerTls(Tls):
    """TLS with a server, which must prove to be the checked name."""

    def __init__(self, session: "Session", contexts: TlsContexts, client: "ClientEnd", server: "ServerEnd") -> None:
        origin = session.origin
        # An HTTP/1.1 client gets HTTP/1.1 upstream; for a client without ALPN, none is offered
        self._http2 = client.alpn == HTTP2
        offer = (HTTP2, HTTP1) if self._http2 else (HTTP1,) if client.alpn else ()
        injector = session.recorder.sandbox.secret_injector
        self._identity = None if injector is None else injector.identity(origin.target, origin.port)
        tls = contexts.server.connection(
            origin.target, offer, server.authorities, contexts.known_protocols.group(origin), self._identity
        )
        super().__init__(session, contexts, server, tls)
        self._server = server

    def failed(self, error: SSL.Error) -> str:
        """Distinguish an untrusted certificate from other failures."""
        result = distrust(self.tls)
        if result:
            return ServerFailure(Reason.UPSTREAM_UNTRUSTED, f"the server's certificate can't be trusted: {result}")
        if self._lacks_certificate():
            return ServerFailure(
                Reason.CLIENT_CERTIFICATE, f"the server asks for a client certificate: {_error_text(error)}"
            )
        return ServerFailure(Reason.UPSTREAM_FAILED, f"the TLS handshake with the server failed: {_error_text(error)}")

    def check_handshake(self) -> str | None:
        """Record that the server has proved its name, and which protocol it speaks."""
        self._server.proven = not distrust(self.tls)
        self._server.unidentified = self._lacks_certificate()
        origin = self._session.origin
        self._known.note_group(origin, self.tls.get_group_name())
        if self._http2:
            self._known.note(origin, self._server.alpn)
        return None

    def _lacks_certificate(self) -> bool:
        """Whether the server requests a client certificate, and there is none for it."""
        request: CertificateRequest = self.tls.get_app_data()
        return self._identity is None and request.received


def _error_text(error: SSL.Error) -> str:
    """Format an OpenSSL error, a list of (library, function, reason)."""
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(entry[-1] for entry in reasons) or "the connection broke off"
