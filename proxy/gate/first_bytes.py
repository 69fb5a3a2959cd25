"""What a connection's first bytes are, and which host they name: TLS, HTTP, or something else.

Pure: the bytes were peeked at and are still in the socket. Whatever is not certainly TLS or HTTP is OTHER, which only a
rule for raw TCP lets out.
"""

import re
from enum import Enum
from typing import Final, NamedTuple

from proxy.gate.client_hello import ClientHello, NeedMore, NotTls, parse_hello

FIRST_LOOK: Final = 4096  # bytes; a ClientHello has 200 to 2,500
MOST_BYTES: Final = 32768  # of a client's first words that are looked at

_TLS_HANDSHAKE = 22
# RFC 9112 section 3: a method is a token (RFC 9110 section 5.6.2); the longest registered one has 17 characters.
_METHOD_BEGINS = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}(?: |\Z)")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([^\x00-\x20\x7f]+) HTTP/[0-9]\.[0-9]\r?\n")
# RFC 9112 section 2.2: a server ignores empty lines before a request; more than a few are no HTTP
_EMPTY_LINES = re.compile(rb"(?:\r?\n){0,4}")
_BROKEN_FIELD = re.compile(rb"^[ \t]|^[^:\r\n]*[ \t]:", re.MULTILINE)  # folded, or space in front of the colon
# Possessive, and its spaces are stripped afterwards: no head can make it look at a byte again and again.
_HOST = re.compile(rb"^host:([^\r\n]*+)\r?\n", re.IGNORECASE | re.MULTILINE)
_NOTHING = frozenset({b"", b"\r"})  # of a request line yet
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


class Other(Enum):
    """The bytes are neither TLS nor HTTP."""

    OTHER = "other"


OTHER: Final = Other.OTHER


class HttpHead(NamedTuple):
    """An HTTP/1 request, as far as is needed to choose. `host` is the value of Host; None: not one, or not read."""

    host: str | None


type Seen = ClientHello | HttpHead | Other


def recognise(data: bytes, *, whole_head: bool) -> Seen | NeedMore:
    """Say what `data` begins with. `whole_head`: of HTTP the Host is wanted too, which takes the whole head."""
    if not data:
        return NeedMore(1)
    if data[0] == _TLS_HANDSHAKE:
        hello = parse_hello(data)
        return OTHER if isinstance(hello, NotTls) else hello
    return parse_head(data, whole=whole_head)


def parse_head(data: bytes, *, whole: bool) -> HttpHead | Other | NeedMore:
    """Read the head of an HTTP/1 request; without `whole`, no further than its request line."""
    empty = _EMPTY_LINES.match(data)
    start = empty.end() if empty else 0
    line = _REQUEST_LINE.match(data, start)
    if line is None:
        begun = data[start:]
        longer = len(data) < MOST_BYTES and b"\n" not in begun and (begun in _NOTHING or _METHOD_BEGINS.match(begun))
        return NeedMore(len(data) + 1) if longer else OTHER
    if not whole:
        return HttpHead(None)
    end = _END_OF_HEAD.search(data, line.end() - 2)
    if end is None:
        # A head that never ends names no host: what it is then decided as, it is not allowed as.
        return NeedMore(len(data) + 1) if len(data) < MOST_BYTES else HttpHead(None)
    fields = data[line.end() : end.start() + 2]
    hosts = _HOST.findall(fields)
    if len(hosts) != 1 or _BROKEN_FIELD.search(fields):
        return HttpHead(None)
    return HttpHead(hosts[0].strip(b" \t").decode("ascii", "backslashreplace"))
