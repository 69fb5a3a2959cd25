"""What requests and lookups carry, in a sandbox: what a rule doesn't name doesn't leave, in a body, a URL, a record's name."""

import json

import pytest

from .attempt_network import TEXT, names
from .lab_runner import PYTHON, by_the_gate, shape

pytestmark = by_the_gate

RULES = f"""
version: 1
name: carried
rules:
  - {{id: read, to: ["*.more.allowed.example"], http: {{methods: [GET, HEAD], paths: [/echo], max_url: 200B}}, action: allow}}
  - {{id: mail, to: "**.{TEXT}", dns_types: [TXT], action: allow}}
"""
HOST = "h.more.allowed.example"
USUAL = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"]
REQUESTS = {
    "as it may be": (["--http1.1", f"https://{HOST}/echo"], "200", "passed rule"),
    "as it may be, HTTP/2": (["--http2", f"https://{HOST}/echo"], "200", "passed rule"),
    "data in a body": (["--http1.1", "-X", "GET", "-d", "secret", f"https://{HOST}/echo"], "403", "blocked body_not_allowed"),
    "data in a body, HTTP/2": (["--http2", "-X", "GET", "-d", "secret", f"https://{HOST}/echo"], "403", "blocked body_not_allowed"),
    "data in chunks": (
        ["--http1.1", "-X", "GET", "-H", "Transfer-Encoding: chunked", "-d", "secret", f"https://{HOST}/echo"],
        "403",
        "blocked body_not_allowed",
    ),
    "data in a query": (["--http1.1", f"https://{HOST}/echo?{'s' * 200}"], "414", "blocked url_too_long"),
    "a WebSocket": (
        [
            "--http1.1", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13",
            "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", f"https://{HOST}/echo",
        ],
        "403",
        "blocked no_rule",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def carried(place):
    """Every request and a few lookups, made once in one sandbox."""
    place.lab.origin.name(names())
    place.lab.origin.forget()
    lookups = [
        [str(PYTHON), "-m", "task.asking", f"{name}.{zone}", kind]
        for name, zone, kind in (("www", TEXT, "16"), ("www", TEXT, "15"), ("c2VjcmV0", "more.allowed.example", "16"))
    ]
    words = [[*USUAL, *more] for more, *_ in REQUESTS.values()] + lookups
    done = place.run("carried", place.rules(RULES, "carried.yaml"), PYTHON, "-m", "task.programs", json.dumps(words))
    assert done.process.returncode == 0, done.process.stderr
    return [json.loads(said) for said in done.process.stdout.splitlines()], done.journal, place.lab.origin


@pytest.mark.parametrize(
    ("at", "status", "told"), [(at, *case[1:]) for at, case in enumerate(REQUESTS.values())], ids=REQUESTS
)
def test_requests_with_unlisted_bodies_or_urls_are_denied(carried, at, status, told):
    said, journal, _ = carried
    assert said[at][:2] == [0, status], said[at]
    assert " ".join(shape(journal.of(kind="request.decided")[at])[1:]) == told


def test_only_allowed_requests_reach_an_origin(carried):
    _, _, origin = carried
    assert [(request["method"], request["target"]) for request in origin.requests()] == [("GET", "/echo")] * 2


def test_dns_type_is_resolved_only_where_a_rule_lists_it(carried):
    said, journal, origin = carried
    listed, other, elsewhere = (json.loads(one[1]) for one in said[len(REQUESTS) :])
    assert (listed["rcode"], listed["answers"]) == (0, 1)
    assert (other["answers"], elsewhere["answers"]) == (0, 0)
    asked = [event for event in journal.of(kind="dns.decided") if event["dns"]["type"] in {"TXT", "MX"}]
    assert [(event["outcome"], event["reason"]) for event in asked] == [
        ("passed", "rule"), ("blocked", "dns_type"), ("blocked", "dns_type"),
    ]  # fmt: skip
    assert [(name, kind) for name, kind, *_ in origin.queries() if kind in {"TXT", "MX"}] == [(f"www.{TEXT}", "TXT")]
