"""Parses a connection's first bytes: TLS ClientHello (RFC 8446 section 4.1.2), HTTP request or other."""

import hashlib
import re
import struct
from enum import Enum
from typing import Final, NamedTuple

MOST_BYTES: Final = 32768  # of a client's first bytes that are parsed; a real ClientHello has 200 to 2,500
MOST_RECORDS: Final = (
    128  # all are parsed again when more bytes arrive, so a task must not be able to make that expensive
)

_RECORD_BEGINS: Final = frozenset({b"", b"\x16", b"\x16\x03"})  # type handshake, and the first byte of every version
_FIRST_BYTE: Final = frozenset({b"", b"\x01"})  # client_hello
_MOST_FINGERPRINTED: Final = 512  # suites, extensions and signatures; a fingerprint of thousands takes milliseconds
_MOST_FRAGMENT: Final = 1 << 14
_SERVER_NAME, _SIGNATURES, _ALPN, _SUPPORTED_VERSIONS = 0, 13, 16, 43
_PARSED_EXTENSIONS: Final = frozenset({_SERVER_NAME, _SIGNATURES, _ALPN, _SUPPORTED_VERSIONS})
_NAME: Final = struct.Struct("!HBH")  # length of the list, type of its first name, length of that
_EXTENSION: Final = struct.Struct("!HH")  # its type, and the length of its body
_HOST_NAME = 0
# encrypted_client_hello (RFC 9849), its drafts' numbers, and encrypted_server_name before them
_ENCRYPTED_HELLO: Final = frozenset({0xFE0D, 0xFE0C, 0xFE0B, 0xFE0A, 0xFE09, 0xFE08, 0xFFCE})
_GREASE: Final = frozenset(0x0A0A + 0x1010 * n for n in range(16))
_VERSIONS: Final = {0x0300: "SSLv3", 0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}

_JA4_VERSIONS: Final = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3"}
_JA4_GREASE: Final = frozenset(f"{number:04x}" for number in _GREASE)
_JA4_UNLISTED: Final = {"0000", "0010"}  # server_name and ALPN
_JA4_UNKNOWN: Final = "00"
_JA4_NOTHING: Final = "0" * 12
_JA4_MOST: Final = 99  # a count has two digits


class NotTls(Enum):
    """The bytes are not, and can't become, a well-formed ClientHello."""

    NOT_TLS = "not TLS"


class NeedMore(NamedTuple):
    """The bytes are valid so far; try again when there are `bytes`, counted from the start."""

    bytes: int


class ClientHello(NamedTuple):
    """Fields of a ClientHello. `sni` and `alpn` are as the client wrote them: unchecked ASCII with escapes."""

    sni: str | None
    alpn: tuple[str, ...]
    ech: bool  # has encrypted_client_hello, which may contain another name
    version: str | None  # the highest offered
    ja4: str | None  # None: it lists more values than any real client


def parse_hello(data: bytes) -> ClientHello | NeedMore | NotTls:
    """Parse the ClientHello that `data` begins with; later bytes are ignored."""
    try:
        message = _join_records(data)
        return _parse_message(message) if isinstance(message, bytes) else message
    except (_MalformedError, IndexError, struct.error):
        return NotTls.NOT_TLS


class _MalformedError(Exception):
    pass


def _join_records(data: bytes) -> bytes | NeedMore:
    """Join the handshake message from its records, which may split it anywhere (RFC 8446 section 5.1)."""
    if data[5:6] not in _FIRST_BYTE:
        raise _MalformedError
    message = b""
    at, message_size = 0, 4  # a message's own header has 4 bytes
    for _ in range(MOST_RECORDS):
        if len(message) >= message_size:
            break
        head = data[at : at + 5]
        if head[:2] not in _RECORD_BEGINS:
            raise _MalformedError
        if len(head) < 5:
            return NeedMore(at + 5)
        length = head[3] << 8 | head[4]
        end = at + 5 + length
        if not 0 < length <= _MOST_FRAGMENT or end > MOST_BYTES:
            raise _MalformedError
        if len(data) < end:
            return NeedMore(end)
        message += data[at + 5 : end]
        at = end
        if len(message) >= 4:
            message_size = 4 + int.from_bytes(message[1:4])
    # Complete within MOST_RECORDS, and the last in its record: data after a ClientHello is encrypted.
    if len(message) != message_size:
        raise _MalformedError
    return message


def _parse_message(message: bytes) -> ClientHello:
    version, end = message[4] << 8 | message[5], len(message)
    suites, at = _parse_suites(message)
    if at < end:
        at += 2
        if at + (message[at - 2] << 8 | message[at - 1]) != end:
            raise _MalformedError
    sni: str | None = None
    alpn: list[bytes] = []
    signatures = b""
    kinds: list[int] = []
    while at < end:
        kind, length = _EXTENSION.unpack_from(message, at)
        body, at = at + 4, at + 4 + length
        kinds.append(kind)
        if kind in _PARSED_EXTENSIONS:
            if kind == _SERVER_NAME:
                sni = _parse_server_name(message[body:at])
            elif kind == _ALPN:
                alpn = _parse_alpn(message[body:at])
            elif kind == _SIGNATURES:
                signatures = _parse_signatures(message[body:at])
            else:
                version = _highest_version(message[body:at])
    if at != end:
        raise _MalformedError
    if len(set(kinds)) != len(kinds):
        raise _MalformedError
    is_ordinary = (len(suites) + len(signatures)) // 2 + len(kinds) <= _MOST_FINGERPRINTED
    listed = struct.pack(f"!{len(kinds)}H", *kinds)
    return ClientHello(
        sni,
        tuple([name.decode("ascii", "backslashreplace") for name in alpn]),
        not _ENCRYPTED_HELLO.isdisjoint(kinds),
        _VERSIONS.get(version),
        ja4(version, suites, listed, signatures, alpn[0] if alpn else b"") if is_ordinary else None,
    )


def ja4(version: int, suites: bytes, extensions: bytes, signatures: bytes, alpn: bytes) -> str:
    """Return the fingerprint of a ClientHello over TCP.

    It is the same for all hosts and orders of extensions, for one build of a program. `version` is the newest offered,
    as on the wire; `suites`, `extensions` (their types) and `signatures` (signature_algorithms) are as sent, two bytes
    each; `alpn` is the first protocol's name, empty if there is none.
    """
    ciphers, kinds, signed = _hex_numbers(suites), _hex_numbers(extensions), _hex_numbers(signatures)
    sni_flag = "d" if "0000" in kinds else "i"
    counts = f"{min(len(ciphers), _JA4_MOST):02d}{min(len(kinds), _JA4_MOST):02d}"
    hashed_kinds = sorted([kind for kind in kinds if kind not in _JA4_UNLISTED])  # a generator takes twice as long
    ciphers_hash = _truncated_hash(",".join(sorted(ciphers))) if ciphers else _JA4_NOTHING
    extensions_hash = (
        _truncated_hash(",".join(hashed_kinds) + ("_" + ",".join(signed) if signed else ""))
        if hashed_kinds
        else _JA4_NOTHING
    )
    start = f"t{_JA4_VERSIONS.get(version, _JA4_UNKNOWN)}{sni_flag}{counts}{_alpn_characters(alpn)}"
    return f"{start}_{ciphers_hash}_{extensions_hash}"


def _hex_numbers(data: bytes) -> list[str]:
    """Return 16-bit numbers in hexadecimal, without GREASE values (RFC 8701)."""
    return [number for number in data.hex(",", 2).split(",") if number not in _JA4_GREASE] if data else []


def _alpn_characters(alpn: bytes) -> str:
    """Return the first and last character of a protocol's name, or of its hexadecimal form."""
    if not alpn:
        return _JA4_UNKNOWN
    first, last = alpn[:1], alpn[-1:]
    if first.isalnum() and last.isalnum():
        return (first + last).decode()
    return first.hex()[0] + last.hex()[1]


def _truncated_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _parse_suites(message: bytes) -> tuple[bytes, int]:
    """Return the cipher suites, and where the extensions begin: three vectors (RFC 8446 section 3.4)."""
    begin = 41 + message[38]  # behind version, random, the session's id, and a length
    end = begin + (message[begin - 2] << 8 | message[begin - 1])
    compression = message[end]
    at = end + 1 + compression
    if begin == end or (end - begin) % 2 or not compression or at > len(message):
        raise _MalformedError
    return message[begin:end], at


def _parse_server_name(body: bytes) -> str:
    """Return the one host name (RFC 6066 section 3); a list of two is malformed."""
    listed, kind, length = _NAME.unpack_from(body)
    if kind != _HOST_NAME or not length or length + 3 != listed or listed + 2 != len(body):
        raise _MalformedError
    return body[5:].decode("ascii", "backslashreplace")


def _parse_alpn(body: bytes) -> list[bytes]:
    """Return the protocol names (RFC 7301 section 3.1)."""
    end = len(body)
    if end < 3 or (body[0] << 8 | body[1]) != end - 2:
        raise _MalformedError
    found, at = [], 2
    while at < end:
        start, at = at + 1, at + 1 + body[at]
        if at > end or start == at:
            raise _MalformedError
        found.append(body[start:at])
    return found


def _parse_signatures(body: bytes) -> bytes:
    """Return the signature schemes (RFC 8446 section 4.2.3); empty if malformed, since only ja4 uses them."""
    length = int.from_bytes(body[:2])
    return body[2:] if len(body) == length + 2 and length % 2 == 0 else b""


def _highest_version(body: bytes) -> int:
    """Return the highest known version offered (RFC 8446 section 4.2.1)."""
    if len(body) < 3 or not len(body) % 2 or body[0] != len(body) - 1:
        raise _MalformedError
    return max(set(struct.unpack(f"!{len(body) // 2}H", body[1:])) - _GREASE, default=0)


FIRST_LOOK: Final = 4096  # bytes; a ClientHello has 200 to 2,500

_TLS_HANDSHAKE = 22
# RFC 9112 section 3: a method is a token (RFC 9110 section 5.6.2); the longest registered one has 17 characters.
_METHOD_BEGINS = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}(?: |\Z)")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([^\x00-\x20\x7f]+) HTTP/[0-9]\.[0-9]\r?\n")
# RFC 9112 section 2.2: a server ignores empty lines before a request; more than a few are no HTTP
_EMPTY_LINES = re.compile(rb"(?:\r?\n){0,4}")
_BROKEN_FIELD = re.compile(rb"^[ \t]|^[^:\r\n]*[ \t]:", re.MULTILINE)  # folded, or space in front of the colon
# Possessive, and spaces are stripped afterwards, so that no head causes backtracking.
_HOST = re.compile(rb"^host:([^\r\n]*+)\r?\n", re.IGNORECASE | re.MULTILINE)
_EMPTY_LINE = frozenset({b"", b"\r"})  # no byte of a request line yet
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


class Other(Enum):
    """Neither TLS nor HTTP."""

    OTHER = "other"


OTHER: Final = Other.OTHER


class HttpHead(NamedTuple):
    """An HTTP/1 request, as far as the gate needs it. `host` is the value of Host; None: missing, doubled or unread."""

    host: str | None


type Seen = ClientHello | HttpHead | Other


def recognise(data: bytes, *, whole_head: bool) -> Seen | NeedMore:
    """Parse the first bytes of a connection. `whole_head`: for HTTP read the whole head, for its Host."""
    if not data:
        return NeedMore(1)
    if data[0] == _TLS_HANDSHAKE:
        hello = parse_hello(data)
        return OTHER if isinstance(hello, NotTls) else hello
    return peek_head(data, whole=whole_head)


def peek_head(data: bytes, *, whole: bool) -> HttpHead | Other | NeedMore:
    """Parse the head of an HTTP/1 request; without `whole`, only its request line."""
    blank_lines = _EMPTY_LINES.match(data)
    start = blank_lines.end() if blank_lines else 0
    line = _REQUEST_LINE.match(data, start)
    if line is None:
        line_start = data[start:]
        longer = (
            len(data) < MOST_BYTES
            and b"\n" not in line_start
            and (line_start in _EMPTY_LINE or _METHOD_BEGINS.match(line_start))
        )
        return NeedMore(len(data) + 1) if longer else OTHER
    if not whole:
        return HttpHead(None)
    end = _END_OF_HEAD.search(data, line.end() - 2)
    if end is None:
        # A head without end names no host, so the gate decides on the address only.
        return NeedMore(len(data) + 1) if len(data) < MOST_BYTES else HttpHead(None)
    fields = data[line.end() : end.start() + 2]
    hosts = _HOST.findall(fields)
    if len(hosts) != 1 or _BROKEN_FIELD.search(fields):
        return HttpHead(None)
    return HttpHead(hosts[0].strip(b" \t").decode("ascii", "backslashreplace"))
