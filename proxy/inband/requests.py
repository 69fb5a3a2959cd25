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
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_METHODS: Final = frozenset({"GET", "HEAD"})
_HOSTS: Final = frozenset({DESK.encode(), DESK.encode() + b":80"})
_OWN_ORIGIN: Final = b"http://" + DESK.encode()
_SAME: Final = frozenset({b"same-origin", b"none"})  # Fetch Metadata Request Headers, Sec-Fetch-Site


class Bad(Exception):  # noqa: N818  past tense would be odd: what the request is
    """The request can't be answered; why, for its sender."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Asked(NamedTuple):
    """A request. `json`: the sender wants values and not words."""

    method: str
    path: str
    parameters: dict[str, str]
    json: bool = False


def parse(data: bytes) -> Asked | None:
    """Read the request that `data` begins with; None while its head isn't whole. Raises Bad."""
    head, end, _ = data.partition(b"\r\n\r\n")
    if not end:
        if len(data) > MOST_HEAD:
            raise Bad(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head may have {MOST_HEAD} bytes")
        return None
    line, *lines = head.split(b"\r\n")
    begins = _LINE.fullmatch(line)
    if begins is None:
        raise Bad(HTTPStatus.BAD_REQUEST, "that is no request of HTTP/1.1, as in `GET /policy HTTP/1.1`")
    fields = _fields(lines)
    _check(fields)
    method = begins[1].decode()
    if method not in _METHODS:
        raise Bad(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not understood here: use GET")
    return _asked(method, begins[2].decode(), fields)


def _fields(lines: list[bytes]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Bad(HTTPStatus.BAD_REQUEST, "a header is no header")
        name = field[1].lower()
        if name in fields and name in {b"host", b"content-length", b"origin"}:
            raise Bad(HTTPStatus.BAD_REQUEST, f"there are two `{name.decode()}`")
        fields[name] = field[2]
    return fields


def _check(fields: dict[bytes, bytes]) -> None:
    if fields.get(b"host", b"").lower() not in _HOSTS:
        raise Bad(HTTPStatus.MISDIRECTED_REQUEST, f"this is `{DESK}`, and nothing else is here")
    if fields.get(b"origin", _OWN_ORIGIN) != _OWN_ORIGIN or fields.get(b"sec-fetch-site", b"none") not in _SAME:
        raise Bad(HTTPStatus.FORBIDDEN, "only the task itself may ask, and no page that it shows")
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
        raise Bad(HTTPStatus.CONTENT_TOO_LARGE, "nothing is taken here: send no body")


def _asked(method: str, target: str, fields: dict[bytes, bytes]) -> Asked:
    path, _, query = target.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
    except ValueError:
        raise Bad(HTTPStatus.BAD_REQUEST, f"at most {MOST_PARAMETERS} parameters are understood") from None
    parameters = dict(pairs)
    wanted = parameters.get("format", "json" if b"json" in fields.get(b"accept", b"") else "text")
    if wanted not in {"text", "json"}:
        raise Bad(HTTPStatus.BAD_REQUEST, "`format` is `text` or `json`")
    return Asked(method, path, parameters, wanted == "json")
