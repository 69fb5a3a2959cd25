"""A task whose gate can't write its journal any more."""

import socket
import time

from . import dns
from .attempts import reason
from .protocols import datagram
from .steps import serve
from .wire import EVIL, Tls, ask, connect, request, tls

_kept = {}
_known = {}
_ZONES = {"inspected": "allowed", "clear": "allowed", "spliced": "spliced", "raw": "raw"}


def begin():
    """Use everything once, look up what will be tried, and keep two connections."""
    for way, zone in _ZONES.items():
        _known[way] = f"{way}.more.{zone}.example", socket.gethostbyname(f"{way}.more.{zone}.example")
    for way in ("inspected", "clear"):
        _kept[way] = _connected(way)
        ask(_kept[way], request(_known[way][0]))
    return attempts("begin")


def _connected(way):
    name, address = _known[way]
    sock = connect(address, {"clear": 80, "raw": 22}.get(way, 443))
    if way in ("clear", "raw"):
        return sock
    return Tls(sock, name)


def attempts(word):
    """Try every way out; return what each came to."""
    said = {}
    for way, (name, _) in _known.items():
        try:
            stream = _connected(way)
            greeted = stream.recv(3).decode() if way == "raw" else ""
            said[way] = greeted or _short(ask(stream, request(name, f"/{word}")))
        except OSError as error:
            said[way] = reason(error)
    for way, stream in _kept.items():
        said[f"kept {way}"] = _short(ask(stream, request(_known[way][0], f"/{word}")))
    said["lookup"] = dns.over_udp(f"{word}.more.allowed.example", 1, "8.8.8.8")["rcode"]
    said["lookup by tcp"] = dns.over_tcp(f"{word}.more.allowed.example", 1, "8.8.8.8")["rcode"]
    said["udp"] = datagram(EVIL, 9999)
    try:
        said["denied"] = _short(ask(tls(EVIL, None), request(EVIL)))
    except OSError as error:
        said["denied"] = reason(error)
    return said


def _short(said):
    return said.get("reason") or said.get("error") or said["status"]


def rest():
    """Do nothing for a while."""
    time.sleep(0.5)


def keep():
    """Open the kept connections anew."""
    for way in _kept:
        _kept[way] = _connected(way)
    return len(_kept)


if __name__ == "__main__":
    serve(begin, attempts, rest, keep)
