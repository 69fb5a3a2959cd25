"""What a push's body says, however it is cut up, and all that a hostile client writes instead."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.request.git_push import MOST_BYTES, MOST_REFS, Push, ref_name
from proxy.request.request_head import UnclearError
from rules.verdicts import Reason
from tests.support.git_pushes import END, MAIN, PACK, ZERO, A, B, certificate, feed, line, push


def read(body, size=65536, *, packed=False):
    """Read a whole body in pieces."""
    found = Push(gzip=packed)
    for at in range(0, len(body), size):
        if feed(found, body[at : at + size]):
            return found
    found.end()
    return found


READ = {
    "create": (push(f"{ZERO} {A} refs/heads/x"), [("refs/heads/x", "create")]),
    "update": (push(f"{A} {B} {MAIN}"), [(MAIN, "update")]),
    "delete": (push(f"{A} {ZERO} {MAIN}"), [(MAIN, "delete")]),
    "delete of what isn't there": (push(f"{ZERO} {ZERO} {MAIN}"), [(MAIN, "delete")]),
    "a tag": (push(f"{ZERO} {A} refs/tags/v1"), [("refs/tags/v1", "create")]),
    "SHA-256": (push(f"{'a' * 64} {'b' * 64} {MAIN}"), [(MAIN, "update")]),
    "zero in SHA-256": (push(f"{'0' * 64} {'b' * 64} {MAIN}"), [(MAIN, "create")]),
    "upper-case ids": (push(f"{A.upper()} {B} {MAIN}"), [(MAIN, "update")]),
    "several": (
        push(f"{A} {B} {MAIN}", f"{ZERO} {A} refs/heads/x\n", f"{A} {ZERO} refs/tags/v1"),
        [(MAIN, "update"), ("refs/heads/x", "create"), ("refs/tags/v1", "delete")],
    ),
    "shallow": (line(f"shallow {A}") + push(f"{A} {B} {MAIN}"), [(MAIN, "update")]),
    "shallow with a line's end": (line(f"shallow {A}\n") + push(f"{A} {B} {MAIN}"), [(MAIN, "update")]),
    "no capabilities": (line(f"{A} {B} {MAIN}") + b"0000", [(MAIN, "update")]),
    "a line's end behind the capabilities": (line(f"{A} {B} {MAIN}\0 atomic\n") + b"0000", [(MAIN, "update")]),
    "a ref beyond ASCII": (push(f"{A} {B} refs/heads/grün"), [("refs/heads/grün", "update")]),
    "Gerrit's": (push(f"{ZERO} {A} refs/for/main%topic=x"), [("refs/for/main%topic=x", "create")]),
    "certificate": (certificate(f"{A} {B} {MAIN}") + END + b"0000", [(MAIN, "update")]),
    "certificate of two, with options": (
        certificate(f"{A} {B} {MAIN}", f"{ZERO} {A} refs/tags/v1", more="push-option ci.skip\n") + END + b"0000",
        [(MAIN, "update"), ("refs/tags/v1", "create")],
    ),
    "no options": (push(f"{A} {B} {MAIN}", options=[]), [(MAIN, "update")]),
    "options": (
        push(f"{A} {B} {MAIN}", f"{ZERO} {A} refs/heads/x", options=["ci.skip\n", "a=b"]),
        [(MAIN, "update"), ("refs/heads/x", "create")],
    ),
    "certificate in odd packets": (
        line("push-cert\0 atomic")
        + line(f"certificate version 0.1\npusher a\n\n{A} {B} refs/hea")
        + line("ds/main\n-----BEGIN SSH SIGNATURE-----\nx\n")
        + END
        + b"0000",
        [(MAIN, "update")],
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(("data", "commands"), READ.values(), ids=READ)
def test_pushes_are_parsed(data, commands, size, packed):
    body = data + PACK
    assert read(gzip.compress(body) if packed else body, size, packed=packed).commands == commands


@pytest.mark.parametrize(
    ("data", "has"),
    [
        (push(f"{A} {B} {MAIN}"), False),
        (push(f"{A} {B} {MAIN}", options=[]), False),
        (push(f"{A} {B} {MAIN}", options=["ci.skip"]), False),
        (push(f"{A} {B} {MAIN}", options=["ci.skip", "ci.skip=x"]), True),
        (push(f"{A} {B} {MAIN}", options=["submit", "ci.skip"]), True),
        (push(f"{A} {B} {MAIN}", options=["merge_request.create", "merge_request.title=a=b", "ci.skip"]), False),
        (push(f"{A} {B} {MAIN}", options=["merge_request.create", "merge_request.auto_merge"]), True),
        (push(f"{A} {B} {MAIN}", options=["merge_request.create=x"]), True),
        (push(f"{A} {B} {MAIN}", options=["merge_request.merge_when_pipeline_succeeds"]), True),
        (push(f"{A} {B} {MAIN}", options=["merge_request.title"]), True),
        (push(f"{A} {B} {MAIN}", options=["merge_request.title=a\n/merge"]), True),
        (push(f"{A} {B} {MAIN}", options=["merge_request.create", "merge_request.description=/merge"]), True),
        (line(f"{A} {B} {MAIN}\0push-options=x agent=y") + b"0000" + line("submit") + b"0000", True),
        (line(f"{A} {B} {MAIN}\0\tpush-options\n") + b"0000" + line("submit\n") + b"0000", True),
        (certificate(f"{A} {B} {MAIN}", more="push-option submit\n") + END + b"0000", True),
        (certificate(f"{A} {B} {MAIN}", more="push-option ci.skip\n") + END + b"0000", False),
        (
            certificate(f"{A} {B} {MAIN}", more="push-option a\n", capabilities="push-options")
            + END
            + b"0000"
            + line("ci.skip")
            + b"0000",
            True,
        ),
        (certificate(f"{A} {B} {MAIN}") + END + b"0000", False),
    ],
)
def test_push_options_are_parsed(data, has):
    assert read(data + PACK, 7).asks_more is has


def test_push_is_complete_with_its_flush_packet():
    data = push(f"{A} {B} {MAIN}", f"{A} {B} refs/heads/x")
    found = Push()
    assert not feed(found, data[:-1])
    assert feed(found, data[-1:])
    assert feed(found, PACK)
    found.end()
    assert "report-status-v2" in found.capabilities


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("data", [b"0000", line(f"shallow {A}") + b"0000"], ids=["flush", "shallow"])
def test_probe_has_no_refs(data, packed):
    found = Push(gzip=packed)
    assert not feed(found, gzip.compress(data) if packed else data)
    assert not found.complete
    found.end()
    assert found.complete
    assert found.commands == []


ENDLESS = certificate(f"{A} {B} {MAIN}")
UNREADABLE = {
    "nothing": b"",
    "no flush": line(f"{A} {B} {MAIN}"),
    "cut within a line": push(f"{A} {B} {MAIN}")[:-10],
    "no length": b"hello" + push(f"{A} {B} {MAIN}"),
    "a signed length": b"+03f" + b"x" * 59,
    "a length with an underscore": b"1_0f" + b"x" * 300,
    "a length of three": b"0003" + push(f"{A} {B} {MAIN}"),
    "an empty line": b"0004" + push(f"{A} {B} {MAIN}"),
    "a delimiter in place of a flush": push(f"{A} {B} {MAIN}", after=b"0001"),
    "a response's end in place of a flush": push(f"{A} {B} {MAIN}", after=b"0002"),
    "a line too long": b"ffff" + b"a" * 65531 + b"0000",
    "a second list": b"0000" + push(f"{A} {B} {MAIN}"),
    "two flushes": b"00000000",
    "a pack behind no refs": b"0000PACK",
    "a byte behind no refs": b"0000P",
    "no new id": push(f"{A} {MAIN}"),
    "ids of two lengths": push(f"{A} {'b' * 64} {MAIN}"),
    "an id of 41": push(f"{A}a {B} {MAIN}"),
    "two spaces": push(f"{A}  {B} {MAIN}"),
    "tabs": push(f"{A}\t{B}\t{MAIN}"),
    "an ERR": line("ERR no") + b"0000",
    "a fetch": line(f"want {A}") + b"0000",
    "version 2": line("command=ls-refs\n") + b"0001" + b"0000",
    "a bad shallow": line("shallow x") + push(f"{A} {B} {MAIN}"),
    "capabilities twice": line(f"{A} {B} {MAIN}\0 a") + line(f"{A} {B} refs/heads/x\0 b") + b"0000",
    "a second NUL": line(f"{A} {B} refs/heads/x\n\0a") + b"0000",
    "capabilities behind a shallow": line(f"shallow {A}\0 a") + push(f"{A} {B} {MAIN}"),
    "a ref behind a certificate": certificate(f"{A} {B} {MAIN}") + END + line(f"{A} {B} refs/heads/x") + b"0000",
    "a certificate behind a ref": push(f"{A} {B} refs/heads/x", after=b"") + ENDLESS + END + b"0000",
    "two certificates": ENDLESS + END + ENDLESS + END + b"0000",
    "a certificate that doesn't end": ENDLESS + b"0000",
    "a certificate whose end lacks its line's end": ENDLESS + line("push-cert-end") + b"0000",
    "a certificate without a signature": certificate(f"{A} {B} {MAIN}", signature="") + END + b"0000",
    "commands behind a first signature": certificate(
        f"{A} {B} refs/heads/x", "-----BEGIN PGP SIGNATURE-----", f"{A} {B} {MAIN}"
    )
    + END
    + b"0000",
    "a NUL in a certificate": line("push-cert\0 a") + line(f"certificate version 0.1\0\n{A} {B} {MAIN}\n") + END + b"0000",
    "a strange certificate": line("push-cert\0 a") + line(f"other 1\n\n{A} {B} {MAIN}\n-----BEGIN X\n") + END + b"0000",
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_malformed_pushes_are_refused(data, size, packed):
    with pytest.raises(UnclearError) as raised:
        read(gzip.compress(data) if packed else data, size, packed=packed)
    assert raised.value.reason is Reason.AMBIGUOUS_REQUEST


REFS = [
    "main", "HEAD", "heads/main", "/refs/heads/main", "refs/heads/", "refs//heads", "refs/heads/..", "refs/heads/a..b",
    "refs/heads/../heads/main", "refs/heads/.a", "refs/heads/a.lock", "refs/heads/a.lock/b", "refs/heads/a.", "refs/",
    "refs/heads/a b", "refs/heads/a~1", "refs/heads/a^", "refs/heads/a:b", "refs/heads/a?", "refs/heads/*",
    "refs/heads/[a]", "refs/heads/a\\b", "refs/heads/@{1}", "refs/heads/a\x01", "refs/heads/a\x7f", "refs/heads/a\x1b[2J",
    "refs/heads/a\u202eb", "refs/heads/a\u200b", "refs/heads/a\x85", "REFS/heads/main", "refs/heads/" + "a" * 1024,
]  # fmt: skip


@pytest.mark.parametrize("ref", REFS)
def test_invalid_refs_are_refused(ref):
    with pytest.raises(UnclearError, match="a ref's name is not one that can be pushed to"):
        ref_name(ref.encode())


def test_non_utf8_ref_is_parsed():
    with pytest.raises(UnclearError, match="not UTF-8"):
        feed(Push(), line(b"%b %b refs/heads/\xff\0x" % (A.encode(), B.encode())))


def many(count):
    return push(*(f"{A} {B} refs/heads/{at}" for at in range(count)))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_size_bounds_are_enforced(packed):
    def pack(data):
        return gzip.compress(data) if packed else data

    assert len(read(pack(many(MOST_REFS)), packed=packed).commands) == MOST_REFS
    shallow = line(f"shallow {A}") * (MOST_BYTES // 51)
    for data in (many(MOST_REFS + 1), shallow * 100, line("push-cert\0 a") + line("x" * 60000) * 1800):
        with pytest.raises(UnclearError) as raised:
            read(pack(data), packed=packed)
        assert raised.value.reason is Reason.LIMIT_EXCEEDED


def test_gzip_bomb_is_decompressed_only_as_read():
    bomb = gzip.compress(b"0" * 50_000_000, 9)
    found = Push(gzip=True)
    with pytest.raises(UnclearError, match="something follows an empty list"):
        feed(found, bomb)
    assert len(found._data) <= 2 * 65536


def test_compressed_padding_is_bounded():
    packer = zlib.compressobj(wbits=31)
    body = packer.compress(b"") + b"".join(packer.flush(zlib.Z_FULL_FLUSH) or b"\0\0\0\xff\xff" for _ in range(10))
    body += b"\0\0\0\xff\xff" * (1 << 18)  # an empty stored block each (RFC 1951 section 3.2.4)
    with pytest.raises(UnclearError) as raised:
        read(body, packed=True)
    assert raised.value.reason is Reason.LIMIT_EXCEEDED


WRONGLY_PACKED = {
    "not packed": push(f"{A} {B} {MAIN}"),
    "zlib": zlib.compress(push(f"{A} {B} {MAIN}")),
    "a second file": gzip.compress(line(f"{A} {B} {MAIN}")) + gzip.compress(b"0000"),
    "a second list in a second file": gzip.compress(b"0000") + gzip.compress(push(f"{A} {B} {MAIN}")),
    "cut off": gzip.compress(b"0000")[:-9],
    "bad checksum": gzip.compress(b"0000")[:-8] + bytes(8),
}


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("body", WRONGLY_PACKED.values(), ids=WRONGLY_PACKED)
def test_malformed_gzip_is_refused(body, size):
    with pytest.raises(UnclearError) as raised:
        read(body, size, packed=True)
    assert raised.value.reason is Reason.AMBIGUOUS_REQUEST


@given(
    st.lists(st.sampled_from([*UNREADABLE.values(), *(data for data, _ in READ.values()), PACK, b"0", b"\n"])),
    st.data(),
)
def test_arbitrary_bytes_raise_only_the_documented_error(pieces, data):
    """And whatever is read, is read in the same way in any pieces."""
    body = b"".join(pieces)

    def told(size):
        try:
            return read(body, size).commands
        except UnclearError as problem:
            return problem.reason

    assert told(data.draw(st.integers(1, 300))) == told(len(body) or 1)
