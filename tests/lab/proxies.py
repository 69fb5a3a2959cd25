"""A small upstream proxy: SOCKS 5 (RFC 1928, 1929), HTTP CONNECT and absolute-form requests.

It resolves names by a table, as the DNS of a company would, and records the requested targets. Run as
a program it serves among the lab's origins and prints a line of JSON for each connection.
"""

import asyncio
import base64
import contextlib
import json
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address

_REFUSED, _NOT_ALLOWED, _UNKNOWN = 5, 2, 4


class RefusedError(Exception):
    """A refused connection: code of SOCKS 5, and status of HTTP."""

    def __init__(self, code: int, status: int) -> None:
        super().__init__(code, status)
        self.code = code
        self.status = status


@dataclass
class Proxy:
    """A proxy for both protocols. `names` maps names to addresses; `login` is the required `user:password`."""

    names: dict[str, str] = field(default_factory=dict)
    login: str | None = None
    asked: list[dict] = field(default_factory=list)
    refuses: frozenset[str] = frozenset()
    tunnels_only_to: frozenset[int] | None = None  # ports
    heads: list[list[str]] = field(default_factory=list)  # lines of each relayed head
    port: int = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> "Proxy":
        """Listen."""
        self._server = await asyncio.start_server(self._serve, host, port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening."""
        self._server.close()

    def note(self, **what: object) -> None:
        """Record a requested target."""
        self.asked.append(what)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            first = await reader.readexactly(1)
            await (self._socks if first == b"\x05" else self._http)(first, reader, writer)
        writer.close()

    async def _http(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        host, _, port = target.rpartition(":")
        if method != "CONNECT":
            host, _, port = target.removeprefix("http://").partition("/")[0].rpartition(":")
        credentials = self.login and f"Proxy-Authorization: Basic {base64.b64encode(self.login.encode()).decode()}"
        try:
            if credentials and credentials not in lines:
                raise RefusedError(0, 407)  # noqa: TRY301
            if method != "CONNECT" and not target.startswith("http://"):
                raise RefusedError(0, 405)  # noqa: TRY301
            if method == "CONNECT" and self.tunnels_only_to is not None and int(port) not in self.tunnels_only_to:
                raise RefusedError(0, 403)  # noqa: TRY301
            server = await self._dial("http" if method == "CONNECT" else "relayed", host.strip("[]"), int(port))
        except RefusedError as refused:
            writer.write(f"HTTP/1.1 {refused.status} No\r\nContent-Length: 2\r\n\r\nno".encode())
            return
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:  # one request a connection
            self.heads.append(lines)
            path = "/" + target.removeprefix("http://").partition("/")[2]
            fields = [line for line in lines[1:-2] if not line.lower().startswith(("proxy-", "connection:"))]
            head = "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "Connection: close", "", ""])
            server[1].write(head.encode("latin-1"))
        await _relay(reader, writer, *server)

    async def _socks(self, _first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        method = 2 if self.login else 0
        writer.write(bytes([5, method if method in methods else 255]))
        if method not in methods:
            return
        if self.login:
            version, size = await reader.readexactly(2)
            user = await reader.readexactly(size)
            password = await reader.readexactly((await reader.readexactly(1))[0])
            good = version == 1 and user + b":" + password == self.login.encode()
            writer.write(bytes([1, not good]))
            if not good:
                return
        _, command, _, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii")
        else:
            host = str(ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        port = int.from_bytes(await reader.readexactly(2))
        try:
            if command != 1:
                raise RefusedError(7, 0)  # noqa: TRY301
            server = await self._dial("socks5", host, port)
        except RefusedError as refused:
            writer.write(bytes([5, refused.code, 0, 1]) + bytes(6))
            return
        writer.write(bytes([5, 0, 0, 1]) + bytes(6))
        await _relay(reader, writer, *server)

    async def _dial(self, how: str, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.note(how=how, host=host, port=port)
        if host in self.refuses:
            raise RefusedError(_NOT_ALLOWED, 403)
        with contextlib.suppress(ValueError):
            self.names.setdefault(host, str(ip_address(host)))
        if host not in self.names:
            raise RefusedError(_UNKNOWN, 503)
        try:
            return await asyncio.open_connection(self.names[host], port)
        except OSError as error:
            raise RefusedError(_REFUSED, 502) from error


async def _relay(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    server_reader: asyncio.StreamReader,
    server_writer: asyncio.StreamWriter,
) -> None:
    async def one_way(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.write_eof()

    await asyncio.gather(one_way(reader, server_writer), one_way(server_reader, writer))
    server_writer.close()


class _PrintingProxy(Proxy):
    def note(self, **what: object) -> None:
        print(json.dumps(what), flush=True)


async def _run(host: str, port: int, names: dict[str, str], login: str | None) -> None:
    await _PrintingProxy(names, login).start(host, port)
    print(json.dumps({"ready": True}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    asyncio.run(_run(settings["host"], settings["port"], settings["names"], settings.get("login")))
