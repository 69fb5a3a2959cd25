"""Messages of HTTP: made without mitmproxy's overheads, what can't be passed on of them, and what a proxy is sent.

mitmproxy's constructors check every field's type by reflection, and its headers go through all fields, decoding each,
whenever one is asked for. What is made here is the same to everything that reads it.

By way of a company's HTTP proxy, HTTP in the clear says whole where it goes (RFC 9112 section 3.2.2). A CONNECT would
do, but proxies often allow that to port 443 alone. The request that the proxy sees is a copy for the wire: it names
the place that was decided on, whatever its client wrote, and what the proxy is told about who we are is in nothing
else. Nothing that is between us and the proxy reaches either end.
"""

import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers

from proxy.dialing.tunnel import credentials, unwelcome
from proxy.request.request_head import Head, forwarded, without_upgrade
from rules.attempt import Protocol
from rules.settings import Scheme, Via

if TYPE_CHECKING:
    from proxy.dialing.connecting import Hop
    from proxy.gate.block_page import Page
    from proxy.inspection.context import Far
    from proxy.inspection.judging import Place, Ruling
    from proxy.request.request_head import Asked, Field


class QuickHeaders(http.Headers):
    """Headers with an index, made again when the fields were changed."""

    _indexed: tuple["Field", ...] | None = None
    _index: dict[bytes, list[str]]

    def __init__(self, fields: "tuple[Field, ...]" = ()) -> None:
        # not the base's: the fields are tuples of bytes already
        self.fields = fields

    def get_all(self, name: str | bytes) -> list[str]:
        """Return the values of every field with this name."""
        if self._indexed is not self.fields:
            index: dict[bytes, list[str]] = {}
            for field, value in self.fields:
                index.setdefault(field.lower(), []).append(value.decode("utf-8", "surrogateescape"))
            self._index, self._indexed = index, self.fields
        key = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
        return self._index.get(key.lower(), [])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str | bytes) and bool(self.get_all(name))

    def get(self, name: Any, default: Any = None) -> Any:
        """Return the values of a field as one, or `default`."""
        values = self.get_all(name)
        return ", ".join(values) if values else default


def request_of(head: Head) -> http.Request:
    """Return the request with this head."""
    return _made(
        http.Request,
        http.RequestData,
        host="",
        port=0,
        method=head.method,
        scheme=head.scheme,
        authority=head.authority,
        path=head.path,
        http_version=head.version,
        headers=QuickHeaders(head.fields),
    )


def closing(request: http.Request) -> http.Request:
    """Return a copy that is the last request on its connection (RFC 9112 section 9.6)."""
    head = head_of(request)
    last = request_of(head)
    last.data.host, last.data.port = request.data.host, request.data.port
    fields = tuple(field for field in head.fields if field[0].lower() not in {b"connection", b"keep-alive"})
    last.data.headers = QuickHeaders((*fields, (b"Connection", b"close")))
    return last


def response_with(version: bytes, status: int, reason: bytes, fields: "tuple[Field, ...]") -> http.Response:
    """Return the response with this head."""
    return _made(
        http.Response,
        http.ResponseData,
        http_version=version,
        status_code=status,
        reason=reason,
        headers=QuickHeaders(fields),
    )


def response_of(page: "Page") -> http.Response:
    """Return a refusal as a response."""
    response = response_with(b"HTTP/1.1", page.status, page.phrase.encode("ascii"), page.headers)
    response.data.content = page.body
    return response


def _made[M: http.Message](kind: type[M], data_kind: type[http.MessageData], **values: object) -> M:
    """Make a message without its constructors."""
    data = data_kind.__new__(data_kind)
    data.__dict__.update(content=None, trailers=None, timestamp_start=time.time(), timestamp_end=None, **values)
    message = kind.__new__(kind)
    message.data = data
    return message


def head_of_response(response: http.Response) -> Head:
    """Return the fields of a response."""
    return Head(response.data.http_version, b"", b"", b"", b"", response.data.headers.fields)


def head_of(request: http.Request) -> Head:
    """Return a request's head as it came."""
    data = request.data
    return Head(data.http_version, data.method, data.scheme, data.authority, data.path, data.headers.fields)


def settle(request: http.Request, asked: "Asked", place: "Place") -> None:
    """Make a request that may pass say what was decided on, and only that: one host and one length."""
    data = request.data
    authority = forwarded(asked.spelled, place.target, place.port, tls=place.tls)
    # origin-form for HTTP/1 (RFC 9112 section 3.2.1)
    data.authority = authority if data.http_version == b"HTTP/2.0" else b""
    if asked.respelled or asked.spelled != authority:
        data.headers.fields = tuple(
            (name, authority if name.lower() == b"host" else value) for name, value in data.headers.fields
        )
    if not data.path.isascii():
        data.path = asked.path.encode("ascii")
    if asked.recoded:  # its value is known to be `chunked`, in some case
        data.headers.fields = tuple(
            (name, b"chunked" if name.lower() == b"transfer-encoding" else value) for name, value in data.headers.fields
        )
    if asked.upgrade and not asked.websocket:
        data.headers.fields = without_upgrade(data.headers.fields)


def offer_no_extensions(request: http.Request) -> None:
    """Have a WebSocket's messages sent as they are: a server agrees to nothing else then (RFC 6455 section 9.1)."""
    headers = request.data.headers
    headers.fields = tuple(field for field in headers.fields if field[0].lower() != b"sec-websocket-extensions")


_SPLITS: Final = re.compile(rb"[\0\r\n]")  # never in a value (RFC 9110 section 5.5), whatever HTTP/1 makes of it
_LAST_STATUS: Final = 999
# Of a connection, not of the response (RFC 9110 section 7.6.1), or of a body: an informational response has none
_NOT_INFORMATIONAL: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te", b"content-length", b"transfer-encoding",
})  # fmt: skip
MOST_INFORMATIONAL: Final = 100  # responses (and empty lines, in HTTP/1) before a final one: each costs time


class Unreadable(str):
    """What is wrong with a server's response: whoever runs the server has to mend it."""

    __slots__ = ()


def advice_on_unreadable(place: "Place") -> str:
    """Say what helps where a server's response can't be passed on."""
    unread = "`tls: splice`" if place.tls else f"`ports: [{place.port}/tcp]`"
    return (
        "whoever runs the server can have it answer as RFC 9110 to 9113 say; "
        f"an admin can let the connection through unread, by a rule with {unread}"
    )


def announced(response: "http.Response") -> "http.Response":
    """Return an informational response with what is meant for its client, and no more."""
    fields = response.headers.fields
    response.headers.fields = tuple(field for field in fields if field[0].lower() not in _NOT_INFORMATIONAL)
    return response


def has_no_body(request: "http.Request", response: "http.Response | None") -> bool:
    """Whether a response is one of those that have no body (RFC 9110 section 6.4.1)."""
    assert response
    return request.method == "HEAD" or is_bodiless(response)


def body_length(request: "http.Request", response: "http.Response") -> int | None:
    """Return how many bytes the body has that is to come with a response; None: its head doesn't say."""
    if has_no_body(request, response):
        return 0
    length = response.headers.get("content-length", "")
    counts = length.isascii() and length.isdigit() and "transfer-encoding" not in response.headers
    return int(length) if counts else None


def ends_with_connection(request: "http.Request", response: "http.Response") -> bool:
    """Whether the end of an HTTP/1 connection is the end of a response's body (RFC 9112 section 6.3)."""
    fields = response.headers
    return not (has_no_body(request, response) or "content-length" in fields or "transfer-encoding" in fields)


def what_is_wrong(response: "http.Response") -> str | None:
    """Return why a response, informational or final, can't be passed on."""
    if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
        return "it switches to a protocol that nobody asked for"
    if not HTTPStatus.CONTINUE <= response.status_code <= _LAST_STATUS:
        return "its status is not one of a response"
    if _SPLITS.search(b"".join([value for _, value in response.headers.fields])):
        return "a header's value has a line break in it"
    try:
        validate_headers(response)
    except ValueError as error:
        return str(error)
    return None


def is_bodiless(response: http.Response) -> bool:
    """Whether a response ends with its head, whatever that says of a body (RFC 9112 section 6.3)."""
    return response.status_code in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


# What is said between a client and a proxy: RFC 9110 sections 7.6.1 and 11.7
_PROXYS: Final = frozenset(
    {b"proxy-authorization", b"proxy-authenticate", b"proxy-authentication-info", b"proxy-connection"}
)
# What marks an error page as the proxy's own. Some quote the request that failed, the password with it (CVE-2025-62168)
_OWN_PAGES: Final = frozenset({b"x-squid-error", b"proxy-status"})
_ECHOED: Final = b"TRACE"  # what the last one on the way does with the whole head: the password would be in it


def relayed(found: "tuple[Hop, ...]", head: "Head", ruling: "Ruling") -> "tuple[Hop, ...]":
    """Return where a request goes: in the clear, by way of an HTTP proxy, through no connection of its own.

    What switches protocols needs one, and so does what a proxy might answer by itself (RFC 9110 section 7.6.2).
    """
    if not found or not isinstance(found[0], Via) or ruling.asked is None or ruling.attempt is None:
        return found
    clear = ruling.attempt.protocol is Protocol.HTTP and found[0].upstream.scheme is Scheme.HTTP
    ends_there = head.method == _ECHOED or any(name.lower() == b"max-forwards" for name, _ in head.fields)
    return (found[0]._replace(relayed=clear and not ruling.asked.websocket and not ends_there),)


def is_relayed(server: "Far") -> bool:
    """Whether a connection leads to a proxy itself, not through it."""
    return isinstance(server.dialled, Via) and server.dialled.relayed


def asked_of_proxy(request: "http.Request", place: "Place", server: "Far") -> "http.Request":
    """Return a request as the proxy is sent it."""
    head = head_of(request)
    fields = tuple(
        (name, place.authority if name.lower() == b"host" else value)  # as in the target (RFC 9112 section 3.2.2)
        for name, value in head.fields
        if name.lower() not in _PROXYS
    )
    if server.login is not None:
        fields = (*fields, (b"Proxy-Authorization", credentials(server.login)))
    asked = request_of(head)
    asked.data.host, asked.data.port = request.data.host, request.data.port
    asked.data.scheme, asked.data.authority = b"http", place.authority
    if asked.data.path == b"*":
        asked.data.path = b""  # RFC 9112 section 3.2.4: the last proxy makes an asterisk of it
    asked.data.headers = QuickHeaders(fields)
    return asked


def answered_by_proxy(response: "http.Response", server: "Far") -> str | None:
    """Take out of a response what is the proxy's; returns why it is none for a client, who can't log in there."""
    if response.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return f"the proxy `{server.dialled}`: {unwelcome(server.login)}"
    data = response.data
    if server.login is not None and any(name.lower() in _OWN_PAGES for name, _ in data.headers.fields):
        return f"the proxy `{server.dialled}`: it answered {response.status_code} itself"
    data.headers = QuickHeaders(tuple(field for field in data.headers.fields if field[0].lower() not in _PROXYS))
    return None
