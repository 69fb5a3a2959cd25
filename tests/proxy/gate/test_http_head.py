import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.gate.client_hello import MOST_BYTES, OTHER, ClientHello, HttpHead, NeedMore, Other, recognise
from tests.proxy.gate.gate_lab import client_hello

HEAD = b"GET /a?b=c HTTP/1.1\r\nUser-Agent: x\r\nHost: good.example:8080\r\nAccept: */*\r\n\r\n"

IS_HTTP = {
    "an empty line first": (b"\r\nGET / HTTP/1.1\r\nHost: good.example\r\n\r\n", "good.example"),
    "four empty lines first": (b"\r\n\n\r\n\nGET / HTTP/1.1\r\nHost: good.example\r\n\r\n", "good.example"),
    "get": (HEAD, "good.example:8080"),
    "the host in any case, with space around": (b"GET / HTTP/1.1\r\nhOsT:  good.example\t\r\n\r\n", "good.example"),
    "line feeds alone": (b"GET / HTTP/1.0\nHost: a.example\n\nbody", "a.example"),
    "no host": (b"GET / HTTP/1.0\r\n\r\n", None),
    "an empty host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", ""),
    "absolute form": (b"GET http://x.example/ HTTP/1.1\r\nHost: y.example\r\n\r\n", "y.example"),
    "connect": (b"CONNECT x.example:443 HTTP/1.1\r\nHost: x.example:443\r\n\r\n", "x.example:443"),
    "a host in a body is none": (b"POST / HTTP/1.1\r\nHost: a.example\r\n\r\nHost: b.example\r\n\r\n", "a.example"),
    "x-host is none": (b"GET / HTTP/1.1\r\nX-Host: b.example\r\n\r\n", None),
    # two readings: no name is taken from these, and inspection refuses them
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", None),
    "a folded host": (b"GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n", None),
    "space in front of the colon": (b"GET / HTTP/1.1\r\nHost : b.example\r\nHost: a.example\r\n\r\n", None),
    "prior knowledge of http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
    "bytes above ascii": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: \xe9.example\r\n\r\n", "\\xe9.example"),
}

IS_OTHER = {
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "smtp": b"EHLO me\r\n",
    "redis": b"PING\r\n",
    "http/0.9": b"GET /\r\n",
    "postgres": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "socks": b"\x05\x01\x00",
    "five empty lines first": b"\r\n" * 5 + b"GET / HTTP/1.1\r\n\r\n",
    "an empty line and no request": b"\r\n\x00\x00",
    "a bare carriage return first": b"\r\rGET / HTTP/1.1\r\n\r\n",
    "a space first": b" GET / HTTP/1.1\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n\r\n",
    "a tab": b"GET\t/ HTTP/1.1\r\n\r\n",
    "a nul in the target": b"GET /\x00 HTTP/1.1\r\n\r\n",
    "a carriage return in the target": b"GET /\r HTTP/1.1\r\n\r\n",
    "no version": b"GET / HTTP\r\n\r\n",
    "a word after the version": b"GET / HTTP/1.1 x\r\n\r\n",
    "a method without an end": b"A" * 33,
    "a line without an end": b"GET /" + b"a" * MOST_BYTES,
}


@pytest.mark.parametrize(("data", "host"), IS_HTTP.values(), ids=IS_HTTP.keys())
def test_http_request_heads_are_recognised(data, host):
    assert recognise(data, whole_head=True) == HttpHead(host)
    assert recognise(data, whole_head=False) == HttpHead(None)


@pytest.mark.parametrize("data", IS_OTHER.values(), ids=IS_OTHER.keys())
def test_bytes_that_are_neither_tls_nor_http_are_other(data):
    assert recognise(data, whole_head=True) is OTHER


@pytest.mark.parametrize("data", [d for d, _ in IS_HTTP.values()], ids=IS_HTTP.keys())
def test_head_read_byte_by_byte_gives_the_same_result(data):
    whole = recognise(data, whole_head=True)
    seen = [recognise(data[:size], whole_head=True) for size in range(len(data) + 1)]
    first = next(n for n, one in enumerate(seen) if not isinstance(one, NeedMore))
    assert all(one == whole for one in seen[first:])
    assert all(more.bytes == size + 1 for size, more in enumerate(seen[:first]))


def test_known_name_needs_only_the_request_line():
    line = b"GET /a?b=c HTTP/1.1\r\n"
    assert isinstance(recognise(line[:-1], whole_head=False), NeedMore)
    assert recognise(line, whole_head=False) == HttpHead(None)


def test_head_without_an_end_has_no_host():
    assert recognise(b"GET / HTTP/1.1\r\nHost: a.example\r\n" + b"a: b\r\n" * 6000, whole_head=True) == HttpHead(None)


def test_tls_is_recognised_by_its_first_byte():
    assert recognise(client_hello(), whole_head=True).sni == "good.example"
    assert isinstance(recognise(b"\x16", whole_head=True), NeedMore)
    assert recognise(b"\x16\x02", whole_head=True) is OTHER
    assert recognise(b"", whole_head=True) == NeedMore(1)


@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_raise_nothing(data, whole):
    found = recognise(data, whole_head=whole)
    assert isinstance(found, ClientHello | HttpHead | NeedMore | Other)
    assert not isinstance(found, NeedMore) or found.bytes > len(data)


@given(st.text(alphabet="GET /HTP1.\r\n :host\t", max_size=80), st.booleans())
def test_http_like_text_raises_nothing_and_prefixes_agree(text, whole):
    data = text.encode()
    final = recognise(data, whole_head=whole)
    for size in range(len(data)):
        early = recognise(data[:size], whole_head=whole)
        assert isinstance(early, NeedMore) or early == final


@pytest.mark.parametrize(
    "filling", [b" ", b" \t", b"a ", b": ", b"host: "], ids=["space", "tab", "word", "colon", "host"]
)
def test_no_head_makes_the_gate_peek_without_end(filling):
    """Each is as long as what is looked at. Time that grows with its square takes minutes here, and fails by that."""
    room = MOST_BYTES - 40
    for begin, end in ((b"Host: a", b"b\r\n"), (b"Host:", b"\r"), (b"a", b"b\r\n")):
        head = b"GET / HTTP/1.1\r\n" + begin + (filling * room)[:room] + end + b"\r\n\r\n"
        for _ in range(20):
            assert not isinstance(recognise(head, whole_head=True), NeedMore)
