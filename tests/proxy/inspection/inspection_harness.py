"""A gate on loopback whose every connection is inspected, and origins behind it: real sockets, real TLS, real clients.

The gate runs in a thread with a loop of its own, the origins in another; tests are ordinary synchronous code. What the
gate does before (peeking, deciding the connection) is cut short: a door admits what comes to it for one place.
"""

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import h2.config
import h2.connection
import pytest

from proxy import poller
from proxy.admitted import Admitted
from proxy.ca import authority
from proxy.dialling.dial import Dialer
from proxy.dns.hostsfile import HostsFile
from proxy.dns.lookup import Lookup, LookupFailed
from proxy.hello import ClientHello, NotTls, parse_hello
from proxy.inspection import Inspection, Roots
from proxy.telemetry.events import Kind
from proxy.telemetry.journal import Journal
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.recorder import Recorder
from proxy.tenant import Task, Tenant
from rules.addresses import parse_host
from rules.attempt import Attempt, Protocol
from rules.load import load
from tests.lab import certificates
from tests.lab.web import Http2, Peer, serve_http1


class Loop:
    """An event loop in a thread."""

    def __init__(self, make=asyncio.new_event_loop):
        self.loop = make()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, function, *arguments):
        """Run a function, or a coroutine, in the loop and return what it returns."""

        async def call():
            result = function(*arguments)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(20)

    def close(self):
        async def cancel():
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        self.run(cancel)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


class NoServers:
    """Nobody knows a name that the hosts file doesn't."""

    async def ask(self, name, kind):
        raise LookupFailed(f"{name} has no {kind}")


@dataclass
class Origin:
    """A server that writes down what it is asked."""

    port: int
    requests: list = field(default_factory=list)
    connections: int = 0


class Origins:
    """Servers on loopback, with certificates of a CA of their own."""

    def __init__(self, directory):
        self.loop = Loop()
        self.authority = certificates.Authority.make()
        self._directory = directory

    def context(self, *names, kind="good", alpn=("h2", "http/1.1")):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        file = self._directory / f"leaf-{len(list(self._directory.iterdir()))}.pem"
        file.write_bytes(self.authority.leaf(*names, kind=kind))
        context.load_cert_chain(file)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def web(self, *names, tls=True, address="127.0.0.1", **more):
        """Serve the lab's pages."""
        origin = Origin(0)

        async def serve(reader, writer):
            origin.connections += 1
            tls = writer.get_extra_info("ssl_object")
            peer = Peer(None, ("", 0), ("", 0))
            try:
                with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                    if tls is not None and tls.selected_alpn_protocol() == "h2":
                        await Http2(reader, writer, peer, origin.requests.append).serve()
                    else:
                        await serve_http1(reader, writer, peer, origin.requests.append)
            finally:
                writer.close()

        async def start():
            context = self.context(*names, **more) if tls else None
            server = await asyncio.start_server(serve, address, 0, ssl=context, backlog=512)
            return server.sockets[0].getsockname()[1]

        origin.port = self.loop.run(start)
        return origin

    def silent_http2(self, *names):
        """Speak HTTP/2, and give no credit for anything."""

        def answer(connection, head):
            server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
            server.initiate_connection()
            server.receive_data(head)
            connection.sendall(server.data_to_send())
            with contextlib.suppress(OSError):
                while data := connection.recv(65536):
                    server.receive_data(data)
                    connection.sendall(server.data_to_send())

        return self.script(answer, *names, tls=True, alpn=["h2"])

    def script(self, answer, *names, tls=False, **more):
        """Serve with `answer(connection, head)`, called in a thread of its own once a head has come."""
        origin = Origin(0)
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        origin.port = listener.getsockname()[1]
        context = self.context(*names, **more) if tls else None

        def serve(connection):
            with contextlib.suppress(OSError):
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                connection.settimeout(10)
                while (head := until(connection, b"\r\n\r\n")).endswith(b"\r\n\r\n"):
                    origin.requests.append(head)
                    if answer(connection, head) is not True:
                        break
                connection.close()

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                origin.connections += 1
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        origin.listener = listener
        return origin


def until(connection, end):
    """Read up to and with `end`, or all there is."""
    data = b""
    while not data.endswith(end):
        piece = connection.recv(1)
        if not piece:
            break
        data += piece
    return data


def cut_off(connection, *, reset=True):
    """End without TLS's own end, with a reset or just so; what was sent before arrives."""
    time.sleep(0.05)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=connection.detach()).close()


@dataclass
class Closed:
    """How an admitted connection ended."""

    up: int
    down: int
    reason: object


class Gate:
    """Inspection with everything real around it, and doors to it."""

    def __init__(self, directory, origins):
        self.directory = directory
        self.origins = origins
        self.loop = Loop(poller.Loop)
        self.ca = authority.create()
        self.bundle = directory / "bundle.pem"
        self.bundle.write_bytes(self.ca.certificate_pem)
        self.hosts = directory / "hosts"
        self.hosts.write_text("")
        self.closed = []
        self._listeners = []
        self.loop.run(self._start)

    def _start(self):
        self.journal = Journal(self._made("journal"))
        self.tenant = Tenant("box", Task("t1", "tests"), load([self._rules("[]")]))
        self.recorder = Recorder(self.tenant, self.journal, Metrics())
        self.lookup = Lookup(HostsFile(str(self.hosts)), NoServers)
        self.dialer = Dialer(self.lookup, poller.Poller())
        self.inspection = Inspection(lambda: self.ca, self.dialer, self.recorder, Roots(self.origins.authority.pem()))

    def _made(self, name):
        (self.directory / name).mkdir()
        return self.directory / name

    def _rules(self, rules, settings=""):
        file = self.directory / "rules.yaml"
        file.write_text(f"version: 1\nname: t\n{settings}\nrules: {rules}\n")
        return file

    def rules(self, rules, settings=""):
        """Put rules in force."""
        policy = load([self._rules(rules, settings)])
        self.loop.run(lambda: setattr(self.tenant, "policy", policy))

    def name(self, **names):
        """Give names addresses, in place of the host's own file."""
        self.hosts.write_text("".join(f"{address} {name.replace('_', '.')}\n" for name, address in names.items()))
        self.loop.run(self._look_again)

    def _look_again(self):
        self.lookup._look_again_at = 0.0

    def door(self, target, port, *, tls=True, decision=None, idle=None, listen=0, sni=None):
        """Listen, and admit what comes as connections to that place, as if a hello said `sni`; returns the port."""
        listener = socket.create_server(("127.0.0.1", listen), backlog=512)
        listener.setblocking(False)
        self._listeners.append(listener)

        async def admit(client, peer):
            hello = await peeked_hello(client) if tls else None
            if sni:
                hello = hello._replace(sni=sni)
            host = parse_host(target)
            protocol = Protocol.TLS if tls else Protocol.HTTP
            decided = decision or self.tenant.policy.decide(Attempt(protocol, host, port))
            if idle is not None:
                decided = decided._replace(idle_timeout=idle)
            event = self.recorder.decided(
                Kind.CONNECTION_DECIDED, decided, name=str(host), address=None, port=port, protocol=protocol
            )
            started = time.monotonic()

            def closed(up, down, reason):
                self.closed.append(Closed(up, down, reason))
                self.recorder.closed(
                    event, name=str(host), address=None, port=port, protocol=protocol,
                    up=up, down=down, seconds=time.monotonic() - started, reason=reason,
                )  # fmt: skip

            self.inspection.adopt(
                Admitted(
                    tenant=self.tenant,
                    client=client,
                    peer=(ip_address(peer[0]), peer[1]),
                    target=host,
                    port=port,
                    protocol=protocol,
                    hello=hello if isinstance(hello, ClientHello) else None,
                    decision=decided,
                    event=event,
                    opened=started,
                    closed=closed,
                )
            )

        def accept():
            with contextlib.suppress(BlockingIOError):
                client, peer = listener.accept()
                client.setblocking(False)
                task = asyncio.get_running_loop().create_task(admit(client, peer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        self._tasks = getattr(self, "_tasks", set())
        self.loop.run(lambda: asyncio.get_running_loop().add_reader(listener.fileno(), accept))
        return listener.getsockname()[1]

    def events(self, kind=None):
        """Return what the journal says so far."""
        found = []
        for file in sorted((self.directory / "journal").rglob("*.jsonl")):
            found += [json.loads(line) for line in file.read_text().splitlines()]
        told = [event for event in found if not event["kind"].startswith("journal.")]
        return [event for event in told if kind is None or event["kind"] == kind]

    def decided(self):
        """Return method, path, outcome and reason of every request so far."""
        return [
            (e["http"].get("method"), e["http"].get("path"), e["outcome"], e["reason"])
            for e in self.events("request.decided")
        ]

    def wait_closed(self, count=1):
        """Wait until so many connections have told their end."""
        wait_for(lambda: len(self.closed) >= count)
        return self.closed

    def close(self):
        for listener in self._listeners:
            self.loop.run(lambda one=listener: asyncio.get_running_loop().remove_reader(one.fileno()))
            listener.close()
        self.loop.run(self.inspection.close)
        self.loop.run(self.lookup.close)
        self.loop.close()


@dataclass
class Site:
    """A door to an origin, and the name that it goes by."""

    gate: Gate
    name: str
    port: int
    door: int
    tls: bool

    @property
    def host(self):
        return f"{self.name}:{self.port}"

    def curl(self, path, *words):
        scheme = "https" if self.tls else "http"
        return curl(
            "--cacert", self.gate.bundle, "--connect-to", f"{self.host}:127.0.0.1:{self.door}", *words,
            f"{scheme}://{self.host}{path}",
        )  # fmt: skip

    def connect(self, alpn=("http/1.1",), sni=None):
        """Connect as a client, over TLS if that is what is spoken."""
        connection = socket.create_connection(("127.0.0.1", self.door), 10)
        if not self.tls:
            return connection
        context = ssl.create_default_context(cadata=self.gate.ca.certificate_pem.decode())
        context.check_hostname = sni is None
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context.wrap_socket(connection, server_hostname=sni or self.name)

    def ask(self, head, body=b""):
        """Send a head (with LF for CR LF, `HOST` for the host) and return the whole answer; the connection must end."""
        with self.connect() as connection:
            connection.sendall(head.replace("HOST", self.host).replace("\n", "\r\n").encode("latin-1") + body)
            return rest(connection)


def site(gate, origin, name="good.example", *, tls=True, http="", address="127.0.0.1", more="", **door):
    """Name an origin, allow it, and open a door to it."""
    gate.name(**{name.replace(".", "_"): address})
    kind = "tls" if tls else "http"
    wanted = f", http: {http}" if http else ""
    gate.rules(
        f"[{{id: a, to: {name}, resolves_to: [127.0.0.0/8], ports: [{origin.port}/{kind}], action: allow{wanted}}}{more}]"
    )
    return Site(gate, name, origin.port, gate.door(name, origin.port, tls=tls, **door), tls)


async def peeked_hello(client):
    """Read a ClientHello without consuming it, as the gate does."""
    for _ in range(2000):
        with contextlib.suppress(BlockingIOError, ConnectionError):
            data = client.recv(65536, socket.MSG_PEEK)
            hello = parse_hello(data)
            if not data or isinstance(hello, ClientHello | NotTls):
                return hello
        await asyncio.sleep(0.002)
    return None


def wait_for(true, seconds=8.0):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def curl(*words, **more):
    """Run curl quietly; returns its exit status, and what it wrote."""
    needs("curl")
    done = subprocess.run(
        ["curl", "-sS", "-m", "15", *map(str, words)], capture_output=True, timeout=30, check=False, **more
    )
    return done.returncode, done.stdout, done.stderr.decode()


def needs(tool):
    """Skip without a tool, except where everything has to be there."""
    import os

    if shutil.which(tool) is None:
        assert os.environ.get("CI") != "true", f"{tool} is missing"
        pytest.skip(f"{tool} is missing")


def talk(port, data, *, timeout=8.0):
    """Send bytes and return all that comes back until the end; a reset is raised."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(data)
        return rest(connection)


def rest(connection):
    """Read all there is."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def resident():
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
