"""The key holder's part of signing: from a worker's packet to the one that answers it.

It must never sign anything but a leaf for one host that servers show (`Authority.sign`), and never more of them than a
worker can have use for: one that was taken over gets certificates while it lives, a bounded number, all counted.
"""

import time
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from proxy.bucket import Bucket
from proxy.ca.packets import Malformed, answer, read_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.ca.authority import Authority

# Of one worker: as many as it keeps, and then 20 a second. A tenant's own bound (proxy.inspection.engine) is far below.
BURST: Final = 4096
A_SECOND: Final = 20.0


class Signer:
    """Signs for one worker. `signed` and `refused` count."""

    def __init__(
        self,
        authority: "Authority",
        burst: int = BURST,
        a_second: float = A_SECOND,
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        self._authority = authority
        self._bucket = Bucket(burst, a_second, clock)
        self.signed = self.refused = 0

    def answer(self, packet: bytes) -> bytes:
        """Return what to answer. Raises Malformed: then nothing more is to be heard from who sent it."""
        wanted = read_request(packet)
        if not self._bucket.take():
            self.refused += 1
            return answer(wanted.number)
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), wanted.point)
        except ValueError as error:  # another form than the uncompressed one has another length
            raise Malformed("no public key") from error
        certificate = self._authority.sign(wanted.host, public)
        self.signed += 1
        return answer(wanted.number, certificate.public_bytes(Encoding.DER))
