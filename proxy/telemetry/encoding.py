"""Encodes an event as one line of JSON, and decodes a line.

Every byte of a line is printable ASCII except the final newline (invariant 7): no text of a sandbox can break a line,
control the reader's terminal, or pass for a key. `masking` cuts texts and lists.

A journal may be older or newer than this program, torn by a crash, or edited. A line that is not an event raises an
error; decoding never guesses. It ignores members that this version does not know.
"""

import calendar
import json
import re
import time
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from msgspec import MsgspecError, Raw
from msgspec.json import Decoder, Encoder

from proxy.telemetry.events import Event, Instant, Seconds, Value
from proxy.telemetry.masking import LONGEST_LIST, LONGEST_TEXT, cut, cut_list, cut_members, without_surrogates

LONGEST_LINE: Final = 1024 * 1024  # bytes; above the largest possible event
_NOT_PLAIN: Final = re.compile("[\x7f-\U0010ffff]+")  # DEL is the one control character that JSON doesn't escape


def encode(event: Event) -> bytes:
    """Return the event as one line of JSON, newline included."""
    try:
        line = _encoder.encode(event)
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 can't encode
        line = _encoder.encode(_shorten(event))
    else:
        # In a shorter line every text and list is within its bounds.
        if len(line) > LONGEST_TEXT or line.count(b",") >= LONGEST_LIST:
            line = _encoder.encode(_shorten(event))
    if not line.isascii() or b"\x7f" in line:
        line = _NOT_PLAIN.sub(_escape, line.decode()).encode("ascii")
    return line + b"\n"


def _encode_custom(value: Any) -> Any:
    """Encode a value of one of our own types (msgspec `enc_hook`)."""
    if type(value) is Instant:
        seconds, rest = divmod(value, _NS_A_SECOND)  # a third of the time of a format with a width
        return f"{_format_second(seconds)}.{str(rest + _NS_A_SECOND)[1:]}Z"
    if type(value) is Seconds:  # impossible durations (NaN, negative, infinite) are 0
        return Raw(f"{value:.6f}" if 0.0 <= value < LONGEST_DURATION else "0")
    if isinstance(value, str):  # a subclass of str
        return str(value)
    raise TypeError(f"an event has no {type(value).__name__}")


_encoder: Final = Encoder(enc_hook=_encode_custom)


def _shorten(value: Any) -> Any:
    """Return a part of an event with its texts and lists cut and valid UTF-8; the same object if nothing changes."""
    if isinstance(value, StrEnum):
        return value
    if isinstance(value, str):
        return without_surrogates(cut(value))
    if type(value) is tuple and value and isinstance(value[0], str):
        kept = tuple(map(_shorten, cut_list(value)))
        return value if kept == value else kept
    if isinstance(value, Mapping):
        members = {_shorten(key): _shorten(text) for key, text in cut_members(value).items()}
        return value if members == value else members
    if isinstance(value, Value):
        old = {name: getattr(value, name) for name in value.__struct_fields__}
        new = {name: kept for name, each in old.items() if (kept := _shorten(each)) is not each}
        return value._replace(**new) if new else value
    return value


def _escape(found: re.Match[str]) -> str:
    r"""Return characters as `\uXXXX`, in UTF-16 (RFC 8259 section 7)."""
    return json.dumps(found[0])[1:-1]


LONGEST_DURATION = 1e9  # seconds
_NS_A_SECOND = 1_000_000_000


def quoted(text: str) -> str:
    r"""Return `text` as a JSON string in ASCII.

    A byte that was not UTF-8 (a lone surrogate) becomes `\xff`; a long text is cut.
    """
    return encode_basestring_ascii(without_surrogates(cut(text)))


@lru_cache(maxsize=8)
def _format_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def timestamp(nanoseconds: int) -> str:
    """Return a time as RFC 3339 text in UTC with nine decimals, which sorts as text."""
    return str(_encode_custom(Instant(nanoseconds)))


_EPOCH: Final = "1970"  # no journal is older
_ALL_DIGITS_ARE_0: Final = str.maketrans("123456789", "000000000")


class MalformedEventError(ValueError):
    """The line is not an event."""


def decode(line: bytes) -> Event:
    """Decode one line. Raises MalformedEventError."""
    try:
        return _decoder.decode(line)
    except (MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise MalformedEventError(str(error) or type(error).__name__) from error


def _decode_custom(kind: type, value: Any) -> Any:
    """Decode a value of one of our own types (msgspec `dec_hook`)."""
    if kind is Instant and type(value) is str:
        return Instant(_parse_nanoseconds(value))
    if kind is Seconds and type(value) in {int, float} and 0 <= value < LONGEST_DURATION:
        return Seconds(value)
    raise ValueError("neither a time nor a number of seconds that an event has")


_decoder: Final = Decoder(Event, dec_hook=_decode_custom)


def _parse_nanoseconds(text: str) -> int:
    """Read RFC 3339 text exactly as `timestamp` writes it."""
    if text.translate(_ALL_DIGITS_ARE_0) != "0000-00-00T00:00:00.000000000Z" or text < _EPOCH:
        raise ValueError("not a time in UTC with nine decimals, of 1970 or later")
    return _parse_seconds(text[:19]) * 1_000_000_000 + int(text[20:29])


@lru_cache(maxsize=64)  # many events share a second
def _parse_seconds(text: str) -> int:
    parts = (int(text[:4]), int(text[5:7]), int(text[8:10]), int(text[11:13]), int(text[14:16]), int(text[17:19]))
    return calendar.timegm(parts)
