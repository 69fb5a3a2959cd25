"""mitmproxy's messages, made and looked into without its overheads.

Its constructors check every field's type by reflection, and its headers go through all fields, decoding each, whenever
one is asked for: together a quarter of what a request costs. What is made here is the same to everything that reads it.
"""

import time
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from proxy.request.request_head import Head, forwarded, without_upgrade

if TYPE_CHECKING:
    from proxy.gate.block_page import Page
    from proxy.inspection.judging import Place
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
