"""AWS Signature Version 4: what is signed of a request, and with what. Pure.

Source: "Create a signed AWS API request" (AWS IAM user guide), and for S3 "Authenticating Requests" (Amazon S3 API
reference). Clients and services spell a path and a query in more than one way before they sign them (S3 encodes a path
once, everybody else twice), so `spellings` lists those there are.
"""

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

ALGORITHM: Final = b"AWS4-HMAC-SHA256"
END: Final = b"aws4_request"
_KEPT: Final = "-_.~"  # RFC 3986 section 2.3; the rest is percent-encoded in upper case
_OUTSIDE: Final = re.compile(rb"[^A-Za-z0-9\-_.~/%]")


class Scope(NamedTuple):
    """What a signing key is good for: a day (`20130524`) in a region and a service."""

    day: bytes
    region: bytes
    service: bytes

    @property
    def text(self) -> bytes:
        """As it is signed, and named in a request."""
        return b"/".join((*self, END))


def signing_key(secret: bytes, scope: Scope) -> bytes:
    """Derive the key of a scope from a secret access key."""
    key = b"AWS4" + secret
    for part in (*scope, END):
        key = hmac.digest(key, part, "sha256")
    return key


def signature(key: bytes, scope: Scope, date: bytes, canonical: bytes) -> bytes:
    """Sign a canonical request, in hexadecimal. `date`: as in `X-Amz-Date`, `20130524T000000Z`."""
    digest = hashlib.sha256(canonical).hexdigest().encode()
    return hmac.digest(key, b"\n".join((ALGORITHM, date, scope.text, digest)), "sha256").hex().encode()


def canonical_request(
    method: bytes,
    path: bytes,
    query: bytes,
    headers: "Sequence[tuple[bytes, Sequence[bytes]]]",
    payload: bytes,
) -> bytes:
    """Put together what is signed. `path` and `query`: spelled already; `headers`: in lower case and in order."""
    lines = [name + b":" + b",".join(b" ".join(value.split()) for value in values) for name, values in headers]
    return b"\n".join((method, path, query, *lines, b"", b";".join(name for name, _ in headers), payload))


def spellings(path: bytes, query: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return how a path and a query are spelled by those who sign them, the commonest first; always as many."""
    once = _OUTSIDE.sub(lambda byte: b"%%%02X" % byte[0][0], path)
    paths = (once, _again(once), _again(_plain(once)), _encode(unquote_to_bytes(path), "/"))
    queries = (_sorted(query), _sorted(query.replace(b"+", b"%20")))
    return tuple((one, other) for other in queries for one in paths)


def _again(path: bytes) -> bytes:
    return path.replace(b"%", b"%25")


def _plain(path: bytes) -> bytes:
    """Take dots and empty segments out (RFC 3986 section 5.2.4), as every service but S3 has it."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del kept[-1:]
        elif segment not in {b"", b"."}:
            kept.append(segment)
    ends = b"/" if kept and path.endswith((b"/", b"/.", b"/..")) else b""
    return b"/" + b"/".join(kept) + ends


def _sorted(query: bytes) -> bytes:
    pairs = [part.partition(b"=") for part in query.split(b"&") if part]
    texts = sorted((_encode(unquote_to_bytes(name)), _encode(unquote_to_bytes(value))) for name, _, value in pairs)
    return b"&".join(name + b"=" + value for name, value in texts)


def _encode(text: bytes, kept: str = "") -> bytes:
    return quote_from_bytes(text, safe=_KEPT + kept).encode()
