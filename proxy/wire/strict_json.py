"""Strict JSON from other processes, peers and files. Every problem is a ValueError.

Python's own parser accepts NaN, Infinity, 1e999 (as infinity) and integers of any length, and raises RecursionError for
deep nesting. Each of these causes unexpected exceptions in the caller. So this parser only accepts finite numbers of at
most 64 bits (RFC 8259 section 6 leaves the range to the parser), and raises ValueError for deep nesting.
"""

import json
import math
from collections.abc import Callable
from typing import Any, Final

LEAST: Final = -(1 << 63)
MOST: Final = (1 << 64) - 1
_LONGEST: Final = 20  # characters of LEAST and of MOST


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


def _parse_int(digits: str) -> int:
    if len(digits) <= _LONGEST and LEAST <= (number := int(digits)) <= MOST:
        return number
    raise ValueError("a number in it is too large")


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number in it is too large")
    return number


def _reject_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _none_if_invalid(read: Callable[[str], float]) -> Callable[[str], float | None]:
    def found(text: str) -> float | None:
        try:
            return read(text)
        except ValueError:
            return None

    return found


_strict: Final = json.JSONDecoder(parse_int=_parse_int, parse_float=_parse_float, parse_constant=_reject_constant)
_lossy: Final = json.JSONDecoder(
    parse_int=_none_if_invalid(_parse_int),
    parse_float=_none_if_invalid(_parse_float),
    parse_constant=lambda _word: None,
)
