"""Name servers on the loopback, that say what they are told to."""

import asyncio
import socket
import threading

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from proxy.dns.upstream_servers import DnsBackend, NameServers


def _on_one_port():
    """A UDP and a TCP socket on the same port: one that is free for the first may not be for the second."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        try:
            return udp, socket.create_server(udp.getsockname())
        except OSError:
            udp.close()


class Server:
    """A name server on the loopback, over UDP and TCP, that says what it is told to."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.udp, self.tcp = _on_one_port()
        self.port = self.udp.getsockname()[1]
        self.threads = [threading.Thread(target=one, daemon=True) for one in (self._serve_udp, self._serve_tcp)]
        for thread in self.threads:
            thread.start()

    def _serve_udp(self):
        while True:
            wire, client = self.udp.recvfrom(4096)
            if not wire:
                return
            for reply in self._replies(wire, tcp=False):
                self.udp.sendto(reply, client)

    def _serve_tcp(self):
        while True:
            sock, _ = self.tcp.accept()
            with sock:
                wire = sock.recv(4096)
                if not wire:
                    return
                for reply in self._replies(wire[2:], tcp=True):
                    sock.sendall(len(reply).to_bytes(2) + reply)

    def _replies(self, wire, *, tcp):
        query = dns.message.from_wire(wire)
        question = query.question[0]
        self.asked.append((question.name.to_text(), dns.rdatatype.to_text(question.rdtype), tcp))
        reply = dns.message.make_response(query)
        said = self.answer(question.name.to_text(), dns.rdatatype.to_text(question.rdtype), reply, tcp)
        return said if isinstance(said, list) else [reply.to_wire()]

    def close(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", ("127.0.0.1", self.port))
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self.threads:
            thread.join(5)
        self.udp.close()
        self.tcp.close()


def add(reply, name, kind, *values, ttl=17):
    reply.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, *values))


def asking(server):
    """`NameServers` that ask this server and no other."""
    servers = NameServers.__new__(NameServers)
    servers._backend_with_turns = DnsBackend(asyncio.Lock())
    servers._resolver = dns.asyncresolver.Resolver(configure=False)
    servers._resolver.nameservers, servers._resolver.port = ["127.0.0.1"], server.port
    return servers
