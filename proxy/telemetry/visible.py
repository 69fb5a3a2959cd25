"""Escapes text from a sandbox for a terminal (invariant 7).

Escapes control sequences, line ends, bidirectional marks, invisible letters and combining marks. The width of the
remaining text can be computed.
"""

import re
import unicodedata
from functools import lru_cache

_WIDE = frozenset("WF")  # Unicode Standard Annex 11
# Letters and symbols without a glyph (Unicode 16, DerivedCoreProperties: Default_Ignorable_Code_Point; U+2800).
_INVISIBLE = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# A host name: at the start, after a space, or in a URL; not inside a path.
_NAME = re.compile(r"(?:(?<=//)|(?<!\S))…?[\w\\-]*(?:\.[\w\\-]+)+", re.ASCII)
_PADDING = re.compile(" {2,}")


def visible(text: str) -> str:
    """Return `text` with every character escaped that a terminal does not print as one visible character."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escape_character, text))


def width(text: str) -> int:
    """Return the number of terminal columns of text that `visible` returned."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in _WIDE else 1 for character in text)


def fitted(text: str, columns: int) -> str:
    """Return visible text cut to at most `columns` columns, with an ellipsis for the missing part.

    The end of a host name stays: it tells who owns the name. Anyone can choose the part before it.
    """
    if len(_cut_to_columns(text, columns)) == len(text):  # `width` would scan a text of any length
        return text
    if columns <= 0:
        return ""
    kept = _cut_to_columns(text, columns - 1)
    for name in _NAME.finditer(text):
        if name.start() <= len(kept) < name.end():
            return _fit_name(text, name.start(), name.end(), columns)
    return f"{kept}…"


def unpadded(text: str) -> str:
    """Return visible text with all but the first space of each run escaped.

    So a line that the terminal wraps can't look like the start of another field.
    """
    return _PADDING.sub(lambda run: " " + "\\x20" * (len(run[0]) - 1), text)


def padded(text: str, columns: int) -> str:
    """Return visible text padded with spaces to `columns` columns; longer text stays unchanged."""
    return text + " " * (columns - width(text))


def _cut_to_columns(text: str, columns: int) -> str:
    """Return the start of a text that fits into `columns` columns."""
    for at, character in enumerate(text):
        columns -= width(character)
        if columns < 0:
            return text[:at]
    return text


def _fit_name(text: str, start: int, end: int, columns: int) -> str:
    """Return text up to a host name, cut to `columns` columns so that the end of the name stays."""
    behind = "…" if end < len(text) and columns > 1 else ""
    room = columns - 1 - len(behind)
    before = _cut_to_columns(text[:start], max(room // 2, room - (end - start)))
    shown = text[max(start + 1, end - (room - width(before))) : end]
    return f"{before}…{shown}{behind}"


@lru_cache(maxsize=4096)  # texts repeat the same few characters
def _escape_character(character: str) -> str:
    if character.isprintable() and character not in _INVISIBLE and unicodedata.category(character)[0] != "M":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
