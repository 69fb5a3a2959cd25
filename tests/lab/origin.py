"""A process that is "the internet" for one network namespace: DNS, web, git, TCP and UDP services, and their records.

Run by `namespaces.py` with its settings as JSON in the first argument; takes commands over a unix socket, a JSON line each
way. It listens on every address (the namespace makes them all local) and ends with its parent.
"""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
from collections import deque
from functools import partial
from pathlib import Path

from enforcer.system.linux import die_with_parent

from .certificates import Authority
from .names import Name, Zone
from .recorder import Recorder
from .resolver import Resolver
from .web import Http2, Peer, serve_http1

_MOST_RECORDS = 100_000  # upper bound for each kind of record
_CONTROL_LINE = 64 << 20


class Origin:
    """All services of one namespace."""

    def __init__(self, settings: dict) -> None:
        self.settings = settings
        self.directory = Path(settings["directory"])
        self.authority = Authority.load(self.directory / "ca.key")
        self.zone = Zone()
        self.records = {
            name: deque(maxlen=_MOST_RECORDS) for name in ("queries", "connections", "requests", "datagrams")
        }
        self.resolver = Resolver(self.zone, self.records["queries"])
        self.recorder = Recorder(settings["device"])
        self._contexts: dict[tuple[tuple[str, ...], str], ssl.SSLContext] = {}
        self._tls = self._context(("lab.invalid",), "good")
        self._tls.sni_callback = self._choose_certificate
        self.name(settings["names"])

    async def start(self) -> None:
        """Start all services."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.recorder.fileno(), self.recorder.drain)
        for address in self.settings["dns"]:
            await self.resolver.serve(address)
        for port in self.settings["https"]:
            await asyncio.start_server(self._web, None, port, ssl=self._tls, backlog=1024)
        for port in self.settings["http"]:
            await asyncio.start_server(self._web, None, port, backlog=1024)
        for port in self.settings["speaking"]:
            await asyncio.start_server(self._speak, None, port)
        for port in self.settings["udp"]:
            make = partial(_Sink, self.records["datagrams"], port)
            await loop.create_datagram_endpoint(make, local_addr=("::", port))
        path = self.directory / f"{self.settings['role']}.sock"
        await asyncio.start_unix_server(self._control, path, limit=_CONTROL_LINE)
        path.chmod(0o600)

    def name(self, names: dict) -> None:
        """Replace the zone."""
        self.zone.names = {name: Name.from_json(value) for name, value in names.items()}
        self.resolver.forget()

    def _choose_certificate(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.lab_sni = name
        found = self.zone.find(name.lower()) if name else None
        if name:
            connection.context = self._context((name,), found.certificate if found else "good")
        else:
            every = {
                one for known in self.zone.names.values() for turn in (known.addresses, *known.turns) for one in turn
            }
            connection.context = self._context(("lab.invalid", *sorted(every)), "good")

    def _context(self, names: tuple[str, ...], kind: str) -> ssl.SSLContext:
        if (names, kind) not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            file = self.directory / f"leaf-{self.settings['role']}-{len(self._contexts)}.pem"
            file.touch(0o600)
            file.write_bytes(self.authority.leaf(*names, kind=kind))
            context.load_cert_chain(file)
            context.set_alpn_protocols(["h2", "http/1.1"])
            self._contexts[names, kind] = context
        return self._contexts[names, kind]

    async def _web(self, reader, writer) -> None:
        tls = writer.get_extra_info("ssl_object")
        peer = Peer(getattr(tls, "lab_sni", None), *self._record_connection(writer, tls=tls is not None))
        try:
            with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                if tls is not None and tls.selected_alpn_protocol() == "h2":
                    await Http2(reader, writer, peer, self._record_request).serve()
                else:
                    await serve_http1(reader, writer, peer, self._record_request)
        finally:
            writer.close()

    def _record_connection(self, writer, *, tls: bool) -> tuple[tuple[str, int], tuple[str, int]]:
        own, client = (_plain(writer.get_extra_info(which)) for which in ("sockname", "peername"))
        sni = getattr(writer.get_extra_info("ssl_object"), "lab_sni", None)
        self.records["connections"].append({"destination": own, "client": client, "tls": tls, "sni": sni})
        return own, client

    def _record_request(self, request) -> None:
        fields = ("method", "target", "authority", "version", "sni", "destination", "client")
        self.records["requests"].append({name: getattr(request, name) for name in fields})

    async def _speak(self, reader, writer) -> None:
        """Send a greeting first, as SSH and mail servers do, then echo."""
        (address, port), _ = self._record_connection(writer, tls=False)
        with contextlib.suppress(ConnectionError):
            writer.write(f"220 lab {address} {port}\r\n".encode())
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _control(self, reader, writer) -> None:
        while line := await reader.readline():
            command = json.loads(line)
            try:
                answer = {"answer": self._execute(**command)}
            except (RuntimeError, TypeError, KeyError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    def _execute(self, what: str, names: dict | None = None) -> object:
        if what == "packets":
            return self.recorder.packets()
        if what == "name":
            return self.name(names)
        if what == "forget":
            self.recorder.forget()
            for records in self.records.values():
                records.clear()
            return self.resolver.forget()
        return list(self.records[what])


class _Sink(asyncio.DatagramProtocol):
    """Records datagrams and sends no answer."""

    def __init__(self, records, port: int) -> None:
        self._records, self._port = records, port

    def datagram_received(self, data: bytes, addr) -> None:
        self._records.append({"port": self._port, "client": _plain(addr), "size": len(data)})


def _plain(address: tuple) -> tuple[str, int]:
    return address[0].removeprefix("::ffff:"), address[1]


async def _main(settings: dict) -> None:
    origin = Origin(settings)
    await origin.start()
    os.write(settings["ready"], b"1")
    os.close(settings["ready"])
    await asyncio.Event().wait()


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    die_with_parent(signal.SIGKILL, settings["parent"])
    asyncio.run(_main(settings))
