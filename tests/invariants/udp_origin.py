"""UDP servers for the origin namespace of the lab: `python udp_origin.py` prints `listening` when ready.

Every address is local there, so each server answers from the address that the client sent to.
"""

import select
import socket
import struct

import dns.flags
import dns.message
import dns.rrset

CLOCK, DNS, ECHO, STRAY, SILENT, NOBODY = 123, 5353, 4000, 4001, 4002, 4003
IPV6_TRANSPARENT = 75  # linux/in6.h
ANSWER = "203.0.113.53"


def _server(port):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)  # for addresses that are local only by a route
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind(("::", port))
    return sock


def _time(data):
    """Answer as an NTP server (RFC 5905 section 7.3) with the transmit timestamp of the client."""
    return b"\x24\x01" + bytes(22) + data[40:48] + bytes(16)


def _name(data):
    question = dns.message.from_wire(data)
    reply = dns.message.make_response(question)
    reply.flags |= dns.flags.RA
    reply.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", "A", ANSWER))
    return reply.to_wire()


def main():
    answer = {CLOCK: _time, DNS: _name, ECHO: lambda data: data, STRAY: lambda data: b"asked: " + data}
    servers = {_server(port): port for port in (*answer, SILENT)}
    elsewhere = _server(0)
    print("listening", flush=True)
    while True:
        for sock in select.select(list(servers), [], [])[0]:
            data, ancillary, _, client = sock.recvmsg(65535, 256)
            own = ancillary[0][2][:16]
            port = servers[sock]
            if port == STRAY:  # also answers from another port and another address, which the client did not send to
                elsewhere.sendmsg([b"another port"], [_from(own)], 0, client)
                sock.sendmsg([b"another address"], [_from(own[:15] + bytes([own[15] ^ 1]))], 0, client)
            if port in answer:
                sock.sendmsg([answer[port](data)], [_from(own)], 0, client)


def _from(address):
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, address + struct.pack("I", 0)


if __name__ == "__main__":
    main()
