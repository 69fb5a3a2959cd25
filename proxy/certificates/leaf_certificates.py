"""Leaf certificates of a worker: a key and a cache for each sandbox, and one link to the certificate signer.

The worker never has the CA's key. A sandbox reuses a leaf for half of its lifetime, and then requests a new one.
Without an answer, a leaf that is still valid stays in use; if there is none, the connection ends.

No sandbox can learn which hosts another one connects to (invariant 11): leaves, their age, serial numbers, eviction
and allowance belong to one sandbox. Only the signer's latency depends on other sandboxes.
"""

import asyncio
import contextlib
import socket
from collections import OrderedDict, deque
from contextvars import copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.certificates.signer import (
    LONGEST_ANSWER,
    MalformedPacketError,
    Request,
    encode_request,
    read_answer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

LEAVES: Final = 1024  # of one sandbox; about 1 KB each
MOST_WAITING: Final = 512  # names of one sandbox: what `engine.NEW_NAMES` allows at once
PATIENCE: Final = 10.0  # seconds for one certificate, which takes a millisecond
_UNDER_WAY: Final = 64  # requests of one worker: far less than fits the socket

type LeafCallback = Callable[[str], None]  # with an error message; empty on success: `usable` then returns the leaf


class Leaf(NamedTuple):
    """A certificate for one name or address, its key, when the worker requests a new one, and when this one expires."""

    certificate: "x509.Certificate"
    key: "ec.EllipticCurvePrivateKey"
    stale: datetime
    ends: datetime


class NoLeafError(Exception):
    """There is no certificate for this host."""


class _PendingLeaf:
    """Certificate that a sandbox waits for."""

    __slots__ = ("callbacks", "context", "host", "number", "owner", "timer")

    def __init__(
        self, owner: "LeafCertificates", host: str, callback: "LeafCallback", timer: asyncio.TimerHandle
    ) -> None:
        self.owner = owner
        self.host = host
        self.callbacks = [callback]
        self.timer = timer
        self.number = 0  # not sent yet
        self.context = copy_context()  # the sandbox whose step the answer counts to


class SignerLink:
    """The link of one worker to the signer. Serves sandboxes in turn. For one thread, within a running loop."""

    def __init__(self, channel: socket.socket) -> None:
        """Take over the worker's end of the socket pair."""
        self._channel: socket.socket | None = channel
        self._listening = False
        self._queues: OrderedDict[LeafCertificates, deque[_PendingLeaf]] = OrderedDict()
        self._sent: dict[int, _PendingLeaf] = {}
        self._number = 0

    def ask(self, pending: _PendingLeaf) -> None:
        """Send a request, or queue it behind the sandbox's others."""
        self._queues.setdefault(pending.owner, deque()).append(pending)
        self._send_next()

    def drop(self, pending: _PendingLeaf) -> None:
        """Cancel a request."""
        self._sent.pop(pending.number, None)
        queue = self._queues.get(pending.owner)
        if queue is not None:
            with contextlib.suppress(ValueError):
                queue.remove(pending)
            if not queue:
                del self._queues[pending.owner]
        self._send_next()

    def renew(self, channel: socket.socket) -> None:
        """Connect to a new signer that replaces one that ended."""
        self._disconnect()
        self._channel = channel

    def close(self) -> None:
        """Disconnect from the signer. Every waiter gets an error. Idempotent."""
        self._disconnect()

    def _send_next(self) -> None:
        while self._queues and len(self._sent) < _UNDER_WAY:
            if self._channel is None:
                self._fail_all()
                return
            if not self._listening:
                self._listening = True
                self._channel.setblocking(False)
                asyncio.get_running_loop().add_reader(self._channel, self._receive)
            owner, queue = next(iter(self._queues.items()))
            pending = queue.popleft()
            self._queues.move_to_end(owner)
            if not queue:
                del self._queues[owner]
            self._number = pending.number = self._number % 0xFFFFFFFF + 1
            self._sent[pending.number] = pending
            try:
                self._channel.send(encode_request(Request(pending.number, owner.public(), pending.host)))
            except OSError:  # also where its queue is full: it no longer reads
                self._disconnect()

    def _receive(self) -> None:
        """Deliver an answer of the signer to the sandbox that waits for it."""
        assert self._channel is not None
        try:
            packet = self._channel.recv(LONGEST_ANSWER + 1)
            number, certificate = read_answer(packet)
        except BlockingIOError:
            return
        except (OSError, MalformedPacketError):  # also when the signer has closed the connection
            self._disconnect()
            return
        pending = self._sent.pop(number, None)
        if pending is not None:  # None: the request was cancelled
            loop = asyncio.get_running_loop()
            loop.call_soon(pending.owner.receive_answer, pending, certificate, context=pending.context)
        self._send_next()

    def _disconnect(self) -> None:
        """Close the connection to the signer, and fail all pending requests."""
        channel, self._channel = self._channel, None
        if channel is not None:
            if self._listening:
                asyncio.get_running_loop().remove_reader(channel)
            channel.close()
        self._listening = False
        self._fail_all()

    def _fail_all(self) -> None:
        waiting = [*self._sent.values(), *(pending for queue in self._queues.values() for pending in queue)]
        self._sent.clear()
        self._queues.clear()
        for pending in waiting:
            pending.owner.call_back(pending, "the certificate signer is gone: no certificate for a new name")


class LeafCertificates:
    """The leaves of one sandbox, all for one key. For one thread, used within a running loop."""

    def __init__(self, signer: SignerLink) -> None:
        self._signer = signer
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._point = b""
        self._leaves: OrderedDict[str, Leaf] = OrderedDict()
        self._pending: dict[str, _PendingLeaf] = {}

    def is_fresh(self, host: str) -> bool:
        """Whether the cache has a leaf for `host` that needs no renewal."""
        leaf = self._leaves.get(host)
        return leaf is not None and leaf.stale > datetime.now(UTC)

    def usable(self, host: str) -> Leaf:
        """Return the leaf for `host`, a normalised name or an address in its usual spelling. Raises NoLeafError."""
        leaf = self._leaves.get(host)
        if leaf is None or leaf.ends <= datetime.now(UTC):
            raise NoLeafError("there is no certificate for this host")
        self._leaves.move_to_end(host)
        return leaf

    def ask(self, host: str, callback: LeafCallback) -> None:
        """Request a leaf. Calls `callback` once, perhaps before this returns, and also if the waiter has ended."""
        if (waiting := self._pending.get(host)) is not None:
            waiting.callbacks.append(callback)
            return
        if len(self._pending) >= MOST_WAITING:
            callback("too many certificates are waited for")
            return
        timer = asyncio.get_running_loop().call_later(PATIENCE, self._time_out, host)
        pending = self._pending[host] = _PendingLeaf(self, host, callback, timer)
        self._signer.ask(pending)

    def close(self) -> None:
        """Cancel all pending requests without calling back. Idempotent."""
        waiting, self._pending = list(self._pending.values()), {}
        for pending in waiting:
            pending.timer.cancel()
            pending.callbacks.clear()
            self._signer.drop(pending)

    def public(self) -> bytes:
        """Return the public half of the one key that all leaves of this sandbox are for."""
        if self._key is None:
            from cryptography.hazmat.primitives.asymmetric import ec
            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

            self._key = ec.generate_private_key(ec.SECP256R1())
            self._point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return self._point

    def receive_answer(self, pending: _PendingLeaf, certificate: bytes) -> None:
        """Store the signer's answer: a certificate (DER), or nothing if the signer refused."""
        problem = "" if certificate else "the certificate signer signs no more for this worker just now"
        try:
            if certificate:
                self._keep(pending.host, certificate)
        except ValueError as error:
            problem = f"the certificate signer's answer is no certificate: {error}"
        self.call_back(pending, problem)

    def call_back(self, pending: _PendingLeaf, problem: str) -> None:
        """Call back every waiter for one leaf."""
        pending.timer.cancel()
        if self._pending.get(pending.host) is pending:
            del self._pending[pending.host]
        leaf = self._leaves.get(pending.host)
        if problem and leaf is not None and leaf.ends > datetime.now(UTC):
            problem = ""  # the cached leaf is still valid
        waiters, pending.callbacks = pending.callbacks, []
        for callback in waiters:
            callback(problem)

    def _keep(self, host: str, der: bytes) -> None:
        from cryptography import x509

        assert self._key is not None
        certificate = x509.load_der_x509_certificate(der)
        ends, now = certificate.not_valid_after_utc, datetime.now(UTC)
        self._leaves[host] = Leaf(certificate, self._key, now + (ends - now) / 2, ends)
        self._leaves.move_to_end(host)
        if len(self._leaves) > LEAVES:
            self._leaves.popitem(last=False)

    def _time_out(self, host: str) -> None:
        pending = self._pending[host]
        self.call_back(pending, "the certificate signer doesn't answer")
        self._signer.drop(pending)
