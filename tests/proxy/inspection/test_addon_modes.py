"""The addon in each mode of a plain mitmdump: tunnels, and connections that are caught."""

import contextlib
import json
import socket

import pytest

from tests.proxy.inspection.inspection_clients import curl, rest, until


def say(dump, data, index=0):
    with socket.create_connection(("127.0.0.1", dump.ports[index]), 10) as connection:
        connection.sendall(data.encode())
        with contextlib.suppress(ConnectionResetError):
            return rest(connection)
        return b""


@pytest.mark.parametrize(
    "head",
    [
        "GET http://good.example:PORT/ HTTP/1.1\r\nHost: evil.example\r\n",
        "GET http://good.example:PORT/ HTTP/1.1\r\nHost: good.example:PORT\r\nHost: evil.example\r\n",
        "GET http://good.example:PORT/ HTTP/1.1\r\n",
        "GET http://evil.example:PORT/ HTTP/1.1\r\nHost: evil.example:PORT\r\n",
        "GET http://127.0.0.1:PORT/ HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n",
        "GET http://2130706433:PORT/ HTTP/1.1\r\nHost: 2130706433:PORT\r\n",
        "POST http://good.example:PORT/ HTTP/1.1\r\nHost: good.example:PORT\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "GET / HTTP/1.1\r\nHost: good.example:PORT\r\nUpgrade: websocket\r\nConnection: upgrade\r\n",
    ],
    ids=range(8),
)
def test_requests_that_stray(dump, head):
    asked = dump.plain.connections
    answer = say(dump, head.replace("PORT", str(dump.plain.port)) + "Connection: close\r\n\r\n")
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert dump.plain.connections == asked


@pytest.mark.parametrize("inside", ["SSH-2.0-x\r\n\r\n", "\x00\x00raw", "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"])
def test_a_tunnel_is_for_http_with_its_host(dump, inside):
    before = dump.tls.connections, dump.plain.connections
    with socket.create_connection(("127.0.0.1", dump.ports[0]), 10) as connection:
        connection.sendall(f"CONNECT good.example:{dump.tls.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" 200 " in until(connection, b"\r\n\r\n")
        connection.sendall(inside.encode("latin-1"))
        connection.settimeout(0.7)
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            assert b" 200 " not in rest(connection)
    assert (dump.tls.connections, dump.plain.connections) == before


def test_a_tunnel_s_sni_is_its_host(dump):
    before = dump.tls.connections
    status, _, _ = dump.curl("--connect-to", f"evil.example:443:good.example:{dump.tls.port}", "https://evil.example/x")
    assert status != 0
    assert dump.tls.connections == before
    assert dump.events("connection.decided")[-1]["reason"] == "name_mismatch"


def transparent(dump, *words, name="good.example", port=None):
    """Connect as if the kernel had redirected it."""
    dump.original("203.0.113.9", port or dump.tls.port)
    ca = dump.directory / "conf" / "mitmproxy-ca-cert.pem"
    return curl("--cacert", ca, "--connect-to", f"::127.0.0.1:{dump.ports[1]}", *words)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_transparent_tls_goes_to_the_name_and_not_to_the_address(dump, version):
    status, out, err = transparent(dump, version, f"https://good.example:{dump.tls.port}/echo")
    assert (status, err) == (0, "")
    assert json.loads(out)["authority"] == f"good.example:{dump.tls.port}"
    status, out, _ = transparent(dump, version, "--data", "x", "-X", "PUT", f"https://good.example:{dump.tls.port}/x")
    assert json.loads(out)["reason"] == "no_rule"


def test_transparent_plain(dump):
    status, out, err = transparent(dump, f"http://good.example:{dump.plain.port}/echo", port=dump.plain.port)
    assert (status, err) == (0, "")
    assert json.loads(out)["authority"] == f"good.example:{dump.plain.port}"


def test_transparent_to_a_name_that_no_rule_allows(dump):
    before = dump.tls.connections
    status, _, _ = transparent(dump, f"https://evil.example:{dump.tls.port}/x")
    assert status != 0
    assert dump.events("connection.decided")[-1]["reason"] == "no_rule"
    _, out, _ = transparent(dump, f"http://evil.example:{dump.plain.port}/x", port=dump.plain.port)
    assert json.loads(out)["reason"] == "no_rule"
    assert dump.tls.connections == before


def test_transparent_sni_of_an_allowed_name_with_another_host(dump):
    before = dump.tls.connections
    _, out, _ = transparent(dump, "--http1.1", "-H", "Host: evil.example", f"https://good.example:{dump.tls.port}/x")
    assert json.loads(out)["reason"] == "name_mismatch"
    assert dump.tls.connections == before


def test_transparent_dns_and_raw_bytes_are_cut(dump):
    dump.original("203.0.113.9", 53)
    assert say(dump, "\x00\x1d\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04good\x07example\x00", index=1) == b""
    dump.original("203.0.113.9", 22)
    assert b" 200 " not in say(dump, "SSH-2.0-x\r\n\r\n", index=1)
