"""Both ends of a datagram, as the kernel tells them: IP_RECVORIGDSTADDR (ip(7)) and recvmsg(2)."""

import sys
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from rules.addresses import normal

if TYPE_CHECKING:
    from proxy.gate.record import Endpoint
    from rules.addresses import Address

_SIZE_OF_IPV4: Final = 16  # struct sockaddr_in
_SIZE_OF_IPV6: Final = 28  # struct sockaddr_in6


def endpoint_asked(sockaddr: bytes) -> "Endpoint":
    """Read where a datagram was sent to; an address with a zone id keeps it, and is nowhere. Raises ValueError."""
    port = int.from_bytes(sockaddr[2:4])
    if len(sockaddr) == _SIZE_OF_IPV4:
        return IPv4Address(sockaddr[4:8]), port
    if len(sockaddr) == _SIZE_OF_IPV6:
        address, zone = IPv6Address(sockaddr[8:24]), int.from_bytes(sockaddr[24:28], sys.byteorder)
        return IPv6Address(f"{address}%{zone}") if zone else normal(address), port
    raise ValueError(f"the kernel said with {len(sockaddr)} bytes where a datagram was sent to")


def endpoint_of(name: "tuple[object, ...]") -> "Endpoint":
    """Read a socket's name."""
    return _address(str(name[0])), int(str(name[1]))


@lru_cache(maxsize=64)
def _address(text: str) -> "Address":
    return normal(ip_address(text.partition("%")[0]))
