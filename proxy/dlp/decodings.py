"""How a text may be read where credentials are looked for: as its type has it encoded, and in strict mode decoded.

Pure and linear. A reading is about as long as its text, and comes beside the text as it is: nothing is lost by it.
"""

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_FORM: Final = "application/x-www-form-urlencoded"
# `&` and `?` that belong to a value end no parameter: what stands before them is no name of one (`finding`)
_OF_VALUES: Final = re.compile(rb"%(?:26|3[Ff])")
_ESCAPE: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_BACKSLASHES: Final = re.compile(rb"\\{2,}")  # JSON within JSON, as tools' arguments and webhooks have it
_HALF_ESCAPE: Final = re.compile(rb"\\+(?:u[0-9A-Fa-f]{0,3})?\Z")
_ENTITY: Final = re.compile(rb"&(?:#(?:[xX]0{0,8}([0-7]?[0-9A-Fa-f])|0{0,8}([0-9]{1,3}))|(amp|lt|gt|quot|apos));?")
_NAMED: Final = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_TRANSFER: Final = re.compile(rb"[Tt](?i:ransfer-encoding):[ \t]{0,8}([A-Za-z0-9-]{1,32})")
_READ: Final = frozenset({b"base64", b"quoted-printable"})
_BASE64: Final = re.compile(rb"[0-9A-Za-z+/_-]{24,}={0,2}(?:(?:\r?\n|(?:\\r)?\\n)[0-9A-Za-z+/_-]{4,}={0,2})*")
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2}){20,}")
_BREAKS: Final = re.compile(rb"[\r\n=]|\\[rn]")
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


def is_form(kind: str) -> bool:
    """Whether a body with this Content-Type has parameters, `name=value` (WHATWG URL, section 5)."""
    return kind.partition(";")[0].strip().lower() == _FORM


def has_parts(kind: str) -> bool:
    """Whether a body with this Content-Type may have parts that name an encoding of their own (RFC 2045, RFC 2046)."""
    return kind.strip().lower().startswith(("multipart/", "message/"))


def of_form(text: bytes) -> bytes:
    """Return the text of parameters, in a form or a query: without plus and percent signs."""
    return unquote_to_bytes(_OF_VALUES.sub(b"\x01", text.replace(b"+", b" ")))


def of_json(text: bytes) -> bytes:
    r"""Return a text without escapes that JSON needn't have: PHP writes `\/`, others `\u002b` (RFC 8259 section 7).

    Backslashes behind one another count as one, so that JSON in a string of JSON is read too.
    """
    text = _BACKSLASHES.sub(rb"\\", text).replace(b"\\/", b"/")
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), text) if b"\\u00" in text else text


def of_markup(text: bytes) -> bytes:
    """Return a text without references to ASCII characters (XML 1.0 section 4.1): `&#x2F;` is a slash."""
    return _ENTITY.sub(_character, text)


def _character(found: "re.Match[bytes]") -> bytes:
    if found[3]:
        return _NAMED[found[3]]
    code = int(found[1], 16) if found[1] else int(found[2])
    return bytes([code]) if code < 0x80 else found[0]


def readings(text: bytes, known: int, *, form: bool) -> "Iterator[tuple[bytes, int]]":
    """Yield how a part of a body reads beside what it is, and where in that its first `known` bytes end."""
    if b"\0" in text:  # UTF-16 and UTF-32 (RFC 2781): of ASCII's characters, one byte isn't zero
        text, known = text.replace(b"\0", b""), known - text.count(b"\0", 0, max(known, 0))
        yield text, known
    ways = [(text, known)]
    if form and (b"%" in text or b"+" in text):
        ways.append((of_form(text), len(of_form(_before(text, known, b"%", 3))) if known > 0 else known))
        yield ways[-1]
    for way, end in ways:
        if b"\\u00" in way or b"\\/" in way or b"\\\\" in way:
            yield of_json(way), len(of_json(_HALF_ESCAPE.sub(b"", way[:end]))) if end > 0 else end
        if b"&#" in way or b"&quot" in way:
            yield of_markup(way), len(of_markup(_before(way, end, b"&", 14))) if end > 0 else end


def _before(text: bytes, known: int, sign: bytes, size: int) -> bytes:
    """Return the first bytes of a text without an escape that begins there and ends later: half of one is longer."""
    begun = text.rfind(sign, max(known - size + 1, 0), known)
    return text[: known if begun < 0 else begun]


def transfers(text: bytes) -> set[bytes]:
    """Return which encodings the parts of a body name that they are in (RFC 2045 section 6)."""
    return {found[1].lower() for found in _TRANSFER.finditer(text)} & _READ


def of_parts(text: bytes, transfers: "Collection[bytes]") -> "Iterator[bytes]":
    """Yield what parts of a body hold whose encodings are those."""
    if b"quoted-printable" in transfers:
        yield binascii.a2b_qp(text)
    if b"base64" in transfers:
        yield from _of_base64(text)


def decoded(text: bytes) -> "Iterator[bytes]":
    """Yield what is encoded in a text, for strict mode: twice in percent signs, in base64, in hexadecimal.

    Base64 is read from where its characters begin (RFC 4648 sections 4 and 5), at the beginning of a text in each of
    the four ways in which it may have been cut.
    """
    if b"%25" in text:
        yield unquote_to_bytes(unquote_to_bytes(text))
    yield from _of_base64(text)
    for run in _HEX.finditer(text):
        yield bytes.fromhex(run[0].decode())
        if run.start() == 0 and len(run[0]) > 2:
            yield bytes.fromhex(run[0][1:-1].decode())


def _of_base64(text: bytes) -> "Iterator[bytes]":
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
