"""A client that says nothing, or ten bytes of a ClientHello and then nothing; and thousands of them."""

import socket
import struct
import subprocess
import sys

from .steps import serve, tried
from .wire import ask, connect, request, tls

TEN_BYTES = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03"
CROWD = 500  # connections of one process: less than any usual limit on descriptors

_half = {}
_kept = {}
_crowds = []


def keep():
    """Open what has to go on working whatever happens beside it."""
    _kept["host"] = host = "kept.more.allowed.example"
    _kept["inspected"] = tls(host)
    _kept["streaming"] = connect(host, 80)
    return work()


def work():
    """Use the kept connections, for about a second."""
    host = _kept["host"]
    _kept["streaming"].sendall(request(host, "/events/20"))
    asked = ask(_kept["inspected"], request(host))
    streamed = b""
    while b"event 19" not in streamed:
        data = _kept["streaming"].recv(65536)
        if not data:
            return "cut off"
        streamed += data
    while not streamed.endswith(b"0\r\n\r\n"):
        streamed += _kept["streaming"].recv(65536)
    return asked["status"]


def half(count):
    """Begin to say hello, to hosts whose connections are read and to hosts whose connections are passed on."""
    for zone in ("allowed", "spliced"):
        host = f"half.more.{zone}.example"
        for number in range(count):
            _half[zone, number] = sock = connect(host, 443)
            sock.sendall(TEN_BYTES)
    return len(_half)


def leave(which):
    """Half of them are gone: by FIN, by RST, by half a FIN, or with one urgent byte as the last thing said."""
    chosen = [key for key in _half if key[1] % 8 == which]
    for key in chosen:
        sock = _half.pop(key)
        if which == 0:
            sock.close()
        elif which == 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        elif which == 2:
            sock.shutdown(socket.SHUT_WR)
            _half[key] = sock
        else:
            sock.send(b"!", socket.MSG_OOB)
            _half[key] = sock
    return len(chosen)


def stay():
    """Wait until the gate has lost patience with the others; return how each ended."""
    ends = set()
    for sock in _half.values():
        sock.settimeout(60)
        ends.add(tried(lambda sock=sock: "eof" if not sock.recv(1) else "data"))
    return sorted(ends)


def flood(silent):
    """Open thousands that send nothing, and some hundreds more that say ten bytes; the last of all is behind every other."""
    for says_something in [1, *[0] * silent]:
        words = [sys.executable, "-m", "task.silent", "crowd", str(says_something)]
        _crowds.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    opened = sum(int(crowd.stdout.readline()) for crowd in _crowds)
    return {"opened": opened + 1, "last": tried(_one_too_many)}


def _one_too_many():
    """Connect once more; it may be reset before this process has had its turn."""
    with connect("flood.more.spliced.example", 443) as last:
        last.settimeout(60)
        return last.recv(1)


def crowd(says_something):
    """Open connections and keep them until the input ends."""
    place = socket.gethostbyname("flood.more.spliced.example"), 443
    kept = []
    for _ in range(CROWD):
        sock = socket.socket()
        sock.settimeout(60)
        tried(sock.connect, place)  # one too many may be reset before this process has had its turn
        kept.append(sock)
        if says_something:
            tried(sock.sendall, TEN_BYTES)
    print(len(kept), flush=True)
    sys.stdin.read()


def go_home():
    """Let all of them go."""
    for one in _crowds:
        one.communicate()
    return [one.returncode for one in _crowds]


def look_up():
    return socket.gethostbyname("new.more.allowed.example")


def again():
    """Make a new connection of each sort."""
    inspected, spliced = "again.more.allowed.example", "again.more.spliced.example"
    return [
        ask(tls(inspected), request(inspected))["status"],
        ask(tls(spliced), request(spliced))["status"],
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["crowd"]:
        crowd(int(sys.argv[2]))
    else:
        serve(keep, work, half, leave, stay, flood, go_home, look_up, again)
