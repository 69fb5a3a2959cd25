"""What serves a sandbox's traffic is made when that begins, and loses nothing that came before."""

import asyncio
import contextlib
import contextvars
import os
import socket
import time

import pytest

from proxy.event_loop.poller import Loop
from proxy.sandbox.sandbox_state import DescriptorQuotas, SandboxState, Task
from proxy.telemetry.events import Component, Kind
from proxy.telemetry.journal.writer import Journal
from proxy.wire import message
from proxy.worker import sandbox, server
from proxy.worker.messages import OnlySandbox, Setup
from proxy.worker.sandbox import SandboxServer, WorkerResources
from proxy.worker.traffic import Traffic
from rules.loading.load import load
from tests.proxy.gate.test_policy_reload import file_of


@pytest.fixture
def world(tmp_path):
    """A loop, a sandbox's sockets, and what makes its sandbox_server."""
    (tmp_path / "rules.yaml").write_text("version: 1\nname: t\nrules: []\n")
    state = SandboxState("box", Task("t1", "tests"), load([tmp_path / "rules.yaml"]))
    kinds = {
        "tcp": socket.SOCK_STREAM,
        "dns_udp": socket.SOCK_DGRAM,
        "udp": socket.SOCK_DGRAM,
        "answers": socket.SOCK_DGRAM,
    }
    sockets = {name: socket.socket(socket.AF_INET, kind) for name, kind in kinds.items()}
    for sock in sockets.values():
        sock.bind(("127.0.0.1", 0))
    sockets["tcp"].listen()
    keyholder, theirs = socket.socketpair()
    common = WorkerResources(
        Journal(tmp_path / "journal"),
        keyholder,
        b"",
        authority_expires=time.time(),
        descriptors=DescriptorQuotas(4096, 1),
    )
    with asyncio.Runner(loop_factory=Loop) as runner, theirs:
        yield runner.run, lambda: SandboxServer(state, sockets, common, on_failure=lambda _: None), sockets
        common.close()
        for sock in sockets.values():
            sock.close()


def test_idle_task_has_no_traffic_objects(world):
    run, server_of, _ = world

    async def idle():
        sandbox_server = server_of()
        sandbox_server.start()
        await sandbox_server.drain()
        sandbox_server.close()
        return "traffic" in sandbox_server.__dict__

    assert not run(idle())


def test_connection_at_the_end_of_a_task_is_decided(world):
    run, server_of, sockets = world

    async def last():
        sandbox_server = server_of()
        sandbox_server.start()
        with socket.create_connection(sockets["tcp"].getsockname()):
            await sandbox_server.drain()
            counted = sum(sandbox_server.metrics.events.values())
            sandbox_server.close()
            return counted

    assert run(last()) > 0


def test_accepted_sockets_inherit_listener_options(world):
    run, server_of, sockets = world

    async def start():
        server_of().start()

    run(start())
    with socket.create_connection(sockets["tcp"].getsockname()):
        accepted, _ = sockets["tcp"].accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[0] == 1


def test_failed_traffic_closes_its_sockets(world, monkeypatch):
    run, server_of, sockets = world

    def broken(*_, **__):
        raise ValueError("nothing can be made")

    monkeypatch.setattr(sandbox, "Traffic", broken)
    place = sockets["tcp"].getsockname()

    async def begin():
        sandbox_server = server_of()
        sandbox_server.start()
        with socket.create_connection(place):
            await asyncio.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(place)
        return sandbox_server.metrics.gate_errors

    assert sum(run(begin()).values()) == 1


@pytest.mark.parametrize("half", [False, True])
def test_traffic_that_fails_on_a_reload_is_not_served(world, monkeypatch, tmp_path, half):
    run, server_of, sockets = world
    made = []

    def failing_once(*given, **named):
        traffic = Traffic(*given, **named)
        made.append(traffic)
        if len(made) > 1:
            return traffic
        if not half:
            raise OSError("not this time")
        begin = traffic.start

        def start():
            begin()
            raise OSError("not this time")

        traffic.start = start
        return traffic

    monkeypatch.setattr(sandbox, "Traffic", failing_once)
    (tmp_path / "new.yaml").write_text("version: 1\nname: new\nrules: []\n")
    place = sockets["tcp"].getsockname()

    async def change():
        sandbox_server = server_of()
        sandbox_server.start()
        for _ in range(2):  # it is tried again, and stays closed
            new = load([tmp_path / "new.yaml"])
            with pytest.raises((OSError, ValueError)):
                sandbox_server.swap(new, None)
            assert sandbox_server.recorder.sandbox.policy is new  # for programs
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(place)
        sandbox_server.close()
        sandbox_server.close_sockets()
        return sandbox_server.metrics.gate_errors

    assert sum(run(change()).values()) == 1


def test_rejected_rules_are_recorded_in_every_sandbox(world, monkeypatch):
    run, server_of, _ = world

    def broken(*_, **__):
        raise ValueError("nothing can be made")

    monkeypatch.setattr(sandbox, "Traffic", broken)
    servers = object.__new__(server.SandboxServers)

    async def reject():
        first, second = server_of(), server_of()
        servers._reject(server._RuleSet(servers={"first": first, "second": second}), "they are broken")
        second.handle_message({"rules_rejected": ["they are broken still"]})
        return [each.metrics.events.get(Kind.RULES_REJECTED) for each in (first, second)]

    assert run(reject()) == [1, 2]


@pytest.fixture
def given(world, tmp_path, monkeypatch):
    """What a worker is given that can make nothing which serves traffic, and the other end of its channel."""

    def broken(*_, **__):
        raise ValueError("nothing can be made")

    monkeypatch.setattr(sandbox, "Traffic", broken)
    ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keyholder, other = socket.socketpair()
    ours.settimeout(10)

    def setup(**more):
        journal = os.open(tmp_path / "journal", os.O_RDONLY)
        return Setup(keyholder, time.time(), b"", journal, control, **more)

    with ours, control, other, keyholder:
        yield setup, ours


@pytest.mark.parametrize("begins", ["reload", "connection"])
def test_single_worker_stops_if_it_cannot_serve(world, given, tmp_path, begins):
    """Nothing of its traffic passes then, but after a reload its programs would be decided on under the old rules."""
    run, _, sockets = world
    setup, ours = given
    state = SandboxState("box", Task("t1", "tests"), load([tmp_path / "rules.yaml"]))
    place = sockets["tcp"].getsockname()

    async def serve():
        worker = server.SandboxServers(setup(only=OnlySandbox(state, ours)))
        if begins == "reload":
            (tmp_path / "new.yaml").write_text("version: 1\nname: new\nrules: []\n")
            message.send(ours, {"rules": "new"}, [file_of(load([tmp_path / "new.yaml"]))])
        async with asyncio.timeout(10):
            with socket.create_connection(place) if begins == "connection" else contextlib.nullcontext():
                await worker.run(sockets)

    run(serve())
    failed, last = (message.receive(ours)[0] for _ in range(2))
    assert failed["failed"] == "the sandbox's traffic can't be served: ValueError: nothing can be made"
    assert "summary" in last
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place)


def test_service_worker_returns_a_sandbox_it_cannot_serve(world, given, tmp_path):
    """Its sockets would hang, as the service has copies of them: it is told, and closes these."""
    run, _, sockets = world
    setup, ours = given
    place = sockets["tcp"].getsockname()
    admission = {"admit": "box", "under": 1, "sockets": list(sockets), "id": "t1", "name": "tests", "labels": {}}

    async def serve():
        worker = server.SandboxServers(setup())
        serving = asyncio.ensure_future(worker.run({}))
        message.send(ours, {"set": 1}, [file_of(load([tmp_path / "rules.yaml"]))])
        message.send(
            ours,
            {**admission, "before": 0, "wait": 0.0, "turn": 1, "foreign": False},
            [sock.fileno() for sock in sockets.values()],
        )
        with socket.create_connection(place):
            said, _ = await asyncio.to_thread(message.receive, ours)
        left = worker._rule_set_of, worker._rule_sets[1].servers
        assert worker._total_metrics().gate_errors == {Component.WORKER: 1}  # also of a sandbox that is gone
        message.send(ours, {"stop": True})
        await serving
        return said, left

    said, left = run(serve())
    assert said == {"of": "box", "failed": "the sandbox's traffic can't be served: ValueError: nothing can be made"}
    assert left == ({}, {})


def test_invalid_message_is_recorded_and_ends_no_worker(world, given, tmp_path):
    """Its supervisor takes `failed` for the end of the gate: it would say so, and listen no more."""
    run, _, sockets = world
    setup, ours = given
    state = SandboxState("box", Task("t1", "tests"), load([tmp_path / "rules.yaml"]))

    async def serve():
        worker = server.SandboxServers(setup(only=OnlySandbox(state, ours)))
        message.send(ours, {"unusual": {"this": "is no number"}})
        message.send(ours, {"ask": True, "metrics": True})
        message.send(ours, {"stop": True, "unusual": {"this": "is none either"}})
        async with asyncio.timeout(10):
            await worker.run(sockets)
        return worker._sandbox_servers()[0].metrics.gate_errors

    assert run(serve()) == {Component.WORKER: 2}
    said = {}
    while "summary" not in said:
        said |= message.receive(ours)[0]
    assert "failed" not in said
    assert "metrics" in said


@pytest.mark.parametrize("alone", [True, False], ids=["one run", "service"])
def test_sandbox_that_fails_to_drain_is_closed(world, given, tmp_path, monkeypatch, alone):
    run, _, sockets = world
    setup, ours = given
    state = SandboxState("box", Task("t1", "tests"), load([tmp_path / "rules.yaml"]))

    async def broken(_):
        raise ValueError("this can't be drained")

    monkeypatch.setattr(SandboxServer, "drain", broken)

    async def serve():
        worker = server.SandboxServers(setup(only=OnlySandbox(state, ours) if alone else None))
        serving = asyncio.ensure_future(worker.run(sockets if alone else {}))
        if not alone:
            rules = worker._rule_sets[1] = server._RuleSet(state.policy)
            worker._rule_set_of["box"] = 1
            worker._start_sandbox(
                rules, server._WaitingSandbox("box", lambda _: state, sockets, 0, contextvars.copy_context())
            )
        message.send(ours, {"to": "box", "stop": True})
        async with asyncio.timeout(10):
            said, _ = await asyncio.to_thread(message.receive, ours)
            message.send(ours, {"stop": True})
            await serving
        return said, worker._total_metrics().gate_errors

    said, errors = run(serve())
    assert "summary" in said
    assert errors == {Component.WORKER: 1}
