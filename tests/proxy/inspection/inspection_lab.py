"""A gate on loopback whose every connection is inspected, and origins behind it: real sockets, real TLS, real clients.

The gate runs in a thread with a loop of its own, the origins in another; tests are ordinary synchronous code. What the
gate does before (peeking, deciding the connection) is cut short: a door admits what comes to it for one place.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from proxy.certificates import authority
from proxy.certificates.leaf_certificates import LeafCertificates, SignerLink
from proxy.certificates.signer import Signer
from proxy.certificates.signer_protocol import LONGEST_REQUEST
from proxy.dialing.dialer import Dialer
from proxy.dns.lookup import DnsLookupError, HostsFile, Lookup
from proxy.event_loop import poller
from proxy.gate.client_hello import ClientHello, NotTls, parse_hello
from proxy.gate.decide import ConnectionDecision, GateAction, OriginalDestination
from proxy.gate.record import ConnectionRecord, Handover
from proxy.inspection import Inspection, Roots
from proxy.inspection.stages.secret_scan import SecretScan
from proxy.sandbox.recorder import Recorder
from proxy.sandbox.sandbox_state import SandboxState, Task
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.prometheus.metrics import Metrics
from rules.addresses import parse_host
from rules.attempt import Attempt, Protocol
from rules.loading.load import load
from rules.verdicts import Outcome
from tests.proxy.inspection.clients import curl, rest, wait_for
from tests.proxy.inspection.origins import Loop
from tests.support.harness import whole_lines


class NoServers:
    """Nobody knows a name that the hosts file doesn't."""

    async def ask(self, name, kind):
        raise DnsLookupError(f"{name} has no {kind}")


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
        self.sandbox = SandboxState("box", Task("t1", "tests"), load([self._rules("[]")]))
        self.recorder = Recorder(self.sandbox, self.journal, Metrics())
        self.lookup = Lookup(HostsFile(str(self.hosts)), NoServers)
        self.dialer = Dialer(self.lookup, poller.Poller(), metrics=self.recorder.metrics)
        ours, self.keyholder = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.signer, self.link = Signer(self.ca), SignerLink(ours)
        self.leaves = LeafCertificates(self.link)
        asyncio.get_running_loop().add_reader(self.keyholder, self._sign)
        self.inspection = Inspection(self.leaves, self.dialer, self.recorder, Roots(self.origins.authority.pem()))

    def _sign(self):
        """Be the certificate signer."""
        if packet := self.keyholder.recv(LONGEST_REQUEST + 1):
            self.keyholder.send(self.signer.answer(packet))
        else:
            asyncio.get_running_loop().remove_reader(self.keyholder)

    def silence(self):
        """Let the certificate signer answer nothing any more."""
        if self.keyholder.fileno() < 0:
            return
        self.loop.run(lambda: asyncio.get_running_loop().remove_reader(self.keyholder))

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
        self.loop.run(lambda: setattr(self.sandbox, "policy", policy))

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
            attempt = Attempt(protocol, host, port)
            decided = decision or self.sandbox.policy.decide(attempt)
            if idle is not None:
                decided = decided._replace(idle_timeout=idle)
            hello = hello if isinstance(hello, ClientHello) else None
            judgement = ConnectionDecision(attempt, decided, GateAction.INSPECT, hello)
            peer = ip_address(peer[0]), peer[1]
            record = ConnectionRecord(self.recorder, peer, OriginalDestination(peer[0], port), None, time.monotonic())
            record.decided(judgement)

            def closed(up, down, reason):
                record.ended(up, down, Outcome.PASSED, reason)
                self.closed.append(Closed(up, down, reason))  # last: who waits for it reads the journal then

            self.inspection.adopt(Handover(self.sandbox, client, record, judgement, closed))

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
            lines = whole_lines(file)  # of all tests that share the gate: only what may be meant is parsed
            found += [json.loads(line) for line in lines if kind is None or kind.encode() in line]
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
        self.silence()
        self.keyholder.close()
        self.loop.run(self.link.close)
        self.loop.run(self.lookup.close)
        self.loop.run(self.journal.close)
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
        connection = socket.create_connection(("127.0.0.1", self.door), 30)
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


WEB = pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])


@pytest.fixture
def web(origins):
    def make(*, tls=True, **more):
        return origins.web("good.example", tls=tls, **more)

    return make


@pytest.fixture
def slowly(monkeypatch):
    """Have pieces of bodies looked through in slices, until `let` is set."""
    slow = SimpleNamespace(begun=threading.Event(), let=threading.Event())
    real = SecretScan.send

    def send(stage, part):
        slow.begun.set()
        while not slow.let.is_set():
            yield
        return (yield from real(stage, part))

    monkeypatch.setattr(SecretScan, "send", send)
    yield slow
    slow.let.set()


def post(place, connection):
    connection.sendall(f"POST / HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: 5\r\n\r\nhello".encode())
