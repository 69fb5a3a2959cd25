"""A gate on the loopback, with everything around it real but the tproxy: where a connection was to go is told by hand."""

import asyncio
import contextlib
import gc
import json
import os
import socket
import ssl
import struct
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from proxy.dialing.dialer import Dialer
from proxy.dns.lookup import DnsLookupError, HostsFile, Lookup
from proxy.dns.names import NameTable
from proxy.dns.server import DnsServer
from proxy.event_loop.poller import Loop, Poller
from proxy.gate.listener import Gate, original_destination
from proxy.info_api.info_api_connection import InfoApi
from proxy.sandbox.recorder import Recorder
from proxy.sandbox.sandbox_state import SandboxState, Task
from proxy.telemetry.journal.writer import JournalWriteError
from proxy.telemetry.prometheus.metrics import Metrics
from rules.loading.load import load
from rules.values.names import HostName
from tests.support.waiting import wait_until_async

OWN = ip_address("192.0.0.2")
TIMEOUT = 20  # seconds for what must happen; nothing is said about how fast


def run(test, *arguments):
    """Run an asynchronous test on the worker's own loop."""
    asyncio.run(asyncio.wait_for(test(*arguments), 60), loop_factory=Loop)


def policy_of(tmp_path, rules, **settings):
    lines = [f"  - {{{rule}}}" for rule in rules]
    path = Path(tmp_path) / "rules.yaml"
    said = [f"  {key}: {value}" for key, value in settings.items()]
    path.write_text("\n".join(["version: 1", "name: r", *(["settings:", *said] if said else []), "rules:", *lines, ""]))
    return load([path])


class MemoryJournal:
    """A journal that can be full."""

    def __init__(self):
        self.events = []
        self.full = False

    def append(self, line, _now):
        if self.full:
            raise JournalWriteError(28, "no space left")
        self.events.append(json.loads(line))
        return len(line)


class Names:
    """Name servers that know what they are told to."""

    def __init__(self):
        self.known = {}  # (name, kind): addresses
        self.asked = []
        self.hold = None  # an Event to wait for

    async def ask(self, name, kind):
        self.asked.append((str(name), kind))
        if self.hold is not None:
            await self.hold.wait()
        addresses = self.known.get((str(name), kind))
        if addresses is None:
            raise DnsLookupError(f"`{name}` has no {kind} record")
        return tuple(ip_address(address) for address in addresses), 30.0

    async def records(self, name, kind):
        self.asked.append((str(name), kind))
        if self.hold is not None:
            await self.hold.wait()
        found = self.known.get((str(name), kind), DnsLookupError("nobody knows"))
        if isinstance(found, DnsLookupError):
            raise found
        return found


class FakeInspection:
    def __init__(self):
        self.adopted = []
        self.reviewed = []
        self.broken = False

    def adopt(self, admitted):
        if self.broken:
            raise RuntimeError("broken on purpose")
        self.adopted.append(admitted)

    def review(self, admitted, decision):
        self.reviewed.append((admitted, decision))


class GateLab:
    """One gate of one sandbox. `rules` are one-line rules in which ORIGIN is the origin's port."""

    def __init__(
        self,
        tmp_path,
        rules,
        *,
        origin=None,
        inspect=True,
        most=64,
        hosts="",
        listener=None,
        calendar=None,
        in_turn=False,
        journal=None,
        **settings,
    ):
        self.origin = origin or Origin()
        written = [rule.replace("ORIGIN", str(self.origin.port)) for rule in rules]
        self.policy = policy_of(tmp_path, written, **settings)
        self.sandbox = SandboxState("sandbox", Task("t1", "task"), self.policy, frozenset({OWN}), 15001)
        self.sandbox.calendar = calendar or self.sandbox.calendar
        self.journal = journal or MemoryJournal()
        self.metrics = Metrics()
        self.recorder = Recorder(self.sandbox, self.journal, self.metrics)
        self.names = NameTable(self.policy.settings.dns_pool, self.sandbox.own_addresses)
        self.servers = Names()
        self.hosts = Path(tmp_path) / "hosts"
        self.hosts.write_text(hosts)
        self.lookup = Lookup(HostsFile(str(self.hosts)), lambda: self.servers)
        self.poller = Poller(in_turn=in_turn)
        self.dialer = Dialer(self.lookup, self.poller, metrics=self.metrics)
        self.resolver = DnsServer(self.sandbox, self.recorder, self.names, self.lookup)
        self.inspection = FakeInspection() if inspect else None
        self.listener = listener or socket.create_server(("127.0.0.1", 0), backlog=512)
        self.destinations = {}
        self.info_api = InfoApi(self.recorder, self.dialer)
        self.gate = Gate(
            self.listener,
            self.sandbox,
            self.recorder,
            dialer=self.dialer,
            names=self.names,
            resolver=self.resolver,
            info_api=self.info_api.connection,
            inspection=self.inspection,
            destination_of=original_destination if listener else self._destination_of,
            most=most,
        )
        self._clients = []

    async def __aenter__(self):
        self.gate.start()
        await self.origin.start()
        return self

    async def __aexit__(self, *_):
        self.gate.close()
        await self.origin.stop()
        self.lookup.close()
        self.listener.close()
        for sock in self._clients:
            sock.close()
        assert len(self.gate.connections) == len([a for a in self.adopted if not a.client._closed])
        for admitted in self.adopted:
            admitted.client.close()

    @property
    def adopted(self):
        return self.inspection.adopted if self.inspection else []

    @property
    def events(self):
        return self.journal.events

    @property
    def decisions(self):
        return [e for e in self.events if e["kind"] == "connection.decided"]

    @property
    def closings(self):
        return [e for e in self.events if e["kind"] == "connection.closed"]

    @property
    def errors(self):
        return [e for e in self.events if e["kind"] == "gate.error"]

    def _destination_of(self, sock):
        return self.destinations[sock.getpeername()[1]]

    def synthetic(self, name, *, denied=False):
        return self.names.address_for(HostName(name), denied=denied)

    async def connect(self, to, port=None):
        """Connect to a name (as the resolver would have answered it) or an address, by default at the origin's port."""
        address = self.synthetic(to) if isinstance(to, str) else to
        sock = socket.socket()
        self._clients.append(sock)
        sock.bind(("127.0.0.1", 0))
        self.destinations[sock.getsockname()[1]] = (address, self.origin.port if port is None else port)
        sock.connect(self.listener.getsockname())  # the kernel accepts: the gate may reset it before anyone looks
        sock.setblocking(False)
        await asyncio.sleep(0)
        return Client(sock)

    async def decision(self, count=1):
        await wait_until_async(lambda: len(self.decisions) >= count)
        return self.decisions[count - 1]

    async def closing(self, count=1):
        await wait_until_async(lambda: len(self.closings) >= count)
        return self.closings[count - 1]


class Client:
    """A task's socket."""

    def __init__(self, sock):
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.was_reset = False

    async def send(self, data):
        try:
            await self.loop.sock_sendall(self.sock, data)
        except ConnectionResetError:
            self.was_reset = True  # the kernel says so only once
            raise

    async def read(self, size=65536):
        return await asyncio.wait_for(self.loop.sock_recv(self.sock, size), TIMEOUT)

    async def read_exactly(self, size, at_once=200_000):
        data = b""
        while len(data) < size:
            data += await self.read(min(at_once, size - len(data)))
        return data

    async def read_all(self):
        """Read up to a proper end. Raises ConnectionResetError for any other."""
        data = b""
        while more := await self.read():
            data += more
        return data

    async def ended(self):
        """How the gate ended it: `end`, `reset` or with bytes."""
        if self.was_reset:
            return "reset"
        try:
            data = await self.read()
        except ConnectionResetError:
            return "reset"
        return data or "end"

    def shutdown(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self):
        self.sock.close()


class Origin:
    """A server that does nothing by itself: tests take its connections."""

    def __init__(self, host="127.0.0.1"):
        self.listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.accepted = 0
        self._task = None
        self._waiting = None

    async def start(self):
        self._waiting = asyncio.Queue()
        self._task = asyncio.get_running_loop().create_task(self._accept())

    async def _accept(self):
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self.listener)
            sock.setblocking(False)
            self.accepted += 1
            self._waiting.put_nowait(Client(sock))

    async def take(self):
        return await asyncio.wait_for(self._waiting.get(), TIMEOUT)

    async def stop(self):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        while not self._waiting.empty():
            self._waiting.get_nowait().close()
        self.listener.close()


def client_hello(name="good.example", alpn=("h2", "http/1.1")):
    """A real ClientHello, OpenSSL's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if name is None:
        context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def vector(data, width):
    return len(data).to_bytes(width) + data


def extension(kind, body=b""):
    return kind.to_bytes(2) + vector(body, 2)


def server_name(name):
    return extension(0, vector(b"\0" + vector(name, 2), 2))


def hello_message(extensions, suites=b"\x13\x01\xc0\x2f", session=bytes(32), compression=b"\0", version=b"\x03\x03"):
    body = version + bytes(range(32)) + vector(session, 1) + vector(suites, 2) + vector(compression, 1)
    if extensions is not None:
        body += vector(b"".join(extensions), 2)
    return b"\x01" + vector(body, 3)


def records(message, *sizes):
    """Split a handshake message into records of these sizes, the last with the rest."""
    found, at = b"", 0
    for size in (*sizes, len(message)):
        piece = message[at : at + size]
        at += size
        if piece:
            found += b"\x16\x03\x01" + vector(piece, 2)
    return found


def made_hello(*extensions, **how):
    return records(hello_message(extensions, **how))


def ech_hello(name=b"good.example"):
    return made_hello(server_name(name), extension(0xFE0D, b"\0" + bytes(40)))


def open_descriptors():
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


LOOPBACK = IPv4Address("127.0.0.1")
SPLICED = "id: good, to: good.example, ports: [ORIGIN/tls], tls: splice, action: allow, resolves_to: [127.0.0.0/8]"
INSPECTED = "id: seen, to: seen.example, ports: [ORIGIN/tls, ORIGIN/http], action: allow, resolves_to: [127.0.0.0/8]"
RAW = "id: raw, to: raw.example, ports: [ORIGIN/tcp], action: allow, resolves_to: [127.0.0.0/8]"
HOSTS = "127.0.0.1 good.example seen.example raw.example mixed.example\n"
