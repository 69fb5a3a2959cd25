"""A worker's leaves: certificates that the key holder has signed, for a key that is the worker's own.

The CA's key is never here. A leaf is kept and used until half of its time is over; whoever needs another waits for the
key holder, and only who needs it. Where that one is gone, refuses, or doesn't answer, there is no leaf, and the
connection ends: what is kept goes on being used as long as it is valid.
"""

import asyncio
import contextlib
import socket
from collections import OrderedDict, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.ca.packets import LONGEST_ANSWER, Malformed, Request, read_answer, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

LEAVES: Final = 4096  # about 1 KB each
PATIENCE: Final = 10.0  # seconds for one certificate, which takes a millisecond
_UNDER_WAY: Final = 64  # requests: far less than fits the socket
_MOST_WAITING: Final = 4096  # names

type Told = Callable[[str], None]  # with what went wrong; empty: nothing, and `usable` has it


class Leaf(NamedTuple):
    """A certificate for one name or address, its key, when another is to be asked for, and when this one ends."""

    certificate: "x509.Certificate"
    key: "ec.EllipticCurvePrivateKey"
    stale: datetime
    ends: datetime


class NoLeafError(Exception):
    """There is no certificate for this host."""


class _Wanted:
    """A certificate that somebody waits for."""

    __slots__ = ("host", "number", "timer", "told")

    def __init__(self, host: str, told: "Told", timer: asyncio.TimerHandle) -> None:
        self.host = host
        self.told = [told]
        self.timer = timer
        self.number = 0  # not asked for yet


class Leaves:
    """All leaves of one worker. For one thread, used within a running loop."""

    def __init__(self, channel: socket.socket) -> None:
        """Take over a pair's end; the key holder has the other."""
        self._channel: socket.socket | None = channel
        self._listening = False
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._point = b""
        self._kept: OrderedDict[str, Leaf] = OrderedDict()
        self._wanted: dict[str, _Wanted] = {}
        self._unasked: deque[_Wanted] = deque()
        self._asked: dict[int, _Wanted] = {}
        self._number = 0

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
        """Ask for a leaf. `told` is called once, perhaps at once; who has gone by then has to bear it."""
        if (waiting := self._wanted.get(host)) is not None:
            waiting.told.append(told)
            return
        if len(self._wanted) >= _MOST_WAITING:
            told("too many certificates are waited for")
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(PATIENCE, self._give_up, host, "the key holder doesn't answer")
        wanted = self._wanted[host] = _Wanted(host, told, timer)
        self._unasked.append(wanted)
        self._ask_next()

    def renew(self, channel: socket.socket) -> None:
        """Ask another key holder from now on: it takes the place of one that is gone."""
        self._lose()
        self._channel = channel

    def close(self) -> None:
        """Ask no more. Whoever waits is told. Idempotent."""
        self._lose()

    def _ask_next(self) -> None:
        while self._unasked and len(self._asked) < _UNDER_WAY:
            if self._channel is None:
                self._fail_all("the key holder is gone: no certificate for a new name")
                return
            if not self._listening:
                self._listening = True
                self._channel.setblocking(False)
                asyncio.get_running_loop().add_reader(self._channel, self._hear)
            wanted = self._unasked.popleft()
            self._number = wanted.number = self._number % 0xFFFFFFFF + 1
            self._asked[wanted.number] = wanted
            try:
                self._channel.send(request(Request(wanted.number, self._public(), wanted.host)))
            except OSError:  # also where it has taken none of so many: then it will not
                self._lose()

    def _public(self) -> bytes:
        """Return the public half of the one key that all leaves of this worker are for."""
        if self._key is None:
            from cryptography.hazmat.primitives.asymmetric import ec
            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

            self._key = ec.generate_private_key(ec.SECP256R1())
            self._point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return self._point

    def _hear(self) -> None:
        """Take in what the key holder has answered."""
        assert self._channel is not None
        try:
            packet = self._channel.recv(LONGEST_ANSWER + 1)
            number, certificate = read_answer(packet)
        except BlockingIOError:
            return
        except (OSError, Malformed):  # also its end
            self._lose()
            return
        wanted = self._asked.get(number)
        if wanted is None:  # it was given up
            return
        try:
            if certificate:
                self._keep(wanted.host, certificate)
            self._settle(wanted, "" if certificate else "the key holder signs no more for this worker just now")
        except ValueError as error:
            self._settle(wanted, f"the key holder's answer is no certificate: {error}")
        self._ask_next()

    def _keep(self, host: str, der: bytes) -> None:
        from cryptography import x509

        assert self._key is not None
        certificate = x509.load_der_x509_certificate(der)
        ends, now = certificate.not_valid_after_utc, datetime.now(UTC)
        self._kept[host] = Leaf(certificate, self._key, now + (ends - now) / 2, ends)
        self._kept.move_to_end(host)
        if len(self._kept) > LEAVES:
            self._kept.popitem(last=False)

    def _give_up(self, host: str, problem: str) -> None:
        wanted = self._wanted[host]
        with contextlib.suppress(ValueError):
            self._unasked.remove(wanted)
        self._settle(wanted, problem)
        self._ask_next()

    def _settle(self, wanted: _Wanted, problem: str) -> None:
        """Tell who waits for one what became of it."""
        wanted.timer.cancel()
        self._asked.pop(wanted.number, None)
        if self._wanted.get(wanted.host) is wanted:
            del self._wanted[wanted.host]
        leaf = self._kept.get(wanted.host)
        if problem and leaf is not None and leaf.ends > datetime.now(UTC):
            problem = ""  # an older one is as good
        for told in wanted.told:
            told(problem)

    def _lose(self) -> None:
        """Have no key holder."""
        channel, self._channel = self._channel, None
        if channel is not None:
            if self._listening:
                asyncio.get_running_loop().remove_reader(channel)
            channel.close()
        self._listening = False
        self._fail_all("the key holder is gone: no certificate for a new name")

    def _fail_all(self, problem: str) -> None:
        self._unasked.clear()
        for wanted in list(self._wanted.values()):
            self._settle(wanted, problem)
