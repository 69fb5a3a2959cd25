"""IP addresses in one form, and which of them are public (invariant 9).

Every spelling that a C library takes becomes one value before anything is compared. This module must never call an
address public that leads back into the host, its network or its cloud: if in doubt, it is not public.

Sources of the blocks, as of their versions of 2025-10-09: IANA IPv4 Special-Purpose Address Registry, IANA IPv6
Special-Purpose Address Registry (RFC 6890, RFC 8190), IPv4 and IPv6 multicast (RFC 5771, RFC 4291); IPv6 outside
2000::/3 is unallocated (RFC 4291 section 2.4). Where a registry calls a part of a block globally reachable
(192.0.0.9/32, parts of 2001::/23, 64:ff9b::/96), the whole block stays closed: those are anycast relays and
translators. Metadata services are named by their providers' documentation; one of them has a public address.
"""

from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from rules.values.names import HostName, InvalidNameError

type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network


class Opening(Enum):
    """What a rule's CIDR may open of a block."""

    NEVER = "never"  # no host is there (multicast, another address in disguise), or this one: loopback
    SINGLE = "single"  # one address at a time: link-local and metadata, the usual prize of a forged request
    WITHIN = "within"  # any network that lies wholly inside the block


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
    _block("::1/128", "loopback", Opening.NEVER),  # RFC 4291; reached by name alone: rules.values.names
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
    _block("::ffff:0:0/96", "IPv4-mapped", Opening.NEVER),  # RFC 4291; `normalize` has made IPv4 of them long before
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
_MAPPED = 0xFFFF  # the 16 bits in front of the last 32 of ::ffff:a.b.c.d, RFC 4291 section 2.5.5.2
_DIGITS = {8: frozenset("01234567"), 10: frozenset("0123456789"), 16: frozenset("0123456789abcdefABCDEF")}
# (bits of the host part, {prefix: block}), longest prefix first: a lookup is a probe a length. One such for each value
# of an address's first byte, for most have nothing in them.
type _Table = tuple[tuple[int, dict[int, Block]], ...]


def _tables(version: int) -> tuple[_Table, ...]:
    tables: list[dict[int, dict[int, Block]]] = [{} for _ in range(256)]
    for block in BLOCKS:
        network = block.network
        if network.version == version:
            host_bits = network.max_prefixlen - network.prefixlen
            first, last = network.network_address.packed[0], network.broadcast_address.packed[0]
            for by_length in tables[first : last + 1]:
                by_length.setdefault(host_bits, {})[int(network.network_address) >> host_bits] = block
    return tuple(tuple(sorted(by_length.items())) for by_length in tables)


_IPV4_BLOCKS, _IPV6_BLOCKS = _tables(4), _tables(6)


def parse_address(text: str) -> Address | None:
    """Read an address as a C library would (inet_aton(3), inet_pton(3)), or None if it is none.

    Short, octal and hexadecimal forms are addresses: `127.1`, `0177.0.0.1`, `0x7f.1`, `2130706433`. Zone ids are
    refused: an address with one means another host on every machine, and text after `%` has smuggled names past gates.
    """
    if ":" not in text:
        return _inet_aton(text)
    if "%" in text:
        return None
    try:
        return normalize(IPv6Address(text))
    except ValueError:
        return None


def parse_host(text: str) -> HostName | Address:
    """Read what a client wrote as a host: an address in any spelling, `[v6]` too, else a name. Raises InvalidName."""
    if text.startswith("["):
        address = parse_address(text[1:-1]) if text.endswith("]") and ":" in text else None
        if address is None:
            raise InvalidNameError(f"`{ascii(text)[1:-1]}` is not an IPv6 address in brackets")
        return address
    address = parse_address(text.removesuffix(".") if ":" not in text else text)
    return HostName.parse(text) if address is None else address


def bracket_host(host: object) -> str:
    """Write a host as URLs have it: an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    text = str(host)
    return f"[{text}]" if ":" in text else text


def parse_network(text: str) -> Network:
    """Parse an address or a CIDR into normal form. Raises ValueError with the problem and a suggested correction."""
    base, slash, length = text.partition("/")
    address = parse_address(base)
    if address is None:
        raise ValueError(f"`{text}` is not an address or a CIDR")
    if ":" not in base and any(len(part) > 1 and part[0] == "0" and part[1] not in "xX" for part in base.split(".")):
        raise ValueError(
            f"`{text}` has a part that C libraries read as octal: write `{address}` if that is what you mean"
        )
    if not slash:
        return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)
    if str(address) != base and ":" not in base:
        raise ValueError(f"`{text}` leaves parts out: write `{address}/{length}` if that is what you mean")
    if not (length.isascii() and length.isdigit() and len(length) <= len("128")):
        raise ValueError(f"`{text}` has no prefix length after its slash")
    bits = int(length)
    if isinstance(address, IPv4Address) and ":" in base:
        bits -= 96
        if bits < 0:
            raise ValueError(f"`{text}` is wider than the IPv4 addresses it maps: write them as IPv4")
    if bits > address.max_prefixlen:
        raise ValueError(f"`{text}` has a prefix of more than {address.max_prefixlen} bits")
    kind = IPv4Network if isinstance(address, IPv4Address) else IPv6Network
    network = kind((int(address), bits), strict=False)
    if network.network_address != address:
        raise ValueError(f"`{text}` has bits set behind its prefix: write `{network}`, or `{address}` for one address")
    return network


def normalize(address: Address | str) -> Address:
    """Return the normal form of an address: IPv4-mapped IPv6 becomes IPv4. Raises ValueError for other text."""
    if isinstance(address, str):
        parsed = parse_address(address)
        if parsed is None:
            raise ValueError(f"`{ascii(address)[1:-1]}` is not an address")
        return parsed
    if isinstance(address, IPv4Address):
        return address
    if address.scope_id is not None:
        raise ValueError("an address with a zone id means another host on every machine")
    number = int(address)
    return IPv4Address(number & 0xFFFFFFFF) if number >> 32 == _MAPPED else address


def find_block(address: Address) -> Block | None:
    """Find the smallest non-public block that a normal `address` lies in; None means it is public."""
    number = int(address)
    for host_bits, blocks in _IPV4_BLOCKS[number >> 24] if address.version == 4 else _IPV6_BLOCKS[number >> 120]:
        block = blocks.get(number >> host_bits)
        if block is not None:
            return block
    return None


def why_not_public(address: Address) -> str | None:
    """Return the kind of a non-public address (`loopback`, `private use` …), or None if it is public."""
    block = find_block(normalize(address))
    return None if block is None else block.name


def is_within(narrow: Network, wide: Network) -> bool:
    """Whether a network lies wholly in another; two versions never meet."""
    if isinstance(narrow, IPv4Network):
        return isinstance(wide, IPv4Network) and narrow.subnet_of(wide)
    return isinstance(wide, IPv6Network) and narrow.subnet_of(wide)


def network_opens(network: Network, address: Address) -> bool:
    """Whether a rule that lists `network` allows connections to a normal `address`.

    A wide CIDR such as 0.0.0.0/0 means the public addresses in it: it opens non-public ones only if it lies wholly
    inside their block, and link-local and metadata addresses only one at a time.
    """
    if address not in network:
        return False
    block = find_block(address)
    if block is None:
        return True
    if block.opening is Opening.WITHIN:
        return is_within(network, block.network)
    return block.opening is Opening.SINGLE and network.num_addresses == 1


def _inet_aton(text: str) -> IPv4Address | None:
    """One to four parts, each decimal, octal (0…) or hexadecimal (0x…); the last fills what is left: inet_aton(3)."""
    parts = text.split(".")
    if len(parts) > 4 or not parts[-1][:1].isdigit():  # most names differ from addresses in their last label
        return None
    numbers = [_c_number(part) for part in parts]
    value = 0
    for number in numbers[:-1]:
        if number is None or number > 0xFF:
            return None
        value = value << 8 | number
    last, bits = numbers[-1], 8 * (5 - len(parts))
    if last is None or last >> bits:
        return None
    return IPv4Address(value << bits | last)


def _c_number(text: str) -> int | None:
    """Read all of `text` as strtoul(3) with base 0 does; bounded, so that a megabyte of digits costs nothing."""
    if text[:2] in {"0x", "0X"}:
        digits, base = text[2:], 16
    else:
        digits, base = text, 8 if text[:1] == "0" else 10
    if not 0 < len(digits) <= 32 or not _DIGITS[base].issuperset(digits):
        return None
    return int(digits, base)
