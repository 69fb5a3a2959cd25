"""Secret injection: a value is sent where its secret belongs and nowhere else."""

import base64
import json
from dataclasses import replace
from urllib.parse import quote

import pytest

from proxy.secrets import SecretInjector, SecretValue, make_aws_keys
from rules.decision import Decision
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName
from rules.verdicts import Outcome, Reason, Verdict
from tests.lab.aws import Keys, signed
from tests.proxy.inspection.clients import curl, read_all, read_until
from tests.proxy.inspection.inspection_lab import make_site
from tests.proxy.inspection.stages.secret_injection_lab import (
    FAKE,
    NO_PASSWORD,
    PASSWORD,
    REAL,
    SHOWN,
    assert_no_secret_disclosed,
    basic,
    echo,
    head,
    http2,
    make_secret_site,
    received,
    record_posted,
)
from tests.support.waiting import wait_until

IN_PLACE = {
    "bearer": (head("GET /echo", f"Authorization: Bearer {SHOWN}"), f"Bearer {REAL.decode()}"),
    "another word": (head("GET /echo", f"authorization: token {SHOWN}"), f"token {REAL.decode()}"),
    "no word": (head("GET /echo", f"X-API-Key: {SHOWN}"), REAL.decode()),
    "basic": (head("GET /echo", basic(b"me:" + NO_PASSWORD)), base64.b64encode(b"me:" + PASSWORD).decode()),
    "basic, as a user": (head("GET /echo", basic(NO_PASSWORD + b":")), base64.b64encode(PASSWORD + b":").decode()),
    "query": (head(f"GET /echo?a=b&key={SHOWN}&c=d"), f"/echo?a=b&key={quote(REAL, safe='')}&c=d"),
}


@pytest.mark.parametrize(("request_head", "sent"), IN_PLACE.values(), ids=IN_PLACE)
def test_placeholder_in_its_slot_is_replaced_with_the_value(gate, origins, request_head, sent):
    origin = origins.script(echo, "good.example", tls=True, alpn=["http/1.1"])
    answer = make_secret_site(gate, origin).request(request_head)
    assert answer.startswith(b"HTTP/1.1 200")
    assert sent.encode() in origin.requests[0]
    assert FAKE not in origin.requests[0]
    assert NO_PASSWORD not in origin.requests[0]
    wait_until(lambda: gate.events("request.completed"))
    assert gate.events("tampering.detected") == []
    assert_no_secret_disclosed(gate, answer)


B64 = base64.b64encode(b"x" + FAKE).decode()


PERCENT = "".join(f"%{byte:02x}" for byte in FAKE)


# requests to the host of the secret, and the position that the event names
MISUSED = {
    "another header": (head("GET /echo", f"X-Other: {SHOWN}"), "the header `X-Other`"),
    "a cookie": (head("GET /echo", f"Cookie: a={SHOWN}"), "the header `Cookie`"),
    "the path": (head(f"GET /echo/{SHOWN}"), "the URL"),
    "the path, escaped": (head(f"GET /echo/{PERCENT}"), "the URL"),
    "the path, escaped twice": (head(f"GET /echo/{PERCENT.replace('%', '%25')}"), "the URL"),
    "another parameter": (head(f"GET /echo?token={SHOWN}"), "the URL"),
    "the parameter, escaped": (head(f"GET /echo?key={PERCENT}"), "the URL"),
    "the parameter twice": (head(f"GET /echo?key={SHOWN}&key={SHOWN}"), "the URL"),
    "the parameter in another case": (head(f"GET /echo?KEY={SHOWN}"), "the URL"),
    "the parameter with more": (head(f"GET /echo?key={SHOWN}x"), "the URL"),
    "the header twice": (head("GET /echo", f"X-API-Key: {SHOWN}", "X-API-Key: a"), "the header `X-API-Key`"),
    "the header with more": (head("GET /echo", f"Authorization: Bearer {SHOWN}, a"), "the header `Authorization`"),
    "words before it": (head("GET /echo", f"Authorization: Bearer a {SHOWN}"), "the header `Authorization`"),
    "in another case": (head("GET /echo", f"X-API-Key: {SHOWN.upper()}"), "the header `X-API-Key`"),
    "base64": (head("GET /echo", f"X-Other: {B64}"), "the header `X-Other`"),
    "hexadecimal": (head("GET /echo", f"X-Other: {FAKE.hex()}"), "the header `X-Other`"),
    "basic with a key's": (head("GET /echo", basic(b"me:" + FAKE)), "the header `Authorization`"),
    "bearer with a password's": (head("GET /echo", f"Authorization: Bearer {NO_PASSWORD.decode()}"), "the header `Authorization`"),
    "basic with more": (head("GET /echo", basic(b"me:" + NO_PASSWORD + b":x")), "the header `Authorization`"),
    "a header's name": (head("GET /echo", f"X-{SHOWN}: a"), "the name of a header"),
    "in its place and elsewhere": (head("GET /echo", f"X-API-Key: {SHOWN}", f"X-Other: {SHOWN}"), "the header `X-Other`"),
    "as a user and in its place": (head("GET /echo", basic(NO_PASSWORD + b":" + NO_PASSWORD)), "the header `Authorization`"),
}  # fmt: skip


@pytest.mark.parametrize(("request_head", "where"), MISUSED.values(), ids=MISUSED)
def test_placeholder_outside_its_slot_is_blocked(gate, origins, request_head, where):
    origin = origins.web("good.example")
    answer = make_secret_site(gate, origin).request(request_head)
    assert answer.startswith(b"HTTP/1.1 403")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "secret_misuse"
    assert (origin.requests, origin.connections) == ([], 0)
    (tamper,), (decided,) = gate.events("tampering.detected"), gate.events("request.decided")
    assert (tamper["cause"], tamper["reason"], tamper["destination"]["name"]) == (
        decided["id"], "secret_misuse", "good.example",
    )  # fmt: skip
    assert f"is in {where}, " in tamper["detail"]
    its_own = where.lower() in ("the header `authorization`", "the header `x-api-key`")
    assert (
        "but must be there complete, unencoded and once" if its_own else "where it doesn't belong; it belongs in"
    ) in tamper["detail"]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == tamper["detail"]
    assert (decided["verdict"], decided["outcome"], decided["reason"]) == ("deny", "blocked", "secret_misuse")
    assert_no_secret_disclosed(gate, answer)


ELSEWHERE = {  # site options, and the texts of page and event
    "another host": ({"host": "other.example"}, "was sent to `good.example:%d`, in", "send it only to `other.example:%d` over TLS"),
    "a host that looks like it": (
        {"name": "good.example.evil.example"}, "was sent to `good.example.evil.example:%d`, in", "send it only to `good.example:%d` over TLS",
    ),
    "a host below it": ({"name": "api.good.example"}, "was sent to `api.good.example:%d`, in", "send it only to `good.example:%d` over TLS"),
    "plain HTTP": (
        {"tls": False}, "was sent to `good.example:%d` without TLS", "send it only to `good.example:%d` over TLS",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("where", "sent", "belongs"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_placeholder_to_another_host_or_without_tls_is_blocked(gate, origins, where, sent, belongs):
    origin = origins.web(where.get("name", "good.example"), tls=where.get("tls", True))
    answer = make_secret_site(gate, origin, **where).request(head("GET /echo", f"Authorization: Bearer {SHOWN}"))
    assert answer.startswith(b"HTTP/1.1 403")
    assert gate.decided() == [("GET", "/echo", "blocked", "secret_misuse")]
    (tamper,) = gate.events("tampering.detected")
    assert tamper["detail"].startswith("the placeholder of `model-key` was sent to ")
    assert sent % origin.port in tamper["detail"]
    assert belongs % origin.port + ", in the header `authorization` or" in tamper["detail"]
    assert "doesn't belong" not in tamper["detail"]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == tamper["detail"]
    assert origin.connections == 0


def test_placeholder_to_another_port_is_blocked(gate, origins):
    origin, other = origins.web("good.example"), origins.web("good.example")
    make_secret_site(gate, origin)
    gate.rules(f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{other.port}/tls], action: allow}}]")
    gate_port = gate.listen_for("good.example", other.port)
    status, out, _ = curl(
        "--cacert", gate.bundle, "--connect-to", f"good.example:{other.port}:127.0.0.1:{gate_port}", "-H", f"X-API-Key: {SHOWN}",
        f"https://good.example:{other.port}/echo",
    )  # fmt: skip
    assert (status, json.loads(out)["reason"]) == (0, "secret_misuse")
    assert other.connections == 0


def test_value_is_not_sent_to_an_untrusted_server(gate, origins):
    origin = origins.web("good.example", kind="expired")
    answer = make_secret_site(gate, origin).request(head("GET /echo", f"Authorization: Bearer {SHOWN}"))
    assert answer.startswith(b"HTTP/1.1 502")
    assert origin.requests == []
    assert_no_secret_disclosed(gate, answer)


def test_misused_placeholder_is_blocked_in_audit_mode(gate, origins):
    origin = origins.web("good.example")
    site = make_secret_site(gate, origin)
    gate.rules("[]", "settings: {mode: audit}")
    site.request(head("GET /echo", f"X-Other: {SHOWN}"))
    assert gate.decided() == [("GET", "/echo", "blocked", "secret_misuse")]


BODIES = {
    "whole": [b"key=" + FAKE],
    "in two pieces": [b"key=" + FAKE[:9], FAKE[9:]],
    "byte by byte": [bytes([byte]) for byte in FAKE],
    "base64": [base64.b64encode(b"a" + FAKE + b"b")],
}


@pytest.mark.parametrize("pieces", BODIES.values(), ids=BODIES)
def test_placeholder_in_a_body_ends_the_request(gate, origins, pieces):
    origin = origins.web("good.example")
    site = make_secret_site(gate, origin)
    size = sum(map(len, pieces)) + 10
    with site.connect() as connection:
        ask = f"POST /echo HTTP/1.1\nHost: {site.host}\nContent-Length: {size}\n\n"
        connection.sendall(ask.replace("\n", "\r\n").encode())
        for piece in pieces:
            connection.sendall(piece)
        answer = read_all(connection)
    assert b"secret_misuse" in answer
    wait_until(lambda: gate.events("tampering.detected"))
    wait_until(lambda: gate.events("request.completed"))
    (decided,), (completed,), (tamper,) = map(
        gate.events, ("request.decided", "request.completed", "tampering.detected")
    )
    assert (decided["outcome"], completed["outcome"], completed["reason"]) == ("passed", "blocked", "secret_misuse")
    assert tamper["cause"] == decided["id"]
    assert "is in the body" in tamper["detail"]
    assert FAKE not in received(origin).encode()
    summary = gate.recorder.summary().describe()
    assert "blocked 1 request (good.example)" in summary
    assert summary.endswith("; 1 misused placeholder")


def test_placeholder_in_an_http2_header_is_replaced(gate, origins):
    origin = origins.web("good.example")
    site = make_secret_site(gate, origin)
    with site.connect(["h2"]) as connection:
        found, body = http2(connection, site.host, [("authorization", f"Bearer {SHOWN}")])
    assert found[b":status"] == b"200"
    assert f"Bearer {REAL.decode()}" in received(origin)
    assert SHOWN not in received(origin)
    assert_no_secret_disclosed(gate, body)


def test_misused_placeholder_in_continuation_frames_is_blocked(gate, origins):
    origin = origins.web("good.example")
    site = make_secret_site(gate, origin)
    long = [(f"x-{number}", "a" * 3000) for number in range(10)]  # a frame has 16 KB (RFC 9113 section 4.2)
    with site.connect(["h2"]) as connection:
        found, body = http2(connection, site.host, [*long, ("x-other", SHOWN)])
    assert (found[b":status"], json.loads(body)["reason"]) == (b"403", "secret_misuse")
    assert origin.connections == 0


def test_placeholder_in_trailers_ends_the_request(gate, origins):
    origin = origins.web("good.example")
    site = make_secret_site(gate, origin)
    with site.connect(["h2"]) as connection:
        http2(connection, site.host, [("te", "trailers")], trailers=[("x-late", SHOWN)])
    wait_until(lambda: gate.events("tampering.detected"))
    assert "is in the trailers" in gate.events("tampering.detected")[0]["detail"]
    assert SHOWN not in received(origin)


def test_request_without_a_placeholder_is_forwarded_unchanged(gate, origins):
    origin = origins.script(echo, "good.example", tls=True, alpn=["http/1.1"])
    make_secret_site(gate, origin).request(head("GET /echo", "Accept-Encoding: gzip"))
    assert b"Accept-Encoding: gzip" in origin.requests[0]


def test_placeholder_after_the_response_began_resets_the_client(gate, origins):
    """The response has begun, so only a reset can show the failure."""

    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
        read_all(connection)

    origin = origins.script(answer, "good.example", tls=True, alpn=["http/1.1"])
    site = make_secret_site(gate, origin)
    with site.connect() as connection:
        ask = f"POST /echo HTTP/1.1\nHost: {site.host}\nContent-Length: 100\n\n"
        connection.sendall(ask.replace("\n", "\r\n").encode())
        assert read_until(connection, b"begun").endswith(b"begun")
        connection.sendall(FAKE)
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("blocked", "secret_misuse")
    assert len(gate.events("tampering.detected")) == 1


@pytest.mark.parametrize(
    ("field", "tampered", "reason"), [(f"X-API-Key: {SHOWN}", 1, "secret_misuse"), ("X-API-Key: a", 0, "no_rule")]
)
def test_placeholder_to_a_denied_host_is_recorded_as_tampering(gate, origins, field, tampered, reason):
    origin = origins.web("other.example")
    site = make_secret_site(gate, origin, name="other.example")
    gate.rules("[]")
    answer = site.request(head("GET /echo", field))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == reason
    assert [e["cause"] for e in gate.events("tampering.detected")] == [
        gate.events("connection.decided")[0]["id"]
    ] * tampered
    assert origin.connections == 0


# --- rules with `credential` ---


# fields and query of a request under a rule with `credential: model-key`, and the decision
CREDENTIALS = {
    "ours": ([f"Authorization: Bearer {SHOWN}"], "", "passed rule"),
    "none": ([], "", "blocked credential_mismatch"),
    "the attacker's": (["Authorization: Bearer sk-attacker"], "", "blocked credential_mismatch"),
    "placeholder of another secret": ([basic(b"me:" + NO_PASSWORD)], "", "blocked credential_mismatch"),
    "placeholder and another key": ([f"Authorization: Bearer {SHOWN}", "X-Api-Key: a"], "", "blocked credential_mismatch"),
    "placeholder and Proxy-Authorization": ([f"Authorization: Bearer {SHOWN}", "Proxy-Authorization: a"], "", "blocked credential_mismatch"),
    "placeholder and a cookie": ([f"Authorization: Bearer {SHOWN}", "Cookie: a=b"], "", "blocked credential_mismatch"),
    "placeholder and PRIVATE-TOKEN": ([f"Authorization: Bearer {SHOWN}", "PRIVATE-TOKEN: a"], "", "blocked credential_mismatch"),
    "placeholder and X-Foo-Access-Token": ([f"Authorization: Bearer {SHOWN}", "X-Foo-Access-Token: a"], "", "blocked credential_mismatch"),
    "placeholder and api_key": ([f"Authorization: Bearer {SHOWN}"], "?api_key=a", "blocked credential_mismatch"),
    "placeholder and an escaped parameter": ([f"Authorization: Bearer {SHOWN}"], "?%61ccess_token=a", "blocked credential_mismatch"),
    "placeholder and X-Amz-Signature": ([f"Authorization: Bearer {SHOWN}"], "?X-Amz-Signature=a", "blocked credential_mismatch"),
    "placeholder and X-Goog-Api-Key": ([f"Authorization: Bearer {SHOWN}", "X-Goog-Api-Key: a"], "", "blocked credential_mismatch"),
    "placeholder and DD-APPLICATION-KEY": ([f"Authorization: Bearer {SHOWN}", "DD-APPLICATION-KEY: a"], "", "blocked credential_mismatch"),
    "placeholder and a key with underscores": ([f"Authorization: Bearer {SHOWN}", "X_Auth_Key: a"], "", "blocked credential_mismatch"),
    "placeholder and a key with dots": ([f"Authorization: Bearer {SHOWN}", "X.Auth.Key: a"], "", "blocked credential_mismatch"),
    "placeholder and a key behind a semicolon": ([f"Authorization: Bearer {SHOWN}"], "?q=a;api_key=a", "blocked credential_mismatch"),
    "placeholder and a key behind a name without a value": ([f"Authorization: Bearer {SHOWN}"], "?a;key=a", "blocked credential_mismatch"),
    "placeholder and a key behind a second question mark": ([f"Authorization: Bearer {SHOWN}"], "?a?key=a", "blocked credential_mismatch"),
    "placeholder and X-Session-Id": ([f"Authorization: Bearer {SHOWN}", "X-Session-Id: a"], "", "blocked credential_mismatch"),
    "placeholder and a WebSocket protocol key": (
        [f"Authorization: Bearer {SHOWN}", "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-theirs"], "",
        "blocked credential_mismatch",
    ),
    "placeholder and basic authentication": ([basic(b"them:theirs"), f"X-Api-Key: {SHOWN}"], "", "blocked credential_mismatch"),
    "placeholder and another Authorization": ([f"X-Api-Key: {SHOWN}", "Authorization: Bearer theirs"], "", "blocked credential_mismatch"),
    "placeholder and access_token": ([f"Authorization: Bearer {SHOWN}"], "?access_token=a", "blocked credential_mismatch"),
    "placeholder and a key in camel case": ([f"Authorization: Bearer {SHOWN}"], "?subscriptionKey=a", "blocked credential_mismatch"),
    "placeholder and session_id in the query": (
        [f"Authorization: Bearer {SHOWN}"], "?session_id=a", "blocked credential_mismatch",
    ),
    "placeholder and a shared access signature": ([f"Authorization: Bearer {SHOWN}"], "?sv=1&sig=a", "blocked credential_mismatch"),
    "placeholder and CSRF, idempotency and session fields": (
        [f"Authorization: Bearer {SHOWN}", "X-CSRF-Token: a", "Idempotency-Key: a", "session_id: a", "X-Claude-Code-Session-Id: a"],
        "?page_token=a&nextPageToken=b", "passed rule",
    ),
    "placeholder and other fields": ([f"Authorization: Bearer {SHOWN}", "X-Request-Id: a", "Accept: */*"], "?q=a", "passed rule"),
    "placeholder and semicolons": ([f"Authorization: Bearer {SHOWN}"], "?q=a;b;token=&c", "passed rule"),
    "placeholder and an empty parameter": ([f"Authorization: Bearer {SHOWN}"], "?token=", "passed rule"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "query", "expected"), CREDENTIALS.values(), ids=CREDENTIALS)
def test_credential_rule_denies_other_credentials(gate, origins, fields, query, expected):
    origin = origins.web("good.example")
    answer = make_secret_site(gate, origin, rule="credential: model-key").request(head(f"GET /echo{query}", *fields))
    assert " ".join(gate.decided()[0][2:]) == expected
    assert len(origin.requests) == (1 if expected == "passed rule" else 0)
    if expected == "passed rule":
        return
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert problem["nearest"]["wanted"] == "model-key"
    login = len(fields) == 1 and fields[0] == basic(b"me:" + NO_PASSWORD)
    got = "none" if not fields and not query else "login" if login else "another"
    assert problem["nearest"]["got"] == got
    assert (
        problem["detail"]
        == {
            "none": "the request brings no credential",
            "login": "the request brings the placeholder of `login`",
            "another": "the request brings a credential that is not ours, or more than one",
        }[got]
    )


def test_github_cli_passes_a_credential_rule_for_its_token(gate, origins):
    """GitHub CLI sends `Authorization: token` and GraphQL by POST; the query in the body is not checked."""
    got = []
    origin = origins.script(record_posted(got), "good.example", tls=True, alpn=["http/1.1"])
    site = make_secret_site(gate, origin, rule="credential: model-key")
    query = b'{"query":"query{viewer{login}}","variables":{"token":"theirs"}}'
    kind, length = "Content-Type: application/json; charset=utf-8", f"Content-Length: {len(query)}"
    for token, status in ((SHOWN, b"HTTP/1.1 200"), ("ghp_theirs", b"HTTP/1.1 403")):
        answer = site.request(head("POST /api/graphql", kind, length, f"Authorization: token {token}"), query)
        assert answer.startswith(status)
    assert got == [query]
    assert f"Authorization: token {REAL.decode()}".encode() in origin.requests[0]


def set_cookies(*cookies):
    def answer(connection, _head):
        fields = b"".join(b"Set-Cookie: %b\r\n" % cookie for cookie in cookies)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n%b\r\n" % fields)

    return answer


# cookies sent beside the placeholder after the server set `sid=1` and `lb=a=b`, and the decision
COOKIES = [
    ("sid=1; lb=a=b", "passed rule"),
    ("lb=a=b", "passed rule"),
    ("sid=2", "blocked credential_mismatch"),
    ("sid=1; other=1", "blocked credential_mismatch"),
    ("sid", "blocked credential_mismatch"),
    ("sid=1, other=1", "blocked credential_mismatch"),
]


@pytest.mark.parametrize(("cookies", "expected"), COOKIES)
def test_cookies_set_for_the_secret_pass_a_credential_rule(gate, origins, cookies, expected):
    origin = origins.script(
        set_cookies(b"sid=1; Path=/; HttpOnly", b"lb=a=b"), "good.example", tls=True, alpn=["http/1.1"]
    )
    site = make_secret_site(gate, origin, rule="credential: model-key")
    ours = f"Authorization: Bearer {SHOWN}"
    site.request(head("GET /echo", ours, "Cookie: sid=1"))  # the server has not set it yet
    site.request(head("GET /echo", ours))
    site.request(head("GET /echo", ours, f"Cookie: {cookies}"))
    site.request(head("GET /echo", f"Cookie: {cookies}"))  # a session alone isn't the secret
    decided = [" ".join(each[2:]) for each in gate.decided()]
    assert decided == ["blocked credential_mismatch", "passed rule", expected, "blocked credential_mismatch"]


def test_cookies_set_for_another_credential_are_denied(gate, origins):
    """A login with another credential does not make its cookies part of the secret."""
    origin = origins.script(set_cookies(b"sid=theirs"), "good.example", tls=True, alpn=["http/1.1"])
    site = make_secret_site(gate, origin, rule="credential: model-key, http: {paths: [/ours]}")
    ours = f"Authorization: Bearer {SHOWN}"
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], credential: model-key, action: allow}},"
        f" {{id: b, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], http: {{paths: [/login]}}, action: allow}}]",
        f"secrets: [{{id: model-key, from: {{env: X}}, as: K, hosts: 'good.example:{origin.port}', in: {{header: authorization}}}}]",
    )
    for fields in (["Authorization: Bearer theirs"], [ours, "X-Api-Key: theirs"], []):
        site.request(head("GET /login", *fields))
    site.request(head("GET /echo", ours, "Cookie: sid=theirs"))
    assert [each[2] for each in gate.decided()] == ["passed"] * 3 + ["blocked"]


# --- hosts that a secret is not sent to (`not_sent_to`) ---


GRANT_FORM = "grant_type=client_credentials&client_secret="
SLOTS = (
    Slot(SlotKind.HEADER, "authorization"), Slot(SlotKind.BASIC), Slot(SlotKind.QUERY, "key"),
    Slot(SlotKind.FORM, "client_secret"),
)  # fmt: skip


def make_withholding_site(gate, origin, *, tls=True, slots=SLOTS, **more):
    """A site whose host the secret of another one isn't sent to."""
    site = make_site(gate, origin, tls=tls, **more)
    known = Secret(
        "model-key", Source(SourceKind.ENV, ("X",)), "KEY", ((HostName("api.example"), 443),), slots,
        not_sent_to=((HostName("good.example"), origin.port),),
    )  # fmt: skip
    gate.loop.run(lambda: gate.sandbox.set_secrets(SecretInjector([SecretValue(known, REAL, SHOWN)])))
    return site


def form_request(text):
    return head("POST /echo", "Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(text)}") + text


IN_GOOD_FAITH = {
    "its header": head("GET /echo", f"Authorization: Bearer {SHOWN}"),
    "basic authentication": head("GET /echo", basic(b"me:" + FAKE)),
    "its parameter": head(f"GET /echo?key={SHOWN}"),
    "its field of a form": form_request(GRANT_FORM + SHOWN),
}


@pytest.mark.parametrize("request_head", IN_GOOD_FAITH.values(), ids=IN_GOOD_FAITH)
def test_placeholder_to_a_not_sent_to_host_is_blocked_without_tampering(gate, origins, request_head):
    origin = origins.web("good.example")
    answer = make_withholding_site(gate, origin).request(request_head)
    page = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (answer[:12], page["reason"]) == (b"HTTP/1.1 403", "secret_not_sent")
    assert page["detail"].startswith(f"`model-key` is not sent to `good.example:{origin.port}`")
    assert "belongs to `api.example`" in page["detail"]
    assert [outcome for *_, outcome in gate.decided()] == ["secret_not_sent"]
    assert (gate.events("tampering.detected"), gate.recorder.summary().tampers) == ([], 0)
    assert (origin.requests, origin.connections) == ([], 0)
    assert_no_secret_disclosed(gate, answer)


HIDDEN = {
    "another header": head("GET /echo", f"X-Other: {SHOWN}"),
    "its header and another": head("GET /echo", f"Authorization: Bearer {SHOWN}", f"X-Other: {SHOWN}"),
    "its header twice": head("GET /echo", f"Authorization: Bearer {SHOWN}", "Authorization: Bearer x"),
    "the path": head(f"GET /echo/{SHOWN}"),
    "base64": head("GET /echo?q=" + base64.urlsafe_b64encode(b"xx" + FAKE).decode().rstrip("=")),
    "another field of a form": form_request("other=" + SHOWN),
}


@pytest.mark.parametrize("request_head", HIDDEN.values(), ids=HIDDEN)
def test_misplaced_placeholder_to_a_not_sent_to_host_is_tampering(gate, origins, request_head):
    answer = make_withholding_site(gate, origins.web("good.example")).request(request_head)
    assert b"secret_misuse" in answer
    wait_until(lambda: gate.events("tampering.detected"))
    assert_no_secret_disclosed(gate, answer)


def test_placeholder_to_a_not_sent_to_host_without_tls_is_tampering(gate, origins):
    answer = make_withholding_site(gate, origins.web("good.example", tls=False), tls=False).request(
        IN_GOOD_FAITH["its header"]
    )
    assert b"secret_misuse" in answer
    assert len(gate.events("tampering.detected")) == 1


def test_request_without_a_placeholder_to_a_not_sent_to_host_passes(gate, origins):
    answer = make_withholding_site(gate, origins.web("good.example")).request(
        head("GET /echo", "Authorization: Bearer of-its-own")
    )
    assert answer.startswith(b"HTTP/1.1 200")


def test_signed_request_to_a_not_sent_to_host_is_blocked(gate, origins):
    origin = origins.web("good.example")
    site = make_withholding_site(gate, origin)
    known = Secret(
        "aws", Source(SourceKind.ENV, ("AWS",)), "AWS", ((HostName("s3.example"), 443),), (Slot(SlotKind.AWS),),
        not_sent_to=((HostName("good.example"), origin.port),),
    )  # fmt: skip
    broker = SecretInjector(
        [make_aws_keys(known, (b"AKIAREALREALREAL0001", b"real/Secret+Key0123456789abcdefghijklmno"))]
    )
    gate.loop.run(lambda: gate.sandbox.set_secrets(broker))
    fake = Keys(broker.placeholders["AWS_ACCESS_KEY_ID"], broker.placeholders["AWS_SECRET_ACCESS_KEY"])
    for one, reason in ((fake, "secret_not_sent"), (replace(fake, ident=fake.key), "secret_misuse")):
        fields = signed(one, site.host, "GET", "/")
        answer = site.request(head("GET /", *(f"{name}: {value}" for name, value in fields.items() if name != "host")))
        assert reason.encode() in answer
    assert len(gate.events("tampering.detected")) == 1
    assert origin.connections == 0


NO_RULE = Decision(Verdict.DENY, Outcome.BLOCKED, Reason.NO_RULE, revision="0" * 64)


@pytest.mark.parametrize(
    ("request_head", "reason", "tampers"),
    [
        (IN_GOOD_FAITH["its header"], "no_rule", 0),
        (HIDDEN["another header"], "secret_misuse", 1),
        (head("GET /echo"), "no_rule", 0),
    ],
    ids=["in good faith", "elsewhere", "nothing"],
)
def test_misplaced_placeholder_to_a_host_without_a_rule_is_tampering(gate, origins, request_head, reason, tampers):
    """A rule for the host would not help, so the page names the misplaced placeholder."""
    answer = make_withholding_site(gate, origins.web("good.example"), decision=NO_RULE).request(request_head)
    page = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (page["reason"], f"reason={reason};".encode() in answer) == (reason, True)
    assert ("the placeholder of `model-key`" in page["detail"]) == bool(tampers)
    assert len(gate.events("tampering.detected")) == tampers == gate.recorder.summary().tampers
