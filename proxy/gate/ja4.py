"""JA4: a fingerprint of the program that greets, made of its ClientHello.

Pure. The same program built the same way has the same one whatever host it greets, and in whatever order it lists its
extensions. Anybody can make a hello that has another program's: it is a hint for people, and decides nothing.
FoxIO's JA4 technical details, "JA4: TLS Client Fingerprint"; GREASE as in RFC 8701.
"""

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GREASE: Final = frozenset(0x0A0A + 0x1010 * n for n in range(16))
_SERVER_NAME, _ALPN = 0x0000, 0x0010
_VERSIONS: Final = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3"}
_UNKNOWN: Final = "00"
_NOTHING: Final = "0" * 12
_MOST: Final = 99  # of a count: it has two digits


def ja4(
    version: int,
    ciphers: "Iterable[int]",
    extensions: "Iterable[int]",
    signatures: "Iterable[int]",
    alpn: bytes,
) -> str:
    """Return the fingerprint of a ClientHello over TCP.

    `version` is the newest it offers, as on the wire; `ciphers`, `extensions` (their types) and `signatures`
    (signature_algorithms) are as sent; `alpn` is the first protocol's name, empty if there is none.
    """
    ciphers = [each for each in ciphers if each not in GREASE]
    extensions = [each for each in extensions if each not in GREASE]
    named = "d" if _SERVER_NAME in extensions else "i"
    counts = f"{min(len(ciphers), _MOST):02d}{min(len(extensions), _MOST):02d}"
    told = sorted(each for each in extensions if each not in {_SERVER_NAME, _ALPN})
    signed = _listed([each for each in signatures if each not in GREASE])
    behind = _hash(_listed(told) + (f"_{signed}" if signed else "")) if told else _NOTHING
    before = _hash(_listed(sorted(ciphers))) if ciphers else _NOTHING
    return f"t{_VERSIONS.get(version, _UNKNOWN)}{named}{counts}{_ends(alpn)}_{before}_{behind}"


def _ends(alpn: bytes) -> str:
    """Return the first and the last character of a protocol's name, or of its bytes in hexadecimal."""
    if not alpn:
        return _UNKNOWN
    first, last = alpn[:1], alpn[-1:]
    if first.isalnum() and last.isalnum():
        return (first + last).decode()
    return first.hex()[0] + last.hex()[1]


def _listed(numbers: "Sequence[int]") -> str:
    return ",".join(f"{number:04x}" for number in numbers)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
