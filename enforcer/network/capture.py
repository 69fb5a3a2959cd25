"""The ruleset as values: which packets reach the gate, and how every other one is refused.

One chain where packets enter (prerouting of `lo`, which everything a task sends comes through). Its policy is drop and
no rule lets a packet go on to anything but a socket in this namespace: without a gate there is no path (invariant 1).
What is refused is counted by kind and told to the refusal log; TCP and UDP are refused at once, so that clients fall
back or fail and never hang. Nothing here is sent anywhere: `encode` and `execute` do that.
"""

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from proxy.refusals import Kind

TABLE, CHAIN = "exeat", "capture"
REFUSAL_GROUP = 0x6578  # NFLOG's group number, per namespace: "ex"
LOGGED = "logged"  # counts what the refusal log was told of; the other counters minus this went untold

# The sandbox's own addresses: outside the synthetic pool (RFC 6333 section 5.7; RFC 4193).
OWN_IPV4, OWN_IPV6 = IPv4Address("192.0.0.2"), IPv6Address("fd65:7865:6174::2")
_LOCAL = ("127.0.0.0/8", f"{OWN_IPV4}/32", "::1/128", f"{OWN_IPV6}/128")
# A reply can't be sent from these (EINVAL): a query to them would be a query without an answer.
_NO_REPLY_FROM = ("0.0.0.0/8", "224.0.0.0/3", "ff00::/8", "fe80::/10")
_LOOPBACK_BROADCAST = "127.255.255.255/32"

_LOGS_A_SECOND, _LOG_BURST, _LOG_BYTES = 20, 100, 96  # a flood costs a little; 96 holds both headers with options

_DNS, _QUIC = 53, 443
_NF_DROP, _NF_ACCEPT, _NFT_GOTO = 0, 1, -4
_META_NFPROTO, _META_L4PROTO = 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_TCP_RESET, _ICMPX, _ICMPX_PORT_UNREACHABLE = 1, 2, 1
_OBJECT_COUNTER = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a packet: an NF_ or NFT_ code, and the chain that goes on."""

    code: int
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Expression:
    """One nftables expression: its name, and its attributes without their `NFTA_<NAME>_`; bytes are data."""

    name: str
    attributes: tuple[tuple[str, int | str | bytes | Verdict], ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """The one table, of family inet: IPv4 and IPv6 alike."""

    name: str = TABLE

    def describe(self) -> str:
        """Say what this adds."""
        return f"add the table `{self.name}`"


@dataclass(frozen=True, slots=True)
class Counter:
    """A named counter, zero at first."""

    name: str

    def describe(self) -> str:
        """Say what this adds."""
        return f"add the counter `{self.name}`"


@dataclass(frozen=True, slots=True)
class Chain:
    """A list of rules; the one with a priority is where packets come in, and drops what no rule of it settles."""

    name: str
    priority: int | None = None

    def describe(self) -> str:
        """Say what this adds."""
        where = (
            "" if self.priority is None else f" where packets come in (priority {self.priority}), dropping what is left"
        )
        return f"add the chain `{self.name}`{where}"


@dataclass(frozen=True, slots=True)
class Rule:
    """Expressions that a packet goes through until one of them doesn't match."""

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


type Statement = Table | Counter | Chain | Rule


def ruleset(gate_port: int, *, log: bool = True) -> tuple[Statement, ...]:
    """Return everything the namespace's ruleset consists of, in the order in which it must be added."""
    if not 0 < gate_port < 1 << 16:
        raise ValueError(f"`{gate_port}` is not a port")
    chains = (Chain("dns"), *(Chain(_refusing(kind)) for kind in Kind), Chain(CHAIN, priority=-150))
    counters = (Counter(LOGGED), *(Counter(kind) for kind in Kind))
    rules = (*_capture(gate_port), *_dns(), *(rule for kind in Kind for rule in _refusal(kind)))
    return (Table(), *counters, *chains, *(rule for rule in rules if log or not rule.logs))


def _capture(gate_port: int) -> tuple[Rule, ...]:
    """Order matters: what stays inside first, then TCP, the most frequent; what is left is refused by kind."""
    broadcast = (*_to(_LOOPBACK_BROADCAST), *_protocol(socket.IPPROTO_UDP), *_port(_DNS))
    tcp, udp = _protocol(socket.IPPROTO_TCP), _protocol(socket.IPPROTO_UDP)
    rules = (
        ("a query to the loopback's broadcast is refused", (*broadcast, _goto(_refusing(Kind.DNS_DESTINATION)))),
        *((f"{network} stays inside", (*_to(network), _ACCEPT)) for network in _LOCAL),
        ("every TCP connection goes to the gate, if it listens", (*tcp, *_tproxy(gate_port), _ACCEPT)),
        ("other TCP is refused", (*tcp, _goto(_refusing(Kind.TCP)))),
        ("DNS goes to the resolver", (*udp, *_port(_DNS), _goto("dns"))),
        ("QUIC is refused", (*udp, *_port(_QUIC), _goto(_refusing(Kind.QUIC)))),
        ("other UDP is refused", (*udp, _goto(_refusing(Kind.UDP)))),
        ("ICMP is refused", (*_protocol(socket.IPPROTO_ICMP), _goto(_refusing(Kind.ICMP)))),
        ("ICMPv6 is refused", (*_protocol(socket.IPPROTO_ICMPV6), _goto(_refusing(Kind.ICMP)))),
        ("everything else is refused", (_goto(_refusing(Kind.OTHER)),)),
    )
    return tuple(Rule(CHAIN, says, expressions) for says, expressions in rules)


def _dns() -> tuple[Rule, ...]:
    refused = (
        Rule("dns", f"no answer can come from {network}", (*_to(network), _goto(_refusing(Kind.DNS_DESTINATION))))
        for network in _NO_REPLY_FROM
    )
    return (*refused, Rule("dns", "any other server address is the resolver's", (_ACCEPT,)))


def _refusal(kind: Kind) -> tuple[Rule, ...]:
    log = (
        Expression("limit", (("rate", _LOGS_A_SECOND), ("unit", 1), ("burst", _LOG_BURST), ("type", 0), ("flags", 0))),
        Expression("log", (("group", REFUSAL_GROUP), ("prefix", kind), ("snaplen", _LOG_BYTES), ("qthreshold", 1))),
        _count(LOGGED),
    )
    return (
        Rule(_refusing(kind), f"tell up to {_LOGS_A_SECOND} a second", log),
        Rule(_refusing(kind), _HOW_SAID[_HOW_REFUSED[kind]], (_count(kind), _HOW_REFUSED[kind])),
    )


def _refusing(kind: Kind) -> str:
    return f"refuse_{kind}"


def _to(text: str) -> tuple[Expression, ...]:
    """Packets to an address in the network."""
    network = ip_network(text)
    family, offset = (socket.AF_INET, 16) if isinstance(network, IPv4Network) else (socket.AF_INET6, 24)
    raw, width = network.network_address.packed, network.max_prefixlen // 8
    mask = () if network.prefixlen == network.max_prefixlen else (_masked(network),)
    return (
        *_meta(_META_NFPROTO, bytes([family])),
        Expression("payload", (("dreg", 1), ("base", _NETWORK_HEADER), ("offset", offset), ("len", width))),
        *mask,
        _equals(raw),
    )


def _masked(network: IPv4Network | IPv6Network) -> Expression:
    raw = network.netmask.packed
    return Expression("bitwise", (("sreg", 1), ("dreg", 1), ("len", len(raw)), ("mask", raw), ("xor", bytes(len(raw)))))


def _protocol(number: int) -> tuple[Expression, ...]:
    """Packets of one transport, behind whatever IPv6 extension headers."""
    return _meta(_META_L4PROTO, bytes([number]))


def _port(number: int) -> tuple[Expression, ...]:
    """Packets to a port. Fragments are put together before (tproxy turns defragmentation on)."""
    port = Expression("payload", (("dreg", 1), ("base", _TRANSPORT_HEADER), ("offset", 2), ("len", 2)))
    return port, _equals(struct.pack("!H", number))


def _tproxy(port: int) -> tuple[Expression, ...]:
    """Hand the packet to the transparent socket on `port`; where there is none the rule ends here, unmatched."""
    return (
        Expression("immediate", (("dreg", 1), ("data", struct.pack("!H", port)))),
        Expression("tproxy", (("family", 0), ("reg_port", 1))),
    )


def _meta(key: int, value: bytes) -> tuple[Expression, ...]:
    return Expression("meta", (("dreg", 1), ("key", key))), _equals(value)


def _equals(value: bytes) -> Expression:
    return Expression("cmp", (("sreg", 1), ("op", 0), ("data", value)))


def _count(name: str) -> Expression:
    return Expression("objref", (("imm_type", _OBJECT_COUNTER), ("imm_name", name)))


def _verdict(code: int, chain: str = "") -> Expression:
    return Expression("immediate", (("dreg", 0), ("data", Verdict(code, chain))))


def _goto(chain: str) -> Expression:
    return _verdict(_NFT_GOTO, chain)


_ACCEPT, _DROP = _verdict(_NF_ACCEPT), _verdict(_NF_DROP)
_RESET = Expression("reject", (("type", _TCP_RESET), ("icmp_code", 0)))
_UNREACHABLE = Expression("reject", (("type", _ICMPX), ("icmp_code", _ICMPX_PORT_UNREACHABLE)))
_HOW_REFUSED = {
    Kind.TCP: _RESET,
    Kind.UDP: _UNREACHABLE,
    Kind.QUIC: _UNREACHABLE,
    Kind.ICMP: _DROP,
    Kind.DNS_DESTINATION: _DROP,
    Kind.OTHER: _DROP,
}
_HOW_SAID = {
    _RESET: "count it and answer with a reset",
    _UNREACHABLE: "count it and answer with ICMP port unreachable",
    _DROP: "count it and drop it",
}
