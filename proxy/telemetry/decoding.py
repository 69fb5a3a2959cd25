"""A line of the journal read back as the event it was made from: the inverse of `encoding`.

A journal may be older or newer than this program, torn by a crash, or edited: what doesn't read as an event raises, and
nothing is guessed. Members that this version doesn't know are passed over, so that a newer journal can still be shown.
"""

import calendar
from functools import lru_cache
from typing import Any, Final

from msgspec import MsgspecError
from msgspec.json import Decoder

from proxy.telemetry.events import Event, Instant, Seconds
from proxy.telemetry.pieces import LONGEST_DURATION

_EPOCH: Final = "1970"  # when it began: no journal is older
_ALL_DIGITS_ARE_0: Final = str.maketrans("123456789", "000000000")


class MalformedEvent(ValueError):  # noqa: N818  past tense would say nothing more
    """A line that is not an event of ours."""


def decode(line: bytes) -> Event:
    """Return the event that one line holds. Raises MalformedEvent."""
    try:
        return _decoder.decode(line)
    except (MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise MalformedEvent(str(error) or type(error).__name__) from error


def _read(kind: type, value: Any) -> Any:
    """Read a value of a type of our own."""
    if kind is Instant and type(value) is str:
        return Instant(_nanoseconds(value))
    if kind is Seconds and type(value) in {int, float} and 0 <= value < LONGEST_DURATION:
        return Seconds(value)
    raise ValueError("neither a time nor a number of seconds that an event has")


_decoder: Final = Decoder(Event, dec_hook=_read)


def _nanoseconds(text: str) -> int:
    """Read RFC 3339 text exactly as `pieces.timestamp` writes it."""
    if text.translate(_ALL_DIGITS_ARE_0) != "0000-00-00T00:00:00.000000000Z" or text < _EPOCH:
        raise ValueError("not a time in UTC with nine decimals, of 1970 or later")
    return _seconds(text[:19]) * 1_000_000_000 + int(text[20:29])


@lru_cache(maxsize=64)  # much happens in one second
def _seconds(text: str) -> int:
    parts = (int(text[:4]), int(text[5:7]), int(text[8:10]), int(text[11:13]), int(text[14:16]), int(text[17:19]))
    return calendar.timegm(parts)
