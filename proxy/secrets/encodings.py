"""Encodings of a text: as it is, in another case, percent-encoded, hexadecimal, base64. Pure.

No such list is complete: what is looked for is a placeholder, so one that slips through costs a warning and no secret.
"""

import base64
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

_ROUNDS: Final = 2  # of percent signs


def encoded(text: bytes) -> tuple[bytes, ...]:
    """Return what base64 makes of a text wherever it stands in a longer one: without the characters that mix with it.

    In both alphabets (RFC 4648 sections 4 and 5).
    """
    found: dict[bytes, None] = {}
    for before in range(3):
        said = base64.b64encode(b"\0" * before + text)
        # Of the first four characters those that hold bits of what stands before; of the last those of what follows
        first = (0, 2, 3)[before]
        whole = (before + len(text)) * 8 // 6
        core = said[first:whole]
        found[core] = None
        found[core.translate(bytes.maketrans(b"+/", b"-_"))] = None
    return tuple(found)


def spellings(text: bytes) -> tuple[bytes, ...]:
    """Return how a text may stand in a body: as it is, escaped for JSON or a URL, in base64."""
    escaped = text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return tuple(dict.fromkeys((
        text, escaped, escaped.replace(b"/", b"\\/"), quote_from_bytes(text, safe="").encode(), *encoded(text),
    )))  # fmt: skip


def echoed(text: bytes) -> tuple[bytes, ...]:
    """Return how a text may stand in what a server sends back: in the ways too that libraries differ in."""
    found = dict.fromkeys(spellings(text))
    found.update(dict.fromkeys(_written(text, signs) for signs in _SIGNS))
    found.update(dict.fromkeys(_written(each, signs) for each in encoded(text) for signs in _SIGNS_OF_BASE64))
    return tuple(found)


def _written(text: bytes, signs: dict[int, bytes]) -> bytes:
    return b"".join(signs.get(byte, bytes([byte])) for byte in text)


def _percent(kept: str, form: str = "%%%02X") -> dict[int, bytes]:
    """Return how signs stand in a URL but for those that are kept."""
    return {
        byte: (form % byte).encode() for byte in range(0x21, 0x7F) if not chr(byte).isalnum() and chr(byte) not in kept
    }


def _signs(signs: str, form: str, **named: str) -> dict[int, bytes]:
    """Return how some signs are written; `named` has those by their code (`_22`) that are written in another way."""
    found = {ord(sign): (form % ord(sign)).encode() for sign in signs}
    return found | {int(code[1:], 16): written.encode() for code, written in named.items()}


_JSON: Final = {"_22": '\\"', "_5C": "\\\\"}
_HTML: Final = {"_26": "&amp;", "_3C": "&lt;", "_3E": "&gt;"}
# RFC 3986; with slashes, as Python has it; encodeURIComponent; encodeURI; forms (Java, browsers)
_KEPT: Final = ("-._~", "-._~/", "-._~!'()*", "-._~!'()*;,/?:@&=+$#", "-._*")
_SIGNS: Final = (
    # JSON: PHP; Go, Rails; Gson; .NET
    _signs("", "", **_JSON, _2F="\\/"),
    _signs("&<>", "\\u%04x", **_JSON),
    _signs("&<>='", "\\u%04x", **_JSON),
    _signs("\"&'+<>`", "\\u%04X", _5C="\\\\"),
    *(_percent(kept, form) for kept in _KEPT for form in ("%%%02X", "%%%02x")),
    # HTML: Python; Go, Jinja; mustache, Express; PHP; .NET
    _signs("'", "&#x%x;", **_HTML, _22="&quot;"),
    _signs("'\"", "&#%d;", **_HTML),
    _signs("/`=", "&#x%X;", **_HTML, _22="&quot;", _27="&#39;"),
    _signs("", "", **_HTML, _22="&quot;", _27="&#039;"),
    _signs("+'", "&#x%X;", **_HTML, _22="&quot;"),
)
_SIGNS_OF_BASE64: Final = (
    _signs("", "", _2F="\\/"),
    _signs("+", "\\u%04X"),
    _signs("+/", "%%%02X"),
    _signs("+/", "%%%02x"),
)


class SpelledText:
    """A text that is looked for in heads."""

    __slots__ = ("_encoded", "_folded")

    def __init__(self, text: bytes) -> None:
        self._folded = text.lower(), text.hex().encode()
        self._encoded = encoded(text)

    def is_in(self, ways: tuple[tuple[bytes, bytes], ...]) -> bool:
        """Whether a text is there, read in one of these `ways`."""
        return any(
            any(form in folded for form in self._folded) or any(form in read for form in self._encoded)
            for read, folded in ways
        )


def ways(text: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return how a text may be read, each also in lower case."""
    found = [text]
    for _ in range(_ROUNDS):
        if b"%" not in found[-1]:
            break
        further = unquote_to_bytes(found[-1])
        if further == found[-1]:
            break
        found.append(further)
    return tuple((read, read.lower()) for read in found)
