"""HTTP heads as they are forwarded: request heads as decided, response heads with one clear length. Pure."""

import re
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.request import request_head
from proxy.request.request_head import TOKEN, Head, forwarded, without_upgrade
from rules.attempt import Protocol

if TYPE_CHECKING:
    from proxy.request.request_head import Field, RequestedResource
    from rules.values.addresses import Address
    from rules.values.names import HostName


class ResponseHead(NamedTuple):
    """Status line and fields of a response."""

    version: bytes  # `HTTP/1.0`, `HTTP/1.1`, `HTTP/2.0`
    status: int
    reason: bytes
    fields: "tuple[Field, ...]"


GO_ON: Final = ResponseHead(b"HTTP/1.1", HTTPStatus.CONTINUE, b"Continue", ())


# --- requests ---


@dataclass(frozen=True, slots=True)
class WebOrigin:
    """Scheme, host and port that the gate decided for a connection: the only ones that its requests may name."""

    target: "HostName | Address"
    port: int
    tls: bool
    protocol: Protocol = field(init=False, compare=False)  # as rules name it
    authority: bytes = field(init=False, compare=False)  # as a forwarded request spells it

    def __post_init__(self) -> None:
        """Compute `protocol` and `authority` once for all requests of the connection."""
        object.__setattr__(self, "protocol", Protocol.TLS if self.tls else Protocol.HTTP)
        object.__setattr__(self, "authority", request_head.authority(self.target, self.port, tls=self.tls))

    def __str__(self) -> str:
        """Return it as the start of a URL."""
        return f"{'https' if self.tls else 'http'}://{self.authority.decode()}"


def head_to_send(head: Head, resource: "RequestedResource", origin: "WebOrigin", *, extensions: bool) -> Head:
    """Return the head of an allowed request as it is sent upstream: only what the decision covers.

    It names one host and one length. `extensions`: keep offered WebSocket extensions; without them, a server can't
    compress messages (RFC 6455 section 9.1).
    """
    authority = origin.authority
    if resource.spelled != authority:
        authority = forwarded(resource.spelled, origin.target, origin.port, tls=origin.tls)
    fields = head.fields
    if resource.respelled or resource.spelled != authority:
        fields = tuple((name, authority if name.lower() == b"host" else value) for name, value in fields)
    if resource.recoded:  # the value is `chunked` in another case
        fields = tuple((name, b"chunked" if name.lower() == b"transfer-encoding" else value) for name, value in fields)
    if resource.upgrade and not resource.websocket:
        fields = without_upgrade(fields)
    if not extensions:
        fields = tuple(field for field in fields if field[0].lower() != b"sec-websocket-extensions")
    return Head(
        head.version,
        head.method,
        b"https" if origin.tls else b"http",
        authority if head.version == b"HTTP/2.0" else b"",  # origin-form for HTTP/1 (RFC 9112 section 3.2.1)
        head.path if head.path.isascii() else resource.path.encode("ascii"),
        fields,
    )


def closing(head: Head) -> Head:
    """Return a head with `Connection: close` (RFC 9112 section 9.6)."""
    fields = tuple(field for field in head.fields if field[0].lower() not in {b"connection", b"keep-alive"})
    return replace(head, fields=(*fields, (b"Connection", b"close")))


# --- responses ---

_SPLITS: Final = re.compile(rb"[\0\r\n]")  # never valid in a value (RFC 9110 section 5.5)
_LAST_STATUS: Final = 999
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]*")
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_FRAMING_SIZES: Final = frozenset(map(len, _FRAMING))  # skips most other names quickly
_CODING_SEPARATOR: Final = re.compile(rb"[\t ]*,[\t ]*")
# Known transfer codings (RFC 9112 section 7). A body whose last coding is `chunked` marks its own end.
_CODINGS: Final = frozenset({b"compress", b"deflate", b"gzip"})
_ENDLESS: Final = _CODINGS | {b"identity"}
_CHUNKED: Final = frozenset({b"chunked", *(coding + b",chunked" for coding in _CODINGS)})
# Fields of the connection (RFC 9110 section 7.6.1), or of a body, which an informational response doesn't have
_NOT_INFORMATIONAL: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te", b"content-length", b"transfer-encoding",
})  # fmt: skip
MOST_INFORMATIONAL: Final = 100  # responses (and empty lines, in HTTP/1) before a final one


class Unreadable(str):
    """Problem of a server's response; the server's operator has to fix it."""

    __slots__ = ()


def advice_on_unreadable(origin: "WebOrigin") -> str:
    """Return what to do when a server's response can't be forwarded."""
    unread = "`tls: splice`" if origin.tls else f"`ports: [{origin.port}/tcp]`"
    return (
        "the server's operator can fix its response (RFC 9110 to 9113); "
        f"an admin can let the connection through unread, by a rule with {unread}"
    )


def announced(response: ResponseHead) -> ResponseHead:
    """Return an informational response without hop-by-hop and body fields."""
    return response._replace(fields=tuple(f for f in response.fields if f[0].lower() not in _NOT_INFORMATIONAL))


def has_no_body(method: bytes, status: int) -> bool:
    """Whether a response ends with its head, whatever its fields say (RFC 9112 section 6.3)."""
    return status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED) or method.upper() == b"HEAD"


def body_size(method: bytes, response: ResponseHead) -> int | None:
    """Return the length of a response's body in bytes (RFC 9112 section 6.3). Raises ValueError.

    None: it is chunked. -1: it ends with the connection.
    """
    if response.status < HTTPStatus.OK or has_no_body(method, response.status):
        return 0
    lengths, codings = _framing(response)
    if coding := b", ".join(codings):
        return None if _coding(coding) in _CHUNKED else -1
    return _length(lengths) if any(lengths) else -1


def _coding(value: bytes) -> bytes:
    """Return a Transfer-Encoding in its normal spelling. Raises ValueError for an unknown one."""
    coding = _CODING_SEPARATOR.sub(b",", value).lower()
    if coding not in _CHUNKED and coding not in _ENDLESS:
        raise ValueError("its Transfer-Encoding is not a known one")
    return coding


def _length(values: list[bytes]) -> int:
    """Return the only Content-Length. Raises ValueError if there are several."""
    if len(values) > 1 or not _LENGTH.fullmatch(values[0]):
        raise ValueError("the Content-Length is not one number")
    return int(values[0])


def _framing(response: ResponseHead) -> tuple[list[bytes], list[bytes]]:
    """Return the values of Content-Length and of Transfer-Encoding."""
    framing = [(name.lower(), value) for name, value in response.fields if len(name) in _FRAMING_SIZES]
    return (
        [value for name, value in framing if name == b"content-length"],
        [value for name, value in framing if name == b"transfer-encoding"],
    )


def ends_with_connection(method: bytes, response: ResponseHead) -> bool:
    """Whether a response's body ends with its HTTP/1 connection (RFC 9112 section 6.3)."""
    return not has_no_body(method, response.status) and not any(_framing(response))


def checked_length(method: bytes, response: ResponseHead) -> int | None:
    """Return the length of a response's body, if its head gives one. Raises ValueError if it can't be forwarded.

    A response, informational or final, can't be forwarded if a client could read two responses or another end from it.
    Errors quote none of its bytes, since masking of secrets doesn't know Python's notation of bytes.
    """
    status, fields = response.status, response.fields
    if status == HTTPStatus.SWITCHING_PROTOCOLS:
        raise ValueError("it switches to a protocol that the request didn't offer")
    if not HTTPStatus.CONTINUE <= status <= _LAST_STATUS:
        raise ValueError("its status is not one of a response")
    if _SPLITS.search(b"".join([value for _, value in fields])):
        raise ValueError("a header's value has a line break in it")
    for name, _ in fields:
        if not TOKEN.fullmatch(name):
            raise ValueError("a header's name is not a token")
    lengths, codings = _framing(response)
    length = _checked_framing(response, lengths, codings)
    return 0 if has_no_body(method, status) else length


def _checked_framing(response: ResponseHead, lengths: list[bytes], codings: list[bytes]) -> int | None:
    """Return the length that a response's head gives. Raises ValueError if its fields give two."""
    if codings:
        if lengths:
            raise ValueError("it has both a Transfer-Encoding and a Content-Length")
        if len(codings) > 1:
            raise ValueError("it has more than one Transfer-Encoding")
        bodiless = response.status < HTTPStatus.OK or response.status == HTTPStatus.NO_CONTENT
        if response.version != b"HTTP/1.1" or bodiless:
            raise ValueError("its version or its status allows no Transfer-Encoding")
        _coding(codings[0])
    return _length(lengths) if lengths else None
