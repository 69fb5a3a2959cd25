"""Whatever raises inside inspection ends the connection, is recorded, and lets nothing through."""

import contextlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import socket
import ssl
from pathlib import Path

import h2.errors
import pytest
from mitmproxy.proxy import commands

import proxy.inspection
from proxy.dialing.address_check import DialError
from proxy.inspection import connection as inspected
from proxy.inspection import decide_request, engine, http1, http2, pipeline, router, session, stream, tls, transport
from proxy.inspection.connection import InspectedConnection
from proxy.inspection.connection_ends import ServerEnd
from proxy.inspection.http1 import Codec
from proxy.inspection.transport import Transport, TransportOwner
from proxy.request.messages import WebOrigin
from proxy.telemetry.journal.writer import JournalWriteError
from rules.values.names import HostName
from rules.verdicts import Reason
from tests.proxy.inspection.clients import Client, close_abruptly, read_all, read_until
from tests.proxy.inspection.inspection_lab import GateLab, Site, make_site
from tests.support.git_pushes import push
from tests.support.waiting import wait_until


class Bug(Exception):  # noqa: N818
    pass


def bug(*_, **__):
    raise Bug("on purpose")


BEFORE = {  # nothing may have reached the origin
    "evaluate": (session.Session, "evaluate"),
    "record decision": (session.Session, "record_decision"),
    "decide head": (session, "decide"),
    "read head": (decide_request.request_head, "read"),
    "parse head": (http1, "parse_head"),
    "pipeline": (pipeline.Pipeline, "decide"),
    "record and prepare": (pipeline.Pipeline, "_record_and_prepare"),
    "head to send": (pipeline, "head_to_send"),
    "addresses": (engine.Engine, "addresses"),
    "connect": (engine.Engine, "connect"),
    "stream": (stream.Stream, "state_request_head"),
    "connect to": (router.HttpRouter, "connect"),
    "balance": (inspected.InspectedConnection, "_balance"),
    "decide": (inspected.InspectedConnection, "decide"),
    "open": (inspected.InspectedConnection, "open"),
    "tls": (tls.ClientTls, "check_handshake"),
    "tls data": (tls.Tls, "receive"),
    "read": (transport.Transport, "_handle_data"),
}
AFTER = {
    "response": (http1, "response_heads"),
    "response head": (stream.Stream, "state_response_head"),
    "response body": (stream.Stream, "state_response_body"),
    "complete": (session.Session, "complete"),
    "far": (http1.ServerSideHttp1, "next_event"),
    "near": (http1.ClientSideHttp1, "send"),
    "far tls": (tls.ServerTls, "check_handshake"),
}


# Hooks are found and tested one by one further below. Cases alternate between TLS and plain HTTP.
@pytest.mark.parametrize(("number", "where"), list(enumerate([*BEFORE, *AFTER])))
def test_exception_in_any_step_ends_the_connection(gate, origins, monkeypatch, number, where):
    tls_ = number % 2 == 0 or "tls" in where
    origin = origins.web("good.example", tls=tls_, alpn=["http/1.1"])
    site = make_site(gate, origin, tls=tls_)
    assert site.curl("/first", "-o", os.devnull)[0] == 0
    closed = len(gate.wait_closed())
    monkeypatch.setattr(*{**BEFORE, **AFTER}[where], bug)
    status, out, _ = site.curl("/second", "--http1.1")
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
    assert site.curl("/third", "-o", os.devnull)[0] == 0  # the others go on


@pytest.mark.parametrize("where", ["handle_h2_event", "_handle_event"])
@pytest.mark.parametrize("side", [http2.ClientSideHttp2, http2.ServerSideHttp2])
def test_exception_in_an_http2_codec_ends_the_connection(gate, origins, monkeypatch, where, side):
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    monkeypatch.setattr(side, where, bug)
    assert site.curl("/", "--http2")[0] != 0
    assert gate.events("gate.error")
    if side is http2.ClientSideHttp2:
        assert origin.requests == []


def test_exception_after_a_lookup_ends_the_connection(gate, origins, monkeypatch):
    """The hook is a coroutine then, which only our driver awaits."""
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    gate.name()
    gate.loop.run(gate.lookup._cache.clear)
    monkeypatch.setattr(pipeline.Pipeline, "_record_and_prepare", bug)
    assert site.curl("/")[0] != 0
    assert gate.events("gate.error")[0]["fault"]["detail"] == "Bug: on purpose"
    assert origin.connections == 0


def test_unknown_layer_command_ends_the_connection(gate, origins, monkeypatch):
    class Odd(commands.Command):
        pass

    def odd(self, event):
        yield Odd()

    site = make_site(gate, origins.web("good.example"))
    monkeypatch.setattr(http2.ClientSideHttp2, "_handle_event", odd)
    assert site.curl("/", "--http2")[0] != 0
    assert gate.events("gate.error")[0]["fault"]["detail"] == "RuntimeError: unexpected command Odd"


@pytest.mark.parametrize("name", ["evil.example", "good.example"])
def test_router_cannot_dial_another_host_or_an_unchecked_address(gate, origins, monkeypatch, name):
    """A router with a bug can dial neither another name nor an unchecked address."""
    origin = origins.web("good.example", tls=False)
    site = make_site(gate, origin, tls=False)

    def elsewhere(self, stream):
        addresses = stream.request.addresses if name == "evil.example" else ()
        self.driver.open(ServerEnd(WebOrigin(HostName(name), origin.port, tls=False), addresses))

    monkeypatch.setattr(router.HttpRouter, "connect", elsewhere)
    assert site.curl("/")[0] != 0
    assert gate.events("gate.error")[0]["fault"]["detail"].startswith("RuntimeError: the router wants to dial ")
    assert origin.connections == 0


def full_disk(*_, **__):
    raise JournalWriteError(28, "No space left on device")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_request_whose_decision_cannot_be_recorded_is_not_sent(gate, origins, monkeypatch, version):
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    tell = gate.recorder.journal.append

    def fill(line, now):
        if b"request.decided" in line:
            full_disk()
        return tell(line, now)

    monkeypatch.setattr(type(gate.recorder.journal), "append", lambda _, line, now: fill(line, now))
    status, out, err = site.curl("/x", version)
    problem = json.loads(out)
    assert (status, err, problem["status"], problem["reason"]) == (0, "", 503, "journal_failed")
    assert (origin.connections, origin.requests) == (0, [])


def test_failed_write_of_a_completion_event_does_not_end_the_request(gate, origins, monkeypatch):
    site = make_site(gate, origins.web("good.example"))
    tell = gate.recorder.journal.append

    def fill(line, now):
        if b"request.completed" in line:
            full_disk()
        return tell(line, now)

    monkeypatch.setattr(type(gate.recorder.journal), "append", lambda _, line, now: fill(line, now))
    assert site.curl("/x", "-w", "%{http_code}", "-o", os.devnull)[1] == b"200"


def test_connections_end_when_the_engine_cannot_be_created(tmp_path, origins, monkeypatch):
    real = importlib.import_module
    monkeypatch.setattr(
        "proxy.inspection.importlib.import_module", lambda name: bug() if name.endswith("engine") else real(name)
    )
    gate = GateLab(tmp_path, origins)
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    for _ in range(2):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            site.connect()
    assert [closed.reason for closed in gate.wait_closed(2)] == [Reason.GATE_ERROR] * 2
    assert "can't begin: on purpose" in gate.events("gate.error")[0]["fault"]["detail"]
    assert origin.connections == 0
    gate.close()


def test_connection_that_waits_for_the_engine_is_served(tmp_path, origins):
    gate = GateLab(tmp_path, origins)
    site = make_site(gate, origins.web("good.example"))
    assert gate.inspection._engine is None
    assert site.curl("/x", "-w", "%{http_code}", "-o", os.devnull)[1] == b"200"
    assert gate.inspection._engine is not None
    gate.close()


def test_clients_gone_before_inspection_are_closed_without_errors(gate, origins):
    site = make_site(gate, origins.web("good.example"))
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", site.gate_port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert len(gate.wait_closed(20)) == 20
    assert gate.events("gate.error") == []


def test_lookup_without_an_answer_times_out(gate, origins, monkeypatch):
    site = make_site(gate, origins.web("good.example"))
    gate.name()
    gate.loop.run(gate.lookup._cache.clear)
    monkeypatch.setattr(engine, "LOOKUP_TIMEOUT", 0.1)
    monkeypatch.setattr(type(gate.dialer), "find", lambda *_: None)
    _, out, _ = site.curl("/x")
    assert json.loads(out)["detail"] == "the lookup took too long"


def test_dial_without_an_answer_times_out(gate, origins, monkeypatch):
    site = make_site(gate, origins.web("good.example"))
    called_off = []

    class EndlessDial:
        def take(self):
            return None

        def cancel(self):
            called_off.append(self)

    monkeypatch.setattr(engine, "CONNECT_TIMEOUT", 0.1)
    monkeypatch.setattr(type(gate.dialer), "connect", lambda *_, **__: EndlessDial())
    _, out, _ = site.curl("/x")
    assert json.loads(out)["reason"] == "upstream_failed"
    assert len(called_off) == 1


def test_dial_for_a_client_that_left_is_canceled(gate, origins, monkeypatch):
    site = make_site(gate, origins.web("good.example", tls=False), tls=False)
    called_off = []

    class EndlessDial:
        def take(self):
            return None

        def cancel(self):
            called_off.append(self)

    monkeypatch.setattr(engine, "CONNECT_TIMEOUT", 100.0)  # longer than what is waited for here
    monkeypatch.setattr(type(gate.dialer), "connect", lambda *_, **__: EndlessDial())
    connection = socket.create_connection(("127.0.0.1", site.gate_port))
    connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
    wait_until(lambda: gate.events("request.decided"))
    close_abruptly(connection)  # a half-close would not do: such a client may still wait for the answer
    gate.wait_closed()
    wait_until(lambda: called_off)
    assert gate.events("request.completed")[0]["outcome"] == "failed"


def test_closed_connections_leave_no_descriptor_or_connection_object(gate, origins):
    site = make_site(gate, origins.web("good.example"))
    site.curl("/", "-o", os.devnull)
    gate.wait_closed()

    def open_now():
        return len(os.listdir("/proc/self/fd"))

    before = open_now()
    for path in ("/ok", "/reset/10", "/status/500", "/bytes/100000"):
        for version in ("--http1.1", "--http2"):
            site.curl(path, version, "-o", os.devnull)
    with site.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        read_all(connection)
    gate.wait_closed(10)
    wait_until(lambda: not gate.inspection._engine._connections)
    wait_until(lambda: open_now() <= before)


def test_dial_error_decides_with_its_own_reason(gate, origins, monkeypatch):
    site = make_site(gate, origins.web("good.example"))

    def refuse(*_):
        raise DialError(Reason.RULE, "a rule denies the address")

    monkeypatch.setattr(type(gate.dialer), "known", refuse)
    _, out, _ = site.curl("/x")
    problem = json.loads(out)
    assert (problem["status"], problem["verdict"], problem["reason"], problem["rules"]) == (
        403,
        "deny",
        "rule",
        ["t:a"],
    )


# --- every hook that libraries, the poller and transports call ---
#
# Hooks are found, not listed: methods in proxy/inspection that override one of a library, states of a request, codec
# methods of HTTP/1, driver methods, and calls of transports and the poller. A scenario here must reach each new one.


CODEC = {"receive", "receive_end", "next_event"}
# The driver methods that the router and the requests call
DRIVER = {
    name
    for module in ("router", "stream", "pipeline", "websocket")
    for name in re.findall(r"\bdriver\.(\w+)\(", Path(proxy.inspection.__path__[0], f"{module}.py").read_text())
}
LIBRARIES = {"mitmproxy", "h2", "h11"}
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3


class HookBug(Exception):  # noqa: N818
    pass


def classes():
    for module in pkgutil.iter_modules(proxy.inspection.__path__, "proxy.inspection."):
        loaded = importlib.import_module(module.name)
        yield from (one for one in vars(loaded).values() if inspect.isclass(one) and one.__module__ == loaded.__name__)


def is_hook(owner, name):
    """Return whether code of a library, the poller or a transport calls this method."""
    if name == "__init__":
        return False
    matches = name in vars(TransportOwner) or name.startswith("state_")
    matches = (
        matches or (owner is InspectedConnection and name in DRIVER) or (issubclass(owner, Codec) and name in CODEC)
    )
    bases = (base for base in owner.__mro__[1:] if base.__module__.partition(".")[0] in LIBRARIES)
    return matches or any(name in vars(base) for base in bases)


HOOKS = {
    f"{owner.__name__}.{name}": (owner, name)
    for owner in classes()
    for name, member in vars(owner).items()
    if inspect.isfunction(member) and owner is not TransportOwner and is_hook(owner, name)
}
HOOKS["Transport.ready"] = (Transport, "ready")
ELSEWHERE = {
    "InspectedConnection.crashed",  # what all of these end in
    "InspectedConnection.leaving",  # only while an approval is pending: stages/test_approval.py
    "InspectedConnection.relieved", "_Http2._handle_event",  # only where a side does not read: test_http2.py
    "InspectedConnection.end_sending", "ServerSideHttp1.receive_end",  # ... or a server: test_exchanges.py
    "InspectedConnection.reset",  # only where a side is cut: test_cut_connections.py
    "Windowed.reset_stream", "Windowed.stream_window_updated",  # only where a server is cut: test_cut_connections.py
    "ServerSideHttp2.close_connection",  # only where a server leaves: test_http2.py
    "Stream.handle_protocol_error", "ClientSideHttp2.protocol_error",
}  # fmt: skip


@pytest.fixture(scope="module")
def hook_lab(tmp_path_factory, origins):
    """A gate with an HTTP/2 origin and an HTTP/1 origin."""
    gate = GateLab(tmp_path_factory.mktemp("world"), origins)

    def answer(connection, head):
        if b"Upgrade: websocket" in head:
            agreed = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
            connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{agreed}".encode())
            while data := connection.recv(65536):
                connection.sendall(data)
            return False
        if b"hunked" in head:
            read_until(connection, b"0\r\nX-Sum: 7\r\n\r\n" if b" /x " in head else b"0\r\n\r\n")
        body = b"4\r\npage\r\n0\r\nX-Sum: 7\r\n\r\n"
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        return True

    sites = {}
    gate.name(good_example="127.0.0.1")
    rules = []
    for name, origin in {
        "http1": origins.script(answer, "good.example", tls=True, alpn=["http/1.1"]), "http2": origins.web("good.example"),
    }.items():  # fmt: skip
        where = f"to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow"
        rules += [
            f"{{id: {name}, {where}, http: {{paths: [/x, /chat, /upload], websocket: true, body: true}}}}",
            f"{{id: git-{name}, {where}, git: {{repos: [acme/web], push: [refs/heads/x]}}}}",
        ]
        sites[name] = Site(gate, "good.example", origin.port, gate.listen_for("good.example", origin.port), True)
        sites[name].origin = origin
    gate.rules(f"[{', '.join(rules)}]")
    yield gate, sites
    gate.close()


def speak_http1(sites):
    site = sites["http1"]
    one = f"POST /x HTTP/1.1\r\nHost: {site.host}\r\nTransfer-Encoding: chunked\r\n"
    with site.connect() as connection:
        for last in ("", "Connection: close\r\n"):
            connection.sendall(f"{one}{last}\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n".encode())
            if not last:
                read_until(connection, b"X-Sum: 7\r\n\r\n")
        read_all(connection)


def speak_http2(sites):
    client = Client(sites["http2"])
    try:
        stream = client.request("/upload", "POST", end=False)
        client.h2.send_data(stream, b"abc", end_stream=True)
        client.flush()
        client.body(stream)
        client.h2.close_connection(h2.errors.ErrorCodes.NO_ERROR)
        client.flush()
    finally:
        client.close()


def websocket(sites):
    site = sites["http1"]
    head = f"GET /chat HTTP/1.1\r\nHost: {site.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    with site.connect() as connection:
        connection.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n".encode())
        read_until(connection, b"\r\n\r\n")
        connection.sendall(b"\x89\x84\0\0\0\0ping")
        read_until(connection, b"ping")


def pushes(sites, ref="x"):
    site = sites["http1"]
    head = f"POST /acme/web.git/git-receive-pack HTTP/1.1\r\nHost: {site.host}\r\nTransfer-Encoding: chunked\r\n"
    body = push(f"{'a' * 40} {'b' * 40} refs/heads/{ref}")
    with site.connect() as connection:
        kind = (
            "User-Agent: git/2.47\r\nContent-Type: application/x-git-receive-pack-request\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(f"{head}{kind}{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        read_all(connection)


def leaves(sites):
    """End TLS before TCP."""
    site = sites["http1"]
    with site.connect() as connection:
        connection.sendall(f"POST /x HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 0\r\n\r\n".encode())
        read_until(connection, b"X-Sum: 7\r\n\r\n")
        connection.unwrap().close()


def refused_pushes(sites):
    pushes(sites, "y")


SCENARIOS = [speak_http1, speak_http2, websocket, leaves, pushes, refused_pushes]


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_hook_that_raises_ends_the_connection(hook_lab, monkeypatch, hook):
    gate, sites = hook_lab
    owner, name = HOOKS[hook]
    reached = []

    def bug(*_, **__):
        reached.append(hook)
        raise HookBug(hook)

    errors, ended = len(gate.events("gate.error")), len(gate.closed)
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, bug)
        for scenario in SCENARIOS:
            with contextlib.suppress(OSError, ssl.SSLError, pytest.fail.Exception):
                scenario(sites)
            if reached:
                break
        if not reached:
            assert hook in ELSEWHERE, "no scenario reaches it: add one"
            return
        wait_until(lambda: len(gate.events("gate.error")) > errors)
        wait_until(lambda: not gate.inspection._engine._connections)
    assert gate.events("gate.error")[errors]["fault"]["detail"] == f"HookBug: {hook}"
    wait_until(lambda: Reason.GATE_ERROR in [closed.reason for closed in gate.closed[ended:]])
    passed = [e for e in gate.events("request.decided") if e["outcome"] == "passed"]
    assert sum(len(site.origin.requests) for site in sites.values()) <= len(passed)  # only allowed requests


def test_scenarios_pass_when_no_hook_raises(hook_lab):
    gate, sites = hook_lab
    errors = len(gate.events("gate.error"))
    for scenario in SCENARIOS:
        scenario(sites)
    wait_until(lambda: not gate.inspection._engine._connections)
    assert len(gate.events("gate.error")) == errors
    assert [e["reason"] for e in gate.events("request.decided")[-7:]] == ["rule"] * 6 + ["no_rule"]
