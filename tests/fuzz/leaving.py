# ruff: noqa: PT017 - what an error says is what is tested
"""What is fuzzed of the gate: what looks a task's requests through, and what signs them.

Seeds that look like credentials are put together, so that no line of this repository is one.
"""

import contextlib
import gzip
import random
from collections.abc import Iterator

from proxy.dlp.body_scan import Body, SecretLeakError
from proxy.dlp.decodings import Messages, UnreadableBodyError, make_reader, of_json
from proxy.dlp.patterns import find_credentials
from proxy.secrets.aws_signing import UnsignedRequest, find_claim, sign, spellings, strip_claim, verify
from proxy.secrets.values import AwsKeys, make_aws_keys
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.verdicts import Scan
from tests.proxy.dlp.leaks_harness import take
from tests.proxy.leaky import KINDS

LOOKS_LIKE_ONE = [found.encode() for _, found, _ in KINDS]
DATE, DAY = b"20260301T000000Z", b"20260301"


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut up, always in the same way: what comes out must not hang on it."""
    chance, at = random.Random(len(data)), 0
    while at < len(data):
        size = chance.choice((1, 2, 7, 64, 4096, 20000))
        yield data[at : at + size]
        at += size


def never(_text: bytes) -> bool:
    return False


def fuzz_body(data: bytes) -> None:
    """Of what is found not a byte leaves, however it comes; what isn't blocked leaves as it came, all of it."""
    first = next(iter(find_credentials(data)), None)
    wide = data.replace(b"\0", b"")  # as UTF-16 and UTF-32 are read
    readings = (of_json(data), *((wide, of_json(wide)) if wide != data else ()))
    escaped = any(
        True for text in readings for _ in find_credentials(text)
    )  # where in the data that would be nobody knows
    for chunks in ([data], list(pieces(data))):
        body, left = Body(Scan.BLOCK, None, never), b""
        try:
            for chunk in chunks:
                left += take(body, chunk)[0]
            left += body.end()[0]
        except SecretLeakError as problem:
            assert first is not None or escaped
            assert escaped or len(left) <= first.start, problem
            assert data.startswith(left)
        else:
            assert first is None
            assert not escaped
            assert left == data
        told = Body(Scan.FLAG, None, never)
        assert [take(told, chunk)[0] for chunk in chunks] == chunks
        found = told.end()
        assert found[0] == b""


def fuzz_packed(data: bytes) -> None:
    """Any bytes can be unpacked or not, whole as in pieces."""
    for coding in ("gzip", "deflate", "identity", "br", "gzip, gzip"):
        seen = []
        for chunks in ([data] if data else [], list(pieces(data))):
            unpacking, text = make_reader([coding]), b""
            try:
                for chunk in chunks:
                    text += b"".join(unpacking.read(chunk))
            except UnreadableBodyError as problem:
                assert str(problem).isprintable()
                text = b"!"
            seen.append(text)
        assert seen[0] == seen[1], coding


def fuzz_message(data: bytes) -> None:
    """Frames are read alike whole and in pieces, and never for more than what came."""
    seen = []
    for chunks in ([data], list(pieces(data))):
        frames, text = Messages(), b""
        with contextlib.suppress(UnreadableBodyError):
            for piece in (piece for chunk in chunks for piece in frames.read(chunk)):
                text += piece
        assert len(text) <= len(data)
        seen.append(text)
    assert seen[0] == seen[1]


_held: list[AwsKeys] = []


def held() -> AwsKeys:
    """Give one task's keys, the same as long as this runs."""
    if not _held:
        source = Source(SourceKind.ENV, ("X",))
        secret = Secret("aws", source, "AWS", (("s3.example", 443),), (Slot(SlotKind.AWS),))
        _held.append(make_aws_keys(secret, (b"AK" + b"IA" + b"Q" * 16, b"s" * 40)))
    return _held[0]


def fuzz_signed(data: bytes) -> None:
    """Whatever a request says of its signature, only what the placeholder's secret made is signed anew."""
    ident = held().ident.placeholder
    path, _, rest = data.replace(b"ID", ident).partition(b"\n")
    fields = tuple((name, value) for name, _, value in (line.partition(b":") for line in rest.split(b"\n")))
    assert len(set(map(len, (spellings(*path.partition(b"?")[::2]), spellings(b"/", b""))))) == 1
    claim = find_claim(path, fields, (held(),))
    if claim is None:
        return
    strip_claim(claim, path, fields)
    request = UnsignedRequest(b"GET", b"s3.example", path, fields, claim.payload or b"e" * 64)
    assert verify(claim, request) is None, "signed by nobody"
    told = sign(claim, request, 0)
    assert held().key.value not in repr(told).encode()


TARGETS = {"body": fuzz_body, "packed": fuzz_packed, "message": fuzz_message, "signed": fuzz_signed}

SEEDS: dict[str, list[bytes]] = {
    "body": [*LOOKS_LIKE_ONE, b"a" * 16384 + LOOKS_LIKE_ONE[3] + b"\n" * 9000, b'{"key": "' + LOOKS_LIKE_ONE[0] + b'"}'],
    "packed": [gzip.compress(each, mtime=0) for each in (b"", b"text" * 3000, LOOKS_LIKE_ONE[3])] + [gzip.compress(b"a") * 3],
    "message": [b"\x81\x85abcd" + b"hello", b"\x01\x83abcd123\x89\x80abcd\x80\xfe\x00\x80abcd" + b"x" * 128, b"\x82\xff" + bytes(6) + b"\x01\x00abcd" + b"y" * 256],
    "signed": [
        b"/a/b?x=1\nauthorization:AWS4-HMAC-SHA256 Credential=ID/20260301/eu-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=" + b"0" * 64 + b"\nx-amz-date:20260301T000000Z",
        b"/a%20b/../c?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=ID%2F20260301%2Feu-1%2Fs3%2Faws4_request&X-Amz-Date=20260301T000000Z&X-Amz-SignedHeaders=host&X-Amz-Signature=" + b"0" * 64 + b"\nx:y",
    ],
}  # fmt: skip
