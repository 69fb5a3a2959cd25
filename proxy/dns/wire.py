"""DNS wire format: parses a query and builds an answer. Pure.

Written by hand because importing a general library takes 75 ms, and a task's first action is often a lookup. Sources:
RFC 1035 section 4 (format), RFC 6891 (EDNS), RFC 8914 (extended errors), RFC 2308 (negative answers).
"""

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_QUERY: Final = 4096
MOST_BYTES: Final = 512  # of an answer: every transport carries that (RFC 1035 section 4.2.1)
MOST_OVER_TCP: Final = 16384  # ... that a new socket accepts in one write
BLOCKED: Final = 15  # extended error "Blocked": by a policy of the resolver's operator (RFC 8914 section 4.16)
IN: Final = 1  # class: internet

_HEADER: Final = struct.Struct("!HHHHHH")
_PAIR: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHIH")  # type, class, TTL, length of data: what follows a record's name
_QR, _TC, _RD, _RA, _CD, _DO = 0x8000, 0x0200, 0x0100, 0x0080, 0x0010, 0x8000
_OPCODE: Final = 0x7800
_QUESTION_NAME: Final = b"\xc0\x0c"  # compression pointer to the question's name
_EDE: Final = 15  # option code
_OUR_UDP_SIZE: Final = 1232
_LONGEST_NAME, _LONGEST_LABEL = 255, 63
_UNESCAPED: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


class Type(IntEnum):
    """DNS record types with a name; others are shown as RFC 3597 says."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    NULL = 10
    PTR = 12
    MX = 15
    TXT = 16
    AAAA = 28
    LOC = 29
    SRV = 33
    NAPTR = 35
    DS = 43
    SSHFP = 44
    RRSIG = 46
    DNSKEY = 48
    TLSA = 52
    SVCB = 64
    HTTPS = 65
    IXFR = 251
    AXFR = 252
    ANY = 255
    URI = 256
    CAA = 257


_OPT: Final = 41


class Rcode(IntEnum):
    """Response codes (RFC 1035 section 4.1.1; BADVERS: RFC 6891 section 9)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Query(NamedTuple):
    """A parsed query. `name`: its text, unusual characters escaped; `question`: the section as it was sent."""

    id: int
    flags: int
    question: bytes
    name: str
    type: int
    dns_class: int
    edns: bool = False
    edns_version: int = 0
    edns_size: int = MOST_BYTES  # largest datagram that the client accepts, in bytes
    wants_dnssec: bool = False

    @property
    def type_text(self) -> str:
        """The type as people write it (RFC 3597 section 5)."""
        return Type(self.type).name if self.type in Type else f"TYPE{self.type}"


class MalformedQueryError(Exception):
    """Not a valid query. `reply`: the error answer to send; empty: none."""

    def __init__(self, reply: bytes = b"") -> None:
        super().__init__("not a query")
        self.reply = reply


def parse_query(data: bytes) -> Query:
    """Parse one query. Raises MalformedQueryError."""
    if len(data) < _HEADER.size:
        raise MalformedQueryError
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if flags & _QR:  # answering answers could cause a loop
        raise MalformedQueryError
    if flags & _OPCODE:
        raise MalformedQueryError(_header_only(number, flags, Rcode.NOTIMP))
    try:
        name, at = _parse_name(data, _HEADER.size)
        kind, dns_class = _PAIR.unpack_from(data, at)
        end = at + _PAIR.size
        options = _parse_opt(data, end, additional)
    except (ValueError, IndexError, struct.error) as error:
        raise MalformedQueryError(_header_only(number, flags, Rcode.FORMERR)) from error
    if questions != 1 or answers or authorities:
        raise MalformedQueryError(_header_only(number, flags, Rcode.FORMERR))
    question = data[_HEADER.size : end]
    if options is None:
        return Query(number, flags, question, name, kind, dns_class)
    size, ttl = options
    version, dnssec = ttl >> 16 & 0xFF, bool(ttl & _DO)
    size = min(max(size, MOST_BYTES), _OUR_UDP_SIZE)
    return Query(
        number, flags, question, name, kind, dns_class,
        edns=True, edns_version=version, edns_size=size, wants_dnssec=dnssec,
    )  # fmt: skip


def build_answer(
    query: Query,
    rcode: Rcode,
    records: "Sequence[bytes]" = (),
    *,
    ttl: int = 0,
    error: tuple[int, str] | None = None,
    most: int = MOST_BYTES,
) -> bytes:
    """Build the answer: as many `records` (data of the queried type) as fit, or a SOA if there are none.

    `error`: code and text of an extended error, for clients with EDNS. `most`: bytes.
    """
    extra = _opt_record(query, rcode, error) if query.edns else b""
    room = most - _HEADER.size - len(query.question) - len(extra)
    answers: list[bytes] = []
    for data in records:
        record = _QUESTION_NAME + _RECORD.pack(query.type, IN, ttl, len(data)) + data
        room -= len(record)
        if room < 0:
            break
        answers.append(record)
    negative = not answers and rcode in (Rcode.NOERROR, Rcode.NXDOMAIN)
    authority = b"\0" + _RECORD.pack(Type.SOA, IN, _NEGATIVE_TTL, len(_SOA)) + _SOA if negative else b""
    header = _HEADER.pack(query.id, _answer_flags(query.flags, rcode), 1, len(answers), negative, query.edns)
    return b"".join((header, query.question, *answers, authority, extra))


def build_records(query: Query, records: "Sequence[bytes]", *, ttl: int, over_tcp: bool) -> bytes:
    """Build the answer with all records (at least one), or without any if they don't fit.

    Over UDP, TC is then set, so that the client repeats the query over TCP (RFC 2181 section 9).
    """
    extra = len(_opt_record(query, Rcode.NOERROR, None)) if query.edns else 0
    overhead = len(_QUESTION_NAME) + _RECORD.size
    size = _HEADER.size + len(query.question) + extra + sum(overhead + len(data) for data in records)
    if over_tcp or size <= query.edns_size:
        fits = size <= MOST_OVER_TCP
        return build_answer(
            query, Rcode.NOERROR if fits else Rcode.SERVFAIL, records if fits else (), ttl=ttl, most=size
        )
    header = _HEADER.pack(query.id, _answer_flags(query.flags, Rcode.NOERROR) | _TC, 1, 0, 0, query.edns)
    return header + query.question + (_opt_record(query, Rcode.NOERROR, None) if query.edns else b"")


# SOA of the root, every name's parent: empty server and mailbox, serial, four times in seconds. The last is how long
# a negative answer may be cached (RFC 2308 section 4).
_NEGATIVE_TTL: Final = 30
_SOA: Final = b"\0\0" + struct.pack("!5I", 1, 3600, 600, 86400, _NEGATIVE_TTL)


def _header_only(number: int, flags: int, rcode: Rcode) -> bytes:
    return _HEADER.pack(number, _answer_flags(flags, rcode), 0, 0, 0, 0)


def _answer_flags(query_flags: int, rcode: Rcode) -> int:
    """Return the flags of a recursive resolver's answer: without RA, clients give up or ask another server."""
    return _QR | _RA | (query_flags & (_OPCODE | _RD | _CD)) | (rcode & 0xF)


def _opt_record(query: Query, rcode: Rcode, error: tuple[int, str] | None) -> bytes:
    options = b""
    if error is not None:
        code, text = error
        message = text.encode("ascii", "replace")[:64]
        options = struct.pack("!HHH", _EDE, len(message) + 2, code) + message
    ttl = (rcode >> 4) << 24 | (_DO if query.wants_dnssec else 0)
    return b"\0" + _RECORD.pack(_OPT, _OUR_UDP_SIZE, ttl, len(options)) + options


def _parse_name(data: bytes, at: int) -> tuple[str, int]:
    """Parse a name; returns its text and its end. Names in a question aren't compressed."""
    start, labels = at, []
    while length := data[at]:
        end = at + 1 + length
        if length > _LONGEST_LABEL or end >= len(data) or end - start >= _LONGEST_NAME:
            raise ValueError("not a name")
        labels.append(_label_text(data[at + 1 : end]))
        at = end
    return ".".join(labels), at + 1


def _label_text(label: bytes) -> str:
    """Return a label's text; escapes dots and characters that no host name has."""
    if _UNESCAPED.issuperset(label):
        return label.decode("ascii")
    return "".join(chr(byte) if byte in _UNESCAPED else f"\\{byte:03d}" for byte in label)


def _parse_opt(data: bytes, at: int, records: int) -> tuple[int, int] | None:
    """Return class (UDP size) and TTL (version and flags) of the OPT record; None: there is none."""
    found: tuple[int, int] | None = None
    for _ in range(records):
        has_name = data[at] != 0
        while data[at] and data[at] < 0xC0:
            at += 1 + data[at]
        at += 1 if data[at] == 0 else 2  # a pointer ends a name
        kind, size, ttl, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size + length
        if at > len(data):
            raise ValueError("cut off")
        if kind == _OPT:
            if found is not None or has_name:
                raise ValueError("two OPT records, or one with a name")
            found = size, ttl
    return found
