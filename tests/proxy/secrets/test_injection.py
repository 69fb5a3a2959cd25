"""Masking and reading by themselves, with whatever pieces and texts there are: nothing lost, nothing let through."""

import base64
import html
import json
import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.request.request_head import Head
from proxy.secrets import SecretInjector, SecretValue
from proxy.secrets.encodings import encoded
from proxy.secrets.response_masking import ResponseMasks
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName

HOST = HostName("x.example")
VALUE, PLACEHOLDER = b"sk-ssk-sssk-0123456789", "PLACEHOLDER-0123456789"
FREE = 5  # bytes of such a value that may pass where it comes in pieces


def secret(ident="key", variable="KEY", slot=Slot(SlotKind.HEADER, "x-key")):  # noqa: B008 - never changed
    return Secret(ident, Source(SourceKind.ENV, ("X",)), variable, ((HOST, 443),), (slot,))


BROKER = SecretInjector([SecretValue(secret(), VALUE, PLACEHOLDER)])

# pieces of texts that nearly are, are, and begin with the value
texts = st.lists(
    st.sampled_from([b"s", b"sk-", b"sk-s", b"x", VALUE, VALUE[:9], VALUE[:-1], VALUE[9:], b"\n", VALUE[:4]]),
    max_size=8,
).map(b"".join)


@given(texts, st.lists(st.integers(1, 9), max_size=60))
def test_body_is_masked_at_any_cut(text, sizes):
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
def test_other_text_is_unchanged(text):
    mask = BROKER.mask(HOST, 443, tls=True)
    if VALUE not in text:
        assert b"".join(mask.take(bytes([byte])) for byte in text) + mask.rest() == text


@given(st.binary(max_size=20), st.binary(min_size=8, max_size=40), st.binary(max_size=20))
def test_base64_value_is_found_at_any_offset(before, text, after):
    said = base64.b64encode(before + text + after)
    assert any(core in said for core in encoded(text))


@given(st.lists(st.tuples(st.sampled_from([b"Content-Length", b"content-type"]), st.binary(max_size=20)), max_size=4))
def test_arbitrary_body_is_processed(fields):
    """Whatever a head says of it, and whatever it is: a form is one with a length that is one."""
    form = (b"Content-Type", b"application/x-www-form-urlencoded")
    client = SecretInjector([SecretValue(secret(slot=Slot(SlotKind.FORM, "f")), VALUE, PLACEHOLDER)])
    head = Head(b"HTTP/1.1", b"POST", b"", b"", b"/", (*fields, form, (b"Content-Length", b"9" * 5000)))
    assert not client.read(head, HOST, 443, tls=True).unread
    head = Head(b"HTTP/1.1", b"POST", b"", b"", b"/", (form, (b"Content-Length", b"5")))
    assert client.read(head, HOST, 443, tls=True).unread
    for content in (b"f=" + PLACEHOLDER.encode(), b"f=%ff&f", b"&&=&", b"\xff=\x00"):
        carried = client.read(head, HOST, 443, tls=True, content=content)
        assert bool(client.form(carried)) == content.startswith(b"f=P")


def test_stored_cookies_are_bounded():
    from proxy.secrets.injection import Cookies

    jar = Cookies()
    jar.keep("key", [(b"Set-Cookie", b"a" * 5000 + b"=b"), (b"set-cookie", b"no pair"), (b"Cookie", b"b=c")])
    assert not any(jar.knows("key", [each]) for each in (b"a" * 5000 + b"=b", b"no pair", b"b=c"))
    jar.keep("key", ((b"Set-Cookie", b"n=%d; Path=/" % number) for number in range(1000)))
    assert jar.knows("key", [b"n=999; n=998", b" n=997 "])
    assert not jar.knows("key", [b"n=0"])
    assert not jar.knows("other", [b"n=999"])
    assert jar.knows("other", [b"", b" ; "])


@given(st.binary(max_size=300), st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=60)), max_size=5))
def test_arbitrary_head_is_processed(path, fields):
    """Whatever it is: without a placeholder nothing is misused, and nothing is put in."""
    carried = BROKER.read(Head(b"HTTP/1.1", b"GET", b"", b"", path, tuple(fields)), HOST, 443, tls=True)
    assert carried.misused == carried.credential == ""
    assert carried.uses == ()


@given(
    st.lists(st.sampled_from(["Bearer ", "X", PLACEHOLDER, " ", ":", ",", PLACEHOLDER.lower()]), max_size=6).map(
        "".join
    )
)
def test_placeholder_outside_its_field_is_misuse(value):
    fields = ((b"X-Key", value.encode()),)
    head = Head(b"HTTP/1.1", b"GET", b"", b"", b"/", fields)
    carried = BROKER.read(head, HOST, 443, tls=True)
    _, sent = BROKER.fill_in(head, carried)
    if PLACEHOLDER.lower() in value.lower():
        assert bool(carried.misused) != bool(carried.uses)
    if carried.uses:
        assert sent[0][1].endswith(VALUE)
        assert sent[0][1].count(VALUE) == 1
        assert PLACEHOLDER.encode() not in sent[0][1]
    else:
        assert sent == fields


SIGNS = "p&ss<w>o'r\"d\\1/2+3=4~5*6!7$8,9"
KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY=="


def with_signs(signs, form, text):
    return "".join(form % ord(sign) if sign in signs else sign for sign in text)


def as_json(text):
    return json.dumps(text)[1:-1]


def lower(text):
    return re.sub("%..", lambda found: found[0].lower(), text)


# How a server that shows a value may write it: languages, and the libraries that most use in them
WRITTEN = {
    "as it is": str,
    "JSON, Python": as_json,
    "JSON, PHP": lambda text: as_json(text).replace("/", "\\/"),
    "JSON, Go": lambda text: with_signs("&<>", "\\u%04x", as_json(text)),
    "JSON, Gson": lambda text: with_signs("&<>='", "\\u%04x", as_json(text)),
    "JSON, .NET": lambda text: with_signs("&<>'+\"", "\\u%04X", text.replace("\\", "\\\\")),
    "a URL": lambda text: quote(text, safe=""),
    "a URL's path": quote,
    "a URL in lower case": lambda text: lower(quote(text, safe="")),
    "a form": quote_plus,
    "a form, Java": lambda text: quote(text, safe="*").replace("~", "%7E"),
    "encodeURIComponent": lambda text: quote(text, safe="!'()*"),
    "encodeURI": lambda text: quote(text, safe=";,/?:@&=+$-_.!~*'()#"),
    "HTML, Python": html.escape,
    "HTML, Go": lambda text: html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
    "HTML, mustache": lambda text: with_signs("/`=", "&#x%X;", html.escape(text).replace("&#x27;", "&#39;")),
    "HTML, PHP": lambda text: html.escape(text).replace("&#x27;", "&#039;"),
    "HTML, .NET": lambda text: html.escape(text).replace("+", "&#x2B;"),
}


@pytest.mark.parametrize("value", [SIGNS, KEY, "plain-value_0123456789"], ids=["signs", "base64", "plain"])
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_returned_value_is_found_in_every_spelling(value, written):
    held = SecretValue(secret(), value.encode())
    told = f"<{written(value)}>"
    mask = ResponseMasks((held,)).mask((held,))
    got = mask.take(told.encode()) + mask.rest()
    assert got in {b"<" + b"*" * (len(told) - 2) + b">", b"<" + held.placeholder + b">"}
    assert len(got) == len(told)


@pytest.mark.parametrize("written", ["JSON, PHP", "JSON, .NET", "a URL", "a URL in lower case"])
def test_returned_base64_value_is_found_in_every_spelling(written):
    held = SecretValue(secret(), SIGNS.encode())
    for user in (b"", b"m", b"me", b"mee"):
        said = base64.b64encode(user + b":" + held.value).decode()
        told = WRITTEN[written](said).encode()
        mask = ResponseMasks((held,)).mask((held,))
        got = mask.take(told) + mask.rest()
        assert sum(one != other for one, other in zip(got, told, strict=True)) > len(held.value)
