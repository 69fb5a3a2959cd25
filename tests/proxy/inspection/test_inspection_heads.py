"""A request's head: what has one reading passes with that reading, all else is refused with its reason."""

import pytest

from proxy.inspection.heads import Head, Unclear, authority, body_size, may_trail, read, without_upgrade
from proxy.inspection.http1 import parse_head, split_head
from rules.addresses import parse_host
from rules.verdicts import Reason


def reading(raw, *, tls=True):
    return read(parse_head(raw.replace("\n", "\r\n").encode("latin-1")), tls=tls)


@pytest.mark.parametrize(
    ("head", "host", "port", "path"),
    [
        ("GET / HTTP/1.1\nHost: good.example\n\n", "good.example", 443, "/"),
        ("GET /a%2fb?q=/../ HTTP/1.1\nhOST:\tGood.Example.:443 \n\n", "good.example", 443, "/a%2fb?q=/../"),
        ("GET https://good.example/x HTTP/1.1\nHost: good.example\n\n", "good.example", 443, "/x"),
        ("GET HTTPS://GOOD.example:8443 HTTP/1.1\nHost: good.example:8443\n\n", "good.example", 8443, "/"),
        ("GET /\xc3\xa9 HTTP/1.1\nHost: good.example\n\n", "good.example", 443, "/%C3%A9"),
        ("GET / HTTP/1.0\nHost: good.example\n\n", "good.example", 443, "/"),
        ("GET / HTTP/1.1\nHost: 2130706433\n\n", "127.0.0.1", 443, "/"),
        ("GET / HTTP/1.1\nHost: [2001:DB8::1]:444\n\n", "2001:db8::1", 444, "/"),
        ("POST / HTTP/1.1\nHost: good.example\nContent-Length: 5\n\n", "good.example", 443, "/"),
        ("POST / HTTP/1.1\nHost: good.example\nTransfer-Encoding: Chunked\n\n", "good.example", 443, "/"),
        ("GET / HTTP/1.1\nHost: good.example\nX-Odd: \xff caf\xe9\n\n", "good.example", 443, "/"),
    ],
)
def test_what_has_one_reading(head, host, port, path):
    asked = reading(head)
    assert (asked.host, asked.port, asked.path) == (parse_host(host), port, path)


MANGLED = {
    "no Host": "GET / HTTP/1.1\n\n",
    "no Host in 1.0": "GET / HTTP/1.0\n\n",
    "two Hosts": "GET / HTTP/1.1\nHost: good.example\nHost: good.example\n\n",
    "two Hosts of another case": "GET / HTTP/1.1\nHost: good.example\nhost: evil.example\n\n",
    "Host before a space": "GET / HTTP/1.1\nHost : good.example\n\n",
    "Host in a fold": "GET / HTTP/1.1\nX: y\n Host: evil.example\nHost: good.example\n\n",
    "folded Host": "GET / HTTP/1.1\nHost:\n good.example\n\n",
    "a fold at the start": "GET / HTTP/1.1\n X: y\nHost: good.example\n\n",
    "absolute form unlike Host": "GET https://evil.example/ HTTP/1.1\nHost: good.example\n\n",
    "absolute form with another port": "GET https://good.example:444/ HTTP/1.1\nHost: good.example\n\n",
    "absolute form with another scheme": "GET http://good.example/ HTTP/1.1\nHost: good.example\n\n",
    "absolute form with a user": "GET https://good.example@evil.example/ HTTP/1.1\nHost: good.example\n\n",
    "absolute form without a host": "GET https:///x HTTP/1.1\nHost: good.example\n\n",
    "absolute form without a path": "GET https://good.example?x HTTP/1.1\nHost: good.example\n\n",
    "user in Host": "GET / HTTP/1.1\nHost: user@good.example\n\n",
    "list in Host": "GET / HTTP/1.1\nHost: good.example, evil.example\n\n",
    "path in Host": "GET / HTTP/1.1\nHost: good.example/x\n\n",
    "NUL in Host": "GET / HTTP/1.1\nHost: evil\0.good.example\n\n",
    "empty Host": "GET / HTTP/1.1\nHost:\n\n",
    "two ports": "GET / HTTP/1.1\nHost: good.example:443:444\n\n",
    "port 0": "GET / HTTP/1.1\nHost: good.example:0\n\n",
    "port too high": "GET / HTTP/1.1\nHost: good.example:65979\n\n",
    "zone id": "GET / HTTP/1.1\nHost: [fe80::1%lo]\n\n",
    "percent in Host": "GET / HTTP/1.1\nHost: good%2eexample\n\n",
    "CL and TE": "POST / HTTP/1.1\nHost: good.example\nContent-Length: 5\nTransfer-Encoding: chunked\n\n",
    "two CLs": "POST / HTTP/1.1\nHost: good.example\nContent-Length: 5\nContent-Length: 6\n\n",
    "two equal CLs": "POST / HTTP/1.1\nHost: good.example\nContent-Length: 5\nContent-Length: 5\n\n",
    "CL list": "POST / HTTP/1.1\nHost: good.example\nContent-Length: 5, 5\n\n",
    "CL with a sign": "POST / HTTP/1.1\nHost: good.example\nContent-Length: +5\n\n",
    "CL in hex": "POST / HTTP/1.1\nHost: good.example\nContent-Length: 0x5\n\n",
    "CL in other digits": "POST / HTTP/1.1\nHost: good.example\nContent-Length: \xb2\n\n",
    "empty CL": "POST / HTTP/1.1\nHost: good.example\nContent-Length:\n\n",
    "TE not chunked": "POST / HTTP/1.1\nHost: good.example\nTransfer-Encoding: gzip\n\n",
    "TE chunked twice": "POST / HTTP/1.1\nHost: good.example\nTransfer-Encoding: chunked, chunked\n\n",
    "two TEs": "POST / HTTP/1.1\nHost: good.example\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n",
    "TE hidden by a tab": "POST / HTTP/1.1\nHost: good.example\nTransfer-Encoding: chunked\x0b\n\n",
    "TE before a space": "POST / HTTP/1.1\nHost: good.example\nTransfer-Encoding : chunked\n\n",
    "TE with an underscore": "POST / HTTP/1.1\nHost: good.example\nTransfer_Encoding: chunked\n\n",
    "TE in 1.0": "POST / HTTP/1.0\nHost: good.example\nTransfer-Encoding: chunked\n\n",
    "TE identity": "POST / HTTP/1.1\nHost: good.example\nTransfer-Encoding: identity\n\n",
    "Host dropped on the way": "GET / HTTP/1.1\nHost: good.example\nConnection: close, Host\n\n",
    "method with a space": "GE T / HTTP/1.1\nHost: good.example\n\n",
    "two spaces": "GET  / HTTP/1.1\nHost: good.example\n\n",
    "space before the method": " GET / HTTP/1.1\nHost: good.example\n\n",
    "tab in the request line": "GET\t/ HTTP/1.1\nHost: good.example\n\n",
    "space in the path": "GET /a b HTTP/1.1\nHost: good.example\n\n",
    "control byte in the path": "GET /a\x0bb HTTP/1.1\nHost: good.example\n\n",
    "fragment": "GET /a#b HTTP/1.1\nHost: good.example\n\n",
    "asterisk form": "OPTIONS * HTTP/1.1\nHost: good.example\n\n",
    "no path": "GET good.example HTTP/1.1\nHost: good.example\n\n",
    "HTTP/0.9": "GET /\n\n",
    "HTTP/2.0": "GET / HTTP/2.0\nHost: good.example\n\n",
    "HTTP/1.2": "GET / HTTP/1.2\nHost: good.example\n\n",
    "lower-case version": "GET / http/1.1\nHost: good.example\n\n",
    "prior knowledge": "PRI * HTTP/2.0\n\n",
    "no colon": "GET / HTTP/1.1\nHost: good.example\nx\n\n",
    "no name": "GET / HTTP/1.1\nHost: good.example\n: x\n\n",
    "bad name": "GET / HTTP/1.1\nHost: good.example\nX(y): x\n\n",
    "CR in a value": "GET / HTTP/1.1\nHost: good.example\nX: a\rHost: evil.example\n\n",
    "NUL in a value": "GET / HTTP/1.1\nHost: good.example\nX: a\0b\n\n",
}


@pytest.mark.parametrize("mangled", MANGLED)
def test_what_has_two_readings_or_none(mangled):
    with pytest.raises(Unclear) as refusal:
        reading(MANGLED[mangled])
    assert refusal.value.reason in (Reason.AMBIGUOUS_REQUEST, Reason.INVALID_NAME)


@pytest.mark.parametrize(
    "raw", [b"GET / HTTP/1.1\nHost: good.example\n\n", b"GET / HTTP/1.1\r\nHost: good.example\n\r\n"]
)
def test_a_line_feed_alone_ends_no_line(raw):
    with pytest.raises(Unclear):
        parse_head(raw)


@pytest.mark.parametrize("method", ["CONNECT", "connect"])
def test_a_tunnel_is_refused_as_what_it_is(method):
    with pytest.raises(Unclear) as refusal:
        reading(f"{method} evil.example:443 HTTP/1.1\nHost: good.example\n\n")
    assert refusal.value.reason is Reason.PROTOCOL_MISMATCH


def http2(*fields, authority=b"good.example", scheme=b"https", path=b"/", method=b"GET"):
    return read(Head(b"HTTP/2.0", method, scheme, authority, path, fields), tls=True)


def test_http2_takes_the_authority_or_the_host():
    assert http2().host == "good.example"
    assert http2((b"host", b"good.example"), authority=b"").host == "good.example"
    assert http2((b"host", b"good.example")).spelled == b"good.example"


@pytest.mark.parametrize(
    "made",
    [
        {"authority": b""},
        {"authority": b"user@good.example"},
        {"scheme": b"http"},
        {"path": b""},
        {"path": b"/ HTTP/1.1\r\nX: y"},
        {"method": b"GET / HTTP/1.1"},
    ],
    ids=str,
)
def test_http2_that_would_split_or_stray(made):
    with pytest.raises(Unclear):
        http2(**made)


@pytest.mark.parametrize(
    "field",
    [(b"host", b"evil.example"), (b"transfer-encoding", b"chunked"), (b"x", b"a\r\nHost: evil.example"), (b"a b", b"")],
)
def test_http2_fields_that_would_split_or_stray(field):
    with pytest.raises(Unclear):
        http2(field)


def test_upgrades_are_seen_and_declined():
    head = (
        "GET / HTTP/1.1\nHost: good.example\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AA\n\n"
    )
    asked = reading(head)
    assert (asked.upgrade, asked.websocket) == (True, False)
    fields = parse_head(head.replace("\n", "\r\n").encode()).fields
    assert without_upgrade((*fields, (b"Connection", b"keep-alive, upgrade"))) == (
        (b"Host", b"good.example"),
        (b"Connection", b"keep-alive"),
    )
    assert reading("GET / HTTP/1.1\nHost: good.example\nUpgrade: h2c, WebSocket\n\n").websocket


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "x-http-method", "X-Method-Override"])
def test_another_method_in_a_header_is_seen(name):
    assert reading(f"POST / HTTP/1.1\nHost: good.example\n{name}: DELETE\n\n").overrides


@pytest.mark.parametrize(
    ("host", "port", "tls", "spelled"),
    [
        ("good.example", 443, True, b"good.example"),
        ("good.example", 443, False, b"good.example:443"),
        ("good.example", 80, False, b"good.example"),
        ("2001:db8::1", 8443, True, b"[2001:db8::1]:8443"),
        ("198.51.100.1", 443, True, b"198.51.100.1"),
    ],
)
def test_one_spelling_of_a_place(host, port, tls, spelled):
    assert authority(parse_host(f"[{host}]" if ":" in host else host), port, tls=tls) == spelled


def test_what_may_come_after_a_body():
    assert may_trail(b"Grpc-Status")
    assert not any(map(may_trail, (b"Host", b"content-length", b"Transfer-Encoding", b"Authorization", b"cookie")))


class Buffer:
    """Bytes as h11 keeps them."""

    def __new__(cls, data):
        from h11._receivebuffer import ReceiveBuffer

        buffer = ReceiveBuffer()
        buffer += data
        return buffer


def test_a_head_is_taken_whole_whatever_the_pieces():
    raw = b"\r\n\nGET / HTTP/1.1\r\nHost: good.example\r\n\r\nrest"
    buffer = Buffer(b"")
    heads = []
    for byte in raw:
        buffer += bytes([byte])
        heads += filter(None, [split_head(buffer)])
    assert heads == [raw[3:-4]]
    assert bytes(buffer) == b"rest"


def test_a_head_without_end_is_refused():
    with pytest.raises(Unclear):
        split_head(Buffer(b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000))


def test_how_long_a_body_is():
    def size(fields):
        return body_size(parse_head(f"POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode()))

    assert (size(""), size("Content-Length: 7\r\n"), size("Transfer-Encoding: chunked\r\n")) == (0, 7, None)
