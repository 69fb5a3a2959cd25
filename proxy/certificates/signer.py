"""Certificate signer: its protocol with workers, and the answers to their requests.

One request and one answer a packet, over SOCK_SEQPACKET. A request has a number, a public key, and the name or address
to certify. The answer has the number and the certificate (DER), or none if the signer refused. A worker may be under a
task's control, so each request has exactly one valid encoding, and the signer uses no field unchecked.

The signer signs only leaf certificates for one host (`Authority.sign`), and counts them all. A worker's allowance is
the sum of its sandboxes' allowances; the service reports how many it has. No sandbox can use up the allowance of
another (invariant 11).
"""

import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.values.addresses import parse_host
from rules.values.names import InvalidNameError

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.certificates.authority import Authority

POINT: Final = 65  # bytes of a P-256 point, uncompressed: SEC 1 section 2.3.3
_NUMBER: Final = struct.Struct(">I")
_LONGEST_HOST: Final = 253
LONGEST_REQUEST: Final = _NUMBER.size + POINT + _LONGEST_HOST
# Allowance of one sandbox: new names at once, then new names a second. The worker enforces it for each sandbox, the
# signer the sum for a worker.
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


def encode_request(request: Request) -> bytes:
    """Encode a request for a certificate."""
    return _NUMBER.pack(request.number) + request.point + request.host.encode("ascii")


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


class Signer:
    """Signs for one worker. `signed` and `refused` count requests."""

    def __init__(
        self,
        authority: "Authority",
        names: int = NEW_NAMES,
        a_second: float = NEW_NAMES_A_SECOND,
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        self._authority = authority
        self._names, self._a_second, self._clock = names, a_second, clock
        self._shares = 1  # one a sandbox, and one for a sandbox that starts or ends right now
        self._allowance, self._refilled_at = float(names), clock()
        self.signed = self.refused = 0

    def serves(self, sandboxes: int) -> None:
        """Set the number of sandboxes of the worker; each new one adds its own allowance."""
        allowance, before, self._shares = self._refill(), self._shares, sandboxes + 1
        self._allowance = allowance + self._names * max(0, self._shares - before)
        self._refill()

    def _refill(self) -> float:
        now = self._clock()
        more = (now - self._refilled_at) * self._a_second * self._shares
        self._allowance, self._refilled_at = min(self._allowance + more, float(self._names * self._shares)), now
        return self._allowance

    def _use_allowance(self) -> bool:
        if self._refill() < 1:
            return False
        self._allowance -= 1
        return True

    def answer(self, packet: bytes) -> bytes:
        """Answer one request. Raises MalformedPacketError: the caller then stops serving that worker."""
        # The worker imports this module for the protocol only, and loads cryptography with its first leaf
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding

        request = read_request(packet)
        if not self._use_allowance():
            self.refused += 1
            return encode_answer(request.number)
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), request.point)
        except ValueError as error:  # another form than the uncompressed one has another length
            raise MalformedPacketError("no public key") from error
        certificate = self._authority.sign(request.host, public)
        self.signed += 1
        return encode_answer(request.number, certificate.public_bytes(Encoding.DER))
