"""Everything that is not TCP."""

import socket

from .attempts import attempt, reason
from .wire import EVIL

EVIL6 = "2606:4700::66"


def datagram(address, port, data=b"out with it"):
    """Send one and see what comes back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        try:
            sock.connect((address, port))
            sock.send(data)
            return f"answered {sock.recv(100)!r}"
        except OSError as error:
            return reason(error)


@attempt()
def udp(host):
    return [datagram(address, 9999) for address in (EVIL, EVIL6)]


@attempt()
def udp_to_an_allowed_name(host):
    return datagram(socket.gethostbyname(host), 9999)


@attempt()
def quic(host):
    initial = b"\xc0\0\0\0\1\x08" + bytes(8) + b"\0\0\x44\xb0" + bytes(1180)
    return [datagram(address, 443, initial) for address in (EVIL, EVIL6, socket.gethostbyname(host))]


@attempt()
def unconnected_udp(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.sendto(b"into the dark", (EVIL, 9998))


@attempt()
def udp_from_another_address(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((EVIL, 7777))  # every address is local here
        return sock.sendto(b"as if I were it", ("93.184.219.67", 9999))


@attempt()
def sockets_of_other_protocols(host):
    said = {}
    for name, kind, protocol in (
        ("icmp", socket.SOCK_RAW, 1),
        ("ping", socket.SOCK_DGRAM, 1),
        ("sctp", socket.SOCK_STREAM, 132),
        ("sctp-seqpacket", socket.SOCK_SEQPACKET, 132),
        ("dccp", 6, 33),
        ("mptcp", socket.SOCK_STREAM, 262),
        ("udplite", socket.SOCK_DGRAM, 136),
        ("raw", socket.SOCK_RAW, 255),
    ):
        for family in (socket.AF_INET, socket.AF_INET6):
            which = f"{name} {family.name}"
            try:
                with socket.socket(family, kind, protocol) as sock:
                    sock.settimeout(1)
                    sock.connect((EVIL if family == socket.AF_INET else EVIL6, 9999))
                    sock.send(b"x")
                    said[which] = f"answered {sock.recv(10)!r}"
            except OSError as error:
                said[which] = reason(error)
    return said


@attempt()
def tcp_from_another_address(host):
    """A task can bind any address; a connection from one is still the sandbox's, and goes nowhere."""
    with socket.socket() as sock:
        sock.bind((EVIL, 0))
        sock.settimeout(1)
        sock.connect(("93.184.219.67", 443))
        return "connected"


@attempt()
def tcp_fast_open(host):
    with socket.socket() as sock:
        sent = sock.sendto(b"first bytes in the SYN\r\n", socket.MSG_FASTOPEN, (EVIL, 443))
        sock.settimeout(10)
        try:
            return [sent, sock.recv(100).decode()]
        except OSError as error:
            return [sent, reason(error)]
