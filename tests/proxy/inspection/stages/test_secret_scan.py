"""Secret scanning: heads and bodies of requests, findings that are flagged or blocked, and failures of the scan."""

import base64
import contextlib
import gzip
import hashlib
import json
import os
import re
import struct

import pytest

from proxy.dlp.body_scan import LOOKED_AT
from tests.proxy.inspection.clients import read_all, read_until
from tests.proxy.inspection.stages.secret_scan_lab import (
    AWS,
    FILLER,
    JWT,
    VALUE,
    assert_no_secret_disclosed,
    head,
    http2,
    make_scan_site,
    post,
    record_bodies,
)
from tests.proxy.leaky import KINDS, TOKEN, some
from tests.support.waiting import wait_until

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
def test_secret_in_a_head_is_flagged_and_sent(gate, origins, request_head, detail):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    answer = make_scan_site(gate, origin).request(request_head)  # `flag` where nothing is said
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(origin.requests) == 1
    (decided,), (leak,) = gate.events("request.decided"), gate.events("secret.detected")
    assert (decided["verdict"], decided["outcome"], decided["reason"]) == ("allow", "passed", "rule")
    assert (leak["verdict"], leak["outcome"], leak["reason"], leak["rules"]) == ("flag", "passed", "leak", ["t:a"])
    assert (leak["cause"], leak["destination"]["name"]) == (decided["id"], "good.example")
    assert leak["detail"] == detail
    wait_until(lambda: gate.events("request.completed"))
    assert_no_secret_disclosed(gate, answer)


@pytest.mark.parametrize(("request_head", "detail"), HEADS.values(), ids=HEADS)
def test_secret_in_a_head_is_blocked_and_not_sent(gate, origins, request_head, detail):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    answer = make_scan_site(gate, origin, "block").request(request_head)
    assert answer.startswith(b"HTTP/1.1 403")
    page = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert page["reason"] == "leak"
    assert (origin.requests, origin.connections) == ([], 0)
    (decided,), (leak,) = gate.events("request.decided"), gate.events("secret.detected")
    assert (decided["verdict"], decided["outcome"], decided["reason"]) == ("deny", "blocked", "leak")
    assert (leak["verdict"], leak["outcome"], leak["detail"]) == ("deny", "blocked", detail)
    assert leak["cause"] == decided["id"]
    assert_no_secret_disclosed(gate, answer)


PROXY_PASSWORD = some(20).encode()
FROM_THE_PROXY = {
    "as it is": head("GET /a", f"X-Note: {PROXY_PASSWORD.decode()}"),
    "in Proxy-Authorization": head("GET /a", f"Proxy-Authorization: Basic {base64.b64encode(b'me:' + PROXY_PASSWORD).decode()}"),
    "in the query": head(f"GET /a?p={PROXY_PASSWORD.hex()}"),
}  # fmt: skip


@pytest.mark.parametrize("request_head", FROM_THE_PROXY.values(), ids=FROM_THE_PROXY)
def test_password_of_the_upstream_proxy_is_blocked(gate, origins, request_head):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin, "block", secrets=False)
    gate.loop.run(lambda: gate.sandbox.set_secrets(None, PROXY_PASSWORD))
    assert site.request(request_head).startswith(b"HTTP/1.1 403")
    [leak] = gate.events("secret.detected")
    assert leak["detail"] == "the password for the upstream proxy in the head"
    assert origin.requests == []
    assert PROXY_PASSWORD.decode() not in json.dumps(gate.events())


def test_password_that_is_a_common_word_is_not_searched_for(gate, origins):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin, "block", secrets=False)
    gate.loop.run(lambda: gate.sandbox.set_secrets(None, b"example"))
    assert site.request(head("GET /example")).startswith(b"HTTP/1.1 200")


CREDENTIALS_IN_PLACE = {
    "authorization": head("GET /a", f"Authorization: Bearer {TOKEN}"),
    "a cookie": head("GET /a", f"Cookie: session={JWT}"),
    "a key's header": head("GET /a", f"X-Api-Key: {TOKEN}"),
    "a token's header": head("GET /a", f"X-Vault-Token: {TOKEN}"),
    "a token's parameter": head(f"GET /a?access_token={TOKEN}"),
    "a signed URL": head(f"GET /a?X-Amz-Credential={AWS}%2F20270101%2Feu%2Fs3&X-Amz-Signature=abc"),
    "a key for a WebSocket": head("GET /a", f"Sec-WebSocket-Protocol: realtime, key.{TOKEN}"),
    "no credential": head("GET /a", "X-Request-Id: 1"),
}


@pytest.mark.parametrize("request_head", CREDENTIALS_IN_PLACE.values(), ids=CREDENTIALS_IN_PLACE)
def test_credential_in_its_usual_place_is_not_reported(gate, origins, request_head):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    assert make_scan_site(gate, origin, "block").request(request_head).startswith(b"HTTP/1.1 200")
    assert gate.events("secret.detected") == []


def test_scan_off_reports_nothing(gate, origins):
    got = []
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    size = len(TOKEN)
    answer = make_scan_site(gate, origin, "off").request(
        head(f"POST /{TOKEN}", f"Content-Length: {size}"), TOKEN.encode()
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert got == [TOKEN.encode()]
    assert gate.events("secret.detected") == []


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        (f"/a/{TOKEN}/b", "/a/***/b"),
        (f"/a?x={TOKEN}", "/a"),
        (f"/a/{TOKEN}/{TOKEN}.txt?y={TOKEN}", "/a/***/***.txt"),
        ("/a/" + "".join(f"%{byte:02X}" for byte in TOKEN.encode()), "/***"),
        (f"/a/{VALUE.hex()}", "/***"),
    ],
)
def test_secret_in_a_path_is_masked_in_events(gate, origins, path, logged):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    make_scan_site(gate, origin).request(head(f"GET {path}"))
    wait_until(lambda: gate.events("request.completed"))
    for kind in ("request.decided", "request.completed", "secret.detected"):
        assert [event["http"]["path"] for event in gate.events(kind)] == [logged]


def test_strictest_scan_of_the_matching_rules_applies(gate, origins):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin, "off")
    port = f"{origin.port}/tls"
    rule = f"to: good.example, resolves_to: [127.0.0.0/8], ports: [{port}], action: allow"
    gate.rules(f"[{{id: a, {rule}, scan: off}}, {{id: b, {rule}, http: {{methods: [PUT]}}, scan: block}}]")
    assert site.request(head(f"GET /{TOKEN}")).startswith(b"HTTP/1.1 200")
    assert site.request(head(f"PUT /{TOKEN}", "Content-Length: 0")).startswith(b"HTTP/1.1 403")


def test_scan_block_acts_in_audit_mode(gate, origins):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin)
    rule = f"{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], scan: block, action: allow}}"
    gate.rules(f"[{rule}]", "settings: {mode: audit}")
    assert site.request(head(f"GET /{TOKEN}")).startswith(b"HTTP/1.1 403")  # a rule says block, and it acts


def test_denied_request_is_not_scanned(gate, origins):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    make_scan_site(gate, origin, http="{methods: [PUT]}").request(head(f"GET /{TOKEN}"))
    assert gate.decided()[0][2:] == ("blocked", "no_rule")
    assert gate.events("secret.detected") == []


@pytest.mark.parametrize("scan", ["flag", "block"])
def test_secret_in_an_http2_body_is_flagged_or_blocked(gate, origins, scan):
    origin = origins.web("good.example")
    site = make_scan_site(gate, origin, scan)
    secret = TOKEN.encode()
    with site.connect(["h2"]) as connection:
        status, body = http2(connection, site.host, FILLER[:9000], secret[:7], secret[7:], FILLER[:9000])
    wait_until(lambda: gate.events("secret.detected"))
    assert gate.events("secret.detected")[0]["detail"] == "github-token in the body"
    assert status == (b"200" if scan == "flag" else b"403")
    assert_no_secret_disclosed(gate, body)


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
def test_secret_in_a_websocket_message_is_flagged_or_blocked(gate, origins, scan):
    got = []
    origin = origins.script(chat(got), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin, scan, http="{methods: [GET], websocket: true}")
    with site.connect() as connection:
        lines = head("GET /chat", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Extensions: permessage-deflate")  # fmt: skip
        lines = lines.replace("Connection: close", "Connection: Upgrade").replace("HOST", site.host)
        connection.sendall(lines.replace("\n", "\r\n").encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101")
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
        wait_until(lambda: gate.events("secret.detected"))  # recorded while the WebSocket is open
    assert gate.events("secret.detected")[0]["detail"] == "github-token in the body"
    assert (leak in b"".join(got)) is (scan == "flag")
    assert (b"permessage-deflate" in origin.requests[0]) is (scan == "flag")


DATABASE_URL = "postgres://me:" + some(8) + "+" + some(8) + "@db.example/a"
BY_CURL = {
    "a form": (["--data-urlencode", f"note={DATABASE_URL}"], "url-password in the body"),
    "a query": (["-G", "--data-urlencode", f"note={DATABASE_URL}"], "url-password in the URL"),
}


@pytest.mark.parametrize(("words", "detail"), BY_CURL.values(), ids=BY_CURL)
def test_secret_encoded_by_curl_is_blocked(gate, origins, words, detail):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    make_scan_site(gate, origin, "block").curl("/a", *words)
    assert [leak["detail"] for leak in gate.events("secret.detected")] == [detail]
    assert gate.events("secret.detected")[0]["outcome"] == "blocked"


@pytest.mark.parametrize("more", ["", "x" * 8000])
@pytest.mark.parametrize(
    ("named", "status"), [("", b"403"), (", {id: n, to: good.example, action: flag}", b"200")], ids=["unnamed", "named"]
)
def test_scan_strict_blocks_a_token_to_a_host_that_no_rule_names(gate, origins, named, status, more):
    """Also in a long head, which is scanned before its decision."""
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin)
    gate.rules(
        f'[{{id: a, to: "*", resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: flag, scan: strict}}{named}]'
    )
    answer = site.request(head("GET /a", f"Authorization: Bearer {TOKEN}", f"X-More: {more}"))
    assert answer.split()[1] == status
    found = ["github-token in the header `Authorization`"] if status == b"403" else []
    assert [leak["detail"] for leak in gate.events("secret.detected")] == found


# --- bodies ---


def chunked(*pieces):
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


SECRETS = {
    "a token": (TOKEN.encode(), "github-token"),
    "a private key": (KINDS[0][1].encode(), "private-key"),
    "a value": (VALUE, "the value of the secret `key`"),
    "a value in base64": (base64.b64encode(b"ab" + VALUE), "the value of the secret `key`"),
    "a value in hexadecimal": (VALUE.hex().upper().encode(), "the value of the secret `key`"),
    "a value in percent signs": (b"".join(b"%%%02x" % byte for byte in VALUE), "the value of the secret `key`"),
}
SHAPES = {
    "alone": lambda secret: [secret],
    "at the end": lambda secret: [FILLER + secret],
    "in the middle": lambda secret: [FILLER + secret + b"\n" + FILLER],
    "over two pieces": lambda secret: [FILLER + secret[:11], secret[11:] + b"\n" + FILLER],
    "byte by byte": lambda secret: [secret[at : at + 1] for at in range(len(secret))],
}


TOGETHER = [("a token", shape) for shape in SHAPES] + [(secret, "over two pieces") for secret in SECRETS]


@pytest.mark.parametrize(("secret", "shape"), TOGETHER, ids=map(" ".join, TOGETHER))
def test_secret_in_a_body_is_blocked_before_any_of_it_is_sent(gate, origins, secret, shape):
    got, (secret, name) = [], SECRETS[secret]
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    pieces = SHAPES[shape](secret)
    body = b"".join(pieces)
    answer = post(make_scan_site(gate, origin, "block"), body, pieces=pieces)
    wait_until(lambda: gate.events("request.completed"))
    assert answer.startswith((b"HTTP/1.1 403", b""))
    (leak,), (completed,) = gate.events("secret.detected"), gate.events("request.completed")
    assert (leak["verdict"], leak["outcome"]) == ("deny", "blocked")
    assert leak["detail"].startswith(name)
    assert leak["detail"].endswith("in the body")
    assert (completed["outcome"], completed["reason"]) == ("blocked", "leak")
    before = body.index(secret)
    assert all(body.startswith(each) and len(each) <= before for each in got)
    assert_no_secret_disclosed(gate, answer)


@pytest.mark.parametrize(("secret", "shape"), TOGETHER, ids=map(" ".join, TOGETHER))
def test_flagged_body_is_sent_unchanged(gate, origins, secret, shape):
    got, (secret, name) = [], SECRETS[secret]
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    pieces = SHAPES[shape](secret)
    answer = post(make_scan_site(gate, origin), b"".join(pieces), pieces=pieces)
    assert answer.startswith(b"HTTP/1.1 200")
    assert got == [b"".join(pieces)]
    wait_until(lambda: gate.events("secret.detected"))
    details = [leak["detail"] for leak in gate.events("secret.detected")]
    assert any(detail.startswith(name) for detail in details)
    wait_until(lambda: gate.events("request.completed"))
    assert gate.events("request.completed")[0]["outcome"] == "passed"
    assert re.search(r"allowed 1 request, .*; flagged \d leaks? \(good.example\)", gate.recorder.summary().describe())
    assert_no_secret_disclosed(gate, answer)


def test_small_blocked_body_is_answered_with_a_page(gate, origins):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    answer = post(make_scan_site(gate, origin, "block"), b"x=" + TOKEN.encode())
    assert answer.startswith(b"HTTP/1.1 403")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "leak"
    assert "blocked 1 request (good.example)" in gate.recorder.summary().describe()
    assert "flagged" not in gate.recorder.summary().describe()


@pytest.mark.parametrize("at", [1, 4, 20, 39])
def test_secret_split_between_chunks_is_blocked(gate, origins, at):
    got = []
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    secret = TOKEN.encode()
    body = chunked(b"note: ", secret[:at], secret[at:], b" end")
    answer = post(make_scan_site(gate, origin, "block"), body, "Transfer-Encoding: chunked")
    assert b'"leak"' in answer
    assert b"".join(got) == b""


def test_compressed_body_is_scanned_or_blocked(gate, origins):
    got = []
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    packed = gzip.compress(os.urandom(3000).hex().encode() + TOKEN.encode())
    site = make_scan_site(gate, origin, "block")
    answer = post(site, packed, f"Content-Length: {len(packed)}", "Content-Encoding: gzip")
    assert b'"leak"' in answer
    assert got in ([], [b""])
    for packing in ("Content-Encoding: br", "Grpc-Encoding: gzip", "Connect-Content-Encoding: zstd"):
        answer = post(site, b"abcd", "Content-Length: 4", packing)
        assert b"the body can't be scanned" in answer
    answer = post(site, b"abcd", "Content-Length: 4", "Grpc-Encoding: identity")
    assert answer.startswith(b"HTTP/1.1 200")
    got.clear()
    parts = (
        b"--x\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(b"note " + TOKEN.encode()) + b"\r\n--x--"
    )
    answer = post(site, parts, f"Content-Length: {len(parts)}", "Content-Type: multipart/related; boundary=x")
    assert b'"leak"' in answer
    assert all(not each for each in got)


def test_secret_beyond_the_scan_limit_is_found_only_under_block(gate, origins):
    body = b"0123456789abcde\n" * (LOOKED_AT // 16 + 512) + TOKEN.encode()
    got = []
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    assert post(make_scan_site(gate, origin, secrets=False), body).startswith(b"HTTP/1.1 200")
    assert gate.events("secret.detected") == []
    post(make_scan_site(gate, origin, "block", secrets=False), body)
    wait_until(lambda: gate.events("secret.detected"))
    assert got[0] == body
    assert all(TOKEN.encode()[:8] not in each for each in got[1:])


def test_secret_split_between_two_requests_is_blocked(gate, origins):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin, "block")
    half = len(VALUE) // 2
    assert site.request(head(f"GET /{VALUE[:half].decode()}")).startswith(b"HTTP/1.1 200")
    assert site.request(head("GET /innocent")).startswith(b"HTTP/1.1 200")
    for _ in range(2):
        answer = post(site, VALUE[half:])
        assert b'"leak"' in answer
    assert {leak["detail"] for leak in gate.events("secret.detected")} == {
        "most of the value of the secret `key`, in one request or in several in the body"
    }
    assert VALUE[half:].decode() not in repr(origin.requests)
    assert [event["http"]["path"] for event in gate.events("request.decided")] == ["/***", "/innocent", "/a", "/a"]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_large_clean_upload_passes_under_block(gate, origins, version):
    origin = origins.web("good.example")
    site = make_scan_site(gate, origin, "block")
    body = gate.directory / "body"
    body.write_bytes(os.urandom(700_000).hex().encode())  # more than any HTTP/2 window
    status, out, err = site.curl("/upload", version, "-X", "POST", "-T", body)
    assert (status, err) == (0, "")
    assert json.loads(out)["sha256"] == hashlib.sha256(body.read_bytes()).hexdigest()
    assert gate.events("secret.detected") == []


@pytest.mark.parametrize("scan", ["flag", "block"])
def test_secret_in_trailers_is_flagged_or_blocked(gate, origins, scan):
    origin = origins.web("good.example")
    site = make_scan_site(gate, origin, scan)
    with site.connect(["h2"]) as connection:
        status, _ = http2(connection, site.host, b"abc", trailers=[("x-note", TOKEN)])
    wait_until(lambda: gate.events("secret.detected"))
    assert status == (b"200" if scan == "flag" else b"403")


# --- failures and reloads ---


# --- what goes wrong ---


def raising(*_arguments, **_named):
    raise ValueError(f"this must be shown to nobody: {TOKEN}")


WRONG = ["proxy.dlp.head_scan.candidates", "proxy.dlp.body_scan.candidates", "proxy.secrets.detection._readings"]


@pytest.mark.parametrize("part", WRONG)
def test_failed_scan_under_block_sends_nothing(gate, origins, monkeypatch, part):
    monkeypatch.setattr(part, raising)
    got = []
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    try:
        answer = post(make_scan_site(gate, origin, "block"), FILLER)
    except ConnectionError:
        answer = b""
    assert not answer.startswith(b"HTTP/1.1 200")
    wait_until(lambda: gate.events("gate.error"))
    assert all(not each for each in got)
    (fault,) = gate.events("gate.error")
    assert (fault["fault"]["where"], fault["fault"]["detail"]) == (
        "inspection", "RuntimeError: leaving bytes could not be looked at: ValueError",
    )  # fmt: skip
    assert_no_secret_disclosed(gate, answer)


@pytest.mark.parametrize("part", WRONG)
def test_failed_scan_under_flag_sends_the_body_and_records_the_fault(gate, origins, monkeypatch, part):
    monkeypatch.setattr(part, raising)
    got = []
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    answer = post(make_scan_site(gate, origin), FILLER)
    assert answer.startswith(b"HTTP/1.1 200")
    assert got == [FILLER]
    (fault,) = gate.events("gate.error")
    assert fault["fault"]["detail"] == "leaving bytes could not be looked at: ValueError"
    assert_no_secret_disclosed(gate, answer)


def test_secret_in_an_unfinished_upload_is_reported(gate, origins):
    origin = origins.script(record_bodies([]), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin)
    connection = site.connect()
    ask = head("POST /a", "Content-Length: 100000")
    connection.sendall(ask.replace("HOST", site.host).replace("\n", "\r\n").encode() + TOKEN.encode())
    wait_until(lambda: origin.requests)
    connection.close()
    wait_until(lambda: gate.events("request.completed"))
    assert [leak["detail"] for leak in gate.events("secret.detected")] == ["github-token in the body"]


def test_new_scan_block_stops_a_body_whose_scan_failed(gate, origins, monkeypatch):
    monkeypatch.setattr("proxy.dlp.body_scan.candidates", raising)
    got = []
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin)
    with site.connect() as connection:
        ask = head("POST /a", f"Content-Length: {len(FILLER) + 95}")
        connection.sendall(ask.replace("HOST", site.host).replace("\n", "\r\n").encode() + FILLER)
        wait_until(lambda: b"".join(got[-1:]) == FILLER)
        rules = gate.directory.joinpath("rules.yaml").read_text().split("rules: ")[1]
        gate.rules(rules.replace("action", "scan: block, action"))
        inspected = next(iter(gate.inspection._engine._connections.values()))
        with contextlib.suppress(ConnectionError):
            gate.loop.run(lambda: inspected.review(inspected._handover.decision))
            connection.sendall(b"x" * 95)
            read_all(connection)
    wait_until(lambda: gate.events("request.completed"))
    assert b"".join(got[-1:]) == FILLER
    assert gate.events("request.completed")[0]["reason"] == "gate_error"
    assert_no_secret_disclosed(gate, b"")


def test_new_scan_block_applies_to_an_upload_under_way(gate, origins):
    got = []
    origin = origins.script(record_bodies(got), "good.example", tls=True, alpn=["http/1.1"])
    site = make_scan_site(gate, origin)
    with site.connect() as connection:
        ask = head("POST /a", f"Content-Length: {len(TOKEN) + 5}")
        connection.sendall(ask.replace("HOST", site.host).replace("\n", "\r\n").encode() + b"abcde")
        wait_until(lambda: got and got[-1] == b"abcde")
        gate.rules(
            gate.directory.joinpath("rules.yaml")
            .read_text()
            .split("rules: ")[1]
            .replace("action", "scan: block, action")
        )
        conversation = next(iter(gate.inspection._engine._connections.values()))
        gate.loop.run(lambda: conversation.review(conversation._handover.decision))
        connection.sendall(TOKEN.encode())
        assert b'"leak"' in read_all(connection)
    assert got == [b"abcde"]
