"""nftables' vocabulary as values: tables, counters, chains, rules, and the expressions that rules are made of.

Only what the capture needs. Constants are linux/netfilter/nf_tables.h's. Nothing is encoded or sent here.
"""

import socket
import struct
from ipaddress import IPv4Network, ip_network
from typing import NamedTuple

_NF_DROP, _NF_ACCEPT, _NFT_GOTO = 0, 1, -4
_META_NFPROTO, _META_L4PROTO = 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_TCP_RESET, _ICMPX, _ICMPX_PORT_UNREACHABLE = 1, 2, 1
_OBJECT_COUNTER = 1
_DYNSET_UPDATE = 1


class Verdict(NamedTuple):
    """What happens to a packet: an NF_ or NFT_ code, and the chain that goes on."""

    code: int
    chain: str = ""


class Expression(NamedTuple):
    """One expression: its name, and its attributes without their `NFTA_<NAME>_`; bytes are data."""

    name: str
    attributes: tuple[tuple[str, int | str | bytes | Verdict], ...] = ()


class Table(NamedTuple):
    """A table of family inet: IPv4 and IPv6 alike."""

    name: str

    def describe(self) -> str:
        """Say what this adds."""
        return f"add the table `{self.name}`"


class Counter(NamedTuple):
    """A named counter, zero at first."""

    table: str
    name: str

    def describe(self) -> str:
        """Say what this adds."""
        return f"add the counter `{self.name}`"


class AddressSet(NamedTuple):
    """IPv6 addresses that rules add, at most `size`; each is forgotten `timeout` seconds after it was last added."""

    table: str
    name: str
    size: int
    timeout: int

    def describe(self) -> str:
        """Say what this adds."""
        return f"add the set `{self.name}` of at most {self.size} IPv6 addresses, each for {self.timeout} s"


class Chain(NamedTuple):
    """A list of rules; with a priority, where packets come in, or `leave`: it drops what no rule of it settles."""

    table: str
    name: str
    priority: int | None = None
    leave: bool = False

    def describe(self) -> str:
        """Say what this adds."""
        if self.priority is None:
            return f"add the chain `{self.name}`"
        way = f"packets {'leave' if self.leave else 'come in'} (priority {self.priority})"
        return f"add the chain `{self.name}` where {way}, dropping what is left"


class Rule(NamedTuple):
    """Expressions that a packet goes through until one of them doesn't match."""

    table: str
    chain: str
    says: str
    expressions: tuple[Expression, ...]

    def describe(self) -> str:
        """Say what this adds."""
        return f"rule of `{self.chain}`: {self.says}"

    @property
    def logs(self) -> bool:
        """Whether this needs the kernel's NFLOG."""
        return any(expression.name == "log" for expression in self.expressions)


type Statement = Table | Counter | AddressSet | Chain | Rule
type Match = tuple[Expression, ...]


def destination(network: str) -> Match:
    """Packets to an address in the network."""
    return _address(network, offset4=16, offset6=24)


def source(network: str) -> Match:
    """Packets that say they come from an address in the network."""
    return _address(network, offset4=12, offset6=8)


def family(number: int) -> Match:
    """Packets of IPv4 (AF_INET) or IPv6 (AF_INET6)."""
    return _meta(_META_NFPROTO, bytes([number]))


def destination_added(name: str) -> Match:
    """IPv6 packets whose destination is in a set, or has room there: it is added, or its time begins anew."""
    load = Expression("payload", (("dreg", 1), ("base", _NETWORK_HEADER), ("offset", 24), ("len", 16)))
    return load, Expression("dynset", (("set_name", name), ("sreg_key", 1), ("op", _DYNSET_UPDATE)))


def protocol(number: int) -> Match:
    """Packets of one transport, behind whatever IPv6 extension headers."""
    return _meta(_META_L4PROTO, bytes([number]))


def port(number: int) -> Match:
    """Packets to a port."""
    return _payload(_TRANSPORT_HEADER, 2, struct.pack("!H", number))


def icmp_type(number: int) -> Match:
    """ICMP or ICMPv6 packets of one type."""
    return _payload(_TRANSPORT_HEADER, 0, bytes([number]))


def tproxy(port: int) -> Match:
    """Hand the packet to the transparent socket on `port`; where there is none the rule ends here, unmatched."""
    return (
        Expression("immediate", (("dreg", 1), ("data", struct.pack("!H", port)))),
        Expression("tproxy", (("family", 0), ("reg_port", 1))),
    )


def limit(*, per_second: int, burst: int) -> Expression:
    """Match as many packets a second, and as many at once after a quiet time; no more."""
    return Expression("limit", (("rate", per_second), ("unit", 1), ("burst", burst), ("type", 0), ("flags", 0)))


def log(group: int, prefix: str, *, most_bytes: int) -> Expression:
    """Send the packet's first bytes to the NFLOG group at once."""
    return Expression("log", (("group", group), ("prefix", prefix), ("snaplen", most_bytes), ("qthreshold", 1)))


def count(name: str) -> Expression:
    """Add the packet to a named counter."""
    return Expression("objref", (("imm_type", _OBJECT_COUNTER), ("imm_name", name)))


def goto(chain: str) -> Expression:
    """Go on in another chain and don't come back."""
    return _verdict(_NFT_GOTO, chain)


def _address(text: str, *, offset4: int, offset6: int) -> Match:
    network = ip_network(text)
    version, offset = (socket.AF_INET, offset4) if isinstance(network, IPv4Network) else (socket.AF_INET6, offset6)
    mask = b"" if network.prefixlen == network.max_prefixlen else network.netmask.packed
    raw = network.network_address.packed
    return *family(version), *_payload(_NETWORK_HEADER, offset, raw, mask)


def _payload(base: int, offset: int, value: bytes, mask: bytes = b"") -> Match:
    size = len(value)
    load = Expression("payload", (("dreg", 1), ("base", base), ("offset", offset), ("len", size)))
    bits = Expression("bitwise", (("sreg", 1), ("dreg", 1), ("len", size), ("mask", mask), ("xor", bytes(size))))
    return (load, bits, _equals(value)) if mask else (load, _equals(value))


def _meta(key: int, value: bytes) -> Match:
    return Expression("meta", (("dreg", 1), ("key", key))), _equals(value)


def _equals(value: bytes) -> Expression:
    return Expression("cmp", (("sreg", 1), ("op", 0), ("data", value)))


def _verdict(code: int, chain: str = "") -> Expression:
    return Expression("immediate", (("dreg", 0), ("data", Verdict(code, chain))))


ACCEPT, DROP = _verdict(_NF_ACCEPT), _verdict(_NF_DROP)
TCP_RESET = Expression("reject", (("type", _TCP_RESET), ("icmp_code", 0)))
PORT_UNREACHABLE = Expression("reject", (("type", _ICMPX), ("icmp_code", _ICMPX_PORT_UNREACHABLE)))
