"""How this host would reach an address, asked of its routing table without sending anything."""

import ipaddress
import socket
from typing import TYPE_CHECKING, Final

from rules.addresses import normal, why_not_public

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rules.addresses import Address

_DISCARD: Final = 9  # any port does: connecting a datagram socket only looks up a route (connect(2))
_BEST, _MISMATCHED, _NO_ROUTE = range(3)


def source_for(address: "Address") -> "Address | None":
    """Return the address that packets to `address` would come from; None: there is no route. Its own: it is local."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _DISCARD))
            return normal(ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]))
    except OSError:
        return None


def in_order(addresses: "Iterable[Address]") -> "tuple[tuple[Address, ...], frozenset[Address]]":
    """Sort addresses for dialling, and say which are this host's own.

    What has a route goes first, then what has one from an address of the same reach (RFC 6724 section 6, rules 1 and
    5: a private IPv6 source doesn't get far), and then the families take turns, IPv6 first (RFC 8305 section 4).
    """
    ranked: dict[Address, tuple[int, int, int]] = {}
    own: set[Address] = set()
    counts = {4: 0, 6: 0}
    for address in addresses:
        source = source_for(address)
        if source == address:
            own.add(address)
        counts[address.version] += 1
        ranked[address] = _rank(address, source), counts[address.version], -address.version
    return tuple(sorted(ranked, key=ranked.__getitem__)), frozenset(own)


def _rank(address: "Address", source: "Address | None") -> int:
    if source is None:
        return _NO_ROUTE
    far_off = address.version == 6 and why_not_public(address) is None and why_not_public(source) is not None
    return _MISMATCHED if far_off else _BEST
