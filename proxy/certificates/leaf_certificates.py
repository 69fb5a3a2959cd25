"""Leaf certificates of a worker: a key and a cache for each sandbox, and one link to the certificate signer.

The CA's key is never here. A sandbox uses a leaf until half of its lifetime is over, and waits for the signer then.
Without an answer the connection ends; leaves that are still valid stay in use.

No sandbox finds out what another one visits (invariant 11): a leaf, its age, its serial number, its eviction and the
allowance that it takes are the sandbox's own. Only the time that the signer needs depends on others.
"""

import asyncio
import contextlib
import socket
from collections import OrderedDict, deque
from contextvars import copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.certificates.signer_protocol import (
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

type Told = Callable[[str], None]  # with what went wrong; empty: nothing, and `usable` has it


class Leaf(NamedTuple):
    """A certificate for one name or address, its key, when another is to be asked for, and when this one ends."""

    certificate: "x509.Certificate"
    key: "ec.EllipticCurvePrivateKey"
    stale: datetime
    ends: datetime


class NoLeafError(Exception):
    """There is no certificate for this host."""


class _PendingLeaf:
    """Certificate that a sandbox waits for."""

    __slots__ = ("context", "host", "number", "owner", "timer", "told")

    def __init__(self, owner: "LeafCertificates", host: str, told: "Told", timer: asyncio.TimerHandle) -> None:
        self.owner = owner
        self.host = host
        self.told = [told]
        self.timer = timer
        self.number = 0  # not sent yet
        self.context = copy_context()  # of the sandbox, whose turn the answer is


class SignerLink:
    """The link of one worker to the signer. Serves sandboxes in turn. For one thread, within a running loop."""

    def __init__(self, channel: socket.socket) -> None:
        """Take over the worker's end of the socket pair."""
        self._channel: socket.socket | None = channel
        self._listening = False
        self._queues: OrderedDict[LeafCertificates, deque[_PendingLeaf]] = OrderedDict()
        self._sent: dict[int, _PendingLeaf] = {}
        self._number = 0

    def ask(self, wanted: _PendingLeaf) -> None:
        """Send a request, or queue it behind the sandbox's others."""
        self._queues.setdefault(wanted.owner, deque()).append(wanted)
        self._send_next()

    def drop(self, wanted: _PendingLeaf) -> None:
        """Expect no answer to a request any more."""
        self._sent.pop(wanted.number, None)
        queue = self._queues.get(wanted.owner)
        if queue is not None:
            with contextlib.suppress(ValueError):
                queue.remove(wanted)
            if not queue:
                del self._queues[wanted.owner]
        self._send_next()

    def renew(self, channel: socket.socket) -> None:
        """Ask another signer from now on: it replaces one that is gone."""
        self._lose()
        self._channel = channel

    def close(self) -> None:
        """Ask no more. Every waiter gets an error. Idempotent."""
        self._lose()

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
            wanted = queue.popleft()
            self._queues.move_to_end(owner)
            if not queue:
                del self._queues[owner]
            self._number = wanted.number = self._number % 0xFFFFFFFF + 1
            self._sent[wanted.number] = wanted
            try:
                self._channel.send(encode_request(Request(wanted.number, owner.public(), wanted.host)))
            except OSError:  # also where it has taken none of so many: then it will not
                self._lose()

    def _receive(self) -> None:
        """Pass an answer of the signer's on to the sandbox that waits for it."""
        assert self._channel is not None
        try:
            packet = self._channel.recv(LONGEST_ANSWER + 1)
            number, certificate = read_answer(packet)
        except BlockingIOError:
            return
        except (OSError, MalformedPacketError):  # also its end
            self._lose()
            return
        wanted = self._sent.pop(number, None)
        if wanted is not None:  # else: it was given up
            loop = asyncio.get_running_loop()
            loop.call_soon(wanted.owner.answered, wanted, certificate, context=wanted.context)
        self._send_next()

    def _lose(self) -> None:
        """Have no signer."""
        channel, self._channel = self._channel, None
        if channel is not None:
            if self._listening:
                asyncio.get_running_loop().remove_reader(channel)
            channel.close()
        self._listening = False
        self._fail_all()

    def _fail_all(self) -> None:
        waiting = [*self._sent.values(), *(wanted for queue in self._queues.values() for wanted in queue)]
        self._sent.clear()
        self._queues.clear()
        for wanted in waiting:
            wanted.owner.settle(wanted, "the certificate signer is gone: no certificate for a new name")


class LeafCertificates:
    """The leaves of one sandbox, all for one key. For one thread, used within a running loop."""

    def __init__(self, signer: SignerLink) -> None:
        self._signer = signer
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._point = b""
        self._kept: OrderedDict[str, Leaf] = OrderedDict()
        self._wanted: dict[str, _PendingLeaf] = {}

    def is_fresh(self, host: str) -> bool:
        """Whether there is a leaf for `host` that needn't be asked for."""
        leaf = self._kept.get(host)
        return leaf is not None and leaf.stale > datetime.now(UTC)

    def usable(self, host: str) -> Leaf:
        """Return the leaf for `host`, a normalised name or an address in its usual spelling. Raises NoLeafError."""
        leaf = self._kept.get(host)
        if leaf is None or leaf.ends <= datetime.now(UTC):
            raise NoLeafError("there is no certificate for this host")
        self._kept.move_to_end(host)
        return leaf

    def ask(self, host: str, told: Told) -> None:
        """Ask for a leaf. Calls `told` once, perhaps at once; a waiter that has gone by then must bear it."""
        if (waiting := self._wanted.get(host)) is not None:
            waiting.told.append(told)
            return
        if len(self._wanted) >= MOST_WAITING:
            told("too many certificates are waited for")
            return
        timer = asyncio.get_running_loop().call_later(PATIENCE, self._give_up, host)
        wanted = self._wanted[host] = _PendingLeaf(self, host, told, timer)
        self._signer.ask(wanted)

    def close(self) -> None:
        """Wait for none any more: nobody is told. Idempotent."""
        waiting, self._wanted = list(self._wanted.values()), {}
        for wanted in waiting:
            wanted.timer.cancel()
            wanted.told.clear()
            self._signer.drop(wanted)

    def public(self) -> bytes:
        """Return the public half of the one key that all leaves of this sandbox are for."""
        if self._key is None:
            from cryptography.hazmat.primitives.asymmetric import ec
            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

            self._key = ec.generate_private_key(ec.SECP256R1())
            self._point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return self._point

    def answered(self, wanted: _PendingLeaf, certificate: bytes) -> None:
        """Take in the signer's answer: a certificate (DER), or none where it refused."""
        problem = "" if certificate else "the certificate signer signs no more for this worker just now"
        try:
            if certificate:
                self._keep(wanted.host, certificate)
        except ValueError as error:
            problem = f"the certificate signer's answer is no certificate: {error}"
        self.settle(wanted, problem)

    def settle(self, wanted: _PendingLeaf, problem: str) -> None:
        """Tell each waiter for one leaf what became of it."""
        wanted.timer.cancel()
        if self._wanted.get(wanted.host) is wanted:
            del self._wanted[wanted.host]
        leaf = self._kept.get(wanted.host)
        if problem and leaf is not None and leaf.ends > datetime.now(UTC):
            problem = ""  # an older one is as good
        waiters, wanted.told = wanted.told, []
        for told in waiters:
            told(problem)

    def _keep(self, host: str, der: bytes) -> None:
        from cryptography import x509

        assert self._key is not None
        certificate = x509.load_der_x509_certificate(der)
        ends, now = certificate.not_valid_after_utc, datetime.now(UTC)
        self._kept[host] = Leaf(certificate, self._key, now + (ends - now) / 2, ends)
        self._kept.move_to_end(host)
        if len(self._kept) > LEAVES:
            self._kept.popitem(last=False)

    def _give_up(self, host: str) -> None:
        wanted = self._wanted[host]
        self.settle(wanted, "the certificate signer doesn't answer")
        self._signer.drop(wanted)
