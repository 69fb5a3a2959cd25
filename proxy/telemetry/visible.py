"""Text from a sandbox made fit for a terminal (invariant 7): it shows what it is, and moves nothing.

Escape sequences, line ends, marks that turn the direction of writing, letters that can't be seen and marks that pile up
on the letter before are spelled out; what remains has a width that can be told.
"""

import unicodedata

_WIDE = frozenset("WF")  # Unicode Standard Annex 11
# Letters and symbols that print nothing (Unicode 16, DerivedCoreProperties: Default_Ignorable_Code_Point; U+2800).
_INVISIBLE = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def visible(text: str) -> str:
    """Return `text` with everything that a terminal would not print as one visible character spelled out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def width(text: str) -> int:
    """Return how many columns a terminal takes for text that `visible` returned."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in _WIDE else 1 for character in text)


def fitted(text: str, columns: int) -> str:
    """Return visible text cut to at most `columns` columns; an ellipsis stands for what is cut off."""
    if width(text) <= columns:
        return text
    room = columns - 1
    kept = []
    for character in text:
        room -= width(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept) + "…" if columns > 0 else ""


def padded(text: str, columns: int) -> str:
    """Return visible text with spaces up to `columns` columns; longer text stays as it is."""
    return text + " " * (columns - width(text))


def _shown(character: str) -> str:
    if character.isprintable() and character not in _INVISIBLE and unicodedata.category(character)[0] != "M":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
