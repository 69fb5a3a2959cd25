"""Lines linked one to the next: what makes a change to a journal show.

A line ends with two members, `prev`, the hash of the line before it in its file, and `hash`, its own: SHA-256 (FIPS
180-4) over all bytes of the line before the member. A signed line has a `signature` between them: ed25519 (RFC 8032)
over all bytes before that, and so over everything in the file up to here. Nothing is parsed to check a line, and
nothing written again: what counts is the bytes as they stand.
"""

from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

BEGINNING = b"0" * 64  # what the first line of a file has for the hash of the line before it
_DIGITS = 64
_HASH, _PREV, _SIGNATURE = b',"hash":"', b',"prev":"', b',"signature":"'
_HASH_TAIL = len(_HASH) + _DIGITS + len(b'"}\n')
_PREV_TAIL = len(_PREV) + _DIGITS + len(b'"')
_SIGNATURE_TAIL = len(_SIGNATURE) + 88 + len(b'"')  # 64 bytes in Base64


class Links(NamedTuple):
    """What a line says of itself, and what it is said over."""

    prev: bytes
    hash: bytes
    hashed: bytes  # what `hash` is to be the SHA-256 of
    signature: bytes = b""  # as it is written, in Base64; empty: it is not signed
    signed: bytes = b""  # what it is over


def link(line: bytes, prev: bytes) -> tuple[bytes, bytes]:
    """Put a line of JSON (an object with a member, newline included) behind the one with the hash `prev`.

    Return it as it is to be written, and its hash.
    """
    return _closed(b'%b,"prev":"%b"' % (line[:-2], prev))


def link_signed(line: bytes, prev: bytes, sign: "Callable[[bytes], bytes]") -> tuple[bytes, bytes]:
    """Do what `link` does, with a signature."""
    body = b'%b,"prev":"%b"' % (line[:-2], prev)
    return _closed(b'%b,"signature":"%b"' % (body, b64encode(sign(body))))


def links(line: bytes) -> Links | None:
    """Return what a whole line (newline included) says of itself; None: it has no links where they belong."""
    if line[-_HASH_TAIL : -_HASH_TAIL + len(_HASH)] != _HASH or not line.endswith(b'"}\n'):
        return None
    own, rest = line[-_HASH_TAIL + len(_HASH) : -3], line[:-_HASH_TAIL]
    signature, before = b"", rest
    if rest[-_SIGNATURE_TAIL : -_SIGNATURE_TAIL + len(_SIGNATURE)] == _SIGNATURE:
        signature, before = rest[-_SIGNATURE_TAIL + len(_SIGNATURE) : -1], rest[:-_SIGNATURE_TAIL]
    if before[-_PREV_TAIL : -_PREV_TAIL + len(_PREV)] != _PREV:
        return None
    return Links(before[-_DIGITS - 1 : -1], own, rest, signature, before if signature else b"")


def hash_of(line: bytes) -> bytes:
    """Return the hash that a line says it has; empty where it says none."""
    found = links(line)
    return b"" if found is None else found.hash


def _closed(body: bytes) -> tuple[bytes, bytes]:
    own = sha256(body).hexdigest().encode()
    return b'%b,"hash":"%b"}\n' % (body, own), own
