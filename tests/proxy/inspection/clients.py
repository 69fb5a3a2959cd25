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


def until(connection, end):
    """Read up to and with `end`, or all there is."""
    data = b""
    while not data.endswith(end):
        piece = connection.recv(1)
        if not piece:
            break
        data += piece
    return data


def rest(connection):
    """Read all there is."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def talk(port, data, *, timeout=30.0):
    """Send bytes and return all that comes back until the end; a reset is raised."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(data)
        return rest(connection)


def cut_off(connection, *, reset=True):
    """End without TLS's own end, with a reset or just so; what was sent before arrives."""
    time.sleep(0.05)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=connection.detach()).close()


def curl(*words, **more):
    """Run curl quietly; returns its exit status, and what it wrote."""
    needs("curl")
    done = subprocess.run(
        ["curl", "-sS", "-m", "15", *map(str, words)], capture_output=True, timeout=30, check=False, **more
    )
    return done.returncode, done.stdout, done.stderr.decode()


def needs(tool):
    """Skip without a tool, except where everything has to be there."""
    if shutil.which(tool) is None:
        harness.missing(tool)


def wait_for(true, seconds=30.0):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def resident():
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# --- HTTP/2 ---


class Client:
    """An HTTP/2 client that sends whatever it is told to."""

    def __init__(self, place, **settings):
        self.place = place
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="latin-1", validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )  # fmt: skip
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings.update(settings.get("local", {}))
        self.socket = place.connect(alpn=("h2",))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert self.socket.selected_alpn_protocol() == "h2"
        self.h2.initiate_connection()
        self.events = []
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def head(self, path="/", method="GET", authority=None, more=()):
        authority = self.place.host if authority is None else authority
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
        """Read until there is an event of a kind, of a stream, and return the first one."""
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
    """Send until that is raised, or so much was sent; returns how much."""
    sent = 0
    with contextlib.suppress(error):
        while sent < most:
            sent += connection.send(b"x" * 65536)
    return sent
