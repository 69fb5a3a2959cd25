"""What is sent back into a sandbox over UDP: replies from the address that was asked, and refusals.

Home of a promise: whatever is sent goes to one of the sandbox's own addresses, once for each datagram that asked for it
or for each that its flow's own peer sent, and leads nowhere else: a task can't have the gate send to anybody.
"""

from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from proxy.udp.packets import LARGEST, datagram, port_unreachable

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection

    from proxy.gate.record import Endpoint
    from rules.addresses import Address

_BROADCAST: Final = IPv4Address("255.255.255.255")


class Answers:
    """The way back into one sandbox. `ipv4` and `ipv6` are raw sockets in its network, and stay the caller's."""

    __slots__ = ("_ipv4", "_ipv6", "_own")

    def __init__(
        self, ipv4: "socket.socket", ipv6: "socket.socket | None", own_addresses: "Collection[Address]"
    ) -> None:
        self._ipv4 = ipv4
        self._ipv6 = ipv6
        self._own = frozenset(own_addresses)

    def reply(self, asked: "Endpoint", client: "Endpoint", payload: bytes) -> bool:
        """Send a datagram from `asked` to `client`. False: it was lost, as datagrams may be."""
        if not self._leads_back(asked, client) or len(payload) > LARGEST[asked[0].version]:
            return False
        return self._send(datagram(asked, client, payload), client)

    def refuse(self, asked: "Endpoint", client: "Endpoint", size: int) -> None:
        """Tell `client` at once that its datagram of `size` bytes did not leave.

        Not where it was meant for many: RFC 1122 section 3.2.2, RFC 4443 section 2.4.
        """
        for_many = asked[0].is_multicast or asked[0] == _BROADCAST
        if self._leads_back(asked, client) and not for_many:
            self._send(port_unreachable(asked, client, size), client)

    def _leads_back(self, asked: "Endpoint", client: "Endpoint") -> bool:
        return asked[0].version == client[0].version and (client[0].is_loopback or client[0] in self._own)

    def _send(self, packet: bytes, client: "Endpoint") -> bool:
        sock = self._ipv4 if client[0].version == 4 else self._ipv6
        if sock is None:
            return False
        try:
            sock.sendto(packet, (str(client[0]), 0))
        except OSError:  # no room, or longer than the sandbox's own device takes
            return False
        return True
