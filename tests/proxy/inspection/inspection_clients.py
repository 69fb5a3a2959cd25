"""What clients in these tests have in common: reading, waiting, giving up."""

import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

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
