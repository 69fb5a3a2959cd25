"""What a task asks people for at the desk, and what it is told of what it was held for: its own, and nobody else's."""

import json

import pytest

from proxy.approvals.protocol import PreRequest
from proxy.supervisor_channel.channel import Attribution
from proxy.telemetry.events import Process
from tests.proxy.approvals.people_harness import People
from tests.proxy.gate.approvals_lab import reload
from tests.proxy.gate.gate_lab import HOSTS, RAW, GateLab, run
from tests.proxy.info_api.test_info_handler import request
from tests.support.waiting import wait_until_async

ASKED = "id: asked, to: raw.example, ports: [ORIGIN/tcp], action: ask, approval: {hold: 60s, open: 1h}"
WRITES = "id: writes, to: api.example, http: {methods: [POST]}, action: ask"
READS = "id: reads, to: api.example, http: {methods: [GET]}, action: allow"
ONLY = "id: only, to: only.example, http: {methods: [POST]}, action: ask"
BAD = "id: bad, to: evil.example, action: deny"


def told(tmp_path, test, *, registry=True):
    async def inside():
        people = People(tmp_path)
        channel = await people.open()
        async with GateLab(tmp_path, (RAW, ASKED, WRITES, READS, ONLY, BAD), hosts=HOSTS) as world:
            if registry:
                people.behind(world.recorder, world.poller, channel)
            try:
                await test(world, people)
                assert not world.errors
            finally:
                if registry:
                    world.sandbox.approvals.close()
                await people.close()

    run(inside)


async def said(world, line, body=None, *fields):
    """What a connection to the desk is answered: status and body, as values if that was wanted."""
    data = (body if isinstance(body, str) else json.dumps(body)) if body is not None else ""
    kind = () if isinstance(body, str | None) else ("Content-Type: application/json",)
    length = () if body is None else (f"Content-Length: {len(data.encode())}",)
    client = await world.connect("exeat.internal", 80)
    await client.send(request(f"{line} HTTP/1.1", *kind, *length, *fields) + data.encode())
    head, _, answer = (await client.read_all()).partition(b"\r\n\r\n")
    text = answer.decode()
    return int(head.split(b" ")[1]), json.loads(text) if "format=json" in line else text


async def wished(world, attempt, why="I need it"):
    return await said(world, "POST /requests?format=json", {"attempt": attempt, "why": why})


def test_pre_request_that_no_approval_allows_is_not_submitted(tmp_path):
    async def test(world, people):
        world.servers.known["only.example", "A"] = ["10.0.0.1"]
        status, values = await wished(world, "POST https://only.example/x")
        assert (status, values["standing"], values["approval"]) == (403, "refused", "")
        assert (
            values["why"]
            == "`only.example` is 10.0.0.1: no rule allows that address, so an approval would have no effect"
        )
        assert not [word for word in people.said if isinstance(word, PreRequest)]

    told(tmp_path, test)


def test_approved_pre_request_passes(tmp_path):
    async def test(world, people):
        attempt = f"tcp raw.example:{world.origin.port}"
        status, values = await wished(world, attempt, "to migrate\u202e")
        assert (status, values["standing"]) == (202, "pending")
        id_ = values["approval"]
        (wish,) = [word for word in people.said if isinstance(word, PreRequest)]
        assert (wish.why, [rule.rule for rule in wish.attempt.question.rules]) == ("to migrate\u202e", ["r:asked"])
        status, text = await said(world, f"GET /requests/{id_}")
        assert status == 202
        assert f"waits for approval {id_} by a person" in text
        await people.approve(id_)
        status, text = await said(world, f"GET /requests/{id_}")
        assert status == 200
        assert f"was approved ({id_}): try it now" in text
        task = await world.connect("raw.example")
        await task.send(b"hello")
        server = await world.origin.take()
        assert await server.read_exactly(5) == b"hello"
        assert world.decisions[-1]["reason"] == "approval_granted"
        assert world.origin.accepted == 1

    told(tmp_path, test)


def test_pre_request_can_be_text(tmp_path):
    async def test(world, people):
        status, text = await said(world, "POST /requests", "POST https://api.example/v1/things\nthe user wants one")
        assert status == 202
        assert text.startswith("POST api.example:443/v1/things\n  waits for approval ")
        (wish,) = [word for word in people.said if isinstance(word, PreRequest)]
        assert (wish.why, wish.attempt.question.method, wish.attempt.question.path) == (
            "the user wants one",
            "POST",
            "/v1/things",
        )

    told(tmp_path, test)


def test_rejection_has_the_approvers_reason(tmp_path):
    async def test(world, people):
        _, values = await wished(world, "POST https://api.example/")
        await people.reject(values["approval"], "use the staging host")
        status, text = await said(world, f"GET /requests/{values['approval']}")
        assert (status, "reason given: use the staging host" in text) == (200, True)

    told(tmp_path, test)


def test_allowed_or_denied_attempt_is_not_submitted(tmp_path):
    async def test(world, people):
        assert (await wished(world, "GET https://api.example/"))[1]["standing"] == "allowed"
        status, values = await wished(world, "https://evil.example/")
        assert (status, values["standing"]) == (403, "refused")
        assert "r:bad" in values["why"]
        status, values = await wished(world, "only.example:443")
        assert (status, "name one" in values["error"]) == (400, True)
        assert people.asked() == []
        assert world.events == []  # nothing was tried

    told(tmp_path, test)


def test_tainted_task_learns_of_a_missing_rule(tmp_path):
    """A rule that asks tainted tasks lets nothing out, whatever people say to it."""

    async def test(world, people):
        reload(world, tmp_path, READS, "id: after, to: '*', http: {methods: [POST]}, when: tainted, action: ask")
        status, values = await wished(world, "POST https://new.example/")
        assert (status, values["standing"]) == (202, "pending")  # with --as-rule
        world.sandbox.tainted = True
        status, values = await wished(world, "POST https://other.example/")
        assert (status, values["standing"]) == (403, "refused")
        assert values["why"] == "no rule allows this, so an approval of what `r:after` asks would have no effect"
        assert len([word for word in people.said if isinstance(word, PreRequest)]) == 1

    told(tmp_path, test)


def test_request_of_another_task_is_unknown(tmp_path):
    async def test(world, people):
        await people.pair("t2")
        other = next(link for link in people.registry._waiting.links if link is not people._channels[1])
        _, values = await wished(world, "POST https://api.example/")
        mine = world.sandbox.approvals
        people.behind(world.recorder, world.poller, people._channels[2])
        assert other is people._channels[3]
        status, text = await said(world, f"GET /requests/{values['approval']}")
        assert (status, "no approval request with this id" in text) == (404, True)
        mine.close()

    told(tmp_path, test)


def test_card_names_the_asking_process(tmp_path):
    async def test(world, people):
        attribution = Attribution()
        attribution.set_process(Process(7, "/usr/bin/curl", ("curl",), 1000, ("/usr/bin/codex",), (6,)))
        world.gate._attribute = lambda *_, **__: attribution
        _, values = await wished(world, f"tcp raw.example:{world.origin.port}")
        card = await people.registry.card(values["approval"])
        assert (card.approval.question.process.pid, card.approval.question.process.ancestors) == (
            7,
            ("/usr/bin/codex",),
        )

    told(tmp_path, test)


WRONG = {
    "no attempt": ({"why": "because"}, 400),
    "no text": ({"attempt": ["GET"]}, 400),
    "more than is known": ({"attempt": "GET https://api.example/", "approve": True}, 400),
    "no object": ([1], 400),
    "no JSON": ("", 400),
    "no attempt that there is": ({"attempt": "please"}, 400),
    "a program": ({"attempt": "run terraform apply"}, 400),
    "a method that nobody has": ({"attempt": "DELTE https://api.example/"}, 400),
    "a lookup": ({"attempt": "dns TXT api.example"}, 400),
    "no host": ({"attempt": "GET https://a..b/"}, 400),
    "a long attempt": ({"attempt": "GET https://api.example/" + "x" * 2001}, 413),
    "a long reason": ({"attempt": "GET https://api.example/", "why": "x" * 2001}, 413),
    "a long body": ({"attempt": "x" * 9000}, 413),
}


@pytest.mark.parametrize(("body", "status"), WRONG.values(), ids=WRONG)
def test_malformed_pre_request_is_refused(tmp_path, body, status):
    async def test(world, people):
        assert (await said(world, "POST /requests", body))[0] == status
        assert not any(isinstance(word, PreRequest) for word in people.said)

    told(tmp_path, test)


@pytest.mark.parametrize(
    ("attempt", "hint"),
    [
        ("DELTE https://api.example/", "`DELTE` is no method of HTTP; did you mean `DELETE`?"),
        ("run terraform apply", "start it, and it waits for approval"),
    ],
)
def test_unsupported_attempt_names_the_supported_ones(tmp_path, attempt, hint):
    async def test(world, _people):
        assert hint in (await wished(world, attempt))[1]["error"]

    told(tmp_path, test)


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        ("POST /policy", (), 405),
        ("POST /requests/abc", (), 405),
        ("GET /requests", (), 405),
        ("GET /requests/../policy", (), 404),
        ("POST /requests", ("Origin: https://evil.example",), 403),
        ("POST /requests", ("Transfer-Encoding: gzip",), 411),
    ],
)
def test_other_paths_are_not_found(tmp_path, line, fields, status):
    async def test(world, _people):
        assert (await said(world, line, None, *fields))[0] == status

    told(tmp_path, test)


def test_missing_registry_is_reported(tmp_path):
    async def test(world, _people):
        status, text = await said(world, "POST /requests", {"attempt": "POST https://api.example/"})
        assert (status, text.startswith("approval requests are not possible")) == (503, True)
        assert (await said(world, "GET /requests/abcdefgh"))[0] == 503

    told(tmp_path, test, registry=False)


def test_silent_registry_blocks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.approvals.client.LOOK", 0.05)

    async def test(world, people):
        people.mute = True
        status, text = await said(world, "POST /requests", {"attempt": "POST https://api.example/"})
        assert (status, text.startswith("approval requests are not possible")) == (503, True)

    told(tmp_path, test)


def test_disconnected_caller_leaves_nothing_pending(tmp_path):
    async def test(world, people):
        people.mute = True
        client = await world.connect("exeat.internal", 80)
        await client.send(request("GET /requests/abcdefgh HTTP/1.1"))
        await wait_until_async(lambda: world.sandbox.approvals._open)
        client.reset()
        await wait_until_async(lambda: not world.sandbox.approvals._open)
        await wait_until_async(lambda: len(world.gate.connections) == 0)

    told(tmp_path, test)


def test_refusal_names_its_approval_request(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        id_ = await people.question()
        await people.advance(61)
        assert await task.ended() == "reset"
        status, text = await said(world, "GET /why")
        assert status == 200
        assert f"approval: {id_}; what became of it: GET http://exeat.internal/requests/{id_}" in text
        _, text = await said(world, f"GET /why?attempt=tcp%20raw.example:{world.origin.port}")
        assert "would wait until somebody has approved it by r:asked" in text
        _, text = await said(world, "GET /why?attempt=tls%20only.example:443")
        assert "each request is asked about" in text

    told(tmp_path, test)
