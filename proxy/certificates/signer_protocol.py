"""Protocol of a worker and the certificate signer: one request and one answer a packet, over SOCK_SEQPACKET.

A request is a number, the public key that the certificate is for, and the one name or address in it. An answer is the
number and the certificate (DER); without one, it was refused. Home of what the key is ever used for: a worker that a
task has taken over says what it likes here, so a request has one spelling, and nothing in it is passed on unread.
"""

import struct
from typing import Final, NamedTuple

from rules.addresses import parse_host
from rules.names import InvalidNameError

POINT: Final = 65  # bytes of a P-256 point, uncompressed: SEC 1 section 2.3.3
_NUMBER: Final = struct.Struct(">I")
_LONGEST_HOST: Final = 253
LONGEST_REQUEST: Final = _NUMBER.size + POINT + _LONGEST_HOST
# Of one sandbox: so many new names at once, and then so many a second. The worker keeps each to it, and the signer a
# worker to what its sandboxes may have together.
NEW_NAMES: Final = 512
NEW_NAMES_A_SECOND: Final = 2.0
LONGEST_ANSWER: Final = 4096  # bytes; a leaf has about 600


class MalformedPacketError(Exception):
    """A packet that is not of this protocol."""


class Request(NamedTuple):
    """Request for a certificate."""

    number: int
    point: bytes  # the public key: a point of P-256, uncompressed, not looked at yet
    host: str  # a name or an address in its one normal spelling


def encode_request(wanted: Request) -> bytes:
    """Encode a request for a certificate."""
    return _NUMBER.pack(wanted.number) + wanted.point + wanted.host.encode("ascii")


def read_request(packet: bytes) -> Request:
    """Read a worker's request. Raises MalformedPacketError unless it is a key and a normalised name or address."""
    if not _NUMBER.size + POINT < len(packet) <= LONGEST_REQUEST:
        raise MalformedPacketError(f"a request of {len(packet)} bytes")
    (number,) = _NUMBER.unpack_from(packet)
    point, text = packet[_NUMBER.size : _NUMBER.size + POINT], packet[_NUMBER.size + POINT :]
    try:
        host = text.decode("ascii")
        if str(parse_host(host)) != host:
            raise MalformedPacketError("a host in another than its normal spelling")
    except (UnicodeDecodeError, InvalidNameError) as error:
        raise MalformedPacketError("no name and no address") from error
    return Request(number, point, host)


def encode_answer(number: int, certificate: bytes = b"") -> bytes:
    """Encode the answer to a request; an empty certificate is a refusal."""
    return _NUMBER.pack(number) + certificate


def read_answer(packet: bytes) -> tuple[int, bytes]:
    """Read the signer's packet: the number, and the certificate (DER; empty: refused). Raises MalformedPacketError."""
    if not _NUMBER.size <= len(packet) <= LONGEST_ANSWER:
        raise MalformedPacketError(f"an answer of {len(packet)} bytes")
    (number,) = _NUMBER.unpack_from(packet)
    return number, packet[_NUMBER.size :]
