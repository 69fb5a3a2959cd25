"""The pieces that lines of JSON are made of: texts, lists and times, each bounded and in ASCII (invariant 7).

What was cut says how much is missing. What isn't text in UTF-8 is spelled out, so that every reader takes it.
"""

import time
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONGEST_TEXT = 1024  # characters of any one text that are kept
LONGEST_LIST = 64  # members of any one list that are kept
LONGEST_LIST_TEXT = 4096  # characters of all of them together: one connection can't be made to fill a disk
ROOM_FOR_NOTE = 24  # characters
LONGEST_DURATION = 1e9  # seconds
_NS_A_SECOND = 1_000_000_000


def cut(text: str) -> str:
    """Return `text` with at most `LONGEST_TEXT` characters, the last of which say how much is missing."""
    if len(text) <= LONGEST_TEXT:
        return text
    kept = LONGEST_TEXT - ROOM_FOR_NOTE
    return f"{text[:kept]}[{len(text) - kept} more]"


def cut_list(texts: "Sequence[str]") -> "Sequence[str]":
    """Return `texts` with at most `LONGEST_LIST` members and `LONGEST_LIST_TEXT` characters, and a note of the rest."""
    if len(texts) <= LONGEST_LIST and sum(map(len, texts)) <= LONGEST_LIST_TEXT:
        return texts
    kept: list[str] = []
    room = LONGEST_LIST_TEXT - ROOM_FOR_NOTE
    for text in texts[: LONGEST_LIST - 1]:
        shorter = cut(text)
        room -= len(shorter)
        if room < 0:
            break
        kept.append(shorter)
    missing = len(texts) - len(kept)
    return (*kept, f"[{missing} more]") if missing else tuple(kept)


def quoted(text: str) -> str:
    r"""Return `text` as a JSON string in ASCII.

    What was not UTF-8 (a lone surrogate) is shown as `\xff`, and what is too long is cut.
    """
    return encode_basestring_ascii(without_surrogates(cut(text)))


def without_surrogates(text: str) -> str:
    """Return `text` with lone surrogates, which no UTF-8 reader takes, spelled out."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def timestamp(nanoseconds: int) -> str:
    """Return a time as RFC 3339 text in UTC with nine decimals, which sorts as text."""
    seconds, rest = divmod(nanoseconds, _NS_A_SECOND)
    return f"{_second(seconds)}.{str(rest + _NS_A_SECOND)[1:]}Z"  # a third of what a format with a width takes


def cut_members(labels: "Mapping[str, str]", room: int = LONGEST_LIST_TEXT) -> dict[str, str]:
    """Return the first members, of `room` characters together, with keys and values cut, and a note of the rest."""
    kept: dict[str, str] = {}
    for key, value in labels.items():
        room -= min(len(key), LONGEST_TEXT) + min(len(value), LONGEST_TEXT)
        if room < 0 or len(kept) == LONGEST_LIST:
            kept["[more]"] = str(len(labels) - len(kept))
            break
        kept[cut(key)] = cut(value)
    return kept


def duration(seconds: float) -> str:
    """Return a duration with microseconds; what no clock can have measured (NaN, negative, infinite) is 0."""
    return f"{seconds:.6f}" if 0.0 <= seconds < LONGEST_DURATION else "0"
