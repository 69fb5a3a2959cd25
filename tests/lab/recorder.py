"""Counts every packet that arrives, which proves that nothing reached an origin.

A packet socket receives a packet before the network stack does, with or without a listener. Packets that the socket
dropped are counted (`lost`), so that a missing packet never passes for proof.
"""

import socket
import struct
from collections import Counter

_ETH_P_ALL, _SOL_PACKET, _PACKET_STATISTICS = 3, 263, 6
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
_OFFSET = 0x1FFF
_BUFFER = 32 << 20
_SO_RCVBUFFORCE = 33


class Recorder:
    """Counts the incoming packets of one device by destination address, protocol number and port."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.bind((device, _ETH_P_ALL))
        self._socket.setblocking(False)
        self._seen: Counter[tuple[str, int, int]] = Counter()
        self._lost = 0

    def fileno(self) -> int:
        """Return the descriptor for an event loop."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Count the packets received so far."""
        while True:
            try:
                packet, (_, kind, way, *_) = self._socket.recvfrom(128)
            except BlockingIOError:
                break
            if way != socket.PACKET_OUTGOING and kind in {_ETH_P_IP, _ETH_P_IPV6}:
                self._seen[_described(packet)] += 1
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._lost += struct.unpack("II", statistics)[1]  # packet(7): reading resets them

    def packets(self) -> list[tuple[str, int, int, int]]:
        """Return (destination, protocol number, port or 0, count) of all packets so far."""
        self.drain()
        if self._lost:
            raise RuntimeError(f"{self._lost} packets were lost: the count proves nothing")
        return [(*what, times) for what, times in self._seen.items()]

    def forget(self) -> None:
        """Reset all counts."""
        self.drain()
        self._seen.clear()
        self._lost = 0


def _described(packet: bytes) -> tuple[str, int, int]:
    later = False  # later fragments have data in place of ports (RFC 791 section 3.1)
    if packet[0] >> 4 == 4:
        protocol, at, address = packet[9], (packet[0] & 15) * 4, socket.inet_ntop(socket.AF_INET, packet[16:20])
        later = int.from_bytes(packet[6:8]) & _OFFSET != 0
    else:  # fragments have their own header
        protocol, at, address = packet[6], 40, socket.inet_ntop(socket.AF_INET6, packet[24:40])
    port = int.from_bytes(packet[at + 2 : at + 4]) if protocol in _WITH_PORTS and not later else 0
    return address, protocol, port
