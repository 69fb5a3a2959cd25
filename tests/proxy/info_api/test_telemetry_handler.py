"""The intake at `exeat.internal:4318`: what agents send is kept as their claim, bounded, and harms nobody."""

import gzip
import json

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from proxy.info_api.telemetry_handler import BYTES, MOST_BYTES, MOST_RECORDS, RECORDS, REQUESTS, TelemetryHandler
from proxy.request.http1_heads import parse_head
from proxy.supervisor_channel.channel import Attribution
from proxy.telemetry.events import Process
from tests.proxy.gate.gate_lab import GateLab, run
from tests.proxy.info_api.parsing import parse
from tests.proxy.leaky import TOKEN
from tests.support.waiting import wait_until_async

RULES = ["id: none, to: good.example, action: deny"]
JSON, PROTOBUF = "application/json", "application/x-protobuf"


def record(name="codex.tool_decision", **more):
    said = {"event.name": name, "conversation.id": "c-1", "tool_name": "shell", "call_id": "call_7", **more}
    return {"attributes": [{"key": key, "value": {"stringValue": value}} for key, value in said.items()]}


def logs(*records):
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": list(records)}]}]}


def request(body, path="/v1/logs", kind=JSON, *fields, host="exeat.internal:4318", length=None):
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, *fields, "", ""]).encode() + body


def as_json(*records):
    return json.dumps(logs(*records)).encode()


def as_protobuf(*records):
    return ParseDict(logs(*records), ExportLogsServiceRequest()).SerializeToString()


def nobody():
    """Nobody who could be asked whose socket it is."""


async def said(world, sent):
    """What the intake answers: status, type and body."""
    client = await world.connect("exeat.internal", 4318)
    await client.send(sent)
    head, _, body = (await client.read_all()).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head.split(b"Content-Type: ")[1].split(b"\r\n")[0].decode(), body


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("kind", "make"), [(JSON, as_json), (PROTOBUF, as_protobuf)], ids=["json", "protobuf"])
def test_agent_telemetry_is_journaled_as_a_claim(tmp_path, kind, make, packed):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            body = make(record(), record("codex.tool_result", success="true"))
            fields = ["Content-Encoding: gzip"] if packed else []
            sent = request(gzip.compress(body) if packed else body, "/v1/logs", kind, *fields)
            status, answered, said_back = await said(world, sent)
            assert (status, answered) == (200, kind)
            assert said_back == (b"{}" if kind == JSON else b"")
            assert [event["kind"] for event in world.events] == ["agent.said"] * 2
            assert world.events[0]["agent"] == {
                "source": "log", "name": "codex.tool_decision", "conversation": "c-1", "call": "call_7", "tool": "shell",
                "attributes": {
                    "event.name": "codex.tool_decision", "conversation.id": "c-1", "tool_name": "shell", "call_id": "call_7",
                },
            }  # fmt: skip
            assert world.events[0]["task"]["id"] == "t1"
            assert "verdict" not in world.events[0]

    run(test)


def test_agent_event_names_its_process_once_known(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            attribution = Attribution()
            world.gate._attribute = lambda *_, **__: attribution
            client = await world.connect("exeat.internal", 4318)
            await client.send(request(as_json(record())))
            await wait_until_async(lambda: attribution._callback is not None)
            assert world.events == []
            attribution.set_process(Process(7, "/usr/bin/node", ("node",), 1000, ("/bin/sh", "/usr/bin/codex"), (6, 5)))
            assert (await client.read_all()).startswith(b"HTTP/1.1 200")
            assert world.events[0]["process"] == {
                "pid": 7, "exe": "/usr/bin/node", "argv": ["node"], "uid": 1000,
                "ancestors": ["/bin/sh", "/usr/bin/codex"], "ancestor_pids": [6, 5],
            }  # fmt: skip

    run(test)


def test_credentials_in_telemetry_are_masked(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            await said(
                world, request(as_json(record(prompt=f"use {TOKEN} please", command="curl -H 'Authorization: x'")))
            )
            await said(world, request(as_json(record(f"with {TOKEN}", tool_name=TOKEN, call_id=f"id={TOKEN}"))))
            assert TOKEN not in json.dumps(world.events)
            assert world.events[0]["agent"]["attributes"]["prompt"] == "use *** please"
            assert world.events[1]["agent"]["tool"] == "***"
            await said(world, request(as_json(record(**{f"k{n}": f"{'x' * 490} {TOKEN}" for n in range(28)}))))
            attributes = world.events[2]["agent"]["attributes"]
            assert attributes["[more]"] == str(32 + 1 - len(attributes))
            assert attributes["k0"].endswith("x ***")

    run(test)


ODD = {
    "nothing": (request(b""), 400),
    "no JSON": (request(b"hello"), 400),
    "no protobuf": (request(b"\xff\xff", "/v1/logs", PROTOBUF), 400),
    "another type": (request(b"{}", "/v1/logs", "text/plain"), 415),
    "another coding": (request(b"{}", "/v1/logs", JSON, "Content-Encoding: br"), 415),
    "no gzip": (request(b"{}", "/v1/logs", JSON, "Content-Encoding: gzip"), 400),
    "a bomb": (request(gzip.compress(b" " * 50_000_000), "/v1/logs", JSON, "Content-Encoding: gzip"), 413),
    "too much": (request(b"", length=MOST_BYTES + 1), 413),
    "an odd length": (request(b"", length="+5"), 400),
    "somewhere else": (request(b"{}", "/v1/other"), 404),
    "another host": (request(b"{}", host="good.example"), 421),
    "the other port's host": (request(b"{}", host="exeat.internal"), 421),
    "from a page": (request(b"{}", "/v1/logs", JSON, "Origin: http://evil.example"), 403),
    "chunks and a length": (request(b"", "/v1/logs", JSON, "Transfer-Encoding: chunked"), 400),
    "a question": (b"GET /policy HTTP/1.1\r\nHost: exeat.internal:4318\r\n\r\n", 405),
    "metrics": (request(b"{}", "/v1/metrics"), 200),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), ODD.values(), ids=ODD)
def test_malformed_telemetry_is_refused(tmp_path, sent, status):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            assert (await said(world, sent))[0] == status
            assert world.events == []

    run(test)


def test_excess_telemetry_is_a_partial_success_and_counted(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            clock = [0.0]
            intake = TelemetryHandler(world.recorder, lambda: clock[0])

            def send(kind, make, count):
                *_, answer = intake.work(
                    parse(request(make(*[record()] * count), "/v1/logs", kind), intake.port), nobody
                )
                return answer

            first = json.loads(send(JSON, as_json, 600).body)["partialSuccess"]
            assert first["rejectedLogRecords"] == str(600 - min(RECORDS[0], MOST_RECORDS))
            assert len(world.events) == min(RECORDS[0], MOST_RECORDS)
            clock[0] += 1
            answer = ExportLogsServiceResponse.FromString(send(PROTOBUF, as_protobuf, 200).body)
            assert answer.partial_success.rejected_log_records == 200 - RECORDS[1]
            assert answer.partial_success.error_message
            assert world.metrics.agent_records_refused == 600 - RECORDS[0] + 200 - RECORDS[1]
            statuses = [send(JSON, as_json, 0).status.value for _ in range(100)]
            assert statuses.count(200) < REQUESTS[0]
            assert statuses[-1] == 429

    run(test)


def test_telemetry_volume_is_bounded(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            clock = [0.0]
            intake = TelemetryHandler(world.recorder, lambda: clock[0])
            body = as_json(*[record(**{f"k{n}": "x" * 500 for n in range(8)})] * 50)
            sent = parse(request(gzip.compress(body), "/v1/logs", JSON, "Content-Encoding: gzip"), intake.port)

            def statuses():
                return [[*intake.work(sent, nobody)][-1].status.value for _ in range(REQUESTS[0])]

            allowed = BYTES[0] // len(body)
            assert statuses() == [200] * allowed + [429] * (REQUESTS[0] - allowed)
            clock[0] += 2 * BYTES[0] / BYTES[1]
            assert statuses().count(200) == allowed

    run(test)


def test_full_journal_refuses_telemetry(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            world.journal.full = True
            assert (await said(world, request(as_json(record()))))[0] == 503

    run(test)


def test_concurrent_telemetry_requests_are_bounded(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            waiting = []
            for _ in range(TelemetryHandler.most_connections):
                waiting.append(await world.connect("exeat.internal", 4318))
                await waiting[-1].send(request(b"", length=1000))
            await wait_until_async(lambda: len(world.gate.connections) == TelemetryHandler.most_connections)
            assert (await said(world, request(as_json(record()))))[0] == 503
            waiting[0].reset()
            await wait_until_async(lambda: len(world.gate.connections) < TelemetryHandler.most_connections)
            assert (await said(world, request(as_json(record()))))[0] == 200
            assert world.info_api.handlers[4318].connections == TelemetryHandler.most_connections - 1

    run(test)


def test_slow_telemetry_is_assembled(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            sent = request(as_json(record()))
            client = await world.connect("exeat.internal", 4318)
            for start in range(0, len(sent), 50):
                await client.send(sent[start : start + 50])
            assert (await client.read_all()).startswith(b"HTTP/1.1 200 ")
            assert len(world.events) == 1

    run(test)


def test_hostile_text_stays_text(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            odd = "\x1b[2J\r\n\u202e" + "x" * 10_000
            await said(world, request(as_json(record(odd, **{odd: odd}))))
            [event] = world.events
            assert len(event["agent"]["name"]) <= 1024
            from proxy.telemetry.encoding import decode
            from proxy.telemetry.views.table import Table

            row = Table().row(decode(json.dumps(event).encode() + b"\n"))
            assert row.isprintable()

    run(test)


def test_telemetry_yields_to_others_and_stops_on_disconnect(tmp_path, monkeypatch):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            monkeypatch.setattr("proxy.info_api.info_api_connection._A_TURN", 0)
            clients = [await world.connect("exeat.internal", 4318) for _ in range(2)]
            for client in clients:
                await client.send(request(as_json(*[record()] * 200)))
            await wait_until_async(lambda: len(world.events) > 10)
            assert len(world.events) < 400  # at most one between two turns of ours
            clients[0].reset()
            assert (await clients[1].read_all()).startswith(b"HTTP/1.1 200 ")
            await wait_until_async(lambda: len(world.gate.connections) == 0)
            assert 200 <= len(world.events) < 400
            assert world.info_api.handlers[4318].connections == 0
            assert world.errors == []

    run(test)


def test_head_is_parsed_once(tmp_path, monkeypatch):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            read = []
            monkeypatch.setattr(
                "proxy.info_api.requests.parse_head", lambda head: read.append(head) or parse_head(head)
            )
            body = as_json(record())
            client = await world.connect("exeat.internal", 4318)
            for piece in (request(b"", length=len(body)), *(body[at : at + 9] for at in range(0, len(body), 9))):
                await client.send(piece)
            assert (await client.read_all()).startswith(b"HTTP/1.1 200 ")
            assert len(read) == 1

    run(test)
