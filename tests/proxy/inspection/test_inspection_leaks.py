"""Leaks on the wire: what a task sends is looked through, told of or blocked, and nothing of a secret is ever shown.

What the origins got, what the task got and what the journal says are looked at.
"""

import base64
import json
import os
import struct

import pytest

from tests.proxy.inspection.inspection_clients import until, wait_for
from tests.proxy.inspection.inspection_leaks_harness import (
    AWS,
    FILLER,
    JWT,
    VALUE,
    head,
    http2,
    never_told,
    place,
    recording,
)
from tests.proxy.leaky import TOKEN, some

HEADS = {
    "the path": (head(f"GET /a/{TOKEN}"), "github-token in the URL"),
    "the query": (head(f"GET /a?note={TOKEN}"), "github-token in the URL"),
    "the query, escaped": (head("GET /a?note=" + "".join(f"%{byte:02X}" for byte in TOKEN.encode())), "github-token in the URL"),
    "the method": (head(f"{TOKEN} /a"), "github-token in the method"),
    "a header": (head("GET /a", f"X-Note: {TOKEN}"), "github-token in the header `X-Note`"),
    "a referer": (head("GET /a", f"Referer: https://x.example/?q={TOKEN}"), "github-token in the header `Referer`"),
    "a header's name": (head("GET /a", f"X-{TOKEN}: a"), "github-token in the name of a header"),
    "the value of a secret in its usual place": (head("GET /a", f"Authorization: Bearer {VALUE.decode()}"), "the value of the secret `key` in the head"),
    "in basic authentication": (head("GET /a", f"Authorization: Basic {base64.b64encode(b'me:' + VALUE).decode()}"), "the value of the secret `key` in the head"),
    "in the path": (head(f"GET /{VALUE.hex()}"), "the value of the secret `key` in the head"),
    "in a cookie": (head("GET /a", f"Cookie: a={VALUE.decode()}"), "the value of the secret `key` in the head"),
}  # fmt: skip


@pytest.mark.parametrize(("request_head", "detail"), HEADS.values(), ids=HEADS)
def test_a_head_is_told_of_and_goes_out(gate, origins, request_head, detail):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    answer = place(gate, origin).ask(request_head)  # `flag` where nothing is said
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(origin.requests) == 1
    (decided,), (leak,) = gate.events("request.decided"), gate.events("secret.detected")
    assert (decided["verdict"], decided["outcome"], decided["reason"]) == ("allow", "passed", "rule")
    assert (leak["verdict"], leak["outcome"], leak["reason"], leak["rules"]) == ("flag", "passed", "leak", ["t:a"])
    assert (leak["cause"], leak["destination"]["name"]) == (decided["id"], "good.example")
    assert leak["detail"] == detail
    wait_for(lambda: gate.events("request.completed"))
    never_told(gate, answer)


@pytest.mark.parametrize(("request_head", "detail"), HEADS.values(), ids=HEADS)
def test_a_head_that_is_blocked_goes_nowhere(gate, origins, request_head, detail):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    answer = place(gate, origin, "block").ask(request_head)
    assert answer.startswith(b"HTTP/1.1 403")
    said = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert said["reason"] == "leak"
    assert (origin.requests, origin.connections) == ([], 0)
    (decided,), (leak,) = gate.events("request.decided"), gate.events("secret.detected")
    assert (decided["verdict"], decided["outcome"], decided["reason"]) == ("deny", "blocked", "leak")
    assert (leak["verdict"], leak["outcome"], leak["detail"]) == ("deny", "blocked", detail)
    assert leak["cause"] == decided["id"]
    never_told(gate, answer)


PROXY_PASSWORD = some(20).encode()
FROM_THE_PROXY = {
    "as it is": head("GET /a", f"X-Note: {PROXY_PASSWORD.decode()}"),
    "as a proxy is told it": head("GET /a", f"Proxy-Authorization: Basic {base64.b64encode(b'me:' + PROXY_PASSWORD).decode()}"),
    "in the query": head(f"GET /a?p={PROXY_PASSWORD.hex()}"),
}  # fmt: skip


@pytest.mark.parametrize("request_head", FROM_THE_PROXY.values(), ids=FROM_THE_PROXY)
def test_the_password_for_the_upstream_proxy_goes_nowhere_else(gate, origins, request_head):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin, "block", secrets=False)
    gate.loop.run(lambda: gate.sandbox.set_secrets(None, PROXY_PASSWORD))
    assert made.ask(request_head).startswith(b"HTTP/1.1 403")
    [leak] = gate.events("secret.detected")
    assert leak["detail"] == "the password for the upstream proxy in the head"
    assert origin.requests == []
    assert PROXY_PASSWORD.decode() not in json.dumps(gate.events())


def test_a_password_that_is_found_everywhere_is_not_looked_for(gate, origins):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin, "block", secrets=False)
    gate.loop.run(lambda: gate.sandbox.set_secrets(None, b"example"))
    assert made.ask(head("GET /example")).startswith(b"HTTP/1.1 200")


USUAL = {
    "authorization": head("GET /a", f"Authorization: Bearer {TOKEN}"),
    "a cookie": head("GET /a", f"Cookie: session={JWT}"),
    "a key's header": head("GET /a", f"X-Api-Key: {TOKEN}"),
    "a token's header": head("GET /a", f"X-Vault-Token: {TOKEN}"),
    "a token's parameter": head(f"GET /a?access_token={TOKEN}"),
    "a signed URL": head(f"GET /a?X-Amz-Credential={AWS}%2F20270101%2Feu%2Fs3&X-Amz-Signature=abc"),
    "a key for a WebSocket": head("GET /a", f"Sec-WebSocket-Protocol: realtime, key.{TOKEN}"),
    "a placeholder": head("GET /a", "X-Request-Id: 1"),
}


@pytest.mark.parametrize("request_head", USUAL.values(), ids=USUAL)
def test_a_credential_in_its_usual_place_is_no_leak(gate, origins, request_head):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    assert place(gate, origin, "block").ask(request_head).startswith(b"HTTP/1.1 200")
    assert gate.events("secret.detected") == []


def test_off_is_off(gate, origins):
    got = []
    origin = origins.script(recording(got), "good.example", tls=True, alpn=["http/1.1"])
    size = len(TOKEN)
    answer = place(gate, origin, "off").ask(head(f"POST /{TOKEN}", f"Content-Length: {size}"), TOKEN.encode())
    assert answer.startswith(b"HTTP/1.1 200")
    assert got == [TOKEN.encode()]
    assert gate.events("secret.detected") == []


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (f"/a/{TOKEN}/b", "/a/***/b"),
        (f"/a?x={TOKEN}", "/a"),
        (f"/a/{TOKEN}/{TOKEN}.txt?y={TOKEN}", "/a/***/***.txt"),
        ("/a/" + "".join(f"%{byte:02X}" for byte in TOKEN.encode()), "/***"),
        (f"/a/{VALUE.hex()}", "/***"),
    ],
)
def test_a_path_is_told_without_the_secret(gate, origins, path, told):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    place(gate, origin).ask(head(f"GET {path}"))
    wait_for(lambda: gate.events("request.completed"))
    for kind in ("request.decided", "request.completed", "secret.detected"):
        assert [event["http"]["path"] for event in gate.events(kind)] == [told]


def test_the_strictest_of_the_rules_that_match_counts(gate, origins):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin, "off")
    port = f"{origin.port}/tls"
    rule = f"to: good.example, resolves_to: [127.0.0.0/8], ports: [{port}], action: allow"
    gate.rules(f"[{{id: a, {rule}, scan: off}}, {{id: b, {rule}, http: {{methods: [PUT]}}, scan: block}}]")
    assert made.ask(head(f"GET /{TOKEN}")).startswith(b"HTTP/1.1 200")
    assert made.ask(head(f"PUT /{TOKEN}", "Content-Length: 0")).startswith(b"HTTP/1.1 403")


def test_what_is_only_audited_is_looked_at_too(gate, origins):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin)
    rule = f"{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], scan: block, action: allow}}"
    gate.rules(f"[{rule}]", "settings: {mode: audit}")
    assert made.ask(head(f"GET /{TOKEN}")).startswith(b"HTTP/1.1 403")  # a rule says block, and it acts


def test_a_denied_request_is_not_looked_at(gate, origins):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    place(gate, origin, http="{methods: [PUT]}").ask(head(f"GET /{TOKEN}"))
    assert gate.decided()[0][2:] == ("blocked", "no_rule")
    assert gate.events("secret.detected") == []


@pytest.mark.parametrize("scan", ["flag", "block"])
def test_http2_is_read_the_same(gate, origins, scan):
    origin = origins.web("good.example")
    made = place(gate, origin, scan)
    secret = TOKEN.encode()
    with made.connect(["h2"]) as connection:
        status, body = http2(connection, made.host, FILLER[:9000], secret[:7], secret[7:], FILLER[:9000])
    wait_for(lambda: gate.events("secret.detected"))
    assert gate.events("secret.detected")[0]["detail"] == "github-token in the body"
    assert status == (b"200" if scan == "flag" else b"403")
    never_told(gate, body)


KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
SWITCH = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"


def frame(text):
    mask = os.urandom(4)
    size = struct.pack(">BBH", 0x81, 0x80 | 126, len(text))
    return size + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))


def chat(got):
    def answer(connection, _head):
        connection.sendall(SWITCH.encode())
        while data := connection.recv(65536):
            got.append(data)
            connection.sendall(b"\x81\x02ok")

    return answer


@pytest.mark.parametrize("scan", ["flag", "block"])
def test_a_websocket_s_messages_are_looked_at(gate, origins, scan):
    got = []
    origin = origins.script(chat(got), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin, scan, http="{methods: [GET], websocket: true}")
    with made.connect() as connection:
        lines = head("GET /chat", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Extensions: permessage-deflate")  # fmt: skip
        lines = lines.replace("Connection: close", "Connection: Upgrade").replace("HOST", made.host)
        connection.sendall(lines.replace("\n", "\r\n").encode())
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101")
        innocent, leak = frame(b"hello"), frame(b"look: " + TOKEN.encode())
        connection.sendall(innocent)
        assert connection.recv(100) == b"\x81\x02ok"
        connection.sendall(leak)
        answer = connection.recv(200)
        if scan == "block":
            assert answer[:4] == b"\x88" + answer[1:2] + b"\x03\xf0"  # 1008
        else:
            assert answer == b"\x81\x02ok"
            connection.sendall(innocent)
            assert connection.recv(100) == b"\x81\x02ok"
        wait_for(lambda: gate.events("secret.detected"))  # told while it is open
    assert gate.events("secret.detected")[0]["detail"] == "github-token in the body"
    assert (leak in b"".join(got)) is (scan == "flag")
    assert (b"permessage-deflate" in origin.requests[0]) is (scan == "flag")


NOTE = "postgres://me:" + some(8) + "+" + some(8) + "@db.example/a"
BY_CURL = {
    "a form": (["--data-urlencode", f"note={NOTE}"], "url-password in the body"),
    "a query": (["-G", "--data-urlencode", f"note={NOTE}"], "url-password in the URL"),
}


@pytest.mark.parametrize(("words", "detail"), BY_CURL.values(), ids=BY_CURL)
def test_what_curl_encodes_is_found_and_blocked(gate, origins, words, detail):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    place(gate, origin, "block").curl("/a", *words)
    assert [leak["detail"] for leak in gate.events("secret.detected")] == [detail]
    assert gate.events("secret.detected")[0]["outcome"] == "blocked"


@pytest.mark.parametrize("more", ["", "x" * 8000])
@pytest.mark.parametrize(
    ("named", "status"), [("", b"403"), (", {id: n, to: good.example, action: flag}", b"200")], ids=["unnamed", "named"]
)
def test_strict_blocks_a_token_in_its_place_where_nothing_names_the_host(gate, origins, named, status, more):
    """Also in a long head, which is looked through before it is decided on."""
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin)
    gate.rules(
        f'[{{id: a, to: "*", resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: flag, scan: strict}}{named}]'
    )
    answer = made.ask(head("GET /a", f"Authorization: Bearer {TOKEN}", f"X-More: {more}"))
    assert answer.split()[1] == status
    found = ["github-token in the header `Authorization`"] if status == b"403" else []
    assert [leak["detail"] for leak in gate.events("secret.detected")] == found
