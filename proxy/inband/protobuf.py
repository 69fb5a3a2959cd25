"""Protocol buffers, read as far as OTLP needs it: fields by number, of bytes that anybody may have written.

Pure. protobuf.dev, "Encoding". Groups are gone from the language, and refused.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT: Final = 10  # bytes
_U64: Final = (1 << 64) - 1

type Value = int | bytes


def fields(data: bytes) -> "Iterator[tuple[int, Value]]":
    """Yield each field's number and value: integers and fixed numbers as unsigned, all else as bytes.

    Raises ValueError.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _LENGTH:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("a field of no type that there is")
        if at + size > end or not number:
            raise ValueError("a field that is cut off")
        piece = data[at : at + size]
        at += size
        yield number, piece if kind == _LENGTH else int.from_bytes(piece, "little")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(_LONGEST_VARINT):
        if at >= len(data):
            raise ValueError("a number that is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value & _U64, at
    raise ValueError("a number that is too long")
