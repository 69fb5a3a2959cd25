"""Who opened a connection: asked of some, waited for by refusals alone and for a moment, and never needed."""

import asyncio
import os
import socket
import struct
from ipaddress import ip_address

import pytest

from proxy.supervisor_channel import channel, messages
from proxy.supervisor_channel.channel import A_SECOND, AT_ONCE, Attribution, ProcessAttribution
from proxy.telemetry.events import Process
from tests.proxy.gate.gate_lab import GateLab, client_hello, run
from tests.support.waiting import wait_until_async

RULES = [
    "id: raw, to: raw.example, ports: [ORIGIN/tcp], resolves_to: [127.0.0.0/8], action: allow",
    "id: bad, to: bad.example, action: deny",
]
HOSTS = "127.0.0.1 raw.example\n"
CURL = Process(7, "/usr/bin/curl", ("curl", "x"), 1000, ("/bin/sh",))
ENDS = ((ip_address("192.0.0.2"), 40000), (ip_address("93.184.216.34"), 443))


def gate(tmp_path, test):
    async def inside():
        async with GateLab(tmp_path, RULES, hosts=HOSTS) as world:
            world.attribution = []

            def attribute(*_, **__):
                world.attribution.append(Attribution())
                return world.attribution[-1]

            world.gate._attribute = attribute
            await test(world)

    run(inside)


async def refused(world):
    task = await world.connect("bad.example", 443)
    await task.send(client_hello("bad.example"))
    await wait_until_async(lambda: world.attribution and world.attribution[0]._callback is not None)
    return task


def test_denial_waits_for_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.supervisor_channel.channel.PATIENCE", 60)  # a moment, on a machine that is busy

    async def test(world):
        task = await refused(world)
        assert world.decisions == []
        world.attribution[0].set_process(CURL)
        assert world.decisions[0]["process"] == {
            "pid": 7, "exe": "/usr/bin/curl", "argv": ["curl", "x"], "uid": 1000, "ancestors": ["/bin/sh"],
        }  # fmt: skip
        assert world.decisions[0]["outcome"] == "blocked"
        task.close()

    gate(tmp_path, test)


def test_denial_waits_for_a_bounded_time(tmp_path):
    async def test(world):
        await refused(world)
        decision = await world.decision()
        assert "process" not in decision
        world.attribution[0].set_process(CURL)  # too late, and no harm
        assert len(world.decisions) == 1

    gate(tmp_path, test)


def test_closing_gate_records_a_waiting_denial_once(tmp_path):
    async def test(world):
        await refused(world)
        world.gate.close()
        world.attribution[0].set_process(CURL)
        assert [(each["reason"], each["rules"]) for each in world.decisions] == [("rule", ["r:bad"])]

    gate(tmp_path, test)


def test_closing_gate_waits_for_no_answer(tmp_path):
    async def test(world):
        task = await world.connect("bad.example", 443)  # which has not said a word
        await wait_until_async(lambda: world.attribution)
        assert len(world.gate.connections) == 1
        world.gate.close()
        assert [each["reason"] for each in world.decisions] == ["gate_error"]
        assert len(world.gate.connections) == 0
        world.attribution[0].set_process(CURL)
        assert len(world.decisions) == 1
        assert await task.ended() == "reset"

    gate(tmp_path, test)


def test_error_during_attribution_ends_the_connection(tmp_path, monkeypatch):
    async def test(world):
        def broken(*_):
            raise RuntimeError("broken on purpose")

        monkeypatch.setattr("proxy.gate.connection.Connection._record_and_reset_or_inspect", broken)
        task = await refused(world)
        world.attribution[0].set_process(None)
        assert await task.ended() == "reset"
        assert [each["reason"] for each in world.decisions] == ["gate_error"]
        assert len(world.gate.connections) == 0

    gate(tmp_path, test)


def test_allowed_connection_names_its_process_at_its_end(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        origin = await world.origin.take()
        assert "process" not in world.decisions[0]
        world.attribution[0].set_process(CURL)
        task.close()
        origin.close()
        closing = await world.closing()
        assert closing["process"]["exe"] == "/usr/bin/curl"

    gate(tmp_path, test)


# --- asking ---


@pytest.fixture
def asking(monkeypatch):
    """An ProcessAttribution whose kernel knows every socket; its clock, and the watcher's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    inodes = iter(range(1000, 100_000))
    monkeypatch.setattr(channel, "look_up_owner", lambda *_: attributing_owner(next(inodes)))
    clock = [0.0]
    yield ProcessAttribution(None, ours, lambda: clock[0]), clock, theirs
    ours.close()
    theirs.close()


def attributing_owner(inode):
    from proxy.supervisor_channel.channel import Owner

    return Owner(inode, 0)


def test_queries_are_rate_limited(asking):
    one, clock, theirs = asking
    assert sum(one.look_up(*ENDS) is not None for _ in range(1000)) == AT_ONCE
    clock[0] += 2
    assert sum(one.look_up(*ENDS) is not None for _ in range(1000)) == 2 * A_SECOND
    assert messages.unpack(theirs.recv(1000)) == messages.ProcessLookup(1, 1000)


def test_answers_reach_their_query_only(asking):
    one, _, _ = asking
    first, second = one.look_up(*ENDS), one.look_up(*ENDS)
    who = messages.ProcessInfo(7, -1, b"/bin/\xff", (b"a",))
    one.handle_answer(
        messages.unpack(
            messages.pack(
                messages.ProcessFound(2, who, (messages.Ancestor(6, b"/bin/sh"), messages.Ancestor(5, b"/bin/init")))
            )
        )
    )
    one.handle_answer(messages.ProcessFound(2, None))
    one.handle_answer(messages.ProcessFound(99, who))
    assert first.waiting
    assert second.process == Process(7, os.fsdecode(b"/bin/\xff"), ("a",), None, ("/bin/sh", "/bin/init"), (6, 5))
    one.handle_answer(messages.unpack(messages.pack(messages.ProcessFound(1, None))))
    assert (first.waiting, first.process) == (False, None)


def test_silent_supervisor_has_a_bounded_cost(asking):
    one, clock, theirs = asking
    for _ in range(30):
        clock[0] += 2
        while one.look_up(*ENDS) is not None:
            pass
        while True:
            try:
                theirs.recv(1000)
            except BlockingIOError:
                break
    assert len(one._pending) <= 64


def test_lost_or_full_supervisor_is_not_queried(asking):
    one, clock, theirs = asking
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
    answers = []
    for _ in range(400):
        clock[0] += 1
        answers.append(one.look_up(*ENDS))
    assert None in answers  # nobody reads: its queue is full
    theirs.close()
    clock[0] += 10
    assert one.look_up(*ENDS) is None


def test_closed_loop_leaves_no_waiter():
    async def wait():
        attribution = Attribution()
        attribution.then(lambda: None)
        return attribution

    attribution = asyncio.run(wait())
    attribution.set_process(None)
    assert not attribution.waiting
