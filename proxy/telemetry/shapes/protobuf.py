"""As much of the wire format of Protocol Buffers as OTLP takes to write (protobuf.dev/programming-guides/encoding).

Fields without a value are left out, as proto3 does.
"""

from struct import pack
from typing import Final

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_BITS_64: Final = 2**64
_SMALL: Final = [bytes((number,)) for number in range(0x80)]


def varint(number: int) -> bytes:
    """Return a number of up to 64 bits; a negative one in two's complement."""
    if 0 <= number <= 0x7F:
        return _SMALL[number]
    number %= _BITS_64
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def whole(field: int, number: int) -> bytes:
    """Return a field of a type that is written as a varint."""
    return varint(field << 3 | _VARINT) + varint(number) if number else b""


def fixed64(field: int, number: int) -> bytes:
    """Return a field of type fixed64."""
    return varint(field << 3 | _FIXED64) + pack("<Q", number % _BITS_64) if number else b""


def double(field: int, number: float) -> bytes:
    """Return a field of type double, also where it is 0: within a oneof that says something."""
    return varint(field << 3 | _FIXED64) + pack("<d", number)


def message(field: int, *parts: bytes) -> bytes:
    """Return a field that holds a message of these parts, also an empty one."""
    body = b"".join(parts)
    return varint(field << 3 | _LENGTH) + varint(len(body)) + body


def text(field: int, value: str) -> bytes:
    """Return a field of type string; what is not UTF-8 is spelled out."""
    return message(field, value.encode("utf-8", "backslashreplace")) if value else b""
