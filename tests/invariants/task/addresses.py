"""Allowed names that lead to addresses nobody meant, and names that are spelled addresses."""

import socket

from .attempts import attempt, reason
from .wire import ask, connect, request, tls

NOT_PUBLIC = ("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe")


def slug(address):
    return address.replace(":", "x").replace(".", "_")


for _address in NOT_PUBLIC:

    @attempt("allowed", [_address], name=f"inspected_{slug(_address)}")
    def inspected(host):
        return ask(tls(host), request(host))

    @attempt("allowed", [_address], name=f"in_the_clear_{slug(_address)}")
    def in_the_clear(host):
        return ask(connect(host, 80), request(host))

    @attempt("spliced", [_address], name=f"spliced_{slug(_address)}")
    def spliced(host):
        return ask(tls(host), request(host))


@attempt("listed", ["10.20.0.9"])
def listed_private_address(host):
    return ask(tls(host), request(host))


@attempt("listed", ["10.99.0.9"])
def private_address_that_is_not_listed(host):
    return ask(tls(host), request(host))


@attempt("spliced", turns=(("93.184.217.1",), ("169.254.169.254",)))
def rebinding_to_metadata(host):
    return [ask(tls(host), request(host)) for _ in range(2)]


@attempt("allowed", turns=(("93.184.217.2",), ("10.0.0.2",)))
def rebinding_while_inspected(host):
    kept = tls(host)
    said = [ask(kept, request(host)), ask(kept, request(host))]
    return [*said, ask(tls(host), request(host))]


@attempt("spliced", turns=(("127.0.0.1",), ("93.184.217.3",)))
def rebinding_the_other_way(host):
    return [ask(tls(host), request(host)) for _ in range(2)]


def _resolve(name):
    try:
        return sorted({place[0] for *_, place in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)})
    except OSError as error:
        return reason(error)


@attempt()
def spelled_addresses_stay_inside(host):
    """The C library itself reads these as 127.0.0.1, where nothing listens."""
    said = {}
    for name in ("2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost."):
        try:
            said[name] = ask(connect(name, 443), request(host))
        except OSError as error:
            said[name] = reason(error)
    return said


@attempt()
def literal_ipv6(host):
    said = {}
    for address in ("2606:4700::66", "::ffff:93.184.219.66", "64:ff9b::5db8:db42", "fe80::1%lo", "ff02::1"):
        try:
            said[address] = ask(tls(address, None), request(host))
        except OSError as error:
            said[address] = reason(error)
    return said


@attempt()
def literal_private_addresses(host):
    said = {}
    for address in ("10.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "0.0.0.1", "255.255.255.255"):
        try:
            said[address] = ask(connect(address, 80), request(host))
        except OSError as error:
            said[address] = reason(error)
    return said


@attempt()
def the_gate_s_own_port(host):
    said = {}
    for address in (
        "127.0.0.1",
        "127.9.9.9",
        "192.0.0.2",
        "0.0.0.0",
        "::1",
        "::",
        "fd65:7865:6174::2",
        "93.184.219.66",
    ):
        try:
            said[address] = ask(connect(address, 15001), request(host))
        except OSError as error:
            said[address] = reason(error)
    return said


@attempt()
def pool_address_that_stands_for_nothing(host):
    said = {}
    for address in ("198.18.200.200", "198.19.255.254", "198.18.0.0"):
        try:
            said[address] = ask(tls(address, host), request(host))
        except OSError as error:
            said[address] = reason(error)
    return said
