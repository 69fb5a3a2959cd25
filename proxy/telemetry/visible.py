"""Escapes text from a sandbox for a terminal (invariant 7).

Escape sequences, line ends, marks that turn the direction of writing, letters that can't be seen and marks that pile up
on the letter before are spelled out; what remains has a width that can be told.
"""

import re
import unicodedata
from functools import lru_cache

_WIDE = frozenset("WF")  # Unicode Standard Annex 11
# Letters and symbols that print nothing (Unicode 16, DerivedCoreProperties: Default_Ignorable_Code_Point; U+2800).
_INVISIBLE = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# A host's name as it is shown: first, behind a space, or in a URL. What stands in a path is none.
_NAME = re.compile(r"(?:(?<=//)|(?<!\S))…?[\w\\-]*(?:\.[\w\\-]+)+", re.ASCII)
_PADDING = re.compile(" {2,}")


def visible(text: str) -> str:
    """Return `text` with everything that a terminal would not print as one visible character spelled out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escape_character, text))


def width(text: str) -> int:
    """Return how many columns a terminal takes for text that `visible` returned."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in _WIDE else 1 for character in text)


def fitted(text: str, columns: int) -> str:
    """Return visible text cut to at most `columns` columns; an ellipsis stands for what is cut off.

    Of a host's name its end stays: that says whose it is, and what is in front of it anybody can choose.
    """
    if len(_cut_to_columns(text, columns)) == len(text):  # `width` would count all of a text that nobody bounds
        return text
    if columns <= 0:
        return ""
    kept = _cut_to_columns(text, columns - 1)
    for name in _NAME.finditer(text):
        if name.start() <= len(kept) < name.end():
            return _fit_name(text, name.start(), name.end(), columns)
    return f"{kept}…"


def unpadded(text: str) -> str:
    """Return visible text with all of a run of spaces but the first spelled out.

    Where a terminal breaks a line, none begins then as another field does.
    """
    return _PADDING.sub(lambda run: " " + "\\x20" * (len(run[0]) - 1), text)


def padded(text: str, columns: int) -> str:
    """Return visible text with spaces up to `columns` columns; longer text stays as it is."""
    return text + " " * (columns - width(text))


def _cut_to_columns(text: str, columns: int) -> str:
    """Return as much of a text as `columns` columns have room for."""
    for at, character in enumerate(text):
        columns -= width(character)
        if columns < 0:
            return text[:at]
    return text


def _fit_name(text: str, start: int, end: int, columns: int) -> str:
    """Return text up to a name, of which only the end is shown, in as many columns."""
    behind = "…" if end < len(text) and columns > 1 else ""
    room = columns - 1 - len(behind)
    before = _cut_to_columns(text[:start], max(room // 2, room - (end - start)))
    shown = text[max(start + 1, end - (room - width(before))) : end]
    return f"{before}…{shown}{behind}"


@lru_cache(maxsize=4096)  # a text has the same few characters again and again
def _escape_character(character: str) -> str:
    if character.isprintable() and character not in _INVISIBLE and unicodedata.category(character)[0] != "M":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
