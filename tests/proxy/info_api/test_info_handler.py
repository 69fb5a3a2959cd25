"""The desk at `exeat.internal`: what a task is told there, and that nobody gets anything else out of it."""

import contextlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.info_api.info_handler import A_SECOND, BURST, InfoHandler
from proxy.info_api.requests import MOST_HEAD, Request, RequestRefusedError
from proxy.sandbox.sandbox_state import Calendar
from proxy.supervisor_channel.channel import _denial_text
from proxy.telemetry.events import Process
from rules.decision import Decision
from rules.explain.explanation import find_task_rules
from rules.loading.load import load
from rules.matching.commands import ProgramRun, decide_run
from rules.verdicts import Reason
from tests.proxy.gate.gate_lab import GateLab, client_hello, policy_of, run
from tests.proxy.info_api.parsing import parse
from tests.support.waiting import wait_until_async

RULES = [
    "id: pages, to: good.example, http: {methods: [GET], paths: ['/a/**']}, action: allow, why: 'our \\u202e pages'",
    "id: theirs, to: other.example, for: {tasks: [somebody-else]}, action: allow",
    "id: over, to: gone.example, until: 2020-01-01, action: allow",
    "id: bad, to: '**.evil.example', action: deny, why: 'known to be bad'",
]


def request(line="GET /policy HTTP/1.1", *fields, host="exeat.internal"):
    return "\r\n".join([line, f"Host: {host}", *fields, "", ""]).encode("latin-1")


async def said(world, *words, **more):
    """What a connection to the desk is answered: status and body."""
    client = await world.connect("exeat.internal", 80)
    await client.send(request(*words, **more))
    answer = await client.read_all()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head or words[0].startswith("HEAD")
    return int(head.split(b" ")[1]), body.decode()


def test_task_sees_only_its_own_rules(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            status, text = await said(world, "GET /policy HTTP/1.1")
            assert status == 200
            assert "- good.example (443/tls); methods GET; paths /a/** [r:pages]" in text
            assert "known to be bad" in text
            assert "other.example" not in text
            assert "gone.example" not in text
            status, text = await said(world, "GET /policy?format=json HTTP/1.1")
            values = json.loads(text)
            assert [rule["id"] for rule in values["rules"]] == ["r:pages", "r:bad"]
            assert values["rules"][0]["http"] == {"methods": ["GET"], "paths": ["/a/**"]}
            assert world.events == []  # nothing was tried, and nothing left

    run(test)


def test_rules_in_force_are_rendered_once(tmp_path, monkeypatch):
    async def test():
        found, now = [], [datetime(2026, 6, 30, tzinfo=UTC).timestamp()]
        monkeypatch.setattr(
            "proxy.info_api.info_handler.find_task_rules", lambda *of: found.append(of) or find_task_rules(*of)
        )
        rules = ["id: till, to: till.example, until: 2026-06-30, action: allow"]
        async with GateLab(tmp_path, rules, calendar=Calendar(lambda: now[0])) as world:
            for _ in range(3):
                assert "till.example" in (await said(world, "GET /policy HTTP/1.1"))[1]
            assert len(found) == 1  # there may be a hundred thousand rules
            now[0] += 86_400
            assert "till.example" not in (await said(world, "GET /policy HTTP/1.1"))[1]
            world.sandbox.policy = policy_of(tmp_path, RULES)
            assert "good.example" in (await said(world, "GET /policy HTTP/1.1"))[1]
            assert len(found) == 3

    run(test)


def test_refusal_is_explained_by_its_event_id(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            assert await said(world, "GET /why HTTP/1.1") == (200, "Nothing was refused so far.\n")
            task = await world.connect("www.evil.example", 443)
            await task.send(client_hello("www.evil.example"))
            decided = await world.decision()
            status, text = await said(world, "GET /why HTTP/1.1")
            assert status == 200
            assert "was refused by r:bad: a rule denies this (rule)" in text
            assert decided["id"] in text
            _, text = await said(world, "GET /why?attempt=https://other.example/ HTTP/1.1")
            assert text.count("add a rule that allows it") == 1
            status, text = await said(world, f"GET /why?attempt={decided['id']} HTTP/1.1", "Accept: application/json")
            assert json.loads(text)["reason"] == "rule"
            assert json.loads(text)["rules"] == ["r:bad"]

    run(test)


COMMANDS = """version: 1
name: r
rules:
  - {id: later, to: later.example, when: tainted, action: deny}
commands:
  - {id: hide, run: "rm *", action: deny, why: "nothing is deleted"}
  - {id: ask, run: "terraform apply", action: ask}
  - {id: theirs, run: "dd", action: deny, for: {tasks: [somebody-else]}}
"""


def test_command_rules_are_listed(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            path = tmp_path / "commands.yaml"
            path.write_text(COMMANDS)
            policy = world.sandbox.policy = load([path])
            denied = decide_run(policy, ProgramRun(("rm",), ("x",)))._replace(reason=Reason.APPROVAL_DENIED)
            world.recorder.command_decided(denied, ["rm", "x"], Process(7, "/bin/sh"), "not today", "abc")
            _, text = await said(world, "GET /policy HTTP/1.1")
            assert "- rm * [r:hide]: nothing is deleted" in text
            assert "- terraform apply [r:ask]" in text
            assert "dd" not in text
            [later] = [line for line in text.splitlines() if "later.example" in line]
            assert "only once the task has read" in later
            values = json.loads((await said(world, "GET /policy?format=json HTTP/1.1"))[1])
            assert [each["id"] for each in values["commands"]] == ["r:ask", "r:hide"]
            assert values["rules"][0]["when"] == "tainted"
            _, text = await said(world, "GET /why HTTP/1.1")
            assert "run rm x\n  was refused by r:hide" in text
            assert "reason given: not today" in text
            _, text = await said(world, "GET /why?attempt=run%20terraform%20apply HTTP/1.1")
            assert "people are asked then" in text
            assert "POST" not in text

    run(test)


def test_refused_program_has_the_approvers_reason():
    decision = Decision(reason=Reason.APPROVAL_DENIED, rules=("r:ask",), why="it costs")
    line = _denial_text(("/bin/rm", "x"), decision, "abc", "not today\x1b[2J").decode()
    assert line == "exeat: rm x: not allowed by r:ask (approval_denied, approval abc): not today\\x1b[2J: it costs"


@pytest.mark.parametrize(
    ("attempt", "passes", "part"),
    [
        ("GET%20https://good.example/a/b", True, "would be let out by r:pages"),
        ("POST%20https://good.example/a/b", False, "would be refused: no rule"),
        ("www.evil.example:443", False, "known to be bad"),
        ("https://other.example/", False, "would be refused"),
    ],
)
def test_attempt_can_be_explained_in_advance(tmp_path, attempt, passes, part):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            status, text = await said(world, f"GET /why?attempt={attempt} HTTP/1.1")
            assert status == 200
            assert part in text
            _, values = await said(world, f"GET /why?attempt={attempt}&format=json HTTP/1.1")
            assert json.loads(values)["passes"] is passes
            assert "EVENT" not in text + values  # nothing was tried, so there is none to explain
            assert world.events == []

    run(test)


ODD = {
    "no HTTP": (b"hello\r\n\r\n", 400),
    "another version": (request("GET / HTTP/2.0"), 400),
    "another host": (request(host="good.example"), 421),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 421),
    "two hosts": (request("GET / HTTP/1.1", "Host: exeat.internal"), 400),
    "another origin": (request("GET / HTTP/1.1", "Origin: http://evil.example"), 403),
    "an origin without a name": (request("GET / HTTP/1.1", "Origin:"), 403),
    "from a page": (request("GET / HTTP/1.1", "Sec-Fetch-Site: cross-site"), 403),
    "from a page, or not": (request("GET / HTTP/1.1", "Sec-Fetch-Site: none\r\nSec-Fetch-Site: none"), 403),
    "from nobody says where": (request("GET / HTTP/1.1", "Sec-Fetch-Site:"), 403),
    "a body": (request("GET / HTTP/1.1", "Content-Length: 5"), 413),
    "chunks": (request("GET / HTTP/1.1", "Transfer-Encoding: chunked"), 411),
    "two lengths": (request("GET / HTTP/1.1", "Content-Length: 0", "Content-Length: 5"), 400),
    "a length in disguise": (request("GET / HTTP/1.1", "Content_Length: 5"), 400),
    "a control character in the method": (b"G\x1bT / HTTP/1.1\r\nHost: exeat.internal\r\n\r\n", 400),
    "a folded line": (request("GET / HTTP/1.1", "A: b", " c"), 400),
    "a space before the colon": (request("GET / HTTP/1.1", "A : b"), 400),
    "a bare line end": (b"GET / HTTP/1.1\nHost: exeat.internal\r\n\r\n", 400),
    "a proxy's form": (request("GET http://good.example/ HTTP/1.1"), 400),
    "a method that changes": (request("POST /policy HTTP/1.1"), 405),
    "a tunnel": (request("CONNECT good.example:443 HTTP/1.1"), 400),
    "somewhere else": (request("GET /etc/passwd HTTP/1.1"), 404),
    "an odd path": (request("GET //[ HTTP/1.1"), 404),
    "one level up": (request("GET /../policy HTTP/1.1"), 404),
    "no attempt": (request("GET /why?attempt=%00%1b[31m HTTP/1.1"), 400),
    "a long attempt": (request(f"GET /why?attempt={'a' * 3000} HTTP/1.1"), 414),
    "another form": (request("GET /policy?format=xml HTTP/1.1"), 400),
    "many parameters": (request("GET /policy?" + "&".join(f"a{n}=1" for n in range(20)) + " HTTP/1.1"), 400),
    "a long head": (b"GET / HTTP/1.1\r\nHost: exeat.internal\r\nA: " + b"a" * MOST_HEAD, 431),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), ODD.values(), ids=ODD)
def test_malformed_requests_are_refused(tmp_path, sent, status):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            client = await world.connect("exeat.internal", 80)
            await client.send(sent)
            answer = await client.read_all()
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert b"\x1b" not in answer
            assert world.errors == []

    run(test)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data):
    for sent in (data, b"GET / HTTP/1.1\r\nHost: exeat.internal\r\n" + data, b"GET /" + data + b" HTTP/1.1\r\n\r\n"):
        with contextlib.suppress(RequestRefusedError):
            assert parse(sent) is None or isinstance(parse(sent), Request)


@pytest.mark.parametrize("end", [b"", b"\x01", b"x\x01"], ids=["fine", "control", "word"])
@pytest.mark.parametrize("filling", [b" ", b"\t ", b"a ", b"a:"], ids=["space", "tab", "word", "colon"])
def test_endless_head_is_refused(filling, end):
    """Each is as long as a head may be. Time that grows with its cube is hours here, and fails by that."""
    room = MOST_HEAD - 100
    sent = request("GET / HTTP/1.1", "A:" + (filling * room)[:room].decode() + end.decode())
    for _ in range(20):
        if end:
            with pytest.raises(RequestRefusedError):
                parse(sent)
        else:
            assert parse(sent).path == "/"


def test_requests_are_rate_limited(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            clock = [0.0]
            desk = InfoHandler(world.recorder, lambda: clock[0])

            def status():
                [answer] = desk.work(parse(request()), lambda: None)
                return answer.status.value

            assert [status() for _ in range(BURST)] == [200] * BURST
            assert status() == 429
            clock[0] += 1
            answers = [status() for _ in range(20)]
            assert answers == [200] * int(A_SECOND) + [429] * (20 - int(A_SECOND))

    run(test)


def test_slow_and_head_requests_are_answered(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            client = await world.connect("exeat.internal", 80)
            for byte in request("HEAD / HTTP/1.0"):
                await client.send(bytes([byte]))
            answer = await client.read_all()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\n")

    run(test)


@pytest.mark.parametrize("sent", [b"", b"GET /policy HT"], ids=["nothing", "half a line"])
def test_silent_client_is_disconnected(tmp_path, sent):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            client = await world.connect("exeat.internal", 80)
            await client.send(sent)
            await wait_until_async(lambda: len(world.gate.connections) == 1)
            [visit] = world.gate.connections
            visit.tick(visit._since + 11)
            assert await client.ended() == "reset"
            assert len(world.gate.connections) == 0

    run(test)


def test_other_ports_of_the_name_are_denied(tmp_path):
    async def test():
        rules = [*RULES, "id: all, to: '*', ports: [1-65535/tcp, 443/tls], action: allow"]
        async with GateLab(tmp_path, rules) as world:
            client = await world.connect("exeat.internal", 8080)
            assert (await world.decision())["outcome"] == "blocked"
            assert await client.ended() == "reset"
            assert world.servers.asked == []

    run(test)


def test_name_is_resolved_without_an_event(tmp_path):
    from proxy.dns.wire import Type
    from rules.attempt import Protocol

    async def test():
        async with GateLab(tmp_path, RULES) as world:
            answers = []
            for kind in (Type.A, Type.AAAA, 16):
                labels = b"\5exeat\x08internal\0"
                question = b"\0\1\1\0\0\1\0\0\0\0\0\0" + labels + int(kind).to_bytes(2) + b"\0\1"
                world.resolver.ask(question, None, Protocol.UDP, answers.append)
            assert [int.from_bytes(answer[6:8]) for answer in answers] == [1, 0, 0]
            assert answers[0][-4:] == world.synthetic("exeat.internal").packed
            assert world.events == []
            assert world.servers.asked == []

    run(test)
