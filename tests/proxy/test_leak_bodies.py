"""The values of a task's own secrets, and bodies as they pass: whatever the pieces, encodings and wrappings."""

import base64
import gzip
import random
import struct
import zlib
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.broker import Broker, Held
from proxy.broker.own import WHOLE, Own
from proxy.leaks.finding import BACK, LONGEST
from proxy.leaks.messages import Messages
from proxy.leaks.packed import reader
from proxy.leaks.scanning import AT_ONCE, HELD_BACK, LOOKED_AT, MOST_HELD, MOST_NAMED, Body, Leaking
from rules.names import HostName
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.verdicts import Scan
from tests.proxy.leaky import KINDS, TOKEN, some

VALUE = ("sk-" + some(45)).encode()
PLACEHOLDER = "sk-" + some(45)
SHORT = b"hunter2-hunter2"
FOUND = "the value of the secret `key`"
MOST = "most of the value of the secret `key`, in one request or in several"


def held(ident, value, placeholder):
    secret = Secret(
        ident,
        Source(SourceKind.ENV, ("X",)),
        ident.upper(),
        ((HostName("x.example"), 443),),
        (Slot(SlotKind.HEADER, "x-key"),),
    )
    return Held(secret, value, placeholder)


def broker(value=VALUE, placeholder=PLACEHOLDER):
    return Broker([held("key", value, placeholder)])


def looking_for(*value):
    return Own(broker(*value).known)


def taken(own, *texts):
    """What is found in one request that is sent so."""
    watch = own.watch()
    found = [name for text in texts for name in watch.take(text)]
    watch.has_left()
    return found


def b64(text, before=b"", after=b""):
    return base64.b64encode(before + text + after)


ENCODED = {
    "as it is": VALUE,
    "in another case": VALUE.swapcase(),
    "in percent signs": quote(VALUE, safe="").encode(),
    "every byte in percent signs": b"".join(b"%%%02x" % byte for byte in VALUE),
    "percent signs twice": b"".join(b"%%25%02X" % byte for byte in VALUE),
    "hexadecimal": VALUE.hex().encode(),
    "hexadecimal, upper case": VALUE.hex().upper().encode(),
    "hexadecimal in lines": VALUE.hex(" ").encode(),
    "base64": b64(VALUE),
    "base64, one byte on": b64(VALUE, b"a", b"z"),
    "base64, two bytes on": b64(VALUE, b"ab", b"zz"),
    "base64 for URLs": base64.urlsafe_b64encode(b"abc" + VALUE),
    "base64 in lines": base64.encodebytes(b"x" * 70 + VALUE + b"y" * 70),
    "base64 in lines, in JSON": base64.encodebytes(b"x" * 70 + VALUE).replace(b"\n", b"\\n"),
    "in JSON": b'{"a": "' + VALUE + b'"}',
}


@pytest.mark.parametrize("text", ENCODED.values(), ids=ENCODED)
def test_a_value_is_found_however_it_is_encoded(text):
    assert taken(looking_for(), b"before " + text + b" after") == [FOUND]


NOISE = random.Random(11).randbytes(1 << 16)  # the same in every process of a test run
HARMLESS = {
    "nothing": b"", "a part": VALUE[:20], "a placeholder": PLACEHOLDER.encode(), "noise": NOISE, "noise in base64": b64(NOISE),
    "backwards": VALUE[::-1], "a percent sign": b"%", "percent signs": b"%%%zz",
}  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_what_is_no_value_is_not_found(text):
    assert taken(looking_for(), text) == []


@pytest.mark.parametrize("at", range(1, len(VALUE)))
def test_a_value_shared_between_two_requests_is_found_wherever_it_is_cut(at):
    for ways in (lambda text: text, lambda text: text.hex().encode(), b64):
        own = looking_for()
        first, second = taken(own, b"a=" + ways(VALUE[:at])), taken(own, b"b=" + ways(VALUE[at:]))
        assert MOST in first + second or FOUND in first + second


def test_the_second_of_two_is_found_again_until_it_is_forgotten():
    own = looking_for()
    half = len(VALUE) // 2
    assert taken(own, VALUE[:half]) == []
    for _ in range(5):
        assert taken(own, b"nothing") == []
        assert taken(own, VALUE[half:]) == [MOST]
    for _ in range(1001):
        assert taken(own, b"nothing") == []
    assert taken(own, VALUE[half:]) == []


def test_pieces_that_were_kept_back_have_not_left():
    own = looking_for()
    half = len(VALUE) // 2
    watch = own.watch()
    assert list(watch.take(VALUE[:half])) == []  # and this request is blocked for something else
    assert taken(own, VALUE[half:]) == []
    assert taken(own, VALUE[:half]) == [MOST]


def test_three_requests_with_a_third_each_are_found():
    own = looking_for()
    third = len(VALUE) // 3
    said = [taken(own, part) for part in (VALUE[:third], VALUE[third : 2 * third], VALUE[2 * third :])]
    assert said == [[], [], [MOST]]


def test_most_of_a_value_with_something_between_is_found():
    assert taken(looking_for(), VALUE[:24] + b"-" + VALUE[24:]) == [MOST]


def test_a_short_value_is_found_whole_and_not_in_pieces():
    own = looking_for(SHORT, PLACEHOLDER)
    assert taken(own, SHORT[:8]) + taken(own, SHORT[8:]) == []
    assert taken(own, SHORT) == [FOUND]


def test_what_a_value_begins_with_like_all_of_its_kind_is_no_piece():
    own = looking_for(("github" + "_pat_" + some(30)).encode(), "github" + "_pat_" + some(30))
    assert taken(own, b"github" + b"_pat_") == []
    assert not any(form.startswith(b"github") for form, bit in own._values[0].folded if bit != WHOLE)


def test_nothing_shows_a_value():
    own = looking_for()
    assert repr(own) == "Own(...)"
    with pytest.raises(TypeError):
        __import__("pickle").dumps(own)


# --- bodies ---


def body(action=Scan.FLAG, secrets=None, **more):
    if secrets is None:
        return Body(action, None, lambda _: False, longest=0, **more)
    own = Own(secrets.known)
    return Body(action, own.watch(), secrets.is_placeholder, longest=own.longest, **more)


def sent(one, pieces):
    """What leaves of a body that comes in pieces, what is found, and why it ended."""
    left, found = b"", []
    try:
        for piece in pieces:
            free, more = one.take(piece)
            left, found = left + free, found + more
        free, more = one.end()
    except Leaking as leak:
        return left, found, str(leak)
    return left + free, found + more, ""


FILLER = b"nothing to be seen here\n" * 300  # 7 KB


def cut(text, size):
    return [text[at : at + size] for at in range(0, len(text), size)]


SIZES = [1, 7, 1000, AT_ONCE, HELD_BACK, 65536]
LONG = b"a line of text that is nothing\n" * 1500  # 46 KB


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("action", [Scan.FLAG, Scan.BLOCK])
def test_what_holds_nothing_passes_as_it_is(action, size):
    text = LONG if size > 100 else LONG[:9000]
    assert sent(body(action, broker()), cut(text, size)) == (text, [], "")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", [0, 1, AT_ONCE - 5, HELD_BACK - 20, HELD_BACK + 3, 40000])
@pytest.mark.parametrize(("secret", "name"), [(TOKEN.encode(), "github-token"), (VALUE, FOUND)])
def test_of_what_must_stay_not_a_byte_leaves(secret, name, before, size):
    if size < 100 < before:
        before = before % 997 + AT_ONCE
    text = LONG[:before] + b"\n" + secret + b"\n" + LONG[:20000]
    left, _, why = sent(body(Scan.BLOCK, broker()), cut(text, size))
    assert name in why
    assert text.startswith(left)
    assert len(left) <= before + 1
    assert secret.decode() not in why


@pytest.mark.parametrize("size", SIZES)
def test_what_is_told_of_leaves_at_once(size):
    text = LONG[:5000] + TOKEN.encode() + b" " + VALUE + LONG[:3000]
    one = body(Scan.FLAG, broker())
    found = []
    for piece in cut(text, size):
        free, more = one.take(piece)
        assert free == piece
        found += more
    assert sorted(found + one.end()[1]) == sorted({"github-token", "sk-key", FOUND})


@pytest.mark.parametrize("kind", [row for row in KINDS if row[0] == "jwt"][:1] + KINDS[:1])
def test_the_longest_kinds_are_kept_back_too(kind):
    text = LONG[:30000] + b"\n" + kind[1].encode() + b"\n" + LONG[:20000]
    left, _, why = sent(body(Scan.BLOCK), cut(text, 100))
    assert kind[0] in why
    assert len(left) <= 30001


def test_the_longest_value_there_may_be_is_kept_back():
    value = some(4096).encode()
    secrets = broker(value)
    for text in (value, value.hex().encode(), b64(value), b"".join(b"%%%02x" % byte for byte in value)):
        left, _, why = sent(body(Scan.BLOCK, secrets), cut(LONG[:40000] + text + LONG[:20000], 1000))
        assert FOUND in why
        assert len(left) <= 40000


def test_under_flag_only_the_beginning_is_looked_at_for_patterns_and_all_of_it_for_values():
    filler = b"0123456789abcde\n" * ((LOOKED_AT + AT_ONCE) // 16)
    assert sent(body(), cut(filler + TOKEN.encode(), 65536))[1] == []
    assert sent(body(Scan.FLAG, broker()), cut(filler + TOKEN.encode() + VALUE, 65536))[1] == [FOUND]
    assert "github-token" in sent(body(Scan.BLOCK), cut(filler + TOKEN.encode(), 65536))[2]


def test_a_placeholder_is_no_credential():
    placeholder = "gh" + "p_" + some(36)
    secrets = broker(("gh" + "p_" + some(36)).encode(), placeholder)
    assert sent(body(Scan.BLOCK, secrets), [placeholder.encode()])[2] == ""


def test_a_form_has_places_for_credentials():
    text = f"grant_type=refresh_token&client_secret={TOKEN}".encode()
    assert sent(body(Scan.BLOCK, parameters=True), [text]) == (text, [], "")
    assert sent(body(Scan.BLOCK), [text])[2] == "github-token in the body"


def test_many_kinds_are_told_up_to_a_bound():
    text = "\n".join(row[1] for row in KINDS).encode() * 2
    one = body()
    assert len(one.take(text)[1]) == MOST_NAMED
    assert one.take(text) == (text, [])


def test_the_same_kind_is_told_once():
    assert sent(body(), cut((TOKEN + "\n").encode() * 1000, 5000))[1] == ["github-token"]


FORM = b"a=" + b"x" * 3000 + b"&note=" + b"y" * 3000
NEARLY = {
    "an id that is longer": (b"a ", KINDS[7][1].encode(), b"ABC longer", {}),
    "a word that goes on": (b"de", KINDS[20][1].encode(), b"k", {}),
    "a parameter in its place": (FORM + b"&client_secret=", TOKEN.encode(), b"&b=" + FORM, {"parameters": True}),
}


@pytest.mark.parametrize(("before", "secret", "after", "more"), NEARLY.values(), ids=NEARLY)
def test_it_makes_no_difference_where_a_body_is_cut(before, secret, after, more):
    """What is no leak as a whole is none in pieces: not where a piece ends, nor where what is kept of it begins."""
    before, after = FILLER + before, after + FILLER
    text, start, end = before + secret + after, len(before), len(before) + len(secret)
    for first in (start - 1, start + 2, end, end + 1):
        for kept in (LONGEST, LONGEST + BACK):
            for second in range(start + kept - 2, start + kept + 2):
                pieces = [text[:first], text[first:second], text[second:]]
                assert sent(body(Scan.BLOCK, **more), pieces) == (text, [], "")


def test_what_ends_with_the_body_is_found():
    for text in (KINDS[7][1].encode(), FILLER + b" " + KINDS[7][1].encode()):
        assert sent(body(), [text])[1] == ["aws-access-key-id"]
        assert sent(body(Scan.BLOCK), [text])[2] == "aws-access-key-id in the body"
        one = body(Scan.BLOCK, reader=Messages())
        with pytest.raises(Leaking):
            one.take(frame(text[-40:]))


def test_what_comes_after_a_body():
    assert body().after(TOKEN.encode()) == ["github-token"]
    with pytest.raises(Leaking):
        body(Scan.BLOCK).after(TOKEN.encode())


def test_other_rules_tighten_what_is_under_way_and_never_loosen_it():
    one = body()
    assert one.take(b"hello " + TOKEN.encode()) == (b"hello " + TOKEN.encode(), [])
    assert one.tighten(Scan.BLOCK) == ["github-token"]  # that has left
    assert one.take(b"more") == (b"", [])
    assert one.tighten(Scan.OFF) == []
    with pytest.raises(Leaking):
        one.take(TOKEN.encode() + LONG)  # what was told of once is blocked now
    every = "\n".join(row[1] for row in KINDS).encode() * 2
    one = body()
    one.take(every)
    one.tighten(Scan.BLOCK)
    with pytest.raises(Leaking):
        one.take(every)


MISSED = {
    "a token in base64": base64.b64encode(TOKEN.encode()),
    "a token in UTF-16": TOKEN.encode("utf-16"),
    "a token in JSON's escapes": "".join(f"\\u{ord(letter):04x}" for letter in TOKEN).encode(),
    "a token in another case": TOKEN.swapcase().encode(),
    "a value backwards": VALUE[::-1],
    "a value in base32": base64.b32encode(VALUE),
    "a value in short pieces": b", ".join(VALUE[at : at + 5] + b"." for at in range(0, len(VALUE), 5)),
}


@pytest.mark.parametrize("text", MISSED.values(), ids=MISSED)
def test_what_is_missed_is_what_docs_say_is(text):
    """Whoever finds one of these takes it out here, and out of docs/rules.md."""
    assert sent(body(Scan.BLOCK, broker()), [b" " + text + b" "])[2] == ""


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
def test_what_is_packed_in_a_known_way_is_looked_into(codings, pack, size):
    noise = NOISE[:6000].hex().encode()
    packed = pack(noise + TOKEN.encode() + noise)
    left, found, _ = sent(body(reader=reader(codings)), cut(packed, size))
    assert (left, found) == (packed, ["github-token"])
    left, _, why = sent(body(Scan.BLOCK, reader=reader(codings)), cut(packed, size))
    assert why == "github-token in the body"
    assert left == b""
    clean = pack(noise * 4)
    assert sent(body(Scan.BLOCK, reader=reader(codings)), cut(clean, size)) == (clean, [], "")


def empty_blocks(count):
    """Deflated blocks of nothing, five bytes each, which say nothing and end nothing (RFC 1951 section 3.2.4)."""
    return b"\x00\x00\x00\xff\xff" * count


def stretched(text, count):
    """A zlib stream of `text` with blocks of nothing between any two bytes of it."""
    stored = [b"\x00" + struct.pack("<HH", 1, 0xFFFE) + bytes([byte]) + empty_blocks(count) for byte in text]
    return b"\x78\x01" + b"".join(stored) + b"\x01\x00\x00\xff\xff" + struct.pack(">I", zlib.adler32(text))


def test_what_is_stretched_is_held_back_until_that_is_too_much():
    packed = stretched(b"x" * 10 + TOKEN.encode(), 1000)
    assert zlib.decompress(packed).endswith(TOKEN.encode())
    left, _, why = sent(body(Scan.BLOCK, reader=reader(["deflate"])), cut(packed, 1000))
    assert (left, why) == (b"", "github-token in the body")
    longer = stretched(b"x" * 10 + TOKEN.encode(), 5000)
    assert len(longer) > MOST_HELD
    left, _, why = sent(body(Scan.BLOCK, reader=reader(["deflate"])), cut(longer, 1000))
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
def test_what_nobody_can_look_into_passes_under_flag_and_not_under_block(codings, data, why, monkeypatch):
    monkeypatch.setattr("proxy.leaks.packed.MOST_UNPACKED", 2 << 20)
    assert sent(body(reader=reader(codings)), [data]) == (data, [], "")
    left, _, said = sent(body(Scan.BLOCK, reader=reader(codings)), [data])
    assert left == b""
    assert why in said


def test_a_bomb_is_not_unpacked_further_than_is_looked_at():
    taken_out = 0
    packed = reader(["gzip"])
    read = packed.read

    def counted(data):
        nonlocal taken_out
        for piece in read(data):
            taken_out += len(piece)
            yield piece

    packed.read = counted
    sent(body(reader=packed), [gzip.compress(bytes(8 << 20))])
    assert taken_out <= LOOKED_AT + 65536


# --- WebSocket ---


def frame(text, *, opcode=1, fin=True, reserved=0, masked=True):
    mask = NOISE[:4]
    size = len(text)
    head = bytes([(0x80 if fin else 0) | reserved | opcode])
    head += (
        bytes([0x80 | size])
        if size < 126
        else bytes([0x80 | 126]) + struct.pack(">H", size)
        if size < 65536
        else bytes([0x80 | 127]) + struct.pack(">Q", size)
    )
    if not masked:
        return bytes([head[0], head[1] & 0x7F]) + head[2:] + text
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))


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


def test_each_message_leaves_as_soon_as_it_is_whole_and_clean():
    one = body(Scan.BLOCK, reader=Messages())
    data = frame(b"hello")
    assert one.take(data[:4]) == (b"", [])
    assert one.take(data[4:]) == (data, [])
    ping, two = frame(b"", opcode=9), [frame(b"a" * 10, fin=False), frame(b"b" * 10, opcode=0)]
    assert one.take(two[0]) == (b"", [])
    assert one.take(ping) == (b"", [])  # it is in the middle of one
    assert one.take(two[1]) == (two[0] + ping + two[1], [])
    with pytest.raises(Leaking, match="github-token in the body"):
        one.take(frame(TOKEN.encode()))


def test_a_message_in_fragments_is_one():
    text = TOKEN.encode()
    pieces = [frame(text[:9], fin=False), frame(text[9:20], opcode=0, fin=False), frame(text[20:], opcode=0)]
    left, _, why = sent(body(Scan.BLOCK, reader=Messages()), pieces)
    assert (left, why) == (b"", "github-token in the body")
    assert sent(body(reader=Messages()), pieces)[1] == ["github-token"]


def test_control_frames_in_the_middle_hide_nothing():
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
def test_messages_that_nobody_can_read(data, why):
    assert sent(body(reader=Messages()), [data]) == (data, [], "")
    left, _, said = sent(body(Scan.BLOCK, reader=Messages()), [data])
    assert left == b""
    assert why in said


READERS = {
    "plain": lambda: None,
    "gzip": lambda: reader(["gzip"]),
    "deflate": lambda: reader(["deflate"]),
    "closed": lambda: reader(["br"]),
    "messages": Messages,
}
pieces_of_anything = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from([
            TOKEN.encode(), VALUE, TOKEN[:20].encode(), frame(b"hello"), frame(TOKEN.encode()), frame(b"ab", fin=False),
            frame(b"", opcode=9), gzip.compress(b"abc"), gzip.compress(VALUE), zlib.compress(TOKEN.encode())[:30], LONG[:9000],
            b"%", b"sk-" * 50, b"\x81\xff", b"\x81\xfe",
        ]),
    ),
    max_size=12,
)  # fmt: skip


@given(pieces_of_anything, st.sampled_from(list(READERS)))
@settings(deadline=None, max_examples=150)
def test_whatever_comes_passes_whole_or_is_cut_off_before_what_was_found(pieces, kind):
    """Under `flag` nothing changes; under `block` a beginning of it leaves, or all of it; nothing else ever raises."""
    whole = b"".join(pieces)
    assert sent(body(Scan.FLAG, SECRETS, reader=READERS[kind]()), pieces)[::2] == (whole, "")
    left, _, why = sent(body(Scan.BLOCK, SECRETS, reader=READERS[kind]()), pieces)
    assert whole.startswith(left)
    assert (left == whole) or why
    assert not why or TOKEN not in why
    if kind == "plain":
        assert TOKEN.encode() not in left
        assert VALUE not in left


SECRETS = broker()
