"""One request to the desk, read from bytes. Pure, bounded, and strict: RFC 9112 with everything odd refused.

A page that a task's browser shows must not ask in the task's name, so what comes from another origin is refused too.
"""

import re
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from rules.own_names import DESK

MOST_HEAD: Final = 8192  # bytes
MOST_PARAMETERS: Final = 8

_LINE: Final = re.compile(rb"([A-Z]{3,7}) (/[!-~]{0,4095}) HTTP/1\.[01]")
# Possessive, and its spaces are stripped afterwards: no head can make it look at a byte again and again.
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}+):([\t -~\x80-\xff]*+)")
_LENGTH: Final = re.compile(rb"[0-9]{1,9}")
_SAME: Final = frozenset({b"same-origin", b"none"})  # Fetch Metadata Request Headers, Sec-Fetch-Site


class Bad(Exception):  # noqa: N818  past tense would be odd: what the request is
    """The request can't be answered; why, for its sender."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Counter(NamedTuple):
    """What is taken at one port: requests of these methods, a POST with a body of so many bytes."""

    port: int
    methods: frozenset[str]
    most: int = 0


ASKING: Final = Counter(80, frozenset({"GET", "HEAD", "POST"}), 8192)


class Asked(NamedTuple):
    """A request. `json`: the sender wants values and not words; `kind` and `coding` are of the body (lower case)."""

    method: str
    path: str
    parameters: dict[str, str]
    json: bool = False
    kind: str = ""
    coding: str = ""
    body: bytes = b""


class Begun(NamedTuple):
    """A request's head, and where in what was read its body begins, and ends."""

    method: str
    target: str
    fields: dict[bytes, bytes]
    at: int
    end: int


def begun(data: bytes | bytearray, counter: Counter = ASKING) -> Begun | None:
    """Read the head that `data` begins with; None while it isn't whole. Raises Bad."""
    size = data.find(b"\r\n\r\n", 0, MOST_HEAD + 4)
    if size < 0:
        if len(data) > MOST_HEAD:
            raise Bad(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head may have {MOST_HEAD} bytes")
        return None
    line, *lines = bytes(data[:size]).split(b"\r\n")
    begins = _LINE.fullmatch(line)
    if begins is None:
        raise Bad(HTTPStatus.BAD_REQUEST, "that is no request of HTTP/1.1, as in `GET /policy HTTP/1.1`")
    fields = _fields(lines)
    _check(fields, counter)
    method = begins[1].decode()
    if method not in counter.methods:
        instead = min(counter.methods)
        raise Bad(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not understood here: use {instead}")
    at = size + 4
    return Begun(method, begins[2].decode(), fields, at, at + _size(fields, counter.most if method == "POST" else 0))


def whole(begun: Begun, data: bytes | bytearray) -> Asked:
    """Return the request that has begun so, once `data` reaches to its end. Raises Bad."""
    return _asked(begun.method, begun.target, begun.fields, bytes(data[begun.at : begun.end]))


def parse(data: bytes, counter: Counter = ASKING) -> Asked | None:
    """Read the request that `data` begins with; None while it isn't whole. Raises Bad."""
    head = begun(data, counter)
    return None if head is None or len(data) < head.end else whole(head, data)


def _fields(lines: list[bytes]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Bad(HTTPStatus.BAD_REQUEST, "a header is no header")
        name = field[1].lower()
        if name in fields and name in {b"host", b"content-length", b"origin"}:
            raise Bad(HTTPStatus.BAD_REQUEST, f"there are two `{name.decode()}`")
        fields[name] = field[2].strip(b" \t")
    return fields


def _check(fields: dict[bytes, bytes], counter: Counter) -> None:
    name = DESK.encode()
    hosts = {b"%s:%d" % (name, counter.port), *((name,) if counter is ASKING else ())}
    if fields.get(b"host", b"").lower() not in hosts:
        raise Bad(HTTPStatus.MISDIRECTED_REQUEST, f"this is `{DESK}`, and nothing else is here")
    own = b"http://" + fields[b"host"].lower()
    if fields.get(b"origin", own) != own or fields.get(b"sec-fetch-site", b"none") not in _SAME:
        raise Bad(HTTPStatus.FORBIDDEN, "only the task itself may ask, and no page that it shows")


def _size(fields: dict[bytes, bytes], most: int) -> int:
    """Return how many bytes of a body follow."""
    if b"transfer-encoding" in fields:
        raise Bad(HTTPStatus.LENGTH_REQUIRED, "say how long the body is: `Content-Length`")
    length = fields.get(b"content-length", b"0")
    if not _LENGTH.fullmatch(length):
        raise Bad(HTTPStatus.BAD_REQUEST, "`Content-Length` is no length")
    if int(length) > most:
        why = f"a body may have {most} bytes" if most else "nothing is taken here: send no body"
        raise Bad(HTTPStatus.CONTENT_TOO_LARGE, why)
    return int(length)


def _asked(method: str, target: str, fields: dict[bytes, bytes], body: bytes) -> Asked:
    path, _, query = target.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
    except ValueError:
        raise Bad(HTTPStatus.BAD_REQUEST, f"at most {MOST_PARAMETERS} parameters are understood") from None
    parameters = dict(pairs)
    wanted = parameters.get("format", "json" if b"json" in fields.get(b"accept", b"") else "text")
    if wanted not in {"text", "json"}:
        raise Bad(HTTPStatus.BAD_REQUEST, "`format` is `text` or `json`")
    kind, coding = (fields.get(name, b"").partition(b";")[0] for name in (b"content-type", b"content-encoding"))
    return Asked(method, path, parameters, wanted == "json", _lower(kind), _lower(coding), body)


def _lower(text: bytes) -> str:
    return text.strip().lower().decode("latin-1")
