"""nftables ruleset of a sandbox as values: which packets reach the gate, and how all others are refused.

One chain where packets enter (prerouting of `lo`, which everything from the task passes). Its policy is drop, and no
rule forwards a packet to anything but a socket in this namespace: without a gate there is no path (invariant 1).
Refused packets are counted by kind and logged; TCP and UDP get an immediate answer, so that clients fall back or fail
and never hang. UDP reaches the gate only while its socket is open (proxy/udp/sockets.py): the socket changes
with the rules in force, the ruleset doesn't.

Constants are from linux/netfilter/nf_tables.h. Nothing is encoded or sent here.
"""

import socket
import struct
from ipaddress import IPv4Network, ip_network
from typing import NamedTuple

from enforcer.network.constants import LOGGED, OWN_IPV4, OWN_IPV6, REFUSAL_GROUP, TABLE
from proxy.wire.refusal_log import Kind

_NF_DROP, _NF_ACCEPT, _NFT_GOTO = 0, 1, -4
_META_NFPROTO, _META_L4PROTO = 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_TCP_RESET, _ICMPX, _ICMPX_PORT_UNREACHABLE = 1, 2, 1
_OBJECT_COUNTER = 1
_DYNSET_UPDATE = 1


class Verdict(NamedTuple):
    """What happens to a packet: an NF_ or NFT_ code, and the next chain."""

    code: int
    chain: str = ""


class Expression(NamedTuple):
    """One expression: its name, and its attributes without the prefix `NFTA_<NAME>_`; bytes are data."""

    name: str
    attributes: tuple[tuple[str, int | str | bytes | Verdict], ...] = ()


class Table(NamedTuple):
    """A table of family inet: IPv4 and IPv6 alike."""

    name: str

    def describe(self) -> str:
        return f"add the table `{self.name}`"


class Counter(NamedTuple):
    """A named counter, zero at first."""

    table: str
    name: str

    def describe(self) -> str:
        return f"add the counter `{self.name}`"


class AddressSet(NamedTuple):
    """At most `size` IPv6 addresses that rules add; each expires `timeout` seconds after it was last added."""

    table: str
    name: str
    size: int
    timeout: int

    def describe(self) -> str:
        return f"add the set `{self.name}` of at most {self.size} IPv6 addresses, each for {self.timeout} s"


class Chain(NamedTuple):
    """A list of rules.

    With a priority it is a base chain for incoming packets, or with `is_outgoing` outgoing; policy drop.
    """

    table: str
    name: str
    priority: int | None = None
    is_outgoing: bool = False

    def describe(self) -> str:
        if self.priority is None:
            return f"add the chain `{self.name}`"
        hook = f"packets {'leave' if self.is_outgoing else 'come in'} (priority {self.priority})"
        return f"add the chain `{self.name}` where {hook}, dropping what is left"


class Rule(NamedTuple):
    """Expressions that are evaluated until one doesn't match."""

    table: str
    chain: str
    description: str
    expressions: tuple[Expression, ...]

    def describe(self) -> str:
        return f"rule of `{self.chain}`: {self.description}"

    @property
    def logs(self) -> bool:
        """Whether it needs the kernel's NFLOG."""
        return any(expression.name == "log" for expression in self.expressions)


type Statement = Table | Counter | AddressSet | Chain | Rule
type Match = tuple[Expression, ...]


def destination(network: str) -> Match:
    """Packets to an address in the network."""
    return _address(network, offset4=16, offset6=24)


def source(network: str) -> Match:
    """Packets with a source address in the network."""
    return _address(network, offset4=12, offset6=8)


def family(number: int) -> Match:
    """Packets of IPv4 (AF_INET) or IPv6 (AF_INET6)."""
    return _meta(_META_NFPROTO, bytes([number]))


def destination_added(name: str) -> Match:
    """IPv6 packets whose destination is in a set, or fits: it is added, or its timeout restarts."""
    load = Expression("payload", (("dreg", 1), ("base", _NETWORK_HEADER), ("offset", 24), ("len", 16)))
    return load, Expression("dynset", (("set_name", name), ("sreg_key", 1), ("op", _DYNSET_UPDATE)))


def protocol(number: int) -> Match:
    """Packets of one transport protocol, after any IPv6 extension headers."""
    return _meta(_META_L4PROTO, bytes([number]))


def port(number: int) -> Match:
    """Packets to a port."""
    return _payload(_TRANSPORT_HEADER, 2, struct.pack("!H", number))


def icmp_type(number: int) -> Match:
    """ICMP or ICMPv6 packets of one type."""
    return _payload(_TRANSPORT_HEADER, 0, bytes([number]))


def tproxy(port: int) -> Match:
    """Redirect to the transparent socket on `port`; without one the rule ends here, unmatched."""
    return (
        Expression("immediate", (("dreg", 1), ("data", struct.pack("!H", port)))),
        Expression("tproxy", (("family", 0), ("reg_port", 1))),
    )


def limit(*, per_second: int, burst: int) -> Expression:
    """Match up to a rate of packets a second, after a burst."""
    return Expression("limit", (("rate", per_second), ("unit", 1), ("burst", burst), ("type", 0), ("flags", 0)))


def log(group: int, prefix: str, *, max_bytes: int) -> Expression:
    """Send the packet's first bytes to the NFLOG group."""
    return Expression("log", (("group", group), ("prefix", prefix), ("snaplen", max_bytes), ("qthreshold", 1)))


def count(name: str) -> Expression:
    """Add the packet to a named counter."""
    return Expression("objref", (("imm_type", _OBJECT_COUNTER), ("imm_name", name)))


def goto(chain: str) -> Expression:
    """Continue in another chain, without return."""
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


# The sandbox's own addresses: outside the synthetic pool (RFC 6333 section 5.7; RFC 4193).
_OWN_NETWORKS = (f"{OWN_IPV4}/32", f"{OWN_IPV6}/128", "127.0.0.0/8", "::1/128")
# A reply can't be sent from these (EINVAL): a query to them would be a query without an answer.
_NO_REPLY_FROM = ("0.0.0.0/8", "224.0.0.0/3", "ff00::/8", "fe80::/10")
_LOOPBACK_BROADCAST = "127.255.255.255/32"  # the one such address among our own

_CAPTURE, _LEAVING, _DNS, _SENDING = "capture", "leaving", "dns", "sending"
# The kernel drops an unused neighbour after gc_stale_time (60 s), at its next check (about every 15 s).
_NEIGHBOURS, _MAX_NEIGHBOURS, _NEIGHBOUR_TIMEOUT = "neighbours", 4096, 90
_MANGLE = -150  # NF_IP_PRI_MANGLE: after defragmentation, which tproxy turns on
_LOGS_PER_SECOND, _LOG_BURST, _LOG_BYTES = (
    20,
    100,
    96,
)  # bounds the cost of a flood; 96 bytes hold both headers with options
_DNS_PORT, _QUIC_PORT = 53, 443
_ICMP_UNREACHABLE, _ICMPV6_UNREACHABLE = 3, 1

_REFUSALS = {
    Kind.TCP: ("count it and answer with a reset", TCP_RESET),
    Kind.UDP: ("count it and answer with ICMP port unreachable", PORT_UNREACHABLE),
    Kind.QUIC: ("count it and answer with ICMP port unreachable", PORT_UNREACHABLE),
    Kind.ICMP: ("count it and drop it", DROP),
    Kind.DNS_DESTINATION: ("count it and drop it", DROP),
    Kind.OTHER: ("count it and drop it", DROP),
}


def ruleset(gate_port: int, *, log: bool = True) -> tuple[Statement, ...]:
    """Return the namespace's whole ruleset, in the order in which it must be added."""
    if not 0 < gate_port < 1 << 16:
        raise ValueError(f"`{gate_port}` is not a port")
    counters = (Counter(TABLE, name) for name in (LOGGED, *Kind))
    chains = (Chain(TABLE, name) for name in (*map(_refusal_chain, Kind), _DNS, _LEAVING))
    incoming = Chain(TABLE, _CAPTURE, priority=_MANGLE)
    leaving = Chain(TABLE, _SENDING, priority=_MANGLE, is_outgoing=True)
    refusals = (rule for kind in Kind for rule in _refusal_rules(kind))
    rules = (*_capture_rules(gate_port), *_leaving_rules(gate_port), *_dns_rules(), *_sending_rules(), *refusals)
    neighbours = AddressSet(TABLE, _NEIGHBOURS, _MAX_NEIGHBOURS, _NEIGHBOUR_TIMEOUT)
    objects: tuple[Statement, ...] = (Table(TABLE), *counters, neighbours, *chains, incoming, leaving)
    return (*objects, *(rule for rule in rules if log or not rule.logs))


def _capture_rules(gate_port: int) -> tuple[Rule, ...]:
    """Separate what stays inside, what leaves, and what has a source address that isn't the sandbox's.

    DNS over TCP to an own address goes to the gate, which answers it: the resolver's UDP socket has port 53 at every
    address, its TCP listener is the gate's. Without a gate the connection stays inside and is refused.

    Every address is local here, so a task can bind any. An answer to such a source address would look like a leaving
    packet, so these packets are refused.
    """
    query = (*destination(_LOOPBACK_BROADCAST), *protocol(socket.IPPROTO_UDP), *port(_DNS_PORT))
    lookup = (*protocol(socket.IPPROTO_TCP), *port(_DNS_PORT), *tproxy(gate_port), ACCEPT)
    return _rules(
        _CAPTURE,
        ("no answer can come from the loopback's broadcast", (*query, goto(_refusal_chain(Kind.DNS_DESTINATION)))),
        *(
            rule
            for network in _OWN_NETWORKS
            for rule in (
                (f"DNS over TCP to {network} goes to the gate, if it listens", (*destination(network), *lookup)),
                (f"to {network} stays inside", (*destination(network), ACCEPT)),
            )
        ),
        *((f"from {network} wants to leave", (*source(network), goto(_LEAVING))) for network in _OWN_NETWORKS),
        ("from any other address is refused", (goto(_refusal_chain(Kind.OTHER)),)),
    )


def _leaving_rules(gate_port: int) -> tuple[Rule, ...]:
    """TCP first, the most frequent. An ICMP error is the kernel's answer, and not an attempt of the task."""
    tcp, udp = protocol(socket.IPPROTO_TCP), protocol(socket.IPPROTO_UDP)
    icmp, icmp6 = protocol(socket.IPPROTO_ICMP), protocol(socket.IPPROTO_ICMPV6)
    return _rules(
        _LEAVING,
        ("every TCP connection goes to the gate, if it listens", (*tcp, *tproxy(gate_port), ACCEPT)),
        ("other TCP is refused", (*tcp, goto(_refusal_chain(Kind.TCP)))),
        ("DNS goes to the resolver", (*udp, *port(_DNS_PORT), goto(_DNS))),
        ("QUIC is refused", (*udp, *port(_QUIC_PORT), goto(_refusal_chain(Kind.QUIC)))),
        ("other UDP goes to the gate, if its socket is open", (*udp, *tproxy(gate_port), ACCEPT)),
        ("other UDP is refused", (*udp, goto(_refusal_chain(Kind.UDP)))),
        ("ICMP destination unreachable is dropped", (*icmp, *icmp_type(_ICMP_UNREACHABLE), DROP)),
        ("ICMPv6 destination unreachable is dropped", (*icmp6, *icmp_type(_ICMPV6_UNREACHABLE), DROP)),
        ("other ICMP is refused", (*icmp, goto(_refusal_chain(Kind.ICMP)))),
        ("other ICMPv6 is refused", (*icmp6, goto(_refusal_chain(Kind.ICMP)))),
        ("everything else is refused", (goto(_refusal_chain(Kind.OTHER)),)),
    )


def _dns_rules() -> tuple[Rule, ...]:
    refused = goto(_refusal_chain(Kind.DNS_DESTINATION))
    return _rules(
        _DNS,
        *((f"no answer can come from {network}", (*destination(network), refused)) for network in _NO_REPLY_FROM),
        ("any other server address is the resolver's", (ACCEPT,)),
    )


def _sending_rules() -> tuple[Rule, ...]:
    """Bound the number of IPv6 destinations; allows nothing by itself, since all packets come in again at `_CAPTURE`.

    The kernel keeps a neighbour entry of `lo` for each, which neither `gc_thresh` bounds (net/core/neighbour.c:
    exempt_from_gc) nor a memory limit counts. For IPv4 a loopback has one entry.
    """
    tcp, udp = protocol(socket.IPPROTO_TCP), protocol(socket.IPPROTO_UDP)
    bounded = (*family(socket.AF_INET6), *destination_added(_NEIGHBOURS), ACCEPT)
    return _rules(
        _SENDING,
        ("IPv4 goes on", (*family(socket.AF_INET), ACCEPT)),
        *((f"to {network} goes on", (*destination(network), ACCEPT)) for network in _OWN_NETWORKS if ":" in network),
        (f"to one of at most {_MAX_NEIGHBOURS} IPv6 addresses goes on", bounded),
        ("other TCP over IPv6 is refused", (*tcp, goto(_refusal_chain(Kind.TCP)))),
        ("other UDP over IPv6 is refused", (*udp, goto(_refusal_chain(Kind.UDP)))),
        ("everything else is refused", (goto(_refusal_chain(Kind.OTHER)),)),
    )


def _refusal_rules(kind: Kind) -> tuple[Rule, ...]:
    description, answer = _REFUSALS[kind]
    log_expressions = (
        limit(per_second=_LOGS_PER_SECOND, burst=_LOG_BURST),
        log(REFUSAL_GROUP, kind, max_bytes=_LOG_BYTES),
        count(LOGGED),
    )
    return _rules(
        _refusal_chain(kind),
        (f"log up to {_LOGS_PER_SECOND} a second", log_expressions),
        (description, (count(kind), answer)),
    )


def _rules(chain: str, *rules: tuple[str, Match]) -> tuple[Rule, ...]:
    return tuple(Rule(TABLE, chain, description, expressions) for description, expressions in rules)


def _refusal_chain(kind: Kind) -> str:
    return f"refuse_{kind}"
