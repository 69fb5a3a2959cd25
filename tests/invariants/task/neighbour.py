"""One of two tasks that run at once: it says its marker everywhere, and looks for the other's."""

import os
import socket
import sys
from pathlib import Path

from .steps import serve, tried
from .wire import ask, connect, request, tls

_open = {}


def _all(sock, size):
    got = b""
    while len(got) < size and (data := sock.recv(65536)):
        got += data
    return got


def _field(echo, wanted):
    return [value for name, value in echo["headers"] if name.lower() == wanted]


def begin():
    """Open one connection of each sort to hosts of its own, and be found where only this sandbox should find it."""
    marker = _open["marker"] = sys.argv[1]
    for zone, port in (("allowed", 443), ("spliced", 443), ("raw", 22), ("allowed", 80)):
        host = f"{marker}.more.{zone}.example"
        _open[zone, port] = host, (tls(host) if port == 443 else connect(host, port))
    _all(_open["raw", 22][1], len("220 lab 93.184.218.3 22\r\n"))
    for number, (family, place) in enumerate(((socket.AF_INET, ("127.0.0.1", 4444)), (socket.AF_UNIX, "\0marker"))):
        _open["server", number] = server = socket.socket(family)
        server.bind(place)
        server.listen()
    for directory in ("/tmp", "/dev/shm", os.path.expanduser("~"), "/run"):
        tried(Path(directory, marker).write_text, marker)
    return "begun"


def speak(turn):
    """Send what only this task says, on every connection, and return what came back."""
    marker, got = _open["marker"], {}
    for zone, port in (("allowed", 443), ("spliced", 443), ("allowed", 80)):
        host, stream = _open[zone, port]
        echo = ask(stream, request(host, f"/echo?{marker}-{turn}", "GET", f"X-Marker: {marker}-{turn}"))["echo"]
        got[f"{zone} {port}"] = [echo["target"], echo["authority"], _field(echo, "x-marker")]
    piece = f"{marker}-{turn}.".encode() * 10000
    _, raw = _open["raw", 22]
    raw.sendall(piece)
    got["raw"] = _all(raw, len(piece)) == piece
    return got


def names(count):
    """Look up names that only this task knows."""
    marker = _open["marker"]
    return {
        name: socket.gethostbyname(name)
        for name in (f"{marker}-{number}.more.{zone}.example" for number in range(count) for zone in ("allowed", "raw"))
    }


def use(their):
    """Connect to the other's addresses, by the other's names; return what each came to."""
    return {name: tried(_used, name, address) for name, address in their.items()}


def _used(name, address):
    if ".raw." in name:
        return connect(address, 22).recv(3).decode()
    return ask(tls(address, name), request(name)).get("reason")


def look(*places):
    """Look for the other where a task could find it, and in its own places by name."""
    processes = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    lines = [tried(Path(f"/proc/{entry}/cmdline").read_text) for entry in processes]
    files = [name for place in ("/tmp", "/dev/shm", "/run", os.path.expanduser("~"), ".") for name in os.listdir(place)]
    return {"processes": lines, "files": files, "places": [tried(os.listdir, place) for place in places]}


def knock():
    """Try to reach what the other listens on. This task's own servers are closed first."""
    said = []
    for number, (family, place) in enumerate(((socket.AF_INET, ("127.0.0.1", 4444)), (socket.AF_UNIX, "\0marker"))):
        _open["server", number].close()
        with socket.socket(family) as sock:
            sock.settimeout(5)
            said.append(tried(sock.connect, place))
    return said


if __name__ == "__main__":
    serve(begin, speak, names, use, look, knock)
