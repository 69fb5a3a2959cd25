"""Authoritative DNS server of the lab: answers from a zone over UDP and TCP, and records every query."""

import asyncio
import contextlib
import struct
import time
from collections import Counter

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from .names import Zone

_SOA = "ns.lab.invalid. root.lab.invalid. 1 3600 600 86400 1"


class Resolver:
    """Serves one zone. `queries` holds (name, type, transport, client address, time) of each query."""

    def __init__(self, zone: Zone, queries) -> None:
        self.zone, self.queries, self._turns = zone, queries, Counter()

    async def serve(self, address: str) -> None:
        """Listen on port 53 of an address."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: _Datagrams(self), local_addr=(address, 53))
        await asyncio.start_server(self._serve_tcp, address, 53)

    def forget(self) -> None:
        """Restart every rebinding name from its first address."""
        self._turns.clear()

    async def _serve_tcp(self, reader, writer) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, dns.exception.DNSException):
                while True:
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                    query = await reader.readexactly(size)
                    if (reply := self.answer(query, "tcp", writer.get_extra_info("peername")[0])) is not None:
                        writer.write(struct.pack("!H", len(reply)) + reply)
        finally:
            writer.close()

    def answer(self, wire: bytes, transport: str, client: str) -> bytes | None:
        """Return the answer to a query, or None for no answer. Raises DNSException if the query is malformed."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        queried, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.queries.append((queried, kind, transport, client, time.time()))
        reply = dns.message.make_response(query, recursion_available=True)
        name = self.zone.find(queried)
        if name is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif name.fails == "silent":
            return None
        elif name.fails:
            reply.set_rcode(dns.rcode.from_text(name.fails.upper()))
        elif name.truncated and transport == "udp":
            reply.flags |= dns.flags.TC
            return reply.to_wire()
        else:
            self._fill(reply, question.name.to_text(), queried, kind)
        if not reply.answer:
            reply.authority.append(dns.rrset.from_text("invalid.", 1, "IN", "SOA", _SOA))
        return reply.to_wire()

    def _fill(self, reply, owner: str, queried: str, kind: str) -> None:
        name = self.zone.find(queried)
        if name.alias:
            reply.answer.append(dns.rrset.from_text(owner, name.ttl, "IN", "CNAME", f"{name.alias}."))
            if self.zone.find(name.alias):
                self._fill(reply, f"{name.alias}.", name.alias, kind)
            return
        if kind in {"A", "AAAA"}:
            addresses = name.addresses_at(self._turns[queried, kind])
            self._turns[queried, kind] += 1
            values = [one for one in addresses if (":" in one) == (kind == "AAAA")]
        else:
            values = [f'"{one}"' for one in name.text] if kind == "TXT" else []
        if values:
            reply.answer.append(dns.rrset.from_text(owner, name.ttl, "IN", kind, *values))


class _Datagrams(asyncio.DatagramProtocol):
    """UDP transport on one address."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def connection_made(self, transport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr) -> None:
        with contextlib.suppress(dns.exception.DNSException):
            if (reply := self._resolver.answer(data, "udp", addr[0])) is not None:
                self._transport.sendto(reply, addr)
