"""Servers on loopback behind a gate under test, with their own event loop and threads."""

import asyncio
import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, field

import h2.config
import h2.connection

from tests.lab import certificates
from tests.lab.web import Http2, Peer, serve_http1
from tests.proxy.inspection.clients import read_until


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


@dataclass
class Origin:
    """A server that records its requests and counts its connections."""

    port: int
    requests: list = field(default_factory=list)
    connections: int = 0


class Origins:
    """Starts servers on loopback, with certificates of a test CA."""

    def __init__(self, directory):
        self.loop = Loop()
        self.authority = certificates.Authority.make()
        self._directory = directory
        self._servers = []
        self._listeners = []

    def context(self, *names, kind="good", alpn=("h2", "http/1.1"), curve=None, clients=None, version=None):
        """Return a server context. `clients`: ssl.VerifyMode for client certificates; `version`: highest TLS version."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if curve:
            context.set_ecdh_curve(curve)
        file = self._directory / f"leaf-{len(list(self._directory.iterdir()))}.pem"
        file.write_bytes(self.authority.leaf(*names, kind=kind))
        context.load_cert_chain(file)
        if clients:
            context.load_verify_locations(cadata=self.authority.pem().decode())
            context.verify_mode = clients
        if version:
            context.maximum_version = version
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def web(self, *names, tls=True, address="127.0.0.1", port=0, **more):
        """Serve the pages of `tests.lab` over HTTP/1 or HTTP/2."""
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
            server = await asyncio.start_server(serve, address, port, ssl=context, backlog=512)
            self._servers.append(server)
            return server.sockets[0].getsockname()[1]

        origin.port = self.loop.run(start)
        return origin

    def silent_http2(self, *names):
        """Serve HTTP/2 without ever giving credit for a body."""

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
        """Serve with `answer(connection, head)`, called in its own thread for each head; it returns True to go on."""
        origin = Origin(0)
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listeners.append(listener)
        origin.port = listener.getsockname()[1]
        context = self.context(*names, **more) if tls else None

        def serve(connection):
            with contextlib.suppress(OSError):
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                connection.settimeout(10)
                while (head := read_until(connection, b"\r\n\r\n")).endswith(b"\r\n\r\n"):
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

    def close(self):
        """Stop all servers, so that tests leave no threads or descriptors."""
        for listener in self._listeners:
            stop(listener)
        for server in self._servers:
            self.loop.run(server.close)
        self.loop.close()


def stop(listener):
    """Close a listener that a thread accepts on. Closing alone would neither wake the thread nor free the port."""
    with contextlib.suppress(OSError):  # it is closed already
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
