"""Connections as a hostile client makes them: TLS whose first flight can be rewritten, HTTP that is sent as it is written."""

import json
import socket
import ssl
import weakref

from .attempts import reason

PATIENCE = 5  # seconds; whoever waits that long has lost
EVIL = "93.184.219.66"  # an origin that listens, that no name of a rule has, and that nothing may reach
EVIL_NAME = "other.evil.example"


def connect(host, port):
    """Connect by name or address."""
    sock = socket.create_connection((host, port), PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Tls:
    """A TLS client over a socket. `rewrite` turns its ClientHello into the pieces that are sent."""

    def __init__(self, sock, name, alpn=("http/1.1",), rewrite=None):
        context = ssl.create_default_context()
        if name is None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(list(alpn))
        self.sock, self._in, self._out = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        first = True
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                data = self._out.read()
                for piece in rewrite(data) if first and rewrite else [data]:
                    sock.sendall(piece)
                first = False
                self._feed()
        self._flush()

    def sendall(self, data):
        self.tls.write(data)
        self._flush()

    def recv(self, size):
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
            except ssl.SSLZeroReturnError:
                return b""

    def close(self):
        self.sock.close()

    def _feed(self):
        data = self.sock.recv(65536)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    def _flush(self):
        if data := self._out.read():
            self.sock.sendall(data)


def tls(host, name="same", port=443, **more):
    """Connect to a host and shake hands, by default for that host."""
    return Tls(connect(host, port), host if name == "same" else name, **more)


def request(host, path="/echo", method="GET", *fields):
    """Write a request."""
    lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def ask(stream, data):
    """Send bytes and return the answer to them."""
    try:
        stream.sendall(data)
        return answer(stream)
    except OSError as error:
        return {"error": reason(error)}


_ahead = weakref.WeakKeyDictionary()  # what came behind an answer: the next one to a pipelined request


def answer(stream):
    """Read one response. An end in its middle is told: `eof` or an error's name."""
    head = _ahead.pop(stream, b"")
    while b"\r\n\r\n" not in head:
        if not (data := stream.recv(65536)):
            return {"error": "eof", "got": head.decode("latin-1")[:200]}
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    size = int(fields.get("content-length", 0))
    while len(body) < size:
        try:
            data = stream.recv(65536)
        except OSError as error:
            return {"status": int(lines[0].split()[1]), "error": reason(error), "size": len(body)}
        if not data:
            return {"status": int(lines[0].split()[1]), "error": "eof", "size": len(body)}
        body += data
    _ahead[stream] = body[size:]
    return understood(int(lines[0].split()[1]), fields, body[:size])


def understood(status, fields, body):
    """Make a response into a value: of a refusal its reason, of an echo what the origin saw."""
    said = {"status": status, "size": len(body)}
    kind = fields.get("content-type", "")
    if "x-exeat-decision" in fields:
        said["decision"] = fields["x-exeat-decision"]
        said["reason"] = json.loads(body)["reason"] if kind == "application/problem+json" else None
    elif kind == "application/json":
        said["echo"] = json.loads(body)
    return said


def until_the_end(sock):
    """Read everything; return its size and how it ended."""
    size = 0
    try:
        while data := sock.recv(65536):
            size += len(data)
    except OSError as error:
        return {"size": size, "end": reason(error)}
    return {"size": size, "end": "eof"}
