"""The ruleset: which packets reach the gate, and how every other one is refused.

One chain where packets enter (prerouting of `lo`, which everything a task sends comes through). Its policy is drop and
no rule lets a packet go on to anything but a socket in this namespace: without a gate there is no path (invariant 1).
What is refused is counted by kind and told to the refusal log; TCP and UDP are refused at once, so that clients fall
back or fail and never hang. UDP reaches the gate only while its door is open (proxy/udp/door.py): that changes with the
rules in force, and the ruleset doesn't.
"""

import socket

from enforcer.network import nftables as nft
from enforcer.network.place import LOGGED, OWN_IPV4, OWN_IPV6
from proxy.refusals import Kind

TABLE = "exeat"
REFUSAL_GROUP = 0x6578  # NFLOG's group number, per namespace: "ex"

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
    Kind.TCP: ("count it and answer with a reset", nft.TCP_RESET),
    Kind.UDP: ("count it and answer with ICMP port unreachable", nft.PORT_UNREACHABLE),
    Kind.QUIC: ("count it and answer with ICMP port unreachable", nft.PORT_UNREACHABLE),
    Kind.ICMP: ("count it and drop it", nft.DROP),
    Kind.DNS_DESTINATION: ("count it and drop it", nft.DROP),
    Kind.OTHER: ("count it and drop it", nft.DROP),
}


def ruleset(gate_port: int, *, log: bool = True) -> tuple[nft.Statement, ...]:
    """Return everything the namespace's ruleset consists of, in the order in which it must be added."""
    if not 0 < gate_port < 1 << 16:
        raise ValueError(f"`{gate_port}` is not a port")
    counters = (nft.Counter(TABLE, name) for name in (LOGGED, *Kind))
    chains = (nft.Chain(TABLE, name) for name in (*map(_refusing, Kind), _DNS, _LEAVING))
    coming_in = nft.Chain(TABLE, _CAPTURE, priority=_MANGLE)
    leaving = nft.Chain(TABLE, _SENDING, priority=_MANGLE, leave=True)
    refusals = (rule for kind in Kind for rule in _refusal(kind))
    rules = (*_capture(gate_port), *_leaving(gate_port), *_dns(), *_sending(), *refusals)
    neighbours = nft.AddressSet(TABLE, _NEIGHBOURS, _MOST_NEIGHBOURS, _NEIGHBOUR_STAYS)
    there: tuple[nft.Statement, ...] = (nft.Table(TABLE), *counters, neighbours, *chains, coming_in, leaving)
    return (*there, *(rule for rule in rules if log or not rule.logs))


def _capture(gate_port: int) -> tuple[nft.Rule, ...]:
    """Tell apart what stays inside, what wants to leave, and what claims an address that isn't the sandbox's.

    DNS over TCP to an own address goes to the gate, which answers it: the resolver's UDP socket has port 53 at every
    address, its TCP listener is the gate's. Without a gate the connection stays inside and is refused.

    Every address is local here, so a task can bind any of them. What it sends from one would be answered to that
    address, and the answer taken for something leaving: it goes no further instead.
    """
    query = (*nft.destination(_LOOPBACK_BROADCAST), *nft.protocol(socket.IPPROTO_UDP), *nft.port(_DNS_PORT))
    lookup = (*nft.protocol(socket.IPPROTO_TCP), *nft.port(_DNS_PORT), *nft.tproxy(gate_port), nft.ACCEPT)
    return _rules(
        _CAPTURE,
        ("no answer can come from the loopback's broadcast", (*query, nft.goto(_refusing(Kind.DNS_DESTINATION)))),
        *(
            rule
            for network in _OWN
            for rule in (
                (f"DNS over TCP to {network} goes to the gate, if it listens", (*nft.destination(network), *lookup)),
                (f"to {network} stays inside", (*nft.destination(network), nft.ACCEPT)),
            )
        ),
        *((f"from {network} wants to leave", (*nft.source(network), nft.goto(_LEAVING))) for network in _OWN),
        ("from any other address is refused", (nft.goto(_refusing(Kind.OTHER)),)),
    )


def _leaving(gate_port: int) -> tuple[nft.Rule, ...]:
    """TCP first, the most frequent. An ICMP error is the kernel's answer to something, no attempt of the task's."""
    tcp, udp = nft.protocol(socket.IPPROTO_TCP), nft.protocol(socket.IPPROTO_UDP)
    icmp, icmp6 = nft.protocol(socket.IPPROTO_ICMP), nft.protocol(socket.IPPROTO_ICMPV6)
    return _rules(
        _LEAVING,
        ("every TCP connection goes to the gate, if it listens", (*tcp, *nft.tproxy(gate_port), nft.ACCEPT)),
        ("other TCP is refused", (*tcp, nft.goto(_refusing(Kind.TCP)))),
        ("DNS goes to the resolver", (*udp, *nft.port(_DNS_PORT), nft.goto(_DNS))),
        ("QUIC is refused", (*udp, *nft.port(_QUIC_PORT), nft.goto(_refusing(Kind.QUIC)))),
        ("other UDP goes to the gate, if its door is open", (*udp, *nft.tproxy(gate_port), nft.ACCEPT)),
        ("other UDP is refused", (*udp, nft.goto(_refusing(Kind.UDP)))),
        ("ICMP destination unreachable is dropped", (*icmp, *nft.icmp_type(_ICMP_UNREACHABLE), nft.DROP)),
        ("ICMPv6 destination unreachable is dropped", (*icmp6, *nft.icmp_type(_ICMPV6_UNREACHABLE), nft.DROP)),
        ("other ICMP is refused", (*icmp, nft.goto(_refusing(Kind.ICMP)))),
        ("other ICMPv6 is refused", (*icmp6, nft.goto(_refusing(Kind.ICMP)))),
        ("everything else is refused", (nft.goto(_refusing(Kind.OTHER)),)),
    )


def _dns() -> tuple[nft.Rule, ...]:
    refused = nft.goto(_refusing(Kind.DNS_DESTINATION))
    return _rules(
        _DNS,
        *((f"no answer can come from {network}", (*nft.destination(network), refused)) for network in _NO_REPLY_FROM),
        ("any other server address is the resolver's", (nft.ACCEPT,)),
    )


def _sending() -> tuple[nft.Rule, ...]:
    """Bound to how many IPv6 addresses packets are sent; it opens nothing, as they all come in again at `_CAPTURE`.

    The kernel keeps a neighbour of `lo` for each, which no `gc_thresh` bounds (net/core/neighbour.c: exempt_from_gc)
    and no memory limit counts. Of a loopback's IPv4 addresses it keeps one for all.
    """
    tcp, udp = nft.protocol(socket.IPPROTO_TCP), nft.protocol(socket.IPPROTO_UDP)
    bounded = (*nft.family(socket.AF_INET6), *nft.destination_added(_NEIGHBOURS), nft.ACCEPT)
    return _rules(
        _SENDING,
        ("IPv4 goes on", (*nft.family(socket.AF_INET), nft.ACCEPT)),
        *((f"to {network} goes on", (*nft.destination(network), nft.ACCEPT)) for network in _OWN if ":" in network),
        (f"to one of at most {_MOST_NEIGHBOURS} IPv6 addresses goes on", bounded),
        ("other TCP over IPv6 is refused", (*tcp, nft.goto(_refusing(Kind.TCP)))),
        ("other UDP over IPv6 is refused", (*udp, nft.goto(_refusing(Kind.UDP)))),
        ("everything else is refused", (nft.goto(_refusing(Kind.OTHER)),)),
    )


def _refusal(kind: Kind) -> tuple[nft.Rule, ...]:
    says, answer = _HOW_REFUSED[kind]
    told = (
        nft.limit(per_second=_LOGS_A_SECOND, burst=_LOG_BURST),
        nft.log(REFUSAL_GROUP, kind, most_bytes=_LOG_BYTES),
        nft.count(LOGGED),
    )
    return _rules(_refusing(kind), (f"tell up to {_LOGS_A_SECOND} a second", told), (says, (nft.count(kind), answer)))


def _rules(chain: str, *rules: tuple[str, nft.Match]) -> tuple[nft.Rule, ...]:
    return tuple(nft.Rule(TABLE, chain, says, expressions) for says, expressions in rules)


def _refusing(kind: Kind) -> str:
    return f"refuse_{kind}"
