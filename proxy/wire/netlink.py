"""Netlink wire format (netlink(7)): reads and writes messages and attributes."""

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 0, 4, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


class MalformedMessageError(ValueError):
    """A length field doesn't fit the bytes received."""


class Message(NamedTuple):
    """One netlink message without its padding."""

    kind: int
    sequence: int
    payload: bytes

    @property
    def errno(self) -> int:
        """The errno of an NLMSG_ERROR, positive; 0 is an acknowledgement."""
        if len(self.payload) < 4:
            raise MalformedMessageError("an error message without an error number")
        return -int(struct.unpack_from("=i", self.payload)[0])


def messages(data: bytes) -> "Iterator[Message]":
    """Yield every message of one datagram, in order. Raises MalformedMessageError."""
    at = 0
    while at < len(data):
        if len(data) - at < HEADER.size:
            raise MalformedMessageError(f"{len(data) - at} bytes where a netlink header should be")
        length, kind, _flags, sequence, _port = HEADER.unpack_from(data, at)
        if not HEADER.size <= length <= len(data) - at:
            raise MalformedMessageError(f"a netlink message of {length} bytes in {len(data) - at}")
        yield Message(kind, sequence, data[at + HEADER.size : at + length])
        at += _aligned(length)


def attributes(data: bytes) -> "Iterator[tuple[int, bytes]]":
    """Yield every attribute's type and payload, in order. Raises MalformedMessageError."""
    at = 0
    while len(data) - at >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            raise MalformedMessageError(f"an attribute of {length} bytes in {len(data) - at}")
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)


def message(kind: int, flags: int, payload: bytes, sequence: int = 0) -> bytes:
    """Return one message, padded so that another can follow."""
    length = HEADER.size + len(payload)
    return HEADER.pack(length, kind, flags, sequence, 0) + payload + bytes(_aligned(length) - length)


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded so that another can follow."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
