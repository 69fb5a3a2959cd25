"""Parses one request to the info API. Pure, bounded and strict: RFC 9112, with everything odd refused.

A page that a task's browser shows must not ask in the task's name, so what comes from another origin is refused too.
"""

import re
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from rules.names import DESK

MOST_HEAD: Final = 8192  # bytes
MOST_PARAMETERS: Final = 8
MOST_AROUND: Final = 16384  # bytes around a body's chunks: each chunk costs the gate's one thread some microseconds

_LINE: Final = re.compile(rb"([A-Z]{3,7}) (/[!-~]{0,4095}) HTTP/1\.[01]")
# Possessive, and its spaces are stripped afterwards: no head can make it look at a byte again and again.
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}+):([\t -~\x80-\xff]*+)")
_LENGTH: Final = re.compile(rb"[0-9]{1,9}")
_SAME: Final = frozenset({b"same-origin", b"none"})  # Fetch Metadata Request Headers, Sec-Fetch-Site


class Refusal(Exception):  # noqa: N818  past tense would be odd: what the request is
    """The request can't be answered; why, for its sender."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Port(NamedTuple):
    """What is taken at one port: requests of these methods, a POST with a body of so many bytes."""

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
    """A body whose length its sender doesn't know ahead: Node.js's exporters send such (RFC 9112 section 7.1)."""

    def __init__(self, most: int) -> None:
        """Take at most so many bytes."""
        import h11  # few tasks send any

        from proxy.request.chunked_body import Buffer, Chunks

        self._most = most
        self._taken = 0
        self._body = bytearray()
        self._buffer = Buffer()
        self._chunks = Chunks()
        self._wrong = h11.RemoteProtocolError

    def take(self, data: bytes) -> bytes | None:
        """Take more of it; the whole of it once its end is there. Raises Refusal."""
        self._taken += len(data)
        self._buffer += data
        try:
            while (piece := self._chunks(self._buffer)) is not None:
                more = getattr(piece, "data", None)
                if more is None:
                    return bytes(self._body)
                self._body += more
                self._check()
        except self._wrong as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"the chunks can't be read: {error}") from None
        self._check()
        return None

    def _check(self) -> None:
        if len(self._body) > self._most or self._taken > self._most + MOST_AROUND:
            raise Refusal(HTTPStatus.CONTENT_TOO_LARGE, f"a body may have {self._most} bytes")
        if self._taken - len(self._body) - len(self._buffer) > MOST_AROUND:
            raise Refusal(HTTPStatus.CONTENT_TOO_LARGE, "the chunks are too small: send longer ones")


class Head(NamedTuple):
    """A request's head, and where in what was read its body begins, and ends, unless it is `chunked`."""

    method: str
    target: str
    fields: dict[bytes, bytes]
    at: int
    end: int
    chunked: ChunkedBody | None = None


def read_head(data: bytes | bytearray, port: Port = QUESTIONS) -> Head | None:
    """Read the head that `data` begins with; None while it isn't whole. Raises Refusal."""
    size = data.find(b"\r\n\r\n", 0, MOST_HEAD + 4)
    if size < 0:
        if len(data) > MOST_HEAD:
            raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head may have {MOST_HEAD} bytes")
        return None
    line, *lines = bytes(data[:size]).split(b"\r\n")
    begins = _LINE.fullmatch(line)
    if begins is None:
        raise Refusal(HTTPStatus.BAD_REQUEST, "that is no request of HTTP/1.1, as in `GET /policy HTTP/1.1`")
    fields = _fields(lines)
    _check(fields, port)
    method = begins[1].decode()
    if method not in port.methods:
        instead = min(port.methods)
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not understood here: use {instead}")
    at, most = size + 4, port.most if method == "POST" else 0
    chunked = _is_chunked(fields, most)
    end = at if chunked else at + _size(fields, most)
    return Head(method, begins[2].decode(), fields, at, end, ChunkedBody(most) if chunked else None)


def read_request(head: Head, data: bytearray) -> Request | None:
    """Return the request that has begun so; None while `data` doesn't reach to its end. Raises Refusal.

    Of a body in chunks what is there is taken off `data`.
    """
    if head.chunked is not None:
        body = head.chunked.take(bytes(data[head.at :]))
        del data[head.at :]
    else:
        body = bytes(data[head.at : head.end]) if len(data) >= head.end else None
    return None if body is None else _asked(head.method, head.target, head.fields, body)


def _fields(lines: list[bytes]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "a header is no header")
        name = field[1].lower()
        if name in fields and name in {b"host", b"content-length", b"origin", b"transfer-encoding"}:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"there are two `{name.decode()}`")
        fields[name] = field[2].strip(b" \t")
    return fields


def _check(fields: dict[bytes, bytes], port: Port) -> None:
    name = DESK.encode()
    hosts = {b"%s:%d" % (name, port.number), *((name,) if port is QUESTIONS else ())}
    if fields.get(b"host", b"").lower() not in hosts:
        raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, f"this is `{DESK}`, and nothing else is here")
    own = b"http://" + fields[b"host"].lower()
    if fields.get(b"origin", own) != own or fields.get(b"sec-fetch-site", b"none") not in _SAME:
        raise Refusal(HTTPStatus.FORBIDDEN, "only the task itself may ask, and no page that it shows")


def _is_chunked(fields: dict[bytes, bytes], most: int) -> bool:
    """Whether a body comes in chunks, and may (RFC 9112 section 6.3)."""
    coding = fields.get(b"transfer-encoding")
    if coding is None or not most:
        return False
    if b"content-length" in fields:
        raise Refusal(HTTPStatus.BAD_REQUEST, "there is `Content-Length` and `Transfer-Encoding`")
    return coding.strip().lower() == b"chunked"


def _size(fields: dict[bytes, bytes], most: int) -> int:
    """Return how many bytes of a body follow."""
    if b"transfer-encoding" in fields:
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, "say how long the body is: `Content-Length`")
    length = fields.get(b"content-length", b"0")
    if not _LENGTH.fullmatch(length):
        raise Refusal(HTTPStatus.BAD_REQUEST, "`Content-Length` is no length")
    if int(length) > most:
        why = f"a body may have {most} bytes" if most else "nothing is taken here: send no body"
        raise Refusal(HTTPStatus.CONTENT_TOO_LARGE, why)
    return int(length)


def _asked(method: str, target: str, fields: dict[bytes, bytes], body: bytes) -> Request:
    path, _, query = target.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
    except ValueError:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"at most {MOST_PARAMETERS} parameters are understood") from None
    parameters = dict(pairs)
    wanted = parameters.get("format", "json" if b"json" in fields.get(b"accept", b"") else "text")
    if wanted not in {"text", "json"}:
        raise Refusal(HTTPStatus.BAD_REQUEST, "`format` is `text` or `json`")
    kind, coding = (fields.get(name, b"").partition(b";")[0] for name in (b"content-type", b"content-encoding"))
    return Request(method, path, parameters, wanted == "json", _lower(kind), _lower(coding), body)


def _lower(text: bytes) -> str:
    return text.strip().lower().decode("latin-1")
