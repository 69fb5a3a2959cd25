"""Constants of every sandbox's network: its own addresses, the gate's port, and the names that the ruleset uses.

Both addresses lie outside the pool of synthetic ones (198.18.0.0/15): those stand for names.
"""

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

# Makes a socket in a network namespace: family, type and protocol, as socket(2).
type MakeSocket = Callable[[int, int, int], socket.socket]

OWN_IPV4, OWN_IPV6 = IPv4Address("192.0.0.2"), IPv6Address("fd65:7865:6174::2")
OWN_ADDRESSES = (OWN_IPV4, OWN_IPV6)
# Below the ephemeral range (ip(7), ip_local_port_range), so that no client socket is given this port by chance.
GATE_PORT = 15001
TABLE = "exeat"  # the nftables table, of family inet
REFUSAL_GROUP = 0x6578  # NFLOG's group number, per namespace: "ex"
LOGGED = "logged"  # counts packets that were logged; the other counters minus this one were not
