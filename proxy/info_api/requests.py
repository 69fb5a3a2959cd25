"""Reads one request to the info API. Pure, bounded and as strict as for requests that leave: `http1_heads` parses it.

A web page in the task's browser must not use the API, so requests from another origin are refused.
"""

from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from proxy.request.http1_heads import parse_head
from proxy.request.request_head import Head, RequestedResource, UnclearError, body_size, read, values
from rules.values.names import INFO_API

MOST_HEAD: Final = 8192  # bytes
MOST_PARAMETERS: Final = 8
MOST_AROUND: Final = 16384  # bytes around a body's chunks: each chunk costs the gate's one thread some microseconds

_NO_LENGTH: Final = "say how long the body is: `Content-Length`"
_SAME: Final = frozenset({(), ("same-origin",), ("none",)})  # Fetch Metadata Request Headers, Sec-Fetch-Site


class RequestRefusedError(Exception):
    """The request can't be answered; the text tells the sender why."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Port(NamedTuple):
    """Methods and largest body that one port accepts."""

    number: int
    methods: frozenset[str]
    most: int = 0


QUESTIONS: Final = Port(80, frozenset({"GET", "HEAD", "POST"}), 8192)


class Request(NamedTuple):
    """A request. `json`: the sender wants values and not words; `kind` and `coding` are of the body (lower case)."""

    method: str
    path: str
    parameters: dict[str, str]
    json: bool = False
    kind: str = ""
    coding: str = ""
    body: bytes = b""


class ChunkedBody:
    """A chunked body, as Node.js's exporters send (RFC 9112 section 7.1)."""

    def __init__(self, most: int) -> None:
        """Limit the body to `most` bytes."""
        import h11  # few tasks send any

        from proxy.request.chunked_body import Buffer, Chunks

        self._most = most
        self._received = 0
        self._body = bytearray()
        self._buffer = Buffer()
        self._chunks = Chunks()
        self._protocol_error = h11.RemoteProtocolError

    def receive(self, data: bytes) -> bytes | None:
        """Receive a piece; returns the whole body once it is complete. Raises RequestRefusedError."""
        self._received += len(data)
        self._buffer += data
        try:
            while (piece := self._chunks(self._buffer)) is not None:
                more = getattr(piece, "data", None)
                if more is None:
                    return bytes(self._body)
                self._body += more
                self._check()
        except self._protocol_error as error:
            raise RequestRefusedError(HTTPStatus.BAD_REQUEST, f"the chunks can't be read: {error}") from None
        self._check()
        return None

    def _check(self) -> None:
        if len(self._body) > self._most or self._received > self._most + MOST_AROUND:
            raise RequestRefusedError(HTTPStatus.CONTENT_TOO_LARGE, f"a body may have {self._most} bytes")
        if self._received - len(self._body) - len(self._buffer) > MOST_AROUND:
            raise RequestRefusedError(HTTPStatus.CONTENT_TOO_LARGE, "the chunks are too small: send longer ones")


class PartialRequest(NamedTuple):
    """A request whose head is complete; `at` and `end` bound its body in the data, unless it is `chunked`."""

    head: Head
    resource: RequestedResource
    at: int
    end: int
    chunked: ChunkedBody | None = None


def read_head(data: bytes | bytearray, port: Port = QUESTIONS) -> PartialRequest | None:
    """Read the head that `data` begins with; None while it isn't whole. Raises RequestRefusedError."""
    at = data.find(b"\r\n\r\n", 0, MOST_HEAD + 4) + 4
    if at < 4:
        if len(data) > MOST_HEAD:
            raise RequestRefusedError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head may have {MOST_HEAD} bytes"
            )
        return None
    try:
        head = parse_head(bytes(data[:at]))
        _check_sender(head, port)
        if any(coding.lower() != "chunked" for coding in values(head, b"transfer-encoding")):
            raise RequestRefusedError(HTTPStatus.LENGTH_REQUIRED, _NO_LENGTH)
        resource = read(head, tls=False)
        size = body_size(head)
    except UnclearError as unclear:
        example = "`GET /policy HTTP/1.1`"
        raise RequestRefusedError(
            HTTPStatus.BAD_REQUEST, f"that is no request of HTTP/1.1, as in {example}: {unclear}"
        ) from None
    if resource.method not in port.methods:
        instead = min(port.methods)
        raise RequestRefusedError(
            HTTPStatus.METHOD_NOT_ALLOWED, f"{resource.method} is not understood here: use {instead}"
        )
    most = port.most if resource.method == "POST" else 0
    if size is None:
        if not most:
            raise RequestRefusedError(HTTPStatus.LENGTH_REQUIRED, _NO_LENGTH)
        return PartialRequest(head, resource, at, at, ChunkedBody(most))
    if size > most:
        why = f"a body may have {most} bytes" if most else "nothing is taken here: send no body"
        raise RequestRefusedError(HTTPStatus.CONTENT_TOO_LARGE, why)
    return PartialRequest(head, resource, at, at + size)


def read_request(begun: PartialRequest, data: bytearray) -> Request | None:
    """Return the complete request; None while `data` doesn't have all of it. Raises RequestRefusedError.

    Removes what it reads of a chunked body from `data`.
    """
    if begun.chunked is not None:
        body = begun.chunked.receive(bytes(data[begun.at :]))
        del data[begun.at :]
    else:
        body = bytes(data[begun.at : begun.end]) if len(data) >= begun.end else None
    return None if body is None else _request(begun.head, begun.resource, body)


def _check_sender(head: Head, port: Port) -> None:
    """Refuse requests for another host, or from a web page. Raises RequestRefusedError."""
    host = next(iter(values(head, b"host")), "").lower()
    if host != f"{INFO_API}:{port.number}" and (host != INFO_API or port is not QUESTIONS):
        raise RequestRefusedError(HTTPStatus.MISDIRECTED_REQUEST, f"this is `{INFO_API}`, and nothing else is here")
    if values(head, b"origin") not in {(), (f"http://{host}",)} or values(head, b"sec-fetch-site") not in _SAME:
        raise RequestRefusedError(HTTPStatus.FORBIDDEN, "only the task itself may ask, and no page that it shows")


def _request(head: Head, resource: RequestedResource, body: bytes) -> Request:
    path, _, query = resource.path.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
    except ValueError:
        raise RequestRefusedError(
            HTTPStatus.BAD_REQUEST, f"at most {MOST_PARAMETERS} parameters are understood"
        ) from None
    parameters = dict(pairs)
    answer_format = parameters.get("format", "json" if "json" in _field(head, b"accept") else "text")
    if answer_format not in {"text", "json"}:
        raise RequestRefusedError(HTTPStatus.BAD_REQUEST, "`format` is `text` or `json`")
    kind, coding = (
        _field(head, name).partition(";")[0].strip().lower() for name in (b"content-type", b"content-encoding")
    )
    return Request(resource.method, path, parameters, answer_format == "json", kind, coding, body)


def _field(head: Head, name: bytes) -> str:
    """Return the value of a field, which is a list if there are several of it (RFC 9110 section 5.3)."""
    return ", ".join(values(head, name))
