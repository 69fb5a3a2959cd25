"""Masking and reading by themselves, with whatever pieces and texts there are: nothing lost, nothing let through."""

import base64

from hypothesis import given
from hypothesis import strategies as st

from proxy.broker import Broker, Held
from proxy.broker.spelling import encoded
from proxy.inspection.heads import Head
from rules.names import HostName
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind

HOST = HostName("x.example")
VALUE, PLACEHOLDER = b"sk-ssk-sssk-0123456789", "PLACEHOLDER-0123456789"
FREE = 5  # bytes of such a value that may pass where it comes in pieces


def secret(ident="key", variable="KEY", slot=Slot(SlotKind.HEADER, "x-key")):  # noqa: B008 - never changed
    return Secret(ident, Source(SourceKind.ENV, ("X",)), variable, ((HOST, 443),), (slot,))


BROKER = Broker([Held(secret(), VALUE, PLACEHOLDER)])

# pieces of texts that nearly are, are, and begin with the value
texts = st.lists(
    st.sampled_from([b"s", b"sk-", b"sk-s", b"x", VALUE, VALUE[:9], VALUE[:-1], VALUE[9:], b"\n", VALUE[:4]]),
    max_size=8,
).map(b"".join)


@given(texts, st.lists(st.integers(1, 9), max_size=60))
def test_a_body_is_masked_wherever_it_is_cut(text, sizes):
    mask, at, got = BROKER.mask(HOST, 443, tls=True), 0, b""
    for size in sizes:
        got += mask.take(text[at : at + size])
        at += size
    got += mask.take(text[at:]) + mask.rest()
    assert len(got) == len(text)
    assert VALUE not in got
    whole = text.replace(VALUE, PLACEHOLDER.encode())
    changed = [number for number, (one, other) in enumerate(zip(got, whole, strict=True)) if one != other]
    starts = [number for number in range(len(text)) if text.startswith(VALUE, number)]
    assert all(any(start <= number < start + FREE for start in starts) for number in changed)


@given(texts)
def test_what_is_not_a_value_is_not_changed(text):
    mask = BROKER.mask(HOST, 443, tls=True)
    if VALUE not in text:
        assert b"".join(mask.take(bytes([byte])) for byte in text) + mask.rest() == text


@given(st.binary(max_size=20), st.binary(min_size=8, max_size=40), st.binary(max_size=20))
def test_base64_is_found_wherever_it_stands(before, text, after):
    said = base64.b64encode(before + text + after)
    assert any(core in said for core in encoded(text))


@given(st.lists(st.tuples(st.sampled_from([b"Content-Length", b"content-type"]), st.binary(max_size=20)), max_size=4))
def test_any_body_is_read(fields):
    """Whatever a head says of it, and whatever it is: a form is one with a length that is one."""
    form = (b"Content-Type", b"application/x-www-form-urlencoded")
    client = Broker([Held(secret(slot=Slot(SlotKind.FORM, "f")), VALUE, PLACEHOLDER)])
    head = Head(b"HTTP/1.1", b"POST", b"", b"", b"/", (*fields, form, (b"Content-Length", b"9" * 5000)))
    assert not client.read(head, HOST, 443, tls=True).unread
    head = Head(b"HTTP/1.1", b"POST", b"", b"", b"/", (form, (b"Content-Length", b"5")))
    assert client.read(head, HOST, 443, tls=True).unread
    for content in (b"f=" + PLACEHOLDER.encode(), b"f=%ff&f", b"&&=&", b"\xff=\x00"):
        carried = client.read(head, HOST, 443, tls=True, content=content)
        assert bool(client.form(carried)) == content.startswith(b"f=P")


def test_a_jar_keeps_no_more_than_fits():
    from proxy.broker.jar import Jar

    jar = Jar()
    jar.keep("key", [(b"Set-Cookie", b"a" * 5000 + b"=b"), (b"set-cookie", b"no pair"), (b"Cookie", b"b=c")])
    assert not any(jar.knows("key", [each]) for each in (b"a" * 5000 + b"=b", b"no pair", b"b=c"))
    jar.keep("key", ((b"Set-Cookie", b"n=%d; Path=/" % number) for number in range(1000)))
    assert jar.knows("key", [b"n=999; n=998", b" n=997 "])
    assert not jar.knows("key", [b"n=0"])
    assert not jar.knows("other", [b"n=999"])
    assert jar.knows("other", [b"", b" ; "])


@given(st.binary(max_size=300), st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=60)), max_size=5))
def test_any_head_is_read(path, fields):
    """Whatever it is: without a placeholder nothing is misused, and nothing is put in."""
    carried = BROKER.read(Head(b"HTTP/1.1", b"GET", b"", b"", path, tuple(fields)), HOST, 443, tls=True)
    assert carried.misused == carried.credential == ""
    assert carried.uses == ()


@given(
    st.lists(st.sampled_from(["Bearer ", "X", PLACEHOLDER, " ", ":", ",", PLACEHOLDER.lower()]), max_size=6).map(
        "".join
    )
)
def test_a_placeholder_is_in_its_place_or_misused(value):
    fields = ((b"X-Key", value.encode()),)
    head = Head(b"HTTP/1.1", b"GET", b"", b"", b"/", fields)
    carried = BROKER.read(head, HOST, 443, tls=True)
    _, sent = BROKER.swapped(head, carried)
    if PLACEHOLDER.lower() in value.lower():
        assert bool(carried.misused) != bool(carried.uses)
    if carried.uses:
        assert sent[0][1].endswith(VALUE)
        assert sent[0][1].count(VALUE) == 1
        assert PLACEHOLDER.encode() not in sent[0][1]
    else:
        assert sent == fields
