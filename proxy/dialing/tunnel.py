"""Tunnel handshakes with a proxy, as bytes in and bytes out: HTTP CONNECT and SOCKS 5. Pure.

The administrator trusts the proxy, but its answers are parsed as untrusted: each has a bound, and none of its text is
forwarded. Bytes after its answer belong to the connection: `take` returns how many bytes are the proxy's.
"""

from base64 import b64encode
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from proxy.request.http1_heads import BLANK_LINE, check_status_line, parse_response
from rules.settings import Scheme
from rules.values.names import HostName

if TYPE_CHECKING:
    from proxy.dialing.proxy_auth import Login
    from rules.settings import ProxyDestination
    from rules.values.addresses import Address

LONGEST_HEAD: Final = 16 * 1024  # bytes of an answer to CONNECT
_NOT_HTTP: Final = "it doesn't speak HTTP/1"

_VERSION, _NO_LOGIN, _BY_PASSWORD, _CONNECT = 5, 0, 2, 1  # RFC 1928 sections 3 and 4
_IPV4, _NAME, _IPV6 = 1, 3, 4
_LOGIN_REQUIRED: Final = "it requires a user and a password"
_LOGIN_REJECTED: Final = "it rejected the user and password"
_REPLIES: Final = (  # RFC 1928 section 6
    "it succeeded",
    "it failed in general",
    "its rules don't allow that",
    "the network can't be reached from it",
    "the host can't be reached from it",
    "the host refused it",
    "its connection timed out",
    "it knows no such command",
    "it doesn't support this type of address",
)


class TunnelError(Exception):
    """The proxy made no tunnel, or answered something else. The text says why, and contains nothing that it sent."""


class Tunnel(Protocol):
    """One handshake with a proxy. `first` are the bytes to send at once."""

    first: bytes
    open: bool  # whether the tunnel is established

    def take(self, data: bytes) -> tuple[int, bytes]:
        """Return how many bytes of `data` belong to the proxy, and the bytes to send now. Raises TunnelError."""
        ...


def open_tunnel(via: "ProxyDestination", port: int, login: "Login | None") -> Tunnel:
    """Return the handshake for `port` of the target of `via`, by the proxy's scheme."""
    if via.relayed:
        return NoTunnel()
    kinds: dict[Scheme, type[ConnectTunnel | SocksTunnel]] = {Scheme.HTTP: ConnectTunnel, Scheme.SOCKS5: SocksTunnel}
    return kinds[via.upstream.scheme](via.target, port, login)


def credentials(login: "Login") -> bytes:
    """Return the Basic credentials of a login (RFC 7617 section 2)."""
    return b"Basic " + b64encode(login.user + b":" + login.password)


def proxy_login_problem(login: "Login | None") -> str:
    """Describe a 407 of the proxy: no login is configured, or the proxy rejected it."""
    return f"{_LOGIN_REQUIRED if login is None else _LOGIN_REJECTED} (407)"


class NoTunnel:
    """No handshake: each HTTP request names its target itself."""

    first = b""
    open = True

    def take(self, _data: bytes) -> tuple[int, bytes]:
        """Return that no byte belongs to the proxy."""
        return 0, b""


class ConnectTunnel:
    """HTTP CONNECT over HTTP/1.1 (RFC 9110 section 9.3.6)."""

    def __init__(self, target: "HostName | Address", port: int, login: "Login | None") -> None:
        host = f"[{target}]" if not isinstance(target, HostName) and target.version == 6 else target
        authority = f"{host}:{port}".encode("ascii")
        request = b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n"
        if login is not None:
            request += b"Proxy-Authorization: " + credentials(login) + b"\r\n"
        self.first = request + b"\r\n"
        self.open = False
        self._login = login
        self._head = b""
        self._size = 0  # bytes of all heads so far

    def take(self, data: bytes) -> tuple[int, bytes]:
        """Return how many bytes of `data` belong to the response's head; there is never anything to send."""
        if self.open:
            return 0, b""
        before = len(self._head)
        self._head += data[: LONGEST_HEAD + 1 - self._size]
        end = BLANK_LINE.search(self._head, max(0, before - 2))
        consumed = (end.end() if end else len(self._head)) - before
        self._size += consumed
        if self._size > LONGEST_HEAD:
            raise TunnelError(f"its answer is longer than {LONGEST_HEAD} bytes")
        try:
            check_status_line(self._head)
            status = parse_response(self._head[: end.end()]).status if end else None
        except ValueError:
            raise TunnelError(_NOT_HTTP) from None
        if status is not None:
            self._check_status(status)
        return consumed, b""

    def _check_status(self, status: int) -> None:
        if 200 <= status < 300:
            self.open = True
        elif 100 <= status < 200 and status != HTTPStatus.SWITCHING_PROTOCOLS:
            self._head = b""  # RFC 9110 section 15.2: informational; the final response follows
        elif status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            raise TunnelError(proxy_login_problem(self._login))
        else:
            raise TunnelError(f"it answered {_status_text(status)}")


class SocksTunnel:
    """SOCKS 5 (RFC 1928), with user and password of RFC 1929 if there is a login. The proxy looks names up."""

    def __init__(self, target: "HostName | Address", port: int, login: "Login | None") -> None:
        methods = [_NO_LOGIN] if login is None else [_NO_LOGIN, _BY_PASSWORD]
        self.first = bytes([_VERSION, len(methods), *methods])
        self.open = False
        self._methods = methods
        self._login = login
        self._request = bytes([_VERSION, _CONNECT, 0]) + _socks_address(target) + port.to_bytes(2)
        self._reply = b""
        self._reply_size = 2  # bytes of the current reply
        self._parse_reply = self._parse_method

    def take(self, data: bytes) -> tuple[int, bytes]:
        """Return how many bytes of `data` belong to the replies, and the bytes to send now."""
        consumed = 0
        while consumed < len(data) and not self.open:
            piece = data[consumed : consumed + self._reply_size - len(self._reply)]
            self._reply += piece
            consumed += len(piece)
            if len(self._reply) == self._reply_size and (to_send := self._parse_reply(self._reply)):
                return consumed, to_send  # the proxy only replies after this
        return consumed, b""

    def _expect(self, size: int) -> None:
        self._reply = b""
        self._reply_size = size

    def _parse_method(self, reply: bytes) -> bytes:
        """Read the authentication method that the proxy chose (section 3)."""
        version, method = reply
        if version != _VERSION:
            raise TunnelError("it doesn't speak SOCKS 5")
        if method not in self._methods:
            raise TunnelError(_LOGIN_REQUIRED if self._login is None else "it takes no user and password")
        if method == _NO_LOGIN or self._login is None:
            self._expect(4)
            self._parse_reply = self._parse_connect_reply
            return self._request
        self._expect(2)
        self._parse_reply = self._parse_login_reply
        user, password = self._login.user, self._login.password
        return bytes([1, len(user)]) + user + bytes([len(password)]) + password

    def _parse_login_reply(self, reply: bytes) -> bytes:
        """Read whether the proxy accepted user and password (RFC 1929 section 2)."""
        if reply != b"\x01\x00":
            raise TunnelError(_LOGIN_REJECTED)
        self._expect(4)
        self._parse_reply = self._parse_connect_reply
        return self._request

    def _parse_connect_reply(self, reply: bytes) -> bytes:
        """Read the reply to the request (section 6), and the length of the bound address in it, which is ignored."""
        version, code, _, kind = reply[:4]
        if version != _VERSION:
            raise TunnelError("it doesn't speak SOCKS 5")
        if code:
            raise TunnelError(_REPLIES[code] if code < len(_REPLIES) else f"it failed with code {code}")
        if len(reply) == 4 and kind == _NAME:
            self._reply_size = 5
        elif len(reply) <= 5:
            sizes = {_IPV4: 4, _IPV6: 16, _NAME: 1 + reply[-1]}
            if kind not in sizes:
                raise TunnelError("it answered with an unknown type of address")
            self._reply_size = 4 + sizes[kind] + 2
        else:
            self.open = True
        return b""


def _socks_address(target: "HostName | Address") -> bytes:
    if not isinstance(target, HostName):
        return bytes([_IPV4 if target.version == 4 else _IPV6]) + target.packed
    name = target.encode("ascii")
    return bytes([_NAME, len(name)]) + name  # a name has at most 253 bytes


def _status_text(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)
