"""Strict JSON from other processes, peers and files. Every problem is a ValueError.

Python's own reader takes NaN, Infinity, 1e999 (as infinity), whole numbers of any length, and raises RecursionError for
what is nested deeply. Each of these ends the code behind it with an exception that it doesn't expect. So numbers are
finite and fit 64 bits here (RFC 8259 section 6 leaves the range to the reader), and depth is an error like any other.
"""

import json
import math
from collections.abc import Callable
from typing import Any, Final

LEAST: Final = -(1 << 63)
MOST: Final = (1 << 64) - 1
_LONGEST: Final = 20  # characters of either


def loads(text: str | bytes) -> Any:
    """Parse JSON text. Raises ValueError."""
    return _read(text, _strict)


def without_misfits(text: str | bytes) -> Any:
    """Parse JSON text, with None for each number that doesn't fit 64 bits. Raises ValueError."""
    return _read(text, _lossy)


def _read(text: str | bytes, decoder: json.JSONDecoder) -> Any:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogatepass")  # half a surrogate pair stands for a byte (PEP 383)
    try:
        return decoder.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole(digits: str) -> int:
    if len(digits) <= _LONGEST and LEAST <= (number := int(digits)) <= MOST:
        return number
    raise ValueError("a number in it is too large")


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number in it is too large")
    return number


def _refused(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _or_none(read: Callable[[str], float]) -> Callable[[str], float | None]:
    def found(text: str) -> float | None:
        try:
            return read(text)
        except ValueError:
            return None

    return found


_strict: Final = json.JSONDecoder(parse_int=_whole, parse_float=_real, parse_constant=_refused)
_lossy: Final = json.JSONDecoder(
    parse_int=_or_none(_whole), parse_float=_or_none(_real), parse_constant=lambda _word: None
)
