"""What is said to a proxy and what its answers mean, byte by byte and whole, without a socket."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialing.proxy_auth import Login
from proxy.dialing.tunnel import LONGEST_HEAD, TunnelError, open_tunnel
from rules.settings import ProxyDestination, Upstream
from rules.values.addresses import parse_host

LOGIN = Login(b"me", b"ge:heim")
HTTP = Upstream.parse("http://proxy:3128")
SOCKS = Upstream.parse("socks5://proxy:1080")


def asking(upstream, target="good.example", login=None, port=443):
    return open_tunnel(ProxyDestination(upstream, parse_host(target)), port, login)


def converse(asked, pieces):
    """Hand over pieces as a socket would: what isn't taken is there again. Returns what was sent, and what is left."""
    sent, there = [asked.first], b""
    for piece in pieces:
        there += piece
        while there and not asked.open:
            taken, said = asked.take(there)
            assert taken > 0, "it would be woken for ever"
            there = there[taken:]
            if said:
                sent.append(said)
    return sent, there


FIRST = [
    ("a name", "good.example", None, b"CONNECT good.example:443 HTTP/1.1\r\nHost: good.example:443\r\n\r\n"),
    ("an IPv4 address", "8.8.8.8", None, b"CONNECT 8.8.8.8:443 HTTP/1.1\r\nHost: 8.8.8.8:443\r\n\r\n"),
    (
        "an IPv6 address",
        "2001:4860::8",
        None,
        b"CONNECT [2001:4860::8]:443 HTTP/1.1\r\nHost: [2001:4860::8]:443\r\n\r\n",
    ),
    (
        "with a login",
        "good.example",
        LOGIN,
        (
            b"CONNECT good.example:443 HTTP/1.1\r\nHost: good.example:443\r\n"
            b"Proxy-Authorization: Basic bWU6Z2U6aGVpbQ==\r\n\r\n"
        ),
    ),
]


@pytest.mark.parametrize(("target", "login", "bytes_"), [f[1:] for f in FIRST], ids=[f[0] for f in FIRST])
def test_connect_request_names_the_target(target, login, bytes_):
    assert asking(HTTP, target, login).first == bytes_


OK = b"HTTP/1.1 200 Connection established\r\n\r\n"
HEADS = [
    ("plain", OK),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\n"),
    ("no reason", b"HTTP/1.1 200\r\n\r\n"),
    ("another 2xx", b"HTTP/1.1 204 \r\n\r\n"),
    ("fields, and a length that means nothing", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nVia: 1.1 x\r\n\r\n"),
    ("bare line feeds", b"HTTP/1.1 200 OK\nVia: x\n\n"),
    ("an interim answer first", b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    ("as long as may be", b"HTTP/1.1 200 OK\r\nX: " + b"x" * (LONGEST_HEAD - 24) + b"\r\n\r\n"),
]
REST = [b"", b"SSH-2.0-server speaks first\r\n", b"\r\n\r\n", b"HTTP/1.1 407 no\r\n\r\n"]


@pytest.mark.parametrize("rest", REST)
@pytest.mark.parametrize("head", [h[1] for h in HEADS], ids=[h[0] for h in HEADS])
def test_accepted_connect_leaves_later_bytes_unread(head, rest):
    whole = head + rest
    ways = ([whole], [bytes([byte]) for byte in whole], [whole[:7], whole[7:]])
    for pieces in ways:
        asked = asking(HTTP)
        sent, left = converse(asked, pieces)
        assert asked.open
        assert (sent, left) == ([asked.first], rest)


REFUSALS = [
    ("407 without a login", HTTP, None, b"HTTP/1.1 407 Say who\r\n\r\n", "it requires a user and a password (407)"),
    ("407 with one", HTTP, LOGIN, b"HTTP/1.1 407 ge:heim\r\n\r\n", "it rejected the user and password (407)"),
    ("403", HTTP, None, b"HTTP/1.1 403 <b>no\r\nX: y\r\n\r\nbody", "it answered 403 (Forbidden)"),
    ("a control character", HTTP, None, b"HTTP/1.1 403 \x1b[31mno\r\nX: y\r\n\r\n", "it doesn't speak HTTP/1"),
    ("a status of none", HTTP, None, b"HTTP/1.1 000 no\r\n\r\n", "it answered 0"),
    ("a field without a colon", HTTP, None, b"HTTP/1.1 200 OK\r\nX\r\n\r\n", "it doesn't speak HTTP/1"),
    ("502", HTTP, None, b"HTTP/1.0 502 Bad\r\n\r\n", "it answered 502 (Bad Gateway)"),
    ("504", HTTP, None, b"HTTP/1.0 504 Late\r\n\r\n", "it answered 504 (Gateway Timeout)"),
    ("a status nobody knows", HTTP, None, b"HTTP/1.1 599 Own\r\n\r\n", "it answered 599"),
    ("a redirect", HTTP, None, b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "it answered 302 (Found)"),
    ("another protocol", HTTP, None, b"HTTP/1.1 101 Switching\r\n\r\n", "it answered 101 (Switching Protocols)"),
    ("no HTTP", HTTP, None, b"SSH-2.0-x\r\n\r\n", "it doesn't speak HTTP/1"),
    ("TLS", HTTP, None, b"\x15\x03\x01\x00\x02\x02\x46", "it doesn't speak HTTP/1"),
    ("HTTP/2", HTTP, None, b"HTTP/2 200 OK\r\n\r\n", "it doesn't speak HTTP/1"),
    ("a status of two digits", HTTP, None, b"HTTP/1.1 20 OK\r\n\r\n", "it doesn't speak HTTP/1"),
    ("a status of four", HTTP, None, b"HTTP/1.1 2000 OK\r\n\r\n", "it doesn't speak HTTP/1"),
    ("a status in another line", HTTP, None, b"HTTP/1.1\r\n200 OK\r\n\r\n", "it doesn't speak HTTP/1"),
    ("too long", HTTP, None, b"HTTP/1.1 200 OK\r\nX: " + b"x" * LONGEST_HEAD, f"longer than {LONGEST_HEAD} bytes"),
    ("interim without end", HTTP, None, b"HTTP/1.1 100 \r\n\r\n" * 1000, f"longer than {LONGEST_HEAD} bytes"),
    ("SOCKS 4", SOCKS, None, b"\x00\x5a", "it doesn't speak SOCKS 5"),
    ("HTTP instead", SOCKS, None, b"HTTP/1.1 400 Bad\r\n\r\n", "it doesn't speak SOCKS 5"),
    ("no method, without a login", SOCKS, None, b"\x05\xff", "it requires a user and a password"),
    ("no method, with one", SOCKS, LOGIN, b"\x05\xff", "it takes no user and password"),
    ("a method that was not offered", SOCKS, None, b"\x05\x02", "it requires a user and a password"),
    ("GSSAPI", SOCKS, LOGIN, b"\x05\x01", "it takes no user and password"),
    ("a wrong password", SOCKS, LOGIN, b"\x05\x02\x01\x01", "it rejected the user and password"),
    ("a login of another version", SOCKS, LOGIN, b"\x05\x02\x05\x00", "it rejected the user and password"),
    ("failed", SOCKS, None, b"\x05\x00\x05\x01\x00\x01", "it failed in general"),
    ("not allowed", SOCKS, None, b"\x05\x00\x05\x02\x00\x01", "its rules don't allow that"),
    ("no network", SOCKS, None, b"\x05\x00\x05\x03\x00\x01", "the network can't be reached from it"),
    ("no host", SOCKS, None, b"\x05\x00\x05\x04\x00\x01", "the host can't be reached from it"),
    ("refused", SOCKS, None, b"\x05\x00\x05\x05\x00\x01", "the host refused it"),
    ("expired", SOCKS, None, b"\x05\x00\x05\x06\x00\x01", "its connection timed out"),
    ("no such command", SOCKS, None, b"\x05\x00\x05\x07\x00\x01", "it knows no such command"),
    ("no such address", SOCKS, None, b"\x05\x00\x05\x08\x00\x01", "it doesn't support this type of address"),
    ("an unknown code", SOCKS, None, b"\x05\x00\x05\x63\x00\x01", "it failed with code 99"),
    ("an unknown kind of address", SOCKS, None, b"\x05\x00\x05\x00\x00\x02", "an unknown type of address"),
    ("another version in the reply", SOCKS, None, b"\x05\x00\x04\x00\x00\x01", "it doesn't speak SOCKS 5"),
]  # fmt: skip


@pytest.mark.parametrize(("upstream", "login", "said", "why"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_refusal_has_a_reason_and_no_text_of_the_proxy(upstream, login, said, why):
    for pieces in ([said], [bytes([byte]) for byte in said]):
        asked = asking(upstream, login=login)
        with pytest.raises(TunnelError) as refused:
            converse(asked, pieces)
        assert why in str(refused.value)
        assert not asked.open
        assert str(refused.value).isprintable()
        assert "heim" not in str(refused.value)


NAME = b"\x03\x0cgood.example"
ASKED = [
    ("a name", "good.example", NAME),
    ("an IPv4 address", "8.8.8.8", b"\x01\x08\x08\x08\x08"),
    ("an IPv6 address", "2001:4860::8", b"\x04" + parse_host("2001:4860::8").packed),
    ("the longest name", ".".join(["a" * 61] * 4) + ".example"[:5], None),
]
BOUND = [b"\x01\x01\x02\x03\x04\x00\x50", b"\x04" + bytes(18), b"\x03\x05proxy\x00\x50", b"\x03\x00\x00\x50"]


@pytest.mark.parametrize("rest", REST)
@pytest.mark.parametrize("bound", BOUND)
@pytest.mark.parametrize(("target", "place"), [a[1:] for a in ASKED], ids=[a[0] for a in ASKED])
def test_accepted_socks_request_leaves_later_bytes_unread(target, place, bound, rest):
    place = place or b"\x03" + bytes([len(target)]) + target.encode()
    for login, hello, talk in (
        (None, b"\x05\x01\x00", b"\x05\x00"),
        (LOGIN, b"\x05\x02\x00\x02", b"\x05\x00"),
        (LOGIN, b"\x05\x02\x00\x02", b"\x05\x02\x01\x00"),
    ):
        whole = talk + b"\x05\x00\x00" + bound + rest
        for pieces in ([whole], [bytes([byte]) for byte in whole]):
            asked = asking(SOCKS, target, login)
            sent, left = converse(asked, pieces)
            assert asked.open
            assert left == rest
            told = [b"\x01\x02me\x07ge:heim"] if len(talk) == 4 else []
            assert sent == [hello, *told, b"\x05\x01\x00" + place + b"\x01\xbb"]


def test_login_is_sent_only_when_requested():
    asked = asking(SOCKS, login=LOGIN)
    sent, _ = converse(asked, [b"\x05\x00\x05\x00\x00" + BOUND[0]])
    assert not any(b"heim" in said for said in sent)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([HTTP, SOCKS]), st.booleans(), st.lists(st.binary(min_size=1, max_size=40), max_size=20))
def test_any_proxy_answer_opens_waits_or_fails(upstream, with_login, pieces):
    asked = asking(upstream, login=LOGIN if with_login else None)
    try:
        sent, left = converse(asked, pieces)
    except TunnelError:
        assert not asked.open
        return
    assert sum(map(len, sent)) < 1024
    assert asked.open or not left
    if asked.open:
        assert asked.take(b"more") == (0, b"")
