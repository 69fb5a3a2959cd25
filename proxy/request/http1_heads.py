"""HTTP/1 heads: splits them off the received bytes, parses them strictly, and finds the length of the body.

mitmproxy parses leniently and forwards its own reading. This module rejects every request that doesn't follow RFC 9112.
It repairs a response where the RFC requires that of a proxy, so that its client can read it in one way only. Pure,
except that it removes parsed bytes from a buffer.
"""

import re
import string
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from proxy.request.messages import ResponseHead, body_size
from proxy.request.request_head import MOST_FIELDS, Head, UnclearError
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.request.chunked_body import Buffer
    from proxy.request.request_head import Field

MOST_HEAD: Final = 128 * 1024  # bytes of a head, in either direction; Node and nginx take 16 to 32 KB

NOT_HTTP: Final = "what its client says is not HTTP, and nothing else can be inspected"
UNREAD: Final = "an admin can have it passed on unread: `tls: splice` for what is in TLS, else the port with `/tcp`"
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # bytes that no line may have
_MOST_SNIFFED: Final = 1024  # bytes of the first line that are checked
BLANK_LINE = re.compile(rb"\n\r?\n")
_FIRST_BYTE = frozenset(b"!#$%&'*+-.^_`|~" + string.digits.encode() + string.ascii_letters.encode())  # of a token
_REQUEST_LINE = re.compile(rb"([^ \r\n]+) ([^ \r\n]+) (HTTP/1\.[01])")
_STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([0-9]{3})(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?")
_PROTOCOL: Final = b"HTTP/1."
_LENGTH = re.compile(rb"0*[0-9]{1,18}")
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_FRAMING_SIZES: Final = frozenset(map(len, _FRAMING))  # skips most other names quickly
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)(/.*|)", re.DOTALL)


def _not_http(data: bytearray) -> UnclearError:
    """Return the error for bytes that are no HTTP/1 request line."""
    http = b"http" in data[:_MOST_SNIFFED].partition(b"\n")[0].lower()
    return UnclearError(NOT_HTTP, Reason.AMBIGUOUS_REQUEST if http else Reason.PROTOCOL_MISMATCH, advice=UNREAD)


def split_head(buffer: "Buffer") -> bytes | None:
    """Remove a head, up to its blank line, from a buffer; None: incomplete. Raises UnclearError."""
    blank_bytes = 0
    while buffer.startswith(
        (b"\r\n", b"\n"), blank_bytes
    ):  # RFC 9112 section 2.2: blank lines before a request are ignored
        blank_bytes += 2 if buffer.startswith(b"\r\n", blank_bytes) else 1
    if blank_bytes:
        buffer.take(blank_bytes)
    if buffer and buffer[0] not in _FIRST_BYTE and buffer != b"\r":
        raise _not_http(buffer)  # don't wait for a blank line, which may never come
    first = buffer.find(b"\n")
    if _BINARY.search(buffer, 0, min(first if first >= 0 else len(buffer), _MOST_SNIFFED)):
        raise _not_http(buffer)  # LDAP's first byte is a digit
    if first >= 0 and not buffer.startswith(b"HTTP/") and buffer.find(b" HTTP/", 0, first) < 0:
        raise _not_http(buffer)  # the client may be waiting for a server's greeting
    return _take_head(buffer, UnclearError)


def _take_head(buffer: "Buffer", error: type[Exception]) -> bytes | None:
    """Remove the bytes up to a blank line; None: there is none yet. Raises `error` if they are too long."""
    match = BLANK_LINE.search(buffer, buffer.searched)
    if (match.end() if match else len(buffer)) > MOST_HEAD:
        raise error("the head is longer than 128 KB")
    if match is None:
        buffer.searched = max(0, len(buffer) - 2)
        return None
    return buffer.take(match.end())


def parse_head(raw: bytes) -> Head:
    """Parse a request's head (RFC 9112 sections 2.1, 3 and 5). Raises UnclearError for any other form."""
    if not raw.endswith(b"\r\n\r\n"):
        raise UnclearError("a line doesn't end with CR LF")
    lines = raw[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise UnclearError("the first line is not a request line of HTTP/1.1")
    method, target, version = match.groups()
    if len(lines) > MOST_FIELDS + 1:
        raise UnclearError(f"the head has more than {MOST_FIELDS} fields", Reason.LIMIT_EXCEEDED)
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or line[0] in b" \t":
            raise UnclearError("a header line is folded, or has no colon")
        fields.append((name, value.strip(b" \t")))
    scheme = authority = b""
    path = target
    if absolute := _ABSOLUTE.fullmatch(target):
        # RFC 9112 section 3.2.4: OPTIONS without a path is for the whole server
        scheme, authority, path = absolute[1], absolute[2], absolute[3] or (b"*" if method == b"OPTIONS" else b"/")
        if not authority:
            raise UnclearError("the request target names no host")
    return Head(version, method, scheme, authority, path, tuple(fields))


def response_heads(buffer: "Buffer", most: int) -> tuple[list[ResponseHead], int]:
    """Remove heads from a buffer, up to the final response's; returns them, and the number before the final one.

    At most `most` informational responses and empty lines may come before it. If the final head is incomplete, only
    informational heads are returned. Raises ValueError.
    """
    found: list[ResponseHead] = []
    before_final = 0
    while True:
        if buffer.startswith((b"\r\n", b"\n")):
            buffer.take(1 if buffer.startswith(b"\n") else 2)
        else:
            raw = _take_head(buffer, ValueError)
            if raw is None:
                check_status_line(buffer)
                return found, before_final
            response = parse_response(raw)
            found.append(response)
            if not is_informational(response.status):
                return found, before_final
        before_final += 1
        if before_final > most:
            raise ValueError("there is no end of informational responses")


def is_informational(status: int) -> bool:
    """Whether a status is informational (RFC 9110 section 15.2), except 101, which ends HTTP."""
    return status < HTTPStatus.OK and status != HTTPStatus.SWITCHING_PROTOCOLS


def check_status_line(buffer: "bytes | Buffer") -> None:
    """Raise ValueError as soon as the bytes can't begin a response: its head might never end."""
    if b"\r\n".startswith(buffer[:2]):
        return
    end = buffer.find(b"\n")
    if not buffer.startswith(_PROTOCOL[: len(buffer)]) or (
        end >= 0 and not _STATUS_LINE.fullmatch(buffer[:end].removesuffix(b"\r"))
    ):
        raise ValueError("the first line is not a status line of HTTP/1.1")


def parse_response(raw: bytes) -> ResponseHead:
    """Parse a response's head, which ends with its blank line; raises ValueError.

    Repairs what RFC 9112 requires of a proxy: a blank before a colon (section 5.1), a folded line (section 5.2), and
    repeated equal lengths (section 6.3), so that a client can read it in one way only.
    """
    lines = [line.removesuffix(b"\r") for line in raw.split(b"\n")[:-2]]
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise ValueError("the first line is not a status line of HTTP/1.1")
    if len(lines) > MOST_FIELDS + 1:
        raise ValueError(f"the head has more than {MOST_FIELDS} lines")
    fields: list[Field] = []
    folded: dict[int, list[bytes]] = {}
    for line in lines[1:]:
        if line[0] in b" \t":
            if not fields:
                raise ValueError("a header line begins with a blank")
            folded.setdefault(len(fields) - 1, []).append(line.strip(b" \t"))
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError("a header line has no colon")
        name = name.rstrip(b" \t")
        fields.append((name, value.strip(b" \t")))
    for at, parts in folded.items():
        name, value = fields[at]
        fields[at] = name, b" ".join((value, *parts)).strip(b" \t")
    framed = one_length(match[1], int(match[2]), fields)
    return ResponseHead(match[1], int(match[2]), match[3] or b"", tuple(framed))


def one_length(version: bytes, status: int, fields: "list[Field]") -> "list[Field]":
    """Return a response's fields with one body length (RFC 9112 section 6.3); raises ValueError.

    Status takes precedence over fields, chunked over Content-Length; equal lengths become one. `identity` is not a
    coding (RFC 2616 section 3.6).
    """
    framing = {at: name.lower() for at, (name, _) in enumerate(fields) if len(name) in _FRAMING_SIZES}
    framing = {at: name for at, name in framing.items() if name in _FRAMING}
    if status < HTTPStatus.OK or status == HTTPStatus.NO_CONTENT:
        return [field for at, field in enumerate(fields) if at not in framing]
    lengths = [at for at, name in framing.items() if name == b"content-length"]
    codings = [at for at, name in framing.items() if name == b"transfer-encoding"]
    if codings and (lengths or version == b"HTTP/1.0") and {fields[at][1].lower() for at in codings} == {b"identity"}:
        return one_length(version, status, [field for at, field in enumerate(fields) if at not in codings])
    if not lengths:
        return fields
    listed = [part.strip(b" \t") for at in lengths for part in fields[at][1].split(b",")]
    if not all(map(_LENGTH.fullmatch, listed)) or len({int(part) for part in listed}) != 1:
        raise ValueError("the Content-Length is not one number")
    fields[lengths[0]] = fields[lengths[0]][0], b"%d" % int(listed[0])
    dropped = lengths if codings and version == b"HTTP/1.1" else lengths[1:]
    return [field for at, field in enumerate(fields) if at not in dropped] if dropped else fields


def is_last(request: Head, response: ResponseHead) -> bool:
    """Whether a connection ends after a complete response (RFC 9112 section 9.3).

    Connection options are case-insensitive (RFC 9110 section 7.6.1). A connection for an HTTP/2 client has one request.
    """
    if request.version == b"HTTP/2.0":
        return True
    for message in (request, response):
        connection_values = [value for name, value in message.fields if name.lower() == b"connection"]
        options = (
            [option.strip(b" \t") for option in b",".join(connection_values).lower().split(b",")]
            if connection_values
            else []
        )
        if b"close" in options or (message.version == b"HTTP/1.0" and b"keep-alive" not in options):
            return True
    for name, _ in response.fields:
        if len(name) == len(b"content-length") and name.lower() == b"content-length":
            return False
    try:
        return body_size(request.method, response) == -1
    except ValueError:
        return False


def is_chunked(fields: "tuple[Field, ...]") -> bool:
    """Whether a message's body is sent in chunks."""
    return bool([1 for name, value in fields if b"chunked" in value.lower() and name.lower() == b"transfer-encoding"])
