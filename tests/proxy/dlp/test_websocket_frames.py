"""Messages of WebSockets: unmasked, put together, and each let go once it is clean."""

import pytest

from proxy.dlp.body_scan import SecretLeakError
from proxy.dlp.decodings import Messages
from rules.verdicts import Scan
from tests.proxy.dlp.leaks_harness import LONG, body, cut, frame, sent, take
from tests.proxy.leaky import KINDS, TOKEN


@pytest.mark.parametrize("size", [1, 3, 4096])
@pytest.mark.parametrize("length", [0, 5, 125, 126, 2000, 70000])
def test_messages_are_unmasked(length, size):
    text = LONG[:length] if length < len(LONG) else LONG * 2
    if size < 100 < length:
        text = text[:2000]
    data = frame(text)
    messages = Messages()
    assert b"".join(piece for part in cut(data, size) for piece in messages.read(part)) == text
    assert messages.between


def test_clean_message_passes_once_complete():
    one = body(Scan.BLOCK, reader=Messages())
    data = frame(b"hello")
    assert take(one, data[:4]) == (b"", [])
    assert take(one, data[4:]) == (data, [])
    ping, two = frame(b"", opcode=9), [frame(b"a" * 10, fin=False), frame(b"b" * 10, opcode=0)]
    assert take(one, two[0]) == (b"", [])
    assert take(one, ping) == (b"", [])  # it is in the middle of one
    assert take(one, two[1]) == (two[0] + ping + two[1], [])
    with pytest.raises(SecretLeakError, match="github-token in the body"):
        take(one, frame(TOKEN.encode()))


def test_fragmented_message_is_one_message():
    text = TOKEN.encode()
    pieces = [frame(text[:9], fin=False), frame(text[9:20], opcode=0, fin=False), frame(text[20:], opcode=0)]
    left, _, why = sent(body(Scan.BLOCK, reader=Messages()), pieces)
    assert (left, why) == (b"", "github-token in the body")
    assert sent(body(reader=Messages()), pieces)[1] == ["github-token"]


def test_control_frames_between_fragments_hide_nothing():
    text = TOKEN.encode()
    pieces = [frame(text[:9], fin=False), frame(b"not this", opcode=9), frame(text[9:], opcode=0)]
    for data in (pieces, [b"".join(pieces)], [bytes([byte]) for byte in b"".join(pieces)]):
        left, _, why = sent(body(Scan.BLOCK, reader=Messages()), data)
        assert (left, why) == (b"", "github-token in the body")
    for data in ([frame(text, opcode=9)], [frame(b"a", fin=False), frame(text, opcode=10), frame(b"b", opcode=0)]):
        left, _, why = sent(body(Scan.BLOCK, reader=Messages()), data)
        assert (left, why) == (b"", "github-token in the body")
        assert sent(body(reader=Messages()), data)[1] == ["github-token"]
    ident = KINDS[7][1].encode()  # of which more could come
    pieces = [frame(b"id " + ident, fin=False), frame(b"not this", opcode=9), frame(b"", opcode=0)]
    assert "aws-access-key-id" in sent(body(Scan.BLOCK, reader=Messages()), pieces)[2]


@pytest.mark.parametrize(("data", "why"), [(frame(b"x", reserved=0x40), "packed"), (frame(b"x", masked=False), "masked"), (frame(b"x" * 200, opcode=9), "too long")], ids=["packed", "masked", "too long"])  # fmt: skip
def test_unreadable_messages_are_refused(data, why):
    assert sent(body(reader=Messages()), [data]) == (data, [], "")
    left, _, said = sent(body(Scan.BLOCK, reader=Messages()), [data])
    assert left == b""
    assert why in said
