"""What stays open: server-sent events and long polls, WebSocket, gRPC. Passed on at once, not cut while something comes."""

import json

from .clients_lab import RPC, WEBSOCKET

URL = "https://www.open.example"


def test_server_sent_events_arrive_one_by_one(world):
    """Each is asked for when the one before it was read, over another connection: nothing may be held back."""
    tried = world.python(
        ("events_", f"{URL}/steps/1/10", f"{URL}/step/1"),
        ("events_", "http://www.open.example/steps/2/10", f"{URL}/step/2"),
    )
    assert [said.json for said in tried.said] == [[f"event {number}" for number in range(10)]] * 2


PATIENT = "https://patient.example"


STREAMS = f"""
curl -sSN --http1.1 {PATIENT}/slow/4/0.8 >one 2>&1; echo $? >>one &
curl -sSN --http2 {PATIENT}/slow/4/0.8 >two 2>&1; echo $? >>two &
{{ for n in 0 1 2 3; do echo $n; sleep 0.8; done; }} | curl -sS --http1.1 -T - {PATIENT}/upload >up 2>&1; echo $? >>up &
{{ for n in 0 1 2 3; do echo $n; sleep 0.8; done; }} | curl -sS --http2 -T - {PATIENT}/upload >up2 2>&1; echo $? >>up2 &
curl -sSN --http1.1 {PATIENT}/slow/2/30 >silent 2>&1; echo $? >>silent &
"""


def test_active_stream_outlives_the_idle_timeout(world):
    """`idle_timeout` is 2 s: four pieces, in either direction, 0.8 s apart take longer; of two that are 30 s apart the second never comes."""
    commands = [f"{{ {line.rstrip(' &')}; }} &" for line in STREAMS.strip().splitlines()]
    tried = world.run(["sh", "-c", " ".join(commands) + " wait; tail -n +1 one two up up2 silent"])
    [said] = tried.said
    shown = dict(part.split(" <==\n") for part in said.out.split("==> ")[1:])
    for name in ("up", "up2"):
        told, status = shown.pop(name).split("\n")[:2]
        assert (json.loads(told)["size"], status) == (8, "0"), name
    assert {name: text.split() for name, text in shown.items() if name != "silent"} == {
        "one": ["0", "1", "2", "3", "0"],
        "two": ["0", "1", "2", "3", "0"],
    }
    first, *_, status = shown["silent"].split()
    assert first == "0"
    assert status != "0"
    assert "1" not in shown["silent"].splitlines()


def test_websocket(world):
    place = f"wss://ws.example:{WEBSOCKET}"
    tried = world.python(
        ("websockets_", f"{place}/echo", f"{place}/small", f"{place}/closed", "wss://www.denied.example/")
    )
    [said] = tried.said
    assert said.ok, said.err
    ended, limited, closed, denied = map(json.loads, said.out.splitlines())
    assert ended == [4001, "as you wish"]
    assert limited == [1008, "exeat: a limit is used up"]
    for shown, title in (closed, "no rule allows this"), (denied, "no rule allows this"):
        words, phrase, told, reason, problem = shown
        assert words == "server rejected WebSocket connection: HTTP 403"
        assert (phrase, reason, problem) == ("Blocked by Exeat: no_rule", "no_rule", title)
        assert told.startswith("deny;reason=no_rule;event=")
    [opened] = [event for event in tried.journal.of(kind="request.completed") if event["http"]["path"] == "/echo"]
    assert opened["http"]["status"] == 101
    assert opened["bytes"]["up"] > 5_000_000


def test_grpc(world):
    tried = world.python(("grpc_", f"rpc.example:{RPC}", f"www.denied.example:{RPC}", "rpc.example:8446"))
    [said] = tried.said
    assert said.ok, said.err
    unary, stream, total, many, failed, *refused = map(json.loads, said.out.splitlines())
    assert unary == [True, "10040000", True]
    assert stream == [[0, 1, 2, 3, 4], [], "OK"]
    assert (total, many) == ([True], [499500])
    assert failed == ["FAILED_PRECONDITION", "not today: 50% of \u00fcber", "because"]
    *denied, passed, limited, elsewhere, down = refused
    assert down[0] == "UNAVAILABLE"
    assert down[1].startswith(
        "exeat: the server could not be reached, or ended the connection early: POST https://rpc.example:8446/lab.Echo/Unary"
    )
    for code, words, told in (*denied, elsewhere):
        assert code == "PERMISSION_DENIED"
        assert words.startswith("exeat: no rule allows this: POST https://")
        assert told.startswith("deny;reason=no_rule")
    assert "https://rpc.example:8445/lab.Admin/Unary" in denied[0][1]
    assert "nearest rule clients:calls: its http.paths wants /lab.Echo/**" in denied[0][1]
    assert passed == [True]
    assert limited[0] == "RESOURCE_EXHAUSTED"
    assert limited[2].startswith("deny;reason=limit_exceeded")
