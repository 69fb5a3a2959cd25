"""How a text may be read where credentials are looked for: as its type has it encoded, and in strict mode decoded.

Pure and linear. A reading is about as long as its text, and comes beside the text as it is: nothing is lost by it.
"""

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORM: Final = "application/x-www-form-urlencoded"
# `&` and `?` that belong to a value end no parameter: what stands before them is no name of one (`finding`)
_OF_VALUES: Final = re.compile(rb"%(?:26|3[Ff])")
_ESCAPE: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_BASE64: Final = re.compile(rb"[0-9A-Za-z+/_-]{24,}={0,2}(?:(?:\r?\n|(?:\\r)?\\n)[0-9A-Za-z+/_-]{4,}={0,2})*")
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2}){20,}")
_BREAKS: Final = re.compile(rb"[\r\n=]|\\[rn]")
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


def is_form(kind: str) -> bool:
    """Whether a body with this Content-Type has parameters, `name=value` (WHATWG URL, section 5)."""
    return kind.partition(";")[0].strip().lower() == _FORM


def of_form(text: bytes) -> bytes:
    """Return the text of parameters, in a form or a query: without plus and percent signs."""
    return unquote_to_bytes(_OF_VALUES.sub(b"\x01", text.replace(b"+", b" ")))


def of_json(text: bytes) -> bytes:
    r"""Return a text without escapes that JSON needn't have: PHP writes `\/`, others `\u002b` (RFC 8259 section 7)."""
    text = text.replace(b"\\/", b"/")
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), text) if b"\\u00" in text else text


def readings(text: bytes, known: int, *, form: bool) -> "Iterator[tuple[bytes, int]]":
    """Yield how a part of a body reads beside what it is, and where in that its first `known` bytes end."""
    if form and (b"%" in text or b"+" in text):
        yield of_form(text), len(of_form(_before(text, known, b"%", 3))) if known > 0 else known
    if b"\\u00" in text or b"\\/" in text:
        yield of_json(text), len(of_json(_before(text, known, b"\\", 6))) if known > 0 else known


def _before(text: bytes, known: int, sign: bytes, size: int) -> bytes:
    """Return the first bytes of a text without an escape that begins there and ends later: half of one is longer."""
    begun = text.rfind(sign, max(known - size + 1, 0), known)
    return text[: known if begun < 0 else begun]


def decoded(text: bytes) -> "Iterator[bytes]":
    """Yield what is encoded in a text, for strict mode: twice in percent signs, in base64, in hexadecimal.

    Base64 is read from where its characters begin (RFC 4648 sections 4 and 5), at the beginning of a text in each of
    the four ways in which it may have been cut.
    """
    if b"%25" in text:
        yield unquote_to_bytes(unquote_to_bytes(text))
    for run in _BASE64.finditer(text):
        packed = _BREAKS.sub(b"", run[0]).translate(_STANDARD)
        for at in range(4 if run.start() == 0 else 1):
            whole = packed[at : at + (len(packed) - at) // 4 * 4 or None]
            rest = len(packed) - at - len(whole)
            padded = packed[at:] + b"=" * (4 - rest) if rest > 1 else whole
            try:
                yield base64.b64decode(padded)
            except binascii.Error:
                continue
    for run in _HEX.finditer(text):
        yield bytes.fromhex(run[0].decode())
        if run.start() == 0 and len(run[0]) > 2:
            yield bytes.fromhex(run[0][1:-1].decode())
