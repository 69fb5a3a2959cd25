"""A task that does a bit of everything, to be counted; and that looks for whoever counts."""

import socket

from . import dns
from .attempts import reason
from .protocols import datagram
from .steps import serve, tried
from .wire import EVIL, EVIL_NAME, ask, connect, request, tls

_kept = []


def everything():
    """Attempts of every sort, passed and blocked; one connection stays open."""
    host, spliced = "counted.more.allowed.example", "counted.more.spliced.example"
    _kept.append(tls(host))
    asked = request(host, "/bytes/1000"), request(host, "/echo", "PUT")
    said = [ask(_kept[0], one)["status"] for one in asked]
    for stream, name in ((tls(spliced), spliced), (connect(host, 80), host)):
        said.append(ask(stream, request(name, "/bytes/5000"))["status"])
        stream.close()
    for attempt in (
        lambda: ask(tls(EVIL_NAME), request(EVIL_NAME)),
        lambda: ask(tls("a.unknown.example"), request("a.unknown.example")),
        lambda: ask(tls("a.reviewed.example"), request("a.reviewed.example")),
        lambda: ask(tls(host, EVIL_NAME), request(host)),
        lambda: ask(tls(host), request(EVIL_NAME)),
        lambda: ask(tls(EVIL, None), request(EVIL)),
        lambda: connect("counted.more.raw.example", 9199).recv(1),
    ):
        tried(attempt)
    for name, kind in ((host, "TXT"), (EVIL_NAME, "A"), ("b.unknown.example", "TYPE65280")):
        dns.over_udp(name, dns.TYPES[kind], "8.8.8.8")
    dns.over_tcp(host, 1, "8.8.8.8")
    return said


def datagrams(count):
    """Datagrams that the kernel refuses."""
    refused = [datagram(EVIL, 9000 + number) for number in range(count)]
    return [*refused, datagram(EVIL, 443), dns.over_udp("nobody.allowed.example", 1, "255.255.255.255")]


def knock(port):
    """Ask for the metrics by every name and address that could lead there."""
    said = {}
    places = [f"{how}.here-{where}.example" for where in ("four", "six", "far", "other") for how in ("web", "raw")]
    places += ["127.0.0.1", "::1", "0.0.0.0", "127.0.0.2", "192.0.2.2", "::ffff:127.0.0.1", "localhost"]
    places += ["host.exeat.internal", "HOST.exeat.internal."]
    for place in places:
        said[place] = tried(_asked, place, port)
    return said


def _asked(place, port):
    host = f"[{place}]" if ":" in place else place
    got = b""
    with socket.create_connection((place, port), 5) as sock:
        sock.sendall(request(f"{host}:{port}", "/metrics", "GET", "Connection: close"))
        try:
            while data := sock.recv(65536):
                got += data
        except OSError as error:
            got = got or reason(error).encode()
    return "SEEN" if b"exeat_" in got else got.decode("latin-1").partition("\r\n")[0]


if __name__ == "__main__":
    serve(everything, datagrams, knock)
