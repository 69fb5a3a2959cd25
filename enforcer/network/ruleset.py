"""The ruleset: which packets reach the gate, and how every other one is refused; as the netlink messages that make it.

One chain where packets enter (prerouting of `lo`, which everything a task sends comes through). Its policy is drop and
no rule lets a packet go on to anything but a socket in this namespace: without a gate there is no path (invariant 1).
What is refused is counted by kind and told to the refusal log; TCP and UDP are refused at once, so that clients fall
back or fail and never hang. UDP reaches the gate only while its door is open (proxy/udp/door.py): that changes with the
rules in force, and the ruleset doesn't.

Constants are linux/netfilter/nf_tables.h's. Nothing is sent here.
"""

import socket
import struct
from ipaddress import IPv4Network, ip_network
from typing import Final, NamedTuple

from enforcer.network.constants import LOGGED, OWN_IPV4, OWN_IPV6, REFUSAL_GROUP, TABLE
from proxy.wire.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, attribute
from proxy.wire.refusal_log import Kind

_NFT: Final = 10 << 8  # NFNL_SUBSYS_NFTABLES, in a message's type
_NEWTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWOBJ = (_NFT | kind for kind in (0, 3, 6, 9, 18))
_INET: Final = struct.pack("!BBH", 1, 0, 0)  # struct nfgenmsg: NFPROTO_INET, IPv4 and IPv6 alike
_PREROUTING, _OUTPUT = 0, 3  # NF_INET_
_NF_DROP, _NF_ACCEPT, _NFT_GOTO = 0, 1, -4
_META_NFPROTO, _META_L4PROTO = 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_TCP_RESET, _ICMPX, _ICMPX_PORT_UNREACHABLE = 1, 2, 1
_OBJECT_COUNTER: Final = 1
_SET_TIMEOUT, _SET_EVAL = 0x10, 0x20  # NFT_SET_, which are of a set that rules add to
_IPV6_ADDRESS, _IPV6_BYTES = 8, 16  # TYPE_IP6ADDR of nft(8), which alone reads it


class Statement(NamedTuple):
    """One netlink message: what it does in words, and its type, flags and payload."""

    says: str
    kind: int
    flags: int
    payload: bytes
    logs: bool = False  # whether it needs the kernel's NFLOG

    def describe(self) -> str:
        return self.says


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!i" if value < 0 else "!I", value))


def _name(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _nft(says: str, kind: int, *attributes: bytes) -> Statement:
    """Add something to the table; `attributes` begin behind the table's name, which is always the first."""
    payload = b"".join((_INET, _name(1, TABLE), *attributes))
    return Statement(says, kind, NLM_F_CREATE | NLM_F_EXCL, payload)


def table() -> Statement:
    """Add the table."""
    return _nft(f"add the table `{TABLE}`", _NEWTABLE)


def counter(name: str) -> Statement:
    """Add a named counter, zero at first."""
    return _nft(
        f"add the counter `{name}`",
        _NEWOBJ,
        _name(2, name),
        _number(3, _OBJECT_COUNTER),
        attribute(4, b""),
    )


def address_set(name: str, size: int, timeout: int) -> Statement:
    """Add a set of at most `size` IPv6 addresses, each forgotten `timeout` seconds after it was last added."""
    return _nft(
        f"add the set `{name}` of at most {size} IPv6 addresses, each for {timeout} s",
        _NEWSET,
        _name(2, name),
        _number(10, 1),  # its id within its batch
        _number(3, _SET_TIMEOUT | _SET_EVAL),
        _number(4, _IPV6_ADDRESS),
        _number(5, _IPV6_BYTES),
        attribute(9, _number(1, size)),
        attribute(11, struct.pack("!Q", timeout * 1000)),
    )


def chain(name: str) -> Statement:
    """Add a list of rules."""
    return _nft(f"add the chain `{name}`", _NEWCHAIN, _name(3, name))


def base_chain(name: str, hook: int, priority: int) -> Statement:
    """Add a list of rules that packets come to by themselves: it drops what no rule of it settles."""
    return _nft(
        f"add the chain `{name}` where packets {'leave' if hook == _OUTPUT else 'come in'} (priority {priority}), "
        "dropping what is left",
        _NEWCHAIN,
        _name(3, name),
        _name(7, "filter"),
        _number(5, _NF_DROP),
        attribute(4, _number(1, hook) + _number(2, priority)),
    )


# Expressions: what a packet goes through until one of them doesn't match. Each is an element of a rule's list.


def rule(chain: str, says: str, *expressions: bytes, logs: bool = False) -> Statement:
    """Add a rule at the end of a chain."""
    payload = b"".join((_INET, _name(1, TABLE), _name(2, chain), attribute(4, b"".join(expressions))))
    return Statement(f"rule of `{chain}`: {says}", _NEWRULE, NLM_F_CREATE | NLM_F_APPEND, payload, logs)


def _expression(name: str, *attributes: bytes) -> bytes:
    return attribute(1, _name(1, name) + attribute(2, b"".join(attributes)))


def destination(network: str) -> bytes:
    """Packets to an address in the network."""
    return _address(network, offset4=16, offset6=24)


def source(network: str) -> bytes:
    """Packets that say they come from an address in the network."""
    return _address(network, offset4=12, offset6=8)


def family(number: int) -> bytes:
    """Packets of IPv4 (AF_INET) or IPv6 (AF_INET6)."""
    return _meta(_META_NFPROTO, bytes([number]))


def destination_added(name: str) -> bytes:
    """IPv6 packets whose destination is in a set, or has room there: it is added, or its time begins anew."""
    update = _expression("dynset", _name(1, name), _number(4, 1), _number(3, 1))  # the key from register 1; update
    return _load(_NETWORK_HEADER, 24, 16) + update


def protocol(number: int) -> bytes:
    """Packets of one transport, behind whatever IPv6 extension headers."""
    return _meta(_META_L4PROTO, bytes([number]))


def port(number: int) -> bytes:
    """Packets to a port."""
    return _payload(_TRANSPORT_HEADER, 2, struct.pack("!H", number))


def icmp_type(number: int) -> bytes:
    """ICMP or ICMPv6 packets of one type."""
    return _payload(_TRANSPORT_HEADER, 0, bytes([number]))


def tproxy(port: int) -> bytes:
    """Hand the packet to the transparent socket on `port`; where there is none the rule ends here, unmatched."""
    load = _expression("immediate", _number(1, 1), _data(2, struct.pack("!H", port)))
    return load + _expression("tproxy", _number(1, 0), _number(3, 1))


def limit(*, per_second: int, burst: int) -> bytes:
    """Match as many packets a second, and as many at once after a quiet time; no more."""
    rate, unit = (attribute(kind, struct.pack("!Q", value)) for kind, value in ((1, per_second), (2, 1)))
    return _expression("limit", rate, unit, _number(3, burst), _number(4, 0), _number(5, 0))


def log(group: int, prefix: str, *, most_bytes: int) -> bytes:
    """Send the packet's first bytes to the NFLOG group at once."""
    number, threshold = (attribute(kind, struct.pack("!H", value)) for kind, value in ((1, group), (4, 1)))
    return _expression("log", number, _name(2, prefix), _number(3, most_bytes), threshold)


def count(name: str) -> bytes:
    """Add the packet to a named counter."""
    return _expression("objref", _number(1, _OBJECT_COUNTER), _name(2, name))


def goto(chain: str) -> bytes:
    """Go on in another chain and don't come back."""
    return _verdict(_NFT_GOTO, chain)


def _address(text: str, *, offset4: int, offset6: int) -> bytes:
    network = ip_network(text)
    version, offset = (socket.AF_INET, offset4) if isinstance(network, IPv4Network) else (socket.AF_INET6, offset6)
    mask = b"" if network.prefixlen == network.max_prefixlen else network.netmask.packed
    return family(version) + _payload(_NETWORK_HEADER, offset, network.network_address.packed, mask)


def _payload(base: int, offset: int, value: bytes, mask: bytes = b"") -> bytes:
    size = len(value)
    bits = _expression("bitwise", _number(1, 1), _number(2, 1), _number(3, size), _data(4, mask), _data(5, bytes(size)))
    return _load(base, offset, size) + (bits if mask else b"") + _equals(value)


def _load(base: int, offset: int, size: int) -> bytes:
    return _expression("payload", _number(1, 1), _number(2, base), _number(3, offset), _number(4, size))


def _meta(key: int, value: bytes) -> bytes:
    return _expression("meta", _number(1, 1), _number(2, key)) + _equals(value)


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, 1), _number(2, 0), _data(3, value))


def _data(kind: int, value: bytes) -> bytes:
    return attribute(kind, attribute(1, value))


def _verdict(code: int, chain: str = "") -> bytes:
    verdict = _number(1, code) + (_name(2, chain) if chain else b"")
    return _expression("immediate", _number(1, 0), attribute(2, attribute(2, verdict)))


def _reject(kind: int, code: int) -> bytes:
    return _expression("reject", _number(1, kind), attribute(2, bytes([code])))


ACCEPT, DROP = _verdict(_NF_ACCEPT), _verdict(_NF_DROP)
TCP_RESET, PORT_UNREACHABLE = _reject(_TCP_RESET, 0), _reject(_ICMPX, _ICMPX_PORT_UNREACHABLE)


# The sandbox's own addresses: outside the synthetic pool (RFC 6333 section 5.7; RFC 4193).
_OWN = (f"{OWN_IPV4}/32", f"{OWN_IPV6}/128", "127.0.0.0/8", "::1/128")
# A reply can't be sent from these (EINVAL): a query to them would be a query without an answer.
_NO_REPLY_FROM = ("0.0.0.0/8", "224.0.0.0/3", "ff00::/8", "fe80::/10")
_LOOPBACK_BROADCAST = "127.255.255.255/32"  # the one such address among our own

_CAPTURE, _LEAVING, _DNS, _SENDING = "capture", "leaving", "dns", "sending"
# A neighbour that isn't used any more goes after gc_stale_time (60 s), when the kernel looks next (every 15 s or so).
_NEIGHBOURS, _MOST_NEIGHBOURS, _NEIGHBOUR_STAYS = "neighbours", 4096, 90
_MANGLE = -150  # NF_IP_PRI_MANGLE: after defragmentation, which tproxy turns on
_LOGS_A_SECOND, _LOG_BURST, _LOG_BYTES = 20, 100, 96  # a flood costs a little; 96 holds both headers with options
_DNS_PORT, _QUIC_PORT = 53, 443
_ICMP_UNREACHABLE, _ICMPV6_UNREACHABLE = 3, 1

_HOW_REFUSED = {
    Kind.TCP: ("count it and answer with a reset", TCP_RESET),
    Kind.UDP: ("count it and answer with ICMP port unreachable", PORT_UNREACHABLE),
    Kind.QUIC: ("count it and answer with ICMP port unreachable", PORT_UNREACHABLE),
    Kind.ICMP: ("count it and drop it", DROP),
    Kind.DNS_DESTINATION: ("count it and drop it", DROP),
    Kind.OTHER: ("count it and drop it", DROP),
}


def ruleset(gate_port: int) -> tuple[Statement, ...]:
    """Return everything the namespace's ruleset consists of, in the order in which it must be added."""
    if not 0 < gate_port < 1 << 16:
        raise ValueError(f"`{gate_port}` is not a port")
    counters = map(counter, (LOGGED, *Kind))
    chains = map(chain, (*map(_refusing, Kind), _DNS, _LEAVING))
    bases = base_chain(_CAPTURE, _PREROUTING, _MANGLE), base_chain(_SENDING, _OUTPUT, _MANGLE)
    refusals = (each for kind in Kind for each in _refusal(kind))
    rules = (*_capture(gate_port), *_leaving(gate_port), *_dns(), *_sending(), *refusals)
    neighbours = address_set(_NEIGHBOURS, _MOST_NEIGHBOURS, _NEIGHBOUR_STAYS)
    return (table(), *counters, neighbours, *chains, *bases, *rules)


def _capture(gate_port: int) -> tuple[Statement, ...]:
    """Tell apart what stays inside, what wants to leave, and what claims an address that isn't the sandbox's.

    DNS over TCP to an own address goes to the gate, which answers it: the resolver's UDP socket has port 53 at every
    address, its TCP listener is the gate's. Without a gate the connection stays inside and is refused.

    Every address is local here, so a task can bind any of them. What it sends from one would be answered to that
    address, and the answer taken for something leaving: it goes no further instead.
    """
    query = destination(_LOOPBACK_BROADCAST) + protocol(socket.IPPROTO_UDP) + port(_DNS_PORT)
    lookup = protocol(socket.IPPROTO_TCP) + port(_DNS_PORT) + tproxy(gate_port) + ACCEPT
    return _rules(
        _CAPTURE,
        ("no answer can come from the loopback's broadcast", query + goto(_refusing(Kind.DNS_DESTINATION))),
        *(
            each
            for network in _OWN
            for each in (
                (f"DNS over TCP to {network} goes to the gate, if it listens", destination(network) + lookup),
                (f"to {network} stays inside", destination(network) + ACCEPT),
            )
        ),
        *((f"from {network} wants to leave", source(network) + goto(_LEAVING)) for network in _OWN),
        ("from any other address is refused", goto(_refusing(Kind.OTHER))),
    )


def _leaving(gate_port: int) -> tuple[Statement, ...]:
    """TCP first, the most frequent. An ICMP error is the kernel's answer to something, no attempt of the task's."""
    tcp, udp = protocol(socket.IPPROTO_TCP), protocol(socket.IPPROTO_UDP)
    icmp, icmp6 = protocol(socket.IPPROTO_ICMP), protocol(socket.IPPROTO_ICMPV6)
    return _rules(
        _LEAVING,
        ("every TCP connection goes to the gate, if it listens", tcp + tproxy(gate_port) + ACCEPT),
        ("other TCP is refused", tcp + goto(_refusing(Kind.TCP))),
        ("DNS goes to the resolver", udp + port(_DNS_PORT) + goto(_DNS)),
        ("QUIC is refused", udp + port(_QUIC_PORT) + goto(_refusing(Kind.QUIC))),
        ("other UDP goes to the gate, if its door is open", udp + tproxy(gate_port) + ACCEPT),
        ("other UDP is refused", udp + goto(_refusing(Kind.UDP))),
        ("ICMP destination unreachable is dropped", icmp + icmp_type(_ICMP_UNREACHABLE) + DROP),
        ("ICMPv6 destination unreachable is dropped", icmp6 + icmp_type(_ICMPV6_UNREACHABLE) + DROP),
        ("other ICMP is refused", icmp + goto(_refusing(Kind.ICMP))),
        ("other ICMPv6 is refused", icmp6 + goto(_refusing(Kind.ICMP))),
        ("everything else is refused", goto(_refusing(Kind.OTHER))),
    )


def _dns() -> tuple[Statement, ...]:
    refused = goto(_refusing(Kind.DNS_DESTINATION))
    return _rules(
        _DNS,
        *((f"no answer can come from {network}", destination(network) + refused) for network in _NO_REPLY_FROM),
        ("any other server address is the resolver's", ACCEPT),
    )


def _sending() -> tuple[Statement, ...]:
    """Bound to how many IPv6 addresses packets are sent; it opens nothing, as they all come in again at `_CAPTURE`.

    The kernel keeps a neighbour of `lo` for each, which no `gc_thresh` bounds (net/core/neighbour.c: exempt_from_gc)
    and no memory limit counts. Of a loopback's IPv4 addresses it keeps one for all.
    """
    tcp, udp = protocol(socket.IPPROTO_TCP), protocol(socket.IPPROTO_UDP)
    bounded = family(socket.AF_INET6) + destination_added(_NEIGHBOURS) + ACCEPT
    return _rules(
        _SENDING,
        ("IPv4 goes on", family(socket.AF_INET) + ACCEPT),
        *((f"to {network} goes on", destination(network) + ACCEPT) for network in _OWN if ":" in network),
        (f"to one of at most {_MOST_NEIGHBOURS} IPv6 addresses goes on", bounded),
        ("other TCP over IPv6 is refused", tcp + goto(_refusing(Kind.TCP))),
        ("other UDP over IPv6 is refused", udp + goto(_refusing(Kind.UDP))),
        ("everything else is refused", goto(_refusing(Kind.OTHER))),
    )


def _refusal(kind: Kind) -> tuple[Statement, ...]:
    name, (says, answer) = _refusing(kind), _HOW_REFUSED[kind]
    told = (
        limit(per_second=_LOGS_A_SECOND, burst=_LOG_BURST),
        log(REFUSAL_GROUP, kind, most_bytes=_LOG_BYTES),
        count(LOGGED),
    )
    return (
        rule(name, f"tell up to {_LOGS_A_SECOND} a second", *told, logs=True),
        rule(name, says, count(kind), answer),
    )


def _rules(chain: str, *rules: tuple[str, bytes]) -> tuple[Statement, ...]:
    return tuple(rule(chain, says, expressions) for says, expressions in rules)


def _refusing(kind: Kind) -> str:
    return f"refuse_{kind}"
