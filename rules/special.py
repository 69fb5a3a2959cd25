"""The blocks of addresses that are not on the public internet, and what a rule may open of them.

Sources, as of their versions of 2025-10-09: IANA IPv4 Special-Purpose Address Registry, IANA IPv6 Special-Purpose
Address Registry (RFC 6890, RFC 8190), IPv4 and IPv6 multicast (RFC 5771, RFC 4291); IPv6 outside 2000::/3 is
unallocated (RFC 4291 section 2.4). Where a registry calls a part of a block globally reachable (192.0.0.9/32, parts of
2001::/23, 64:ff9b::/96), the whole block stays closed here: those are anycast relays and translators, which lead
elsewhere than they say.
Metadata services are named by their providers' documentation; one of them sits on a public address.
"""

from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network


class Opening(Enum):
    """What a rule's CIDR may open of a block."""

    NEVER = "never"  # no host is there (multicast, another address in disguise), or this one: loopback
    SINGLE = "single"  # one address at a time: link-local and metadata, the usual prize of a forged request
    WITHIN = "within"  # whatever lies wholly inside the block


class Block(NamedTuple):
    """A block of addresses that are not public."""

    network: Network
    name: str
    opening: Opening


def _block(cidr: str, name: str, opening: Opening = Opening.WITHIN) -> Block:
    network = IPv6Network(cidr) if ":" in cidr else IPv4Network(cidr)
    return Block(network, name, opening)


BLOCKS = (
    # one address
    _block("169.254.169.254/32", "cloud metadata", Opening.SINGLE),
    _block(
        "168.63.129.16/32", "cloud metadata", Opening.SINGLE
    ),  # public by its block; reachable inside one cloud only
    _block("100.100.100.200/32", "cloud metadata", Opening.SINGLE),
    _block("192.0.0.192/32", "cloud metadata", Opening.SINGLE),
    _block("fd00:ec2::254/128", "cloud metadata", Opening.SINGLE),
    _block("fd00:ec2::23/128", "cloud metadata", Opening.SINGLE),
    _block("fd20:ce::254/128", "cloud metadata", Opening.SINGLE),
    _block("255.255.255.255/32", "limited broadcast", Opening.NEVER),  # RFC 919
    _block("::/128", "unspecified", Opening.NEVER),  # RFC 4291; connect() takes it for loopback
    _block("::1/128", "loopback", Opening.NEVER),  # RFC 4291; reached by name alone: rules.own_names
    # IPv4
    _block("0.0.0.0/8", "this network", Opening.NEVER),  # RFC 791; connect() takes 0.0.0.0 for loopback
    _block("10.0.0.0/8", "private use"),  # RFC 1918
    _block("100.64.0.0/10", "shared address space"),  # RFC 6598, carrier-grade NAT
    _block("127.0.0.0/8", "loopback", Opening.NEVER),  # RFC 1122; as above
    _block("169.254.0.0/16", "link-local", Opening.SINGLE),  # RFC 3927
    _block("172.16.0.0/12", "private use"),  # RFC 1918
    _block("192.0.0.0/24", "protocol assignments"),  # RFC 6890
    _block("192.0.2.0/24", "documentation"),  # RFC 5737
    _block("192.31.196.0/24", "AS112"),  # RFC 7535
    _block("192.52.193.0/24", "multicast tunnelling"),  # RFC 7450
    _block("192.88.99.0/24", "6to4 relay", Opening.NEVER),  # RFC 7526
    _block("192.168.0.0/16", "private use"),  # RFC 1918
    _block("192.175.48.0/24", "AS112"),  # RFC 7534
    _block("198.18.0.0/15", "benchmarking"),  # RFC 2544; also where synthetic addresses come from
    _block("198.51.100.0/24", "documentation"),  # RFC 5737
    _block("203.0.113.0/24", "documentation"),  # RFC 5737
    _block("224.0.0.0/4", "multicast", Opening.NEVER),  # RFC 5771
    _block("240.0.0.0/4", "reserved", Opening.NEVER),  # RFC 1112
    # IPv6, longest prefix first
    _block("::ffff:0:0/96", "IPv4-mapped", Opening.NEVER),  # RFC 4291; `normal` has made IPv4 of them long before
    _block("::ffff:0:0:0/96", "IPv4-translated", Opening.NEVER),  # RFC 2765
    _block("::/96", "IPv4-compatible", Opening.NEVER),  # RFC 4291, deprecated
    _block("64:ff9b::/96", "NAT64", Opening.NEVER),  # RFC 6052
    _block("100::/64", "discard-only", Opening.NEVER),  # RFC 6666
    _block("100:0:0:1::/64", "dummy", Opening.NEVER),  # RFC 9780
    _block("64:ff9b:1::/48", "NAT64", Opening.NEVER),  # RFC 8215
    _block("2620:4f:8000::/48", "AS112"),  # RFC 7534
    _block("2001::/32", "Teredo", Opening.NEVER),  # RFC 4380
    _block("2001:db8::/32", "documentation"),  # RFC 3849
    _block("2001::/23", "protocol assignments"),  # RFC 2928
    _block("3fff::/20", "documentation"),  # RFC 9637
    _block("2002::/16", "6to4", Opening.NEVER),  # RFC 3056
    _block("5f00::/16", "segment routing"),  # RFC 9602
    _block("fe80::/10", "link-local", Opening.SINGLE),  # RFC 4291
    _block("fec0::/10", "site-local"),  # RFC 3879, deprecated and still routed in places
    _block("ff00::/8", "multicast", Opening.NEVER),  # RFC 4291
    _block("fc00::/7", "unique local"),  # RFC 4193
    # what is left of IPv6 outside 2000::/3
    _block("::/3", "unallocated", Opening.NEVER),
    _block("4000::/2", "unallocated", Opening.NEVER),
    _block("8000::/1", "unallocated", Opening.NEVER),
)
