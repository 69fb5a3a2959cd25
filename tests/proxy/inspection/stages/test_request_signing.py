"""Requests signed with placeholders (AWS Signature Version 4): a service with the real
key accepts them, and the gate signs nothing else.
"""

import json
from dataclasses import replace

import h2.config
import h2.connection
import pytest

from proxy.secrets import SecretInjector, SecretValue, make_aws_keys
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName
from tests.lab.aws import REGION, Keys, presigned, service_of, sha, signed
from tests.proxy.inspection.clients import read_all
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.waiting import wait_until

REAL = Keys("AKIAREALREALREAL0001", "real/Secret+Key0123456789abcdefghijklmno")
WITH_SESSION_TOKEN = replace(REAL, ident="ASIAREALREALREAL0001", token="Fwo-real-session-token//////////" * 9 + "==")


class SigningLab:
    """An AWS-like service behind a gate, and placeholder keys for it."""

    def __init__(self, gate, origins, real=REAL, *, name="good.example", host="good.example", **more):
        self.gate, self.verdicts = gate, []
        self.origin = origins.script(service_of(real, self.verdicts), name, tls=True, alpn=["http/1.1"])
        self.site = make_site(gate, self.origin, name, **more)
        secret = Secret(
            "aws", Source(SourceKind.ENV, ("AWS",)), "AWS", ((HostName(host), self.origin.port),), (Slot(SlotKind.AWS),)
        )
        other = Secret(
            "other", Source(SourceKind.ENV, ("X",)), "X", secret.hosts, (Slot(SlotKind.HEADER, "x-api-key"),)
        )
        values = [part.encode() for part in (real.ident, real.key, real.token) if part]
        broker = SecretInjector(
            [make_aws_keys(secret, tuple(values)), SecretValue(other, b"sk-other-0123456789", "sk-otherPlaceholder01")]
        )
        gate.loop.run(lambda: gate.sandbox.set_secrets(broker))
        found = broker.placeholders
        self.fake = Keys(found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"], found.get("AWS_SESSION_TOKEN", ""))
        self.host = f"{name}:{self.origin.port}"

    def send(self, method, target, headers, body=b""):
        fields = {**headers, "host": self.host, "connection": "close"}
        if body:
            fields["content-length"] = str(len(body))
        lines = "".join(f"{name}: {value}\n" for name, value in fields.items())
        return self.site.request(f"{method} {target} HTTP/1.1\n{lines}\n", body)

    def request(self, method="GET", target="/", *, keys=None, body=b"", **more):
        return self.send(method, target, signed(keys or self.fake, self.host, method, target, body=body, **more), body)

    def assert_no_secret_disclosed(self, *answers):
        journal = json.dumps(self.gate.events()).encode()
        for value in (
            REAL.key.encode(),
            REAL.ident.encode(),
            WITH_SESSION_TOKEN.ident.encode(),
            WITH_SESSION_TOKEN.token.encode(),
        ):
            assert all(value not in text for text in (journal, *answers))


@pytest.fixture
def signing_lab(gate, origins):
    return SigningLab(gate, origins)


# requests of a client, and how it signs them
REQUESTS = {
    "S3, a GET": {"target": "/bucket/a.txt"},
    "S3, a query": {"target": "/bucket?prefix=a%2Fb&list-type=2&delimiter=%2F"},
    "S3, a name to be escaped": {"target": "/bucket/a%20b%2Bc%24/d"},
    "S3, empty segments": {"target": "/bucket//a/"},
    "S3, a PUT": {"method": "PUT", "target": "/bucket/a.txt", "body": b"some text"},
    "S3, a body that isn't signed": {"method": "PUT", "target": "/a", "body": b"text", "payload_hash": "UNSIGNED-PAYLOAD"},
    "S3, trailers that aren't signed": {
        "method": "PUT", "target": "/a", "body": b"text", "payload_hash": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    },
    "S3, fields": {"target": "/a", "more": {"range": "bytes=0-9", "x-amz-meta-a": "  b   c "}},
    "S3, a field that the gate has its own word on": {"target": "/a", "more": {"accept-encoding": "gzip"}},
    "another service": {"service": "dynamodb", "target": "/"},
    "another service, a body": {"service": "sts", "method": "POST", "body": b"Action=GetCallerIdentity"},
    "another service, a path to be escaped": {"service": "bedrock", "target": "/model/anthropic%3Aclaude/invoke"},
    "another service, empty segments": {"service": "execute-api", "target": "/a//b/"},
}  # fmt: skip


@pytest.mark.parametrize("request_options", REQUESTS.values(), ids=REQUESTS)
def test_request_signed_with_placeholders_is_signed_again(signing_lab, request_options):
    answer = signing_lab.request(**request_options)
    assert signing_lab.verdicts == ["ok"], answer
    (request,) = signing_lab.origin.requests
    for part in (signing_lab.fake.ident, signing_lab.fake.key):
        assert part.encode() not in request
    assert signing_lab.gate.events("tampering.detected") == []
    signing_lab.assert_no_secret_disclosed(answer)


def test_chunked_body_is_read_before_it_is_signed(signing_lab):
    body = b"Action=GetCallerIdentity&Version=2011-06-15"
    headers = signed(signing_lab.fake, signing_lab.host, "POST", "/", service="sts", body=body)
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:7], body[7:])) + b"0\r\n\r\n"
    headers["transfer-encoding"] = "chunked"
    lines = "".join(f"{name}: {value}\n" for name, value in headers.items())
    answer = signing_lab.site.request(f"POST / HTTP/1.1\n{lines}connection: close\n\n", pieces)
    assert signing_lab.verdicts == ["ok"], answer


def test_session_token_is_replaced_with_its_keys(gate, origins):
    signing_lab = SigningLab(gate, origins, WITH_SESSION_TOKEN)
    assert signing_lab.fake.ident.startswith("ASIA")
    answer = signing_lab.request(target="/a")
    assert signing_lab.verdicts == ["ok"], answer
    signing_lab.send("GET", presigned(signing_lab.fake, signing_lab.host, "GET", "/a"), {})
    assert signing_lab.verdicts == ["ok", "ok"]
    signing_lab.assert_no_secret_disclosed(answer)


@pytest.mark.parametrize("service", ["s3", "execute-api"])
def test_presigned_url_is_signed_again(signing_lab, service):
    answer = signing_lab.send(
        "GET", presigned(signing_lab.fake, signing_lab.host, "GET", "/a?b=c", service=service), {}
    )
    assert signing_lab.verdicts == ["ok"], answer
    signing_lab.assert_no_secret_disclosed(answer)


def test_http2_request_is_signed_again(signing_lab):
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    headers = signed(signing_lab.fake, signing_lab.host, "POST", "/", service="dynamodb", body=b"{}")
    del headers["host"]
    usual = {":method": "POST", ":scheme": "https", ":authority": signing_lab.host, ":path": "/"}
    client.send_headers(1, [*usual.items(), *headers.items()])
    client.send_data(1, b"{}", end_stream=True)
    with signing_lab.site.connect(["h2"]) as connection:
        connection.sendall(client.data_to_send())
        while not signing_lab.verdicts:
            client.receive_data(connection.recv(65536))
    assert signing_lab.verdicts == ["ok"]


def test_requests_signed_by_curl_are_signed_again(signing_lab, tmp_path):
    (tmp_path / "body").write_bytes(b"a" * 1_000_000)  # more than HTTP/2's windows: what is held is acknowledged
    user = f"{signing_lab.fake.ident}:{signing_lab.fake.key}"
    for service, words in (
        ("s3", ["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]),
        ("sts", []),
        ("sts", ["-d", "a=b"]),
        ("sts", ["--http2", "--data-binary", f"@{tmp_path / 'body'}"]),
    ):
        how = ["--aws-sigv4", f"aws:amz:{REGION}:{service}", "-u", user]
        status, out, err = signing_lab.site.curl("/a/b?c=d", *how, *words)
        assert (status, out.partition(b"\n")[0]) == (0, b"ok"), (service, words, out, err)


def test_real_signature_is_masked_in_the_response(signing_lab):
    """Services echo the signature in errors (SignatureDoesNotMatch of S3), and redirects repeat the URL."""
    target = presigned(signing_lab.fake, signing_lab.host, "GET", "/a")
    answer = signing_lab.send("GET", target, {})
    assert target.rpartition("=")[2].encode() in answer
    real = signing_lab.origin.requests[0].partition(b"X-Amz-Signature=")[2][:64]
    assert len(real) == 64
    assert real not in answer
    signing_lab.assert_no_secret_disclosed(answer)


def replace_in_header(headers, name, part, other):
    assert part in headers[name]
    return {**headers, name: headers[name].replace(part, other)}


STREAMED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
# attempts of a task, and the reason of their denial
HOSTILE = {
    "another's key": (lambda w: w.request(keys=replace(w.fake, key="guess")), "secret_misuse"),
    "another path than was signed": (
        lambda w: w.send("GET", "/other", signed(w.fake, w.host, "GET", "/a")), "secret_misuse",
    ),
    "another method": (lambda w: w.send("DELETE", "/a", signed(w.fake, w.host, "GET", "/a")), "secret_misuse"),
    "another query": (lambda w: w.send("GET", "/a?acl", signed(w.fake, w.host, "GET", "/a")), "secret_misuse"),
    "another body": (
        lambda w: w.send("POST", "/", signed(w.fake, w.host, "POST", "/", service="sts", body=b"a"), b"b"), "secret_misuse",
    ),
    "another host in its signature": (lambda w: w.send("GET", "/a", signed(w.fake, "x.example", "GET", "/a")), "secret_misuse"),
    "another region": (
        lambda w: w.send("GET", "/a", replace_in_header(signed(w.fake, w.host, "GET", "/a"), "authorization", REGION, "us-east-1")),
        "secret_misuse",
    ),
    "the host isn't signed": (
        lambda w: w.send("GET", "/a", replace_in_header(signed(w.fake, w.host, "GET", "/a"), "authorization", "host;", "")),
        "protocol_mismatch",
    ),
    "a field that ends at the gate": (lambda w: w.request(target="/a", more={"te": "trailers"}), "protocol_mismatch"),
    "a body signed in pieces": (lambda w: w.request("PUT", "/a", body=b"x", payload_hash=STREAMED), "protocol_mismatch"),
    "the secret placeholder": (lambda w: w.send("GET", "/a", {"x-a": w.fake.key}), "secret_misuse"),
    "the secret placeholder as a password": (lambda w: w.send("GET", "/a", {"authorization": f"Bearer {w.fake.key}"}), "secret_misuse"),
    "the id elsewhere": (lambda w: w.send("GET", "/a", {"x-a": w.fake.ident}), "secret_misuse"),
    "the id in signature version 2": (
        lambda w: w.send("GET", "/a", {"authorization": f"AWS {w.fake.ident}:c2lnbmF0dXJl"}), "secret_misuse",
    ),
    "signed twice": (
        lambda w: w.send("GET", (t := presigned(w.fake, w.host, "GET", "/a")), signed(w.fake, w.host, "GET", t)), "secret_misuse",
    ),
    "two ids in the URL": (
        lambda w: w.send("GET", presigned(w.fake, w.host, "GET", "/a") + "&x-amz-credential=a", {}), "secret_misuse",
    ),
    "another secret's placeholder": (
        lambda w: w.request(target="/a", more={"x-api-key": "sk-otherPlaceholder01"}), "protocol_mismatch",
    ),
    "misplaced placeholder of another secret": (
        lambda w: w.request(target="/a", more={"x-amz-meta-a": "sk-otherPlaceholder01"}), "secret_misuse",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("attempt", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_signatures_are_refused(signing_lab, attempt, reason):
    answer = attempt(signing_lab)
    assert answer.startswith(b"HTTP/1.1 403"), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == reason
    assert signing_lab.origin.requests == []
    assert len(signing_lab.gate.events("tampering.detected")) == (reason == "secret_misuse")
    signing_lab.assert_no_secret_disclosed(answer)


def test_second_authorization_header_is_refused(signing_lab):
    headers = signed(signing_lab.fake, signing_lab.host, "GET", "/a")
    lines = "".join(f"{name}: {value}\n" for name, value in headers.items())
    answer = signing_lab.site.request(f"GET /a HTTP/1.1\n{lines}Authorization: x\nconnection: close\n\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "secret_misuse"
    assert signing_lab.origin.requests == []


@pytest.mark.parametrize("where", [{"host": "other.example"}, {"name": "good.example.evil.example"}])
def test_request_to_another_host_is_not_signed(gate, origins, where):
    signing_lab = SigningLab(gate, origins, **where)
    for answer in (
        signing_lab.request(target="/a"),
        signing_lab.send("GET", presigned(signing_lab.fake, signing_lab.host, "GET", "/a"), {}),
    ):
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "secret_misuse"
    assert signing_lab.origin.connections == 0


def test_denied_request_is_not_signed(gate, origins):
    """A repeated request is decided again."""
    signing_lab = SigningLab(gate, origins, http="{methods: [GET], paths: [/a]}")
    once = signed(signing_lab.fake, signing_lab.host, "GET", "/a")
    assert signing_lab.send("GET", "/a", once).startswith(b"HTTP/1.1 200")
    for method, target in (("PUT", "/a"), ("GET", "/b"), ("GET", "/a/../b"), ("GET", "/%61/b")):
        answer = signing_lab.request(method, target)
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] in {"no_rule", "ambiguous_path"}, (method, target)
    signing_lab.gate.rules("[]")
    assert not signing_lab.send("GET", "/a", once).startswith(b"HTTP/1.1 200")
    assert signing_lab.verdicts == ["ok"]


def test_denied_signed_request_is_answered_before_its_body(gate, origins):
    signing_lab = SigningLab(gate, origins, http="{methods: [GET]}")
    headers = signed(signing_lab.fake, signing_lab.host, "POST", "/", service="sts", body=b"never sent")
    lines = "".join(f"{name}: {value}\n" for name, value in headers.items())
    with signing_lab.site.connect() as connection:
        connection.sendall(f"POST / HTTP/1.1\n{lines}content-length: 10\n\n".replace("\n", "\r\n").encode())
        assert read_all(connection).startswith(b"HTTP/1.1 403")


def test_signed_body_beyond_the_limit_is_denied(signing_lab):
    body = b"a" * ((4 << 20) + 1)
    answer = signing_lab.request("POST", "/", service="sts", body=body)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "limit_exceeded"
    assert signing_lab.origin.requests == []
    wait_until(signing_lab.gate.decided)
    assert signing_lab.gate.decided() == [("POST", "/", "blocked", "limit_exceeded")]


# requests under a rule with `credential: aws`, and whether they pass
CREDENTIALS = {
    "ours": (lambda w: w.request(target="/a"), True),
    "our signature in the URL": (lambda w: w.send("GET", presigned(w.fake, w.host, "GET", "/a"), {}), True),
    "none": (lambda w: w.send("GET", "/a", {}), False),
    "the attacker's": (lambda w: w.request(target="/a", keys=Keys("AKIAATTACKER00000001", "theirs")), False),
    "the attacker's in the URL": (
        lambda w: w.send("GET", presigned(Keys("AKIAATTACKER00000001", "theirs"), w.host, "GET", "/a"), {}), False,
    ),
    "our signature and that of the attacker": (
        lambda w: w.request(target=presigned(Keys("AKIAATTACKER00000001", "theirs"), w.host, "GET", "/a")), False,
    ),
    "our signature with the token of the attacker": (lambda w: w.request(target="/a", more={"x-amz-security-token": "theirs"}), False),
    "our signature and a cookie": (lambda w: w.request(target="/a", more={"cookie": "a=b"}), False),
}  # fmt: skip


@pytest.mark.parametrize(("attempt", "passes"), CREDENTIALS.values(), ids=CREDENTIALS)
def test_credential_rule_accepts_only_signatures_of_its_keys(signing_lab, attempt, passes):
    port = signing_lab.origin.port
    signing_lab.gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{port}/tls], credential: aws, action: allow}}]",
        f"secrets: [{{id: aws, from: {{env: AWS}}, as: AWS, hosts: 'good.example:{port}', in: aws}}]",
    )
    answer = attempt(signing_lab)
    assert answer.startswith(b"HTTP/1.1 200" if passes else b"HTTP/1.1 403"), answer
    assert len(signing_lab.origin.requests) == passes


def test_session_token_without_its_keys_is_refused(gate, origins):
    signing_lab = SigningLab(gate, origins, WITH_SESSION_TOKEN)
    lone = signing_lab.send("GET", "/a", {"x-amz-security-token": signing_lab.fake.token})
    assert json.loads(lone.partition(b"\r\n\r\n")[2])["reason"] == "secret_misuse"
    answer = signing_lab.send("GET", presigned(replace(signing_lab.fake, token=""), signing_lab.host, "GET", "/a"), {})
    assert signing_lab.verdicts == ["InvalidAccessKeyId"], answer
    assert sha(b"") not in repr(signing_lab.gate.events())
