"""How many packets the ruleset refused, by kind: read from the kernel by whoever has CAP_NET_ADMIN in the namespace.

The request never changes, so it is a constant here and no netlink library is needed to ask.
"""

import os
import socket
import struct

from enforcer.network.capture import TABLE
from enforcer.network.place import MakeSocket
from proxy.netlink import (
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attribute,
    attributes,
    message,
    messages,
)

# linux/netfilter/nf_tables.h
_NFT = 10 << 8
_NEWOBJ, _GETOBJ = _NFT | 18, _NFT | 19
_INET, _OBJECT_COUNTER = 1, 1
_OBJ_TABLE, _OBJ_NAME, _OBJ_TYPE, _OBJ_DATA = 1, 2, 3, 4
_COUNTER_PACKETS = 2
_NFGENMSG = 4
_PATIENCE = 5.0  # seconds

_REQUEST = message(
    _GETOBJ,
    NLM_F_REQUEST | NLM_F_DUMP,
    struct.pack("!BBH", _INET, 0, 0)
    + attribute(_OBJ_TABLE, TABLE.encode() + b"\0")
    + attribute(_OBJ_TYPE, struct.pack("!I", _OBJECT_COUNTER)),
)


def open_counter_socket(make: MakeSocket = socket.socket) -> socket.socket:
    """Return a socket of the network namespace that `make` makes sockets in, for `read_counters`."""
    sock = make(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.settimeout(_PATIENCE)
    return sock


def read_counters(sock: socket.socket) -> dict[str, int]:
    """Return the packets counted since the start: a key a `Kind` and `logged`. Raises OSError."""
    sock.send(_REQUEST)
    counters: dict[str, int] = {}
    while True:
        for answer in messages(sock.recv(65536)):
            if answer.kind == NLMSG_ERROR:
                raise OSError(answer.errno, f"cannot read the refusal counters: {os.strerror(answer.errno)}")
            if answer.kind == NLMSG_DONE:
                return counters
            if answer.kind == _NEWOBJ:
                name, packets = _counter(answer.payload)
                counters[name] = packets


def _counter(payload: bytes) -> tuple[str, int]:
    found = dict(attributes(payload[_NFGENMSG:]))
    data = dict(attributes(found[_OBJ_DATA]))
    return found[_OBJ_NAME].rstrip(b"\0").decode("ascii"), int.from_bytes(data[_COUNTER_PACKETS])
