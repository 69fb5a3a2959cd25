"""Clients of inspected connections: raw sockets, curl, and HTTP/2 by the h2 library."""

import contextlib
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from tests.support import harness


def read_until(connection, end):
    """Read byte by byte until the data ends with `end`, or until the connection ends."""
    data = b""
    while not data.endswith(end):
        piece = connection.recv(1)
        if not piece:
            break
        data += piece
    return data


def read_all(connection):
    """Read until the connection ends."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def send_and_read(port, data, *, timeout=30.0):
    """Send bytes and return the whole answer; raises if the connection is reset."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(data)
        return read_all(connection)


def close_abruptly(connection, *, reset=True):
    """Close TCP with a reset or a FIN, without a close_notify of TLS; earlier bytes still arrive."""
    time.sleep(0.05)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=connection.detach()).close()


def curl(*words, **more):
    """Run curl; returns exit status, output and error text."""
    require_tool("curl")
    done = subprocess.run(
        ["curl", "-sS", "-m", "15", *map(str, words)], capture_output=True, timeout=30, check=False, **more
    )
    return done.returncode, done.stdout, done.stderr.decode()


def require_tool(tool):
    """Skip the test without a tool; fail where every tool is required (CI)."""
    if shutil.which(tool) is None:
        harness.missing(tool)


def resident_memory():
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# --- HTTP/2 ---


class Client:
    """HTTP/2 client that does not validate what it sends."""

    def __init__(self, site, **settings):
        self.site = site
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="latin-1", validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )  # fmt: skip
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings.update(settings.get("local", {}))
        self.socket = site.connect(alpn=("h2",))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert self.socket.selected_alpn_protocol() == "h2"
        self.h2.initiate_connection()
        self.events = []
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def head(self, path="/", method="GET", authority=None, more=()):
        authority = self.site.host if authority is None else authority
        named = [(":authority", authority)] if authority else []
        return [(":method", method), (":scheme", "https"), *named, (":path", path), *more]

    def request(self, *words, end=True, **more):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, self.head(*words, **more), end_stream=end)
        self.flush()
        return stream

    def read(self):
        data = self.socket.recv(65536)
        if not data:
            self.events.append(None)
        else:
            self.events += self.h2.receive_data(data)
            self.flush()

    def wait(self, kind, stream=None):
        """Read until an event of this kind, and stream, arrives; returns the first. Kind None waits for the end."""
        while True:
            for event in self.events:
                if event is None and kind is None:
                    return None
                if kind and isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                    return event
            if self.events and self.events[-1] is None:
                pytest.fail(f"the connection ended: {self.events}")
            self.read()

    def status(self, stream):
        return dict(self.wait(h2.events.ResponseReceived, stream).headers)[":status"]

    def body(self, stream):
        self.wait(h2.events.StreamEnded, stream)
        return b"".join(e.data for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream)

    def close(self):
        self.socket.close()


# --- uploads ---


MIB = 1 << 20


def send_until(error, connection, most):
    """Send until `error` is raised or `most` bytes are sent; returns the number of bytes."""
    sent = 0
    with contextlib.suppress(error):
        while sent < most:
            sent += connection.send(b"x" * 65536)
    return sent
