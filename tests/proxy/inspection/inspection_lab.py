"""A gate on loopback that inspects every connection, and sites behind it: real sockets, real TLS, real clients.

The gate runs in one thread with its own event loop, the origins in another; tests are synchronous code. A listener hands
every connection to inspection as one to a given host and port, without the steps of the gate before that.
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
from proxy.certificates.signer import LONGEST_REQUEST, Signer
from proxy.dialing.dialer import Dialer
from proxy.dns.lookup import DnsLookupError, HostsFile, Lookup
from proxy.event_loop import poller
from proxy.gate.client_hello import ClientHello, NotTls, parse_hello
from proxy.gate.decide import GateAction, GateDecision, OriginalDestination
from proxy.gate.record import ConnectionRecord, Handover
from proxy.inspection import Inspection, Roots
from proxy.inspection.stages.secret_scan import SecretScan
from proxy.sandbox.recorder import Recorder
from proxy.sandbox.sandbox_state import SandboxState, Task
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.prometheus.metrics import Metrics
from rules.attempt import Attempt, Protocol
from rules.loading.load import load
from rules.values.addresses import parse_host
from rules.verdicts import Outcome
from tests.proxy.inspection.clients import curl, read_all
from tests.proxy.inspection.origins import Loop
from tests.support.harness import whole_lines
from tests.support.waiting import wait_until


class NoNameServers:
    """Resolves nothing, so only the hosts file has names."""

    async def ask(self, name, kind):
        raise DnsLookupError(f"{name} has no {kind}")


@dataclass
class ClosedConnection:
    """Byte counts and reason of a closed connection."""

    up: int
    down: int
    reason: object


class GateLab:
    """Inspection with real parts around it: policy, journal, dialer, certificate signer and listeners."""

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
        self.lookup = Lookup(HostsFile(str(self.hosts)), NoNameServers)
        self.dialer = Dialer(self.lookup, poller.Poller(), metrics=self.recorder.metrics)
        ours, self.signer_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.signer, self.link = Signer(self.ca), SignerLink(ours)
        self.leaves = LeafCertificates(self.link)
        asyncio.get_running_loop().add_reader(self.signer_socket, self._sign)
        self.inspection = Inspection(self.leaves, self.dialer, self.recorder, Roots(self.origins.authority.pem()))

    def _sign(self):
        """Answer one request as the certificate signer does."""
        if packet := self.signer_socket.recv(LONGEST_REQUEST + 1):
            self.signer_socket.send(self.signer.answer(packet))
        else:
            asyncio.get_running_loop().remove_reader(self.signer_socket)

    def stop_signer(self):
        """Stop the certificate signer: requests to it stay unanswered."""
        if self.signer_socket.fileno() < 0:
            return
        self.loop.run(lambda: asyncio.get_running_loop().remove_reader(self.signer_socket))

    def _made(self, name):
        (self.directory / name).mkdir()
        return self.directory / name

    def _rules(self, rules, settings=""):
        file = self.directory / "rules.yaml"
        file.write_text(f"version: 1\nname: t\n{settings}\nrules: {rules}\n")
        return file

    def rules(self, rules, settings=""):
        """Load rules and make them the policy."""
        policy = load([self._rules(rules, settings)])
        self.loop.run(lambda: setattr(self.sandbox, "policy", policy))

    def name(self, **names):
        """Replace the hosts file: each keyword is a name with `_` for `.`, its value the address."""
        self.hosts.write_text("".join(f"{address} {name.replace('_', '.')}\n" for name, address in names.items()))
        self.loop.run(self._reread_hosts)

    def _reread_hosts(self):
        self.lookup._next_file_check = 0.0

    def listen_for(self, target, port, *, tls=True, decision=None, idle=None, listen=0, sni=None):
        """Listen, and inspect each client as one that connects to `target`; `sni` replaces that of its hello. Returns the port."""
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
            gate_decision = GateDecision(attempt, decided, GateAction.INSPECT, hello)
            peer = ip_address(peer[0]), peer[1]
            record = ConnectionRecord(self.recorder, peer, OriginalDestination(peer[0], port), None, time.monotonic())
            record.record_decision(gate_decision)

            def closed(up, down, reason):
                record.record_end(up, down, Outcome.PASSED, reason)
                self.closed.append(
                    ClosedConnection(up, down, reason)
                )  # last: tests that wait for it read the journal next

            self.inspection.adopt(Handover(self.sandbox, client, record, gate_decision, closed))

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
        """Return the events in the journal so far."""
        found = []
        for file in sorted((self.directory / "journal").rglob("*.jsonl")):
            lines = whole_lines(file)  # parses only lines that may match, because tests share the gate
            found += [json.loads(line) for line in lines if kind is None or kind.encode() in line]
        recorded = [event for event in found if not event["kind"].startswith("journal.")]
        return [event for event in recorded if kind is None or event["kind"] == kind]

    def decided(self):
        """Return method, path, outcome and reason of every request so far."""
        return [
            (e["http"].get("method"), e["http"].get("path"), e["outcome"], e["reason"])
            for e in self.events("request.decided")
        ]

    def wait_closed(self, count=1):
        """Wait until `count` connections are closed."""
        wait_until(lambda: len(self.closed) >= count)
        return self.closed

    def close(self):
        for listener in self._listeners:
            self.loop.run(lambda one=listener: asyncio.get_running_loop().remove_reader(one.fileno()))
            listener.close()
        self.loop.run(self.inspection.close)
        self.stop_signer()
        self.signer_socket.close()
        self.loop.run(self.link.close)
        self.loop.run(self.lookup.close)
        self.loop.run(self.journal.close)
        self.loop.close()


@dataclass
class Site:
    """An origin behind the gate, by its name, and the gate's port for it."""

    gate: GateLab
    name: str
    port: int
    gate_port: int
    tls: bool

    @property
    def host(self):
        return f"{self.name}:{self.port}"

    def curl(self, path, *words):
        scheme = "https" if self.tls else "http"
        return curl(
            "--cacert", self.gate.bundle, "--connect-to", f"{self.host}:127.0.0.1:{self.gate_port}", *words,
            f"{scheme}://{self.host}{path}",
        )  # fmt: skip

    def connect(self, alpn=("http/1.1",), sni=None):
        """Connect to the gate as a client, over TLS if the origin has TLS."""
        connection = socket.create_connection(("127.0.0.1", self.gate_port), 30)
        if not self.tls:
            return connection
        context = ssl.create_default_context(cadata=self.gate.ca.certificate_pem.decode())
        context.check_hostname = sni is None
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context.wrap_socket(connection, server_hostname=sni or self.name)

    def request(self, head, body=b""):
        """Send a head (with LF for CR LF, `HOST` for the host) and return the whole answer; the connection must end."""
        with self.connect() as connection:
            connection.sendall(head.replace("HOST", self.host).replace("\n", "\r\n").encode("latin-1") + body)
            return read_all(connection)


def make_site(gate, origin, name="good.example", *, tls=True, http="", address="127.0.0.1", more="", **listen_options):
    """Name an origin, allow it by a rule, and open a listener for it."""
    gate.name(**{name.replace(".", "_"): address})
    kind = "tls" if tls else "http"
    condition = f", http: {http}" if http else ""
    gate.rules(
        f"[{{id: a, to: {name}, resolves_to: [127.0.0.0/8], ports: [{origin.port}/{kind}], action: allow{condition}}}{more}]"
    )
    return Site(gate, name, origin.port, gate.listen_for(name, origin.port, tls=tls, **listen_options), tls)


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


TLS_AND_PLAIN = pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])


@pytest.fixture
def web(origins):
    def make(*, tls=True, **more):
        return origins.web("good.example", tls=tls, **more)

    return make


@pytest.fixture
def slow_scan(monkeypatch):
    """Make the scan of a body piece yield until `release` is set; `started` is set when it begins."""
    slow = SimpleNamespace(started=threading.Event(), release=threading.Event())
    real = SecretScan.send

    def send(stage, part):
        slow.started.set()
        while not slow.release.is_set():
            yield
        return (yield from real(stage, part))

    monkeypatch.setattr(SecretScan, "send", send)
    yield slow
    slow.release.set()


def post(site, connection):
    connection.sendall(f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 5\r\n\r\nhello".encode())
