"""Node: npm against a registry of our own, and fetch: streams, uploads, and how a refusal comes to a program."""

import hashlib
import json

import pytest

from tests.clients import registries

from . import program

URL = "https://www.open.example"
CONTENT = bytes(range(249)) * 40_000
FETCH = """
const { createHash } = require("node:crypto");
const sum = (data) => createHash("sha256").update(data).digest("hex");
(async () => {
  const shown = {};
  for (const url of [URL_ + "/files/node.bin", URL_.replace("https", "http") + "/files/node.bin"]) {
    const answer = await fetch(url);
    shown[url.split(":")[0]] = [answer.status, sum(Buffer.from(await answer.arrayBuffer()))];
  }
  async function* pieces() { for (let n = 0; n < 64; n++) yield Buffer.alloc(65536, "x"); }
  const body = ReadableStream.from(pieces());
  shown.upload = await (await fetch(URL_ + "/upload", { method: "POST", body, duplex: "half" })).json();
  const stream = await fetch(URL_ + "/steps/7/10");
  let heard = "";
  for await (const piece of stream.body) {
    heard += Buffer.from(piece);
    if (!heard.includes("event 9")) await (await fetch(URL_ + "/step/7")).arrayBuffer();
  }
  shown.events = heard.match(/event \\d/g).length;
  const refused = await fetch("https://www.denied.example/x");
  shown.refused = [refused.status, refused.statusText, refused.headers.get("x-exeat-decision"), (await refused.json()).reason];
  const upload = await fetch("https://read.example/up", { method: "POST", body: Buffer.alloc(24 << 20) });
  shown.upload_refused = [upload.status, (await upload.json()).reason];
  console.log(JSON.stringify(shown));
})();
""".replace("URL_", json.dumps(URL))
HTTP2 = """
const session = require("node:http2").connect(URL_);
const request = session.request({ ":path": "/echo" });
let text = "";
request.setEncoding("utf8").on("data", (piece) => (text += piece)).on("end", () => { console.log(text); session.close(); });
""".replace("URL_", json.dumps(URL))


@pytest.fixture(scope="module", autouse=True)
def served(world):
    registries.npm(world.files, f"{URL}/files/npm")
    (world.files / "node.bin").write_bytes(CONTENT)


def test_fetch(world):
    node = program("node")
    tried = world.run([node, "-e", FETCH], [node, "-e", HTTP2])
    shown = tried.said[0].json
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert shown["https"] == shown["http"] == [200, digest]
    assert shown["upload"]["sha256"] == hashlib.sha256(b"x" * 64 * 65536).hexdigest()
    assert shown["events"] == 10
    status, text, told, reason = shown["refused"]
    assert (status, text, reason) == (403, "Blocked by Exeat: no_rule", "no_rule")
    assert told.startswith("deny;reason=no_rule")
    assert shown["upload_refused"] == [403, "no_rule"]
    assert tried.said[1].json["version"] == "2"


LEFT = """
(async () => {
  const leaving = new AbortController();
  const answer = await fetch(URL_ + "/slow/200/0.1", { signal: leaving.signal });
  for await (const piece of answer.body) { console.log(piece.length > 0); leaving.abort(); }
})().catch((error) => console.log(error.name));
""".replace("URL_", json.dumps(URL))


def test_fetch_that_abandons_a_stream_is_no_failure(world):
    tried = world.run([program("node"), "-e", LEFT])
    assert tried.said[0].out.split() == ["true", "AbortError"]
    (completed,) = tried.journal.of(kind="request.completed")
    assert (completed["outcome"], completed["detail"]) == ("passed", "the client left before the end")


def test_npm(world):
    npm = [program("npm"), "install", "--no-audit", "--no-fund", "--fetch-retries=0"]
    tried = world.run(
        [*npm, "--registry", f"{URL}/files/npm", "lefty"],
        [program("node"), "-p", "require('lefty')"],
        [*npm, "--registry", "https://www.denied.example/npm", "righty"],
    )
    installed, used, denied = tried.said
    assert installed.ok, installed.err
    assert used.out.strip() == registries.SAYS
    assert "npm error 403 403 Blocked by Exeat: no_rule - GET https://www.denied.example/npm/righty" in denied.err
