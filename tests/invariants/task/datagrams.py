"""A task that sends datagrams when it is told to, and says what came back."""

import os
import socket
import sys

from .dns import answered, query
from .steps import serve, tried


def _socket(address, own=None, patience=10):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(patience)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    if own:
        sock.bind((own, 7777))
    return sock


def _asked(host, port, data, own=None, patience=10):
    address = socket.gethostbyname(host) if host[-1].isalpha() and ":" not in host else host
    with _socket(address, own, patience) as sock:
        sock.connect((address, port))
        sock.send(data)
        return sock.recv(65535), sock.getsockname()[:2]


def ask(host, port, text="question"):
    """Send one datagram on a connected socket; return the answer's beginning."""
    got = tried(_asked, host, port, text.encode())
    return got if isinstance(got, str) else got[0].decode("latin-1")[:200]


def clock(host, patience=10):
    """Ask what time it is (RFC 5905): the origin timestamp comes back as it was sent. `patience` is in seconds."""
    stamp = os.urandom(8)
    got = tried(_asked, host, 123, b"\x23" + bytes(39) + stamp, None, patience)
    return got if isinstance(got, str) else [len(got[0]), got[0][0], got[0][24:32] == stamp]


def lookup(server, port, name):
    """Ask a server about a name."""
    got = tried(_asked, server, port, query(name, 1))
    return got if isinstance(got, str) else answered(got[0])


def large(host, port, *sizes):
    """Have so many bytes echoed; return whether they came back as they were."""
    said = []
    for size in sizes:
        data = os.urandom(size)
        got = tried(_asked, host, port, data)
        said.append(got if isinstance(got, str) else got[0] == data)
    return said


def unconnected(host, port, text):
    """Send from a socket that takes answers from anybody; return whose answers came within a while."""
    address = socket.gethostbyname(host)
    with _socket(address) as sock:
        sock.sendto(text.encode(), (address, port))
        sock.settimeout(20)
        got = []
        try:
            while len(got) < 5:
                data, peer = sock.recvfrom(65535)
                got.append([data.decode(), peer[0] == address, peer[1]])
                sock.settimeout(2)
        except TimeoutError:
            return got
        return got


def spoof(own, to, port):
    """Send from an address that isn't the sandbox's."""
    with _socket(to) as sock:
        sock.bind((own, 7777))
        return sock.sendto(b"as if I were it", (to, port))


def flood(address, first, last, own, count):
    """Send many datagrams to a range of ports, from as many ports of its own in turns."""
    socks = [_socket(address) for _ in range(own)]
    for number in range(count):
        tried(socks[number % own].sendto, b"flood", (address, first + number % (last - first + 1)))
    for sock in socks:
        sock.close()
    return count


def resolved(host):
    """The address that stands for a name."""
    return tried(socket.gethostbyname, host)


def open_flow(host, port):
    """Open a flow and keep it."""
    _open["flow"] = sock = _socket("")
    sock.connect((socket.gethostbyname(host), port))
    sock.send(b"first")
    return sock.recv(100).decode()


def use_flow():
    """Use it again."""

    def again():
        _open["flow"].send(b"again")
        return _open["flow"].recv(100).decode()

    return tried(again)


_open = {}

if __name__ == "__main__":
    serve(ask, clock, lookup, large, unconnected, spoof, flood, resolved, open_flow, use_flow)
    for host, port in zip(sys.argv[1::2], sys.argv[2::2], strict=True):  # last words, and then it is gone
        with _socket("") as last:
            last.sendto(b"last words", (socket.gethostbyname(host), int(port)))
