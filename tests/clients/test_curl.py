"""curl and wget: versions of HTTP, bytes as they are, ranges, uploads that wait for leave, and what a refusal looks like."""

import hashlib
import json

import pytest

from tests.lab.certificates import Authority

SIZE = 8 << 20
CURL = ["curl", "-sS", "--max-time", "40"]
BIG = bytes(range(251)) * (SIZE // 251)
SUM = hashlib.sha256(BIG).hexdigest()
URL = "https://www.open.example"


@pytest.fixture(scope="module", autouse=True)
def big(world):
    (world.files / "big.bin").write_bytes(BIG)
    (world.files / "small.txt").write_text("0123456789")


def digest(command):
    return ["sh", "-c", f"{command} | sha256sum"]


DOWNLOADS = {
    "curl, HTTP/1.1": f"curl -sS --http1.1 {URL}/files/big.bin",
    "curl, HTTP/2": f"curl -sS --http2 {URL}/files/big.bin",
    "curl, HTTP/1.0": f"curl -sS --http1.0 {URL}/files/big.bin",
    "curl, plain HTTP": "curl -sS http://www.open.example/files/big.bin",
    "curl, plain HTTP with an offer of HTTP/2": "curl -sS --http2 http://www.open.example/files/big.bin",
    "curl, in two ranges": f"{{ curl -sS -r 0-999999 {URL}/files/big.bin; curl -sS -r 1000000- {URL}/files/big.bin; }}",
    "curl, HTTP/2, in two ranges": f"{{ curl -sS --http2 -r 0-99 {URL}/files/big.bin; curl -sS --http2 -r 100- {URL}/files/big.bin; }}",
    "curl, resumed": f"{{ curl -sS -r 0-4095 -o part {URL}/files/big.bin; curl -sS -C - -o part {URL}/files/big.bin; cat part; }}",
    "wget": f"wget -q -O - {URL}/files/big.bin",
    "wget, plain HTTP": "wget -q -O - http://www.open.example/files/big.bin",
    "wget, resumed": f"{{ curl -sS -r 0-65535 -o w.bin {URL}/files/big.bin; wget -q -c -O w.bin {URL}/files/big.bin; cat w.bin; }}",
}
UPLOADS = {
    "curl, HTTP/1.1": ["--http1.1", "-T", "up.bin"],
    "curl, HTTP/2": ["--http2", "-T", "up.bin"],
    "curl, in chunks": ["--http1.1", "-H", "Transfer-Encoding: chunked", "-T", "up.bin"],
    "curl, HTTP/2, of no known length": ["--http2", "-T", "-"],
    "curl, that waits for leave": ["--http1.1", "-H", "Expect: 100-continue", "-T", "up.bin"],
    "curl, a form": ["--http1.1", "-F", "file=@up.bin"],
}


def test_downloads_byte_for_byte(world):
    tried = world.run(*(digest(command) for command in DOWNLOADS.values()))
    assert {name: said.out.split()[0] for name, said in zip(DOWNLOADS, tried.said, strict=True)} == dict.fromkeys(
        DOWNLOADS, SUM
    )
    assert set(tried.decided()) == {"passed rule"}


def test_uploads_byte_for_byte(world):
    commands = [["sh", "-c", 'exec "$@" <up.bin', "sh", *CURL, *words, f"{URL}/upload"] for words in UPLOADS.values()]
    tried = world.run(*commands, files={"up.bin": BIG})
    got = {name: said.json for name, said in zip(UPLOADS, tried.said, strict=True)}
    form = got.pop("curl, a form")
    assert form["size"] > SIZE - 251
    assert {name: (said["size"], said["sha256"]) for name, said in got.items()} == dict.fromkeys(got, (len(BIG), SUM))


def test_ranges_and_missing_files_work(world):
    out = ["-o", "/dev/null", "-w", "%{http_code} %{size_download} %header{content-range}"]
    ranges = ["2-4", "-3", "7-", "90-"]
    tried = world.run(*([*CURL, *out, "-r", wanted, f"{URL}/files/small.txt"] for wanted in ranges))
    assert [said.out.strip() for said in tried.said] == [
        "206 3 bytes 2-4/10", "206 3 bytes 7-9/10", "206 3 bytes 7-9/10", "416 0 bytes */10",
    ]  # fmt: skip


SENT = {
    "a token": (["-H", "Authorization: token t0k3n"], "authorization", "token t0k3n"),
    "a password": (["-u", "me:pass"], "authorization", "Basic bWU6cGFzcw=="),
    "a cookie": (["-b", "a=b; c=d"], "cookie", "a=b; c=d"),
    "a method of its own": (["-X", "PROPFIND", "-H", "Depth: 1"], "depth", "1"),
    "bytes above ASCII": (["-H", "X-Name: \u00fcber"], "x-name", "\u00c3\u00bcber"),
}


def test_request_arrives_unchanged(world):
    """In both versions; the origin shows what it was sent, a character a byte."""
    both = [
        [*CURL, version, *words, f"{URL}/echo?q=%20a+b&c"]
        for version in ("--http1.1", "--http2")
        for words, *_ in SENT.values()
    ]
    tried = world.run(*both)
    for said, (name, (_, header, value)) in zip(tried.said, [*SENT.items()] * 2, strict=True):
        assert [header, value] in said.json["headers"], name
        assert said.json["target"] == "/echo?q=%20a+b&c"


# What is denied, and what people see of it

DENIED = "https://www.denied.example/x"
WRITTEN = "https://read.example/files/up"
REFUSALS = {
    "curl": (["curl", "-sS", DENIED], 0, "out", '"title": "no rule allows this"'),
    "curl, HTTP/2": (["curl", "-sS", "--http2", DENIED], 0, "out", '"title": "no rule allows this"'),
    "curl --fail": (["curl", "-sSf", "--http1.1", DENIED], 22, "err", "The requested URL returned error: 403"),
    "curl -I": (["curl", "-sSI", "--http1.1", DENIED], 0, "out", "HTTP/1.1 403 Blocked by Exeat: no_rule"),
    "curl -i": (["curl", "-sSi", "--http2", DENIED], 0, "out", "x-exeat-decision: deny;reason=no_rule"),
    "wget": (["wget", "-O", "/dev/null", DENIED], 8, "err", "ERROR 403: Blocked by Exeat: no_rule."),
    "wget, plain HTTP": (
        ["wget", "-O", "/dev/null", "http://www.denied.example/x"], 8, "err", "ERROR 403: Blocked by Exeat: no_rule.",
    ),
    "a redirect": (["curl", "-sSL", f"{URL}/redirect?to={DENIED}"], 0, "out", '"title": "no rule allows this"'),
    "a method": (["curl", "-sS", "-X", "DELETE", "https://read.example/echo"], 0, "out", '"nearest": {\n    "rule": "clients:read"'),
    "HTTP/2 without TLS": (
        ["curl", "-sSv", "--http2-prior-knowledge", "http://read.example/echo"], 16, "err", "GOAWAY, error=13",
    ),  # HTTP_1_1_REQUIRED
}  # fmt: skip


def test_refusals_are_readable(world):
    tried = world.run(*(words for words, *_ in REFUSALS.values()))
    for (name, (_, status, where, shown)), said in zip(REFUSALS.items(), tried.said, strict=True):
        assert said.status == status, (name, said)
        assert shown in getattr(said, where), (name, said)


def test_problem_document_names_its_event(world):
    tried = world.run([*CURL, "-D", "/dev/stderr", "--http1.1", DENIED])
    [said] = tried.said
    problem = json.loads(said.out)
    assert "Content-Type: application/problem+json" in said.err
    assert f'X-Exeat-Decision: deny;reason=no_rule;event="{problem["event"]}"' in said.err
    assert [event["id"] for event in tried.journal.decisions()].count(problem["event"]) == 1


def test_denied_request_is_not_sent(world):
    """A client that waits for leave sends nothing; one that doesn't wait is answered in the middle of it."""
    out = ["-o", "/dev/null", "-w", "%{http_code} %{size_upload}"]
    ways = (["--http1.1", "-H", "Expect: 100-continue"], ["--http1.1", "-H", "Expect:"], ["--http2"])
    tried = world.run(*([*CURL, *out, *way, "-T", "up.bin", WRITTEN] for way in ways), files={"up.bin": BIG})
    waiting, sending, http2 = (said.out.split() for said in tried.said)
    assert waiting == ["403", "0"]
    assert sending[0] == http2[0] == "403"
    assert int(sending[1]) < SIZE > int(http2[1])


PINNED = """
version: 1
name: pinned
rules: [{{id: pinned-updater, to: pinned.example, action: allow{}}}]
"""


@pytest.mark.parametrize(
    ("more", "status", "reasons"), [("", 60, ["tls_client_distrust"]), (", tls: splice", 0, [None])]
)
def test_client_with_its_own_ca_is_reported_and_can_be_spliced(world, more, status, reasons):
    """As docs/how-to/certificates.md has it for clients that pin certificates."""
    own = Authority.load(world.lab.directory / "ca.key").pem()
    tried = world.run(
        [*CURL, "--cacert", "own.pem", "--capath", "programs", "https://pinned.example/echo"],
        files={"own.pem": own},
        rules=world.place.rules(PINNED.format(more), "pinned.yaml"),
    )
    (said,) = tried.said
    assert said.status == status, said
    assert [each.get("reason") for each in tried.journal.of(kind="connection.closed")] == reasons
    assert bool(tried.decided()) == (status == 0 and not more)
