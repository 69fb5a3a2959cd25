"""Words of rule files that are numbers, days or names of something; a parser gives the value or raises ValueError."""

import binascii
import re
from datetime import date
from typing import TYPE_CHECKING, Final

from rules.patterns import Pattern
from rules.problems import did_you_mean, quoted

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZES: Final = {"B": 1} | {
    unit + ending: 1 << 10 * power for power, unit in enumerate("KMGT", 1) for ending in ("", "B", "iB")
}
_MOST: Final = 10**9
_LABEL: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./")
_LONGEST_WORD: Final = 253
_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_END: Final = b"-----END CERTIFICATE-----"
_SEQUENCE: Final = b"\x30"  # what every certificate is (RFC 5280 section 4.1), in DER
_LARGEST_CA: Final = 1 << 20  # bytes
_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")  # RFC 9110 section 5.6.2, lower case
# Those say where a request goes and how it is framed; the gate reads and writes them itself.
_FRAMING: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive"}
)
RECORD_TYPES: Final = (
    "TXT", "MX", "SRV", "NS", "SOA", "PTR", "CNAME", "CAA", "NAPTR", "TLSA", "SSHFP", "DS", "DNSKEY", "LOC", "URI",
)  # fmt: skip
_NEVER_LISTED: Final = {
    "A": "addresses are answered wherever a rule lets the name out",
    "AAAA": "addresses are answered wherever a rule lets the name out",
    "HTTPS": "it is never answered: it would hide which name a client wants",
    "SVCB": "it is never answered: it would hide which name a client wants",
    "ANY": "it is never answered: list the types",
    "AXFR": "it is never answered",
    "NULL": "it is never answered",
}


def shaped(shape: str, otherwise: str) -> "Callable[[str], str]":
    """Make a parser of words of one shape, an expression; any other is refused, and said to be `otherwise`."""
    whole = re.compile(shape)

    def parse(text: str) -> str:
        if not whole.fullmatch(text):
            raise ValueError(f"{quoted(text)} {otherwise}")
        return text

    return parse


variable_name: Final = shaped(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "is no name of a variable")


def size(text: str) -> int:
    """Read `500B`, `2KB`, `10MB`, `2GB` (or `2G`, `2GiB`) into bytes; 1 KB is 1024 of them."""
    unit = text.lstrip("0123456789")
    number = text.removesuffix(unit)
    if unit not in _SIZES or not (number.isascii() and number.isdigit()) or len(number) > 9 or not int(number):
        raise ValueError(f"{quoted(text)} is no size; one is a number and a unit: `500B`, `2KB`, `10MB`, `2GB`")
    return int(number) * _SIZES[unit]


def count(text: str) -> int:
    """Read a number of things, at least one."""
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(_MOST)) or not 0 < int(text) <= _MOST:
        raise ValueError(f"{quoted(text)} is not a number between 1 and {_MOST}")
    if text != str(int(text)):
        raise ValueError(f"{quoted(text)}: write `{int(text)}`")
    return int(text)


def day(text: str) -> date:
    """Read `2027-01-31`."""
    parts = text.split("-")
    if [len(part) for part in parts] == [4, 2, 2] and all(part.isascii() and part.isdigit() for part in parts):
        try:
            return date(*map(int, parts))
        except ValueError:
            raise ValueError(f"{quoted(text)} is no day of the calendar") from None
    raise ValueError(f"{quoted(text)} is no day; one is written like `2027-01-31`, and counts in UTC")


def pattern(text: str) -> Pattern:
    """Read a task's name, or a value, with `*` for any characters."""
    if len(text) > _LONGEST_WORD or not text.isprintable():
        raise ValueError(f"{quoted(text)} is longer than {_LONGEST_WORD} characters, or has some that don't show")
    return Pattern.parse(text)


def label(text: str) -> str:
    """Read the name of a label."""
    if not _LABEL.issuperset(text) or len(text) > _LONGEST_WORD:
        raise ValueError(f"{quoted(text)} is no name of a label: letters, digits, `-`, `_`, `.` and `/`")
    return text


def header_name(text: str) -> str:
    """Read the name of a header field, in any case."""
    name = text.lower()
    if not _TOKEN.issuperset(name) or len(name) > _LONGEST_WORD:
        raise ValueError(f"{quoted(text)} is no name of a header")
    if name in _FRAMING:
        raise ValueError(
            f"{quoted(text)} is the gate's own affair: `to` names the host, `body` and `websocket` the rest"
        )
    return name


def record_type(text: str) -> str:
    """Read a type of DNS records."""
    if text in _NEVER_LISTED:
        raise ValueError(f"{quoted(text)} can't be listed: {_NEVER_LISTED[text]}")
    if text not in RECORD_TYPES:
        raise ValueError(f"{quoted(text)} is no type of records that can be listed{did_you_mean(text, RECORD_TYPES)}")
    return text


def certificates(data: bytes) -> bytes:
    """Take what a file of certificates holds, as it is (RFC 7468); whoever verifies with it reads them."""
    found = data.split(_BEGIN)[1:]
    if not found or len(data) > _LARGEST_CA:
        raise ValueError("it has no certificates in PEM form")
    if b"PRIVATE KEY-----" in data:
        raise ValueError("it has a private key in it, which nobody but its owner should be able to read")
    for number, text in enumerate(found, 1):
        inside, end, _ = text.partition(_END)
        try:
            value = binascii.a2b_base64(b"".join(inside.split()), strict_mode=True) if end else b""
        except binascii.Error:
            value = b""
        if not value.startswith(_SEQUENCE):
            raise ValueError(f"certificate {number} in it is broken")
    return data
