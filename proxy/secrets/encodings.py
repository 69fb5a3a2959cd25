"""Encodings of a text: as it is, in another case, percent-encoded, hexadecimal, base64. Pure.

No such list is complete. A placeholder that is missed costs a warning, not a secret.
"""

import base64
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

_ROUNDS: Final = 2  # of percent-decoding


def encoded(text: bytes) -> tuple[bytes, ...]:
    """Return the base64 forms of a text inside a longer text, at each of the three alignments, in both alphabets.

    Without the characters that depend on the bytes around it (RFC 4648 sections 4 and 5).
    """
    found: dict[bytes, None] = {}
    for before in range(3):
        encoded_text = base64.b64encode(b"\0" * before + text)
        # Drop characters that also hold bits of the byte before, and of the byte after
        first = (0, 2, 3)[before]
        whole = (before + len(text)) * 8 // 6
        core = encoded_text[first:whole]
        found[core] = None
        found[core.translate(bytes.maketrans(b"+/", b"-_"))] = None
    return tuple(found)


def spellings(text: bytes) -> tuple[bytes, ...]:
    """Return the common forms of a text in a body: as it is, escaped for JSON or a URL, in base64."""
    escaped = text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return tuple(dict.fromkeys((
        text, escaped, escaped.replace(b"/", b"\\/"), quote_from_bytes(text, safe="").encode(), *encoded(text),
    )))  # fmt: skip


def echoed(text: bytes) -> tuple[bytes, ...]:
    """Return the forms of a text in a response: `spellings`, and the escapes that differ between libraries."""
    found = dict.fromkeys(spellings(text))
    found.update(dict.fromkeys(_escaped(text, signs) for signs in _ESCAPE_TABLES))
    found.update(
        dict.fromkeys(
            _escaped(encoded_form, signs) for encoded_form in encoded(text) for signs in _BASE64_ESCAPE_TABLES
        )
    )
    return tuple(found)


def _escaped(text: bytes, signs: dict[int, bytes]) -> bytes:
    return b"".join(signs.get(byte, bytes([byte])) for byte in text)


def _percent_escapes(unescaped: str, form: str = "%%%02X") -> dict[int, bytes]:
    """Return the percent-encoding of all signs but those in `unescaped`."""
    return {
        byte: (form % byte).encode()
        for byte in range(0x21, 0x7F)
        if not chr(byte).isalnum() and chr(byte) not in unescaped
    }


def _escapes(signs: str, form: str, **named: str) -> dict[int, bytes]:
    """Return the escapes of `signs`; `named` has exceptions by code (`_22`)."""
    found = {ord(sign): (form % ord(sign)).encode() for sign in signs}
    return found | {int(code[1:], 16): written.encode() for code, written in named.items()}


_JSON: Final = {"_22": '\\"', "_5C": "\\\\"}
_HTML: Final = {"_26": "&amp;", "_3C": "&lt;", "_3E": "&gt;"}
# RFC 3986; with slashes, as Python has it; encodeURIComponent; encodeURI; forms (Java, browsers)
_UNESCAPED: Final = ("-._~", "-._~/", "-._~!'()*", "-._~!'()*;,/?:@&=+$#", "-._*")
_ESCAPE_TABLES: Final = (
    # JSON: PHP; Go, Rails; Gson; .NET
    _escapes("", "", **_JSON, _2F="\\/"),
    _escapes("&<>", "\\u%04x", **_JSON),
    _escapes("&<>='", "\\u%04x", **_JSON),
    _escapes("\"&'+<>`", "\\u%04X", _5C="\\\\"),
    *(_percent_escapes(unescaped, form) for unescaped in _UNESCAPED for form in ("%%%02X", "%%%02x")),
    # HTML: Python; Go, Jinja; mustache, Express; PHP; .NET
    _escapes("'", "&#x%x;", **_HTML, _22="&quot;"),
    _escapes("'\"", "&#%d;", **_HTML),
    _escapes("/`=", "&#x%X;", **_HTML, _22="&quot;", _27="&#39;"),
    _escapes("", "", **_HTML, _22="&quot;", _27="&#039;"),
    _escapes("+'", "&#x%X;", **_HTML, _22="&quot;"),
)
_BASE64_ESCAPE_TABLES: Final = (
    _escapes("", "", _2F="\\/"),
    _escapes("+", "\\u%04X"),
    _escapes("+/", "%%%02X"),
    _escapes("+/", "%%%02x"),
)


class SpelledText:
    """Text to find in heads, in all its forms."""

    __slots__ = ("_encoded", "_folded")

    def __init__(self, text: bytes) -> None:
        self._folded = text.lower(), text.hex().encode()
        self._encoded = encoded(text)

    def is_in(self, ways: tuple[tuple[bytes, bytes], ...]) -> bool:
        """Whether the text is in one of these readings of another text (from `ways`)."""
        return any(
            any(form in folded for form in self._folded) or any(form in read for form in self._encoded)
            for read, folded in ways
        )


def ways(text: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the readings of a text: as it is and percent-decoded, each also in lower case."""
    found = [text]
    for _ in range(_ROUNDS):
        if b"%" not in found[-1]:
            break
        decoded = unquote_to_bytes(found[-1])
        if decoded == found[-1]:
            break
        found.append(decoded)
    return tuple((read, read.lower()) for read in found)
