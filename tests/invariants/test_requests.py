"""Bodies, URLs and DNS types that no rule lists are denied in a sandbox."""

import json

import pytest

from .attempt_network import TEXT_ZONE, dns_names
from .lab_runner import PYTHON, only_as_ordinary_user, summary

pytestmark = only_as_ordinary_user

RULES = f"""
version: 1
name: carried
rules:
  - {{id: read, to: ["*.more.allowed.example"], http: {{methods: [GET, HEAD], paths: [/echo], max_url: 200B}}, action: allow}}
  - {{id: mail, to: "**.{TEXT_ZONE}", dns_types: [TXT], action: allow}}
"""
HOST = "h.more.allowed.example"
CURL = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"]
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
def request_run(runner):
    """Run every request and three lookups in one sandbox."""
    runner.lab.origin.name(dns_names())
    runner.lab.origin.forget()
    lookups = [
        [str(PYTHON), "-m", "task.asking", f"{name}.{zone}", kind]
        for name, zone, kind in (
            ("www", TEXT_ZONE, "16"),
            ("www", TEXT_ZONE, "15"),
            ("c2VjcmV0", "more.allowed.example", "16"),
        )
    ]
    words = [[*CURL, *more] for more, *_ in REQUESTS.values()] + lookups
    done = runner.run("carried", runner.rules(RULES, "carried.yaml"), PYTHON, "-m", "task.programs", json.dumps(words))
    assert done.process.returncode == 0, done.process.stderr
    return [json.loads(results) for results in done.process.stdout.splitlines()], done.journal, runner.lab.origin


@pytest.mark.parametrize(
    ("at", "status", "expected"), [(at, *case[1:]) for at, case in enumerate(REQUESTS.values())], ids=REQUESTS
)
def test_requests_with_unlisted_bodies_or_urls_are_denied(request_run, at, status, expected):
    results, journal, _ = request_run
    assert results[at][:2] == [0, status], results[at]
    assert " ".join(summary(journal.of(kind="request.decided")[at])[1:]) == expected


def test_only_allowed_requests_reach_an_origin(request_run):
    _, _, origin = request_run
    assert [(request["method"], request["target"]) for request in origin.requests()] == [("GET", "/echo")] * 2


def test_dns_type_is_resolved_only_where_a_rule_lists_it(request_run):
    results, journal, origin = request_run
    listed, other, elsewhere = (json.loads(one[1]) for one in results[len(REQUESTS) :])
    assert (listed["rcode"], listed["answers"]) == (0, 1)
    assert (other["answers"], elsewhere["answers"]) == (0, 0)
    queried = [event for event in journal.of(kind="dns.decided") if event["dns"]["type"] in {"TXT", "MX"}]
    assert [(event["outcome"], event["reason"]) for event in queried] == [
        ("passed", "rule"), ("blocked", "dns_type"), ("blocked", "dns_type"),
    ]  # fmt: skip
    assert [(name, kind) for name, kind, *_ in origin.queries() if kind in {"TXT", "MX"}] == [
        (f"www.{TEXT_ZONE}", "TXT")
    ]
