"""Closed when broken: whatever raises, nothing gets through, and it is told."""

import importlib
import json
import os
import socket
import ssl

import pytest
from mitmproxy.proxy import commands

from proxy.dialing.address_check import DialError
from proxy.inspection import connection as inspected
from proxy.inspection import decide_request, engine, http1, http2, pipeline, router, session, stream, tls, transport
from proxy.inspection.connection_ends import ServerEnd
from proxy.request.messages import WebOrigin
from proxy.telemetry.journal.writer import JournalWriteError
from rules.names import HostName
from rules.verdicts import Reason
from tests.proxy.inspection.inspection_clients import cut_off, rest, wait_for
from tests.proxy.inspection.inspection_harness import Gate, site


class Bug(Exception):  # noqa: N818
    pass


def bug(*_, **__):
    raise Bug("on purpose")


BEFORE = {  # nothing may have reached the origin
    "rule": (session.Session, "rule"),
    "admit": (session.Session, "admit"),
    "decide head": (session, "decide"),
    "read head": (decide_request.request_head, "read"),
    "parse head": (http1, "parse_head"),
    "pipeline": (pipeline.Pipeline, "decide"),
    "decided": (pipeline.Pipeline, "_decided"),
    "settle": (pipeline, "settle"),
    "addresses": (engine.Engine, "addresses"),
    "connect": (engine.Engine, "connect"),
    "stream": (stream.Stream, "state_request_head"),
    "connect to": (router.HttpRouter, "connect"),
    "balance": (inspected.InspectedConnection, "_balance"),
    "decide": (inspected.InspectedConnection, "decide"),
    "open": (inspected.InspectedConnection, "open"),
    "tls": (tls.ClientTls, "settled"),
    "tls data": (tls.Tls, "receive"),
    "read": (transport.Transport, "_arrived"),
}
AFTER = {
    "response": (http1, "response_heads"),
    "response head": (stream.Stream, "state_response_head"),
    "response body": (stream.Stream, "state_response_body"),
    "complete": (session.Session, "complete"),
    "far": (http1.BackHttp1, "next_event"),
    "near": (http1.FrontHttp1, "send"),
    "far tls": (tls.ServerTls, "settled"),
}


# Hooks are found, and made to raise one by one, in test_inspection_hooks.py; over TLS and without it takes turns
@pytest.mark.parametrize(("number", "where"), list(enumerate([*BEFORE, *AFTER])))
def test_an_exception_anywhere_ends_the_connection(gate, origins, monkeypatch, number, where):
    tls_ = number % 2 == 0 or "tls" in where
    origin = origins.web("good.example", tls=tls_, alpn=["http/1.1"])
    place = site(gate, origin, tls=tls_)
    assert place.curl("/first", "-o", os.devnull)[0] == 0
    closed = len(gate.wait_closed())
    monkeypatch.setattr(*{**BEFORE, **AFTER}[where], bug)
    status, out, _ = place.curl("/second", "--http1.1")
    assert status != 0
    assert out == b""
    monkeypatch.undo()
    errors = gate.events("gate.error")
    assert errors
    assert errors[0]["fault"] == {"where": "inspection", "detail": "Bug: on purpose"}
    assert gate.wait_closed(closed + 1)[-1].reason is Reason.GATE_ERROR
    assert len(gate.closed) == closed + 1
    if where in BEFORE:
        assert [request.target for request in origin.requests] == ["/first"]
    assert place.curl("/third", "-o", os.devnull)[0] == 0  # the others go on


@pytest.mark.parametrize("where", ["handle_h2_event", "_handle_event"])
@pytest.mark.parametrize("side", [http2.FrontHttp2, http2.BackHttp2])
def test_an_exception_in_http2_ends_the_connection(gate, origins, monkeypatch, where, side):
    origin = origins.web("good.example")
    place = site(gate, origin)
    monkeypatch.setattr(side, where, bug)
    assert place.curl("/", "--http2")[0] != 0
    assert gate.events("gate.error")
    if side is http2.FrontHttp2:
        assert origin.requests == []


def test_an_exception_after_a_lookup_ends_the_connection(gate, origins, monkeypatch):
    """The hook is a coroutine then: nobody waits for it but us."""
    origin = origins.web("good.example")
    place = site(gate, origin)
    gate.name()
    gate.loop.run(gate.lookup._kept.clear)
    monkeypatch.setattr(pipeline.Pipeline, "_decided", bug)
    assert place.curl("/")[0] != 0
    assert gate.events("gate.error")[0]["fault"]["detail"] == "Bug: on purpose"
    assert origin.connections == 0


def test_a_command_that_nobody_knows_ends_the_connection(gate, origins, monkeypatch):
    class Odd(commands.Command):
        pass

    def odd(self, event):
        yield Odd()

    place = site(gate, origins.web("good.example"))
    monkeypatch.setattr(http2.FrontHttp2, "_handle_event", odd)
    assert place.curl("/", "--http2")[0] != 0
    assert gate.events("gate.error")[0]["fault"]["detail"] == "RuntimeError: unexpected command Odd"


@pytest.mark.parametrize("name", ["evil.example", "good.example"])
def test_the_router_can_t_dial_elsewhere(gate, origins, monkeypatch, name):
    """Not by its name, not without an address that was checked: a bug in the router is no way out."""
    origin = origins.web("good.example", tls=False)
    place = site(gate, origin, tls=False)

    def elsewhere(self, stream):
        addresses = stream.request.addresses if name == "evil.example" else ()
        self.driver.open(ServerEnd(WebOrigin(HostName(name), origin.port, tls=False), addresses))

    monkeypatch.setattr(router.HttpRouter, "connect", elsewhere)
    assert place.curl("/")[0] != 0
    assert gate.events("gate.error")[0]["fault"]["detail"].startswith("RuntimeError: the router wants to dial ")
    assert origin.connections == 0


def full_disk(*_, **__):
    raise JournalWriteError(28, "No space left on device")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_what_can_t_be_told_doesn_t_pass(gate, origins, monkeypatch, version):
    origin = origins.web("good.example")
    place = site(gate, origin)
    tell = gate.recorder.journal.append

    def fill(line, now):
        if b"request.decided" in line:
            full_disk()
        return tell(line, now)

    monkeypatch.setattr(type(gate.recorder.journal), "append", lambda _, line, now: fill(line, now))
    status, out, err = place.curl("/x", version)
    problem = json.loads(out)
    assert (status, err, problem["status"], problem["reason"]) == (0, "", 503, "journal_failed")
    assert (origin.connections, origin.requests) == (0, [])


def test_a_closing_event_that_can_t_be_written_ends_nothing(gate, origins, monkeypatch):
    place = site(gate, origins.web("good.example"))
    tell = gate.recorder.journal.append

    def fill(line, now):
        if b"request.completed" in line:
            full_disk()
        return tell(line, now)

    monkeypatch.setattr(type(gate.recorder.journal), "append", lambda _, line, now: fill(line, now))
    assert place.curl("/x", "-w", "%{http_code}", "-o", os.devnull)[1] == b"200"


def test_an_engine_that_can_t_be_made_lets_nothing_through(tmp_path, origins, monkeypatch):
    real = importlib.import_module
    monkeypatch.setattr(
        "proxy.inspection.importlib.import_module", lambda name: bug() if name.endswith("engine") else real(name)
    )
    gate = Gate(tmp_path, origins)
    origin = origins.web("good.example")
    place = site(gate, origin)
    for _ in range(2):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            place.connect()
    assert [closed.reason for closed in gate.wait_closed(2)] == [Reason.GATE_ERROR] * 2
    assert "can't begin: on purpose" in gate.events("gate.error")[0]["fault"]["detail"]
    assert origin.connections == 0
    gate.close()


def test_those_who_wait_for_the_engine_are_served_in_the_end(tmp_path, origins):
    gate = Gate(tmp_path, origins)
    place = site(gate, origins.web("good.example"))
    assert gate.inspection._engine is None
    assert place.curl("/x", "-w", "%{http_code}", "-o", os.devnull)[1] == b"200"
    assert gate.inspection._engine is not None
    gate.close()


def test_a_client_that_is_gone_before_it_is_adopted(gate, origins):
    place = site(gate, origins.web("good.example"))
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", place.door))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert len(gate.wait_closed(20)) == 20
    assert gate.events("gate.error") == []


def test_a_lookup_that_fails_to_come_back_is_given_up(gate, origins, monkeypatch):
    place = site(gate, origins.web("good.example"))
    gate.name()
    gate.loop.run(gate.lookup._kept.clear)
    monkeypatch.setattr(engine, "LOOKUP_TIMEOUT", 0.1)
    monkeypatch.setattr(type(gate.dialer), "find", lambda *_: None)
    _, out, _ = place.curl("/x")
    assert json.loads(out)["detail"] == "the lookup took too long"


def test_a_dial_that_fails_to_come_back_is_given_up(gate, origins, monkeypatch):
    place = site(gate, origins.web("good.example"))
    called_off = []

    class Never:
        def take(self):
            return None

        def cancel(self):
            called_off.append(self)

    monkeypatch.setattr(engine, "CONNECT_TIMEOUT", 0.1)
    monkeypatch.setattr(type(gate.dialer), "connect", lambda *_, **__: Never())
    _, out, _ = place.curl("/x")
    assert json.loads(out)["reason"] == "upstream_failed"
    assert len(called_off) == 1


def test_a_dial_for_a_client_that_has_left_is_called_off(gate, origins, monkeypatch):
    place = site(gate, origins.web("good.example", tls=False), tls=False)
    called_off = []

    class Never:
        def take(self):
            return None

        def cancel(self):
            called_off.append(self)

    monkeypatch.setattr(engine, "CONNECT_TIMEOUT", 100.0)  # longer than what is waited for here
    monkeypatch.setattr(type(gate.dialer), "connect", lambda *_, **__: Never())
    connection = socket.create_connection(("127.0.0.1", place.door))
    connection.sendall(f"GET / HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
    wait_for(lambda: gate.events("request.decided"))
    cut_off(connection)  # whoever ends its half alone may wait for the answer yet
    gate.wait_closed()
    wait_for(lambda: called_off)
    assert gate.events("request.completed")[0]["outcome"] == "failed"


def test_no_descriptor_and_no_conversation_is_left(gate, origins):
    place = site(gate, origins.web("good.example"))
    place.curl("/", "-o", os.devnull)
    gate.wait_closed()

    def open_now():
        return len(os.listdir("/proc/self/fd"))

    before = open_now()
    for path in ("/ok", "/reset/10", "/status/500", "/bytes/100000"):
        for version in ("--http1.1", "--http2"):
            place.curl(path, version, "-o", os.devnull)
    with place.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        rest(connection)
    gate.wait_closed(10)
    wait_for(lambda: not gate.inspection._engine._connections)
    wait_for(lambda: open_now() <= before)


def test_the_reasons_of_a_dial_are_the_decision_s_own(gate, origins, monkeypatch):
    place = site(gate, origins.web("good.example"))

    def refuse(*_):
        raise DialError(Reason.RULE, "a rule denies the address")

    monkeypatch.setattr(type(gate.dialer), "known", refuse)
    _, out, _ = place.curl("/x")
    problem = json.loads(out)
    assert (problem["status"], problem["verdict"], problem["reason"], problem["rules"]) == (
        403,
        "deny",
        "rule",
        ["t:a"],
    )
