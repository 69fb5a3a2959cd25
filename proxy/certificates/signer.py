"""Answers the requests of workers for certificates, in the certificate signer.

It must never sign anything but a leaf for one host that servers show (`Authority.sign`), and never more of them than a
worker can have use for: one that was taken over gets certificates while it lives, a bounded number, all counted.

The allowance of a worker is the sum of what its sandboxes may ask for, and who supervises workers says how many those
are. So no sandbox meets an allowance but its own, whatever others ask for (invariant 11).
"""

import time
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from proxy.certificates.signer_protocol import (
    NEW_NAMES,
    NEW_NAMES_A_SECOND,
    MalformedPacketError,
    encode_answer,
    read_request,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.certificates.authority import Authority


class Signer:
    """Signs for one worker. `signed` and `refused` count."""

    def __init__(
        self,
        authority: "Authority",
        names: int = NEW_NAMES,
        a_second: float = NEW_NAMES_A_SECOND,
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        self._authority = authority
        self._names, self._a_second, self._clock = names, a_second, clock
        self._shares = 1  # one for each sandbox, and one for those that come or go in this very moment
        self._room, self._at = float(names), clock()
        self.signed = self.refused = 0

    def serves(self, sandboxes: int) -> None:
        """Take how many sandboxes the worker has: each that comes brings an allowance of its own."""
        room, before, self._shares = self._left(), self._shares, sandboxes + 1
        self._room = room + self._names * max(0, self._shares - before)
        self._left()

    def _left(self) -> float:
        now = self._clock()
        more = (now - self._at) * self._a_second * self._shares
        self._room, self._at = min(self._room + more, float(self._names * self._shares)), now
        return self._room

    def _take(self) -> bool:
        if self._left() < 1:
            return False
        self._room -= 1
        return True

    def answer(self, packet: bytes) -> bytes:
        """Answer one request. Raises MalformedPacketError: then nothing more is to be heard from who sent it."""
        wanted = read_request(packet)
        if not self._take():
            self.refused += 1
            return encode_answer(wanted.number)
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), wanted.point)
        except ValueError as error:  # another form than the uncompressed one has another length
            raise MalformedPacketError("no public key") from error
        certificate = self._authority.sign(wanted.host, public)
        self.signed += 1
        return encode_answer(wanted.number, certificate.public_bytes(Encoding.DER))
