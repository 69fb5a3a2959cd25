"""Bodies that are packed: looked into, or held back where nobody can."""

import gzip
import struct
import zlib

import pytest

from proxy.dlp.body_scan import LOOKED_AT, MOST_HELD
from proxy.dlp.decodings import make_reader
from rules.verdicts import Scan
from tests.proxy.dlp.leaks_harness import NOISE, body, cut, sent
from tests.proxy.leaky import TOKEN

# --- packed ones ---

PACKED = {
    "gzip": (["gzip"], gzip.compress),
    "x-gzip": (["X-Gzip"], gzip.compress),
    "deflate": (["deflate"], zlib.compress),
    "two gzip streams": (["gzip"], lambda text: gzip.compress(text[:50]) + gzip.compress(text[50:])),
    "identity": (["identity"], lambda text: text),
}


@pytest.mark.parametrize("size", [1, 100, 65536])
@pytest.mark.parametrize(("codings", "pack"), PACKED.values(), ids=PACKED)
def test_compressed_bodies_are_scanned(codings, pack, size):
    noise = NOISE[:6000].hex().encode()
    packed = pack(noise + TOKEN.encode() + noise)
    left, found, _ = sent(body(reader=make_reader(codings)), cut(packed, size))
    assert (left, found) == (packed, ["github-token"])
    left, _, why = sent(body(Scan.BLOCK, reader=make_reader(codings)), cut(packed, size))
    assert why == "github-token in the body"
    assert left == b""
    clean = pack(noise * 4)
    assert sent(body(Scan.BLOCK, reader=make_reader(codings)), cut(clean, size)) == (clean, [], "")


@pytest.mark.parametrize(("coding", "pack", "trailer"), [("gzip", gzip.compress, 8), ("deflate", zlib.compress, 4)])
def test_zlib_remainder_is_scanned(coding, pack, trailer):
    """Without its trailer, zlib takes all bytes in and keeps up to 258 of what they unpack to: a secret could be there."""
    for size in range((1 << 14) - 20, (1 << 14) + 520, 20):
        text = b"a" * size
        assert b"".join(make_reader([coding]).read(pack(text)[:-trailer])) == text, size


def empty_blocks(count):
    """Deflated blocks of nothing, five bytes each, which say nothing and end nothing (RFC 1951 section 3.2.4)."""
    return b"\x00\x00\x00\xff\xff" * count


def stretched(text, count):
    """A zlib stream of `text` with blocks of nothing between any two bytes of it."""
    stored = [b"\x00" + struct.pack("<HH", 1, 0xFFFE) + bytes([byte]) + empty_blocks(count) for byte in text]
    return b"\x78\x01" + b"".join(stored) + b"\x01\x00\x00\xff\xff" + struct.pack(">I", zlib.adler32(text))


def test_slow_compressed_stream_is_held_to_a_bound():
    packed = stretched(b"x" * 10 + TOKEN.encode(), 1000)
    assert zlib.decompress(packed).endswith(TOKEN.encode())
    left, _, why = sent(body(Scan.BLOCK, reader=make_reader(["deflate"])), cut(packed, 1000))
    assert (left, why) == (b"", "github-token in the body")
    longer = stretched(b"x" * 10 + TOKEN.encode(), 5000)
    assert len(longer) > MOST_HELD
    left, _, why = sent(body(Scan.BLOCK, reader=make_reader(["deflate"])), cut(longer, 1000))
    assert left == b""
    assert "hardly anything comes out" in why


UNREADABLE = {
    "brotli": (["br"], b"whatever", "packed in a way"),
    "packed twice": (["gzip, gzip"], gzip.compress(gzip.compress(b"x")), "packed in a way"),
    "two fields": (["gzip", "deflate"], b"x", "packed in a way"),
    "a lie": (["gzip"], b"not gzip at all", "isn't packed as it says"),
    "without end": (["gzip"], gzip.compress(bytes((2 << 20) + 1)), "more than 2 MB"),
}


@pytest.mark.parametrize(("codings", "data", "why"), UNREADABLE.values(), ids=UNREADABLE)
def test_unknown_encoding_passes_flag_but_not_block(codings, data, why, monkeypatch):
    monkeypatch.setattr("proxy.dlp.decodings.MOST_UNPACKED", 2 << 20)
    assert sent(body(reader=make_reader(codings)), [data]) == (data, [], "")
    left, _, said = sent(body(Scan.BLOCK, reader=make_reader(codings)), [data])
    assert left == b""
    assert why in said


def test_decompression_bomb_is_bounded():
    taken_out = 0
    packed = make_reader(["gzip"])
    read = packed.read

    def counted(data):
        nonlocal taken_out
        for piece in read(data):
            taken_out += len(piece)
            yield piece

    packed.read = counted
    sent(body(reader=packed), [gzip.compress(bytes(8 << 20))])
    assert taken_out <= LOOKED_AT + 65536
