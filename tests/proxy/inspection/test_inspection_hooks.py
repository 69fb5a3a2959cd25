"""Closed when broken, for every hook there is: whatever mitmproxy's layers, h2, links or the poller call of ours may raise.

The hooks are found, not listed: each method of a class in proxy/inspection that stands in for one of a library's, each
state of a request, what a codec of HTTP/1 is asked for, what the router wants of its driver, and what a link and the
poller tell. A new one has to be reached by a scenario here.
"""

import contextlib
import importlib
import inspect
import pkgutil
import re
import ssl
from pathlib import Path

import h2.errors
import pytest

import proxy.inspection
from proxy.inspection.connection import InspectedConnection
from proxy.inspection.http1 import Codec
from proxy.inspection.transport import Transport, TransportOwner
from rules.verdicts import Reason
from tests.proxy.inspection.http2_client import Client
from tests.proxy.inspection.inspection_clients import rest, until, wait_for
from tests.proxy.inspection.inspection_harness import Gate, Site
from tests.support.git_pushes import push

CODEC = {"receive", "receive_end", "next_event"}
# What the router and the requests want of the connection
DRIVER = {
    name
    for module in ("router", "stream", "pipeline", "websocket")
    for name in re.findall(r"\bdriver\.(\w+)\(", Path(proxy.inspection.__path__[0], f"{module}.py").read_text())
}
LIBRARIES = {"mitmproxy", "h2", "h11"}
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3


class Bug(Exception):  # noqa: N818
    pass


def classes():
    for module in pkgutil.iter_modules(proxy.inspection.__path__, "proxy.inspection."):
        loaded = importlib.import_module(module.name)
        yield from (one for one in vars(loaded).values() if inspect.isclass(one) and one.__module__ == loaded.__name__)


def is_hook(owner, name):
    """Whether somebody else's code calls this method."""
    if name == "__init__":
        return False
    told = name in vars(TransportOwner) or name.startswith("state_")
    told = told or (owner is InspectedConnection and name in DRIVER) or (issubclass(owner, Codec) and name in CODEC)
    bases = (base for base in owner.__mro__[1:] if base.__module__.partition(".")[0] in LIBRARIES)
    return told or any(name in vars(base) for base in bases)


HOOKS = {
    f"{owner.__name__}.{name}": (owner, name)
    for owner in classes()
    for name, member in vars(owner).items()
    if inspect.isfunction(member) and owner is not TransportOwner and is_hook(owner, name)
}
HOOKS["Transport.ready"] = (Transport, "ready")
ELSEWHERE = {
    "InspectedConnection.crashed",  # what all of these end in
    "InspectedConnection.leaving",  # only where people are asked: test_inspection_asking.py
    "InspectedConnection.relieved", "_Http2._handle_event",  # only where a side doesn't read: test_inspection_http2.py
    "InspectedConnection.end_sending", "BackHttp1.receive_end",  # ... or a server: test_exchanges.py
    "InspectedConnection.reset",  # only where a side is cut: test_inspection_cuts.py
    "Windowed.reset_stream", "Windowed.stream_window_updated",  # only where a server is cut: test_inspection_cuts.py
    "BackHttp2.close_connection",  # only where a server leaves: test_inspection_turns.py
    "Stream.handle_protocol_error", "FrontHttp2.protocol_error",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, origins):
    """One gate, an origin of HTTP/2 and one of HTTP/1."""
    gate = Gate(tmp_path_factory.mktemp("world"), origins)

    def answer(connection, head):
        if b"Upgrade: websocket" in head:
            agreed = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
            connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{agreed}".encode())
            while data := connection.recv(65536):
                connection.sendall(data)
            return False
        if b"hunked" in head:
            until(connection, b"0\r\nX-Sum: 7\r\n\r\n" if b" /x " in head else b"0\r\n\r\n")
        body = b"4\r\npage\r\n0\r\nX-Sum: 7\r\n\r\n"
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        return True

    made = {}
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
        made[name] = Site(gate, "good.example", origin.port, gate.door("good.example", origin.port), True)
        made[name].origin = origin
    gate.rules(f"[{', '.join(rules)}]")
    yield gate, made
    gate.close()


def http1(sites):
    place = sites["http1"]
    one = f"POST /x HTTP/1.1\r\nHost: {place.host}\r\nTransfer-Encoding: chunked\r\n"
    with place.connect() as connection:
        for last in ("", "Connection: close\r\n"):
            connection.sendall(f"{one}{last}\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n".encode())
            if not last:
                until(connection, b"X-Sum: 7\r\n\r\n")
        rest(connection)


def http2(sites):
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
    place = sites["http1"]
    head = f"GET /chat HTTP/1.1\r\nHost: {place.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    with place.connect() as connection:
        connection.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n".encode())
        until(connection, b"\r\n\r\n")
        connection.sendall(b"\x89\x84\0\0\0\0ping")
        until(connection, b"ping")


def pushes(sites, ref="x"):
    place = sites["http1"]
    head = f"POST /acme/web.git/git-receive-pack HTTP/1.1\r\nHost: {place.host}\r\nTransfer-Encoding: chunked\r\n"
    body = push(f"{'a' * 40} {'b' * 40} refs/heads/{ref}")
    with place.connect() as connection:
        kind = (
            "User-Agent: git/2.47\r\nContent-Type: application/x-git-receive-pack-request\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(f"{head}{kind}{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        rest(connection)


def leaves(sites):
    """Ends TLS before TCP."""
    place = sites["http1"]
    with place.connect() as connection:
        connection.sendall(f"POST /x HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: 0\r\n\r\n".encode())
        until(connection, b"X-Sum: 7\r\n\r\n")
        connection.unwrap().close()


def refused_pushes(sites):
    pushes(sites, "y")


SCENARIOS = [http1, http2, websocket, leaves, pushes, refused_pushes]


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_a_hook_that_raises_lets_nothing_through(world, monkeypatch, hook):
    gate, sites = world
    owner, name = HOOKS[hook]
    reached = []

    def bug(*_, **__):
        reached.append(hook)
        raise Bug(hook)

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
        wait_for(lambda: len(gate.events("gate.error")) > errors)
        wait_for(lambda: not gate.inspection._engine._connections)
    assert gate.events("gate.error")[errors]["fault"]["detail"] == f"Bug: {hook}"
    wait_for(lambda: Reason.GATE_ERROR in [closed.reason for closed in gate.closed[ended:]])
    passed = [e for e in gate.events("request.decided") if e["outcome"] == "passed"]
    assert sum(len(place.origin.requests) for place in sites.values()) <= len(passed)  # none but those


def test_the_scenarios_get_through_where_nothing_raises(world):
    gate, sites = world
    errors = len(gate.events("gate.error"))
    for scenario in SCENARIOS:
        scenario(sites)
    wait_for(lambda: not gate.inspection._engine._connections)
    assert len(gate.events("gate.error")) == errors
    assert [e["reason"] for e in gate.events("request.decided")[-7:]] == ["rule"] * 6 + ["no_rule"]
