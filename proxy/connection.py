"""A connection that was just accepted: listened to, without consuming a byte, until it can be decided.

Home of invariant 2 for connections: whatever goes wrong here ends in a reset and a told refusal.
"""

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

from proxy.concluding import conclude
from proxy.deciding import Judgement, Patience, Way, refuse
from proxy.hello import NeedMore
from proxy.passing import Passing
from proxy.peek import MOST_BYTES, recognise
from proxy.poller import IN, ONCE
from proxy.relay import reset
from proxy.telemetry.events import Where
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.account import Account
    from proxy.gate import Gate
    from proxy.peek import Seen

FIRST_WORDS: Final = 10.0  # seconds a client has to say what it wants, where only that can let it out
BRIEF: Final = 0.5  # seconds, where it may be waiting for its server

_FIRST_LOOK: Final = 4096  # bytes; a ClientHello has 200 to 2,500


class Connection:
    """One accepted socket, non-blocking and in no poller, until it is decided."""

    __slots__ = ("_account", "_asleep", "_brief", "_client", "_deadline", "_gate", "_had", "_over", "_pending")

    def __init__(self, gate: "Gate", client: socket.socket, account: "Account") -> None:
        self._gate = gate
        self._client = client
        self._account = account
        self._deadline = account.opened + FIRST_WORDS
        self._had = 0  # bytes that were there at the last look
        self._over = False
        self._asleep = False
        self._brief: asyncio.TimerHandle | None = None
        self._pending: Judgement | None = None  # a refusal that waits until it is known whose this was

    def begin(self) -> None:
        """Wait for the first words, if they matter."""
        waits = self._gate.recall.patience(self._account.wanted)
        if waits is Patience.NONE:
            self._settle(None)
            return
        if waits is Patience.BRIEF:
            self._brief = asyncio.get_running_loop().call_later(BRIEF, self.tick, self._deadline)
        self._listen()

    def refuse(self, reason: Reason) -> None:
        """Deny it for a reason of the gate's own."""
        self._go_on(refuse(self._gate.tenant, self._account.wanted, reason))

    def ready(self, _events: int) -> None:
        """Look at what the client has said so far; asleep (SO_RCVLOWAT, socket(7)) until there can be something new."""
        self._asleep = True
        try:
            data = self._client.recv(_FIRST_LOOK, socket.MSG_PEEK)
            if len(data) == _FIRST_LOOK:
                data = self._client.recv(MOST_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            self._listen()
            return
        except OSError:
            self.refuse(Reason.PROTOCOL_MISMATCH)  # gone before it said what it wanted
            return
        seen = recognise(data, whole_head=len(self._account.wanted.names) != 1)
        if not isinstance(seen, NeedMore):
            self._account.said = data
            self._settle(seen)
        elif len(data) > self._had:
            self._had = len(data)
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen.bytes)
            self._listen()
        else:
            # Woken and nothing new: the client has ended, or urgent data is next, which no look gets past.
            self._settle(None)

    def tick(self, now: float) -> None:
        """Look at the time (time.monotonic()); when it is up, decide on what is known. Never raises."""
        if now >= self._deadline and not self._over:
            try:
                self._settle(None)
            except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
                self.failed(error)

    def review(self) -> None:
        """Do nothing: it is still to be decided."""

    def abort(self) -> None:
        """End it now: the gate closes, and nobody is waited for any more."""
        if self._pending is None:
            self.refuse(Reason.GATE_ERROR)
        self._refuse_now()

    def failed(self, error: Exception) -> None:
        """End it after an exception that nobody expected. Never raises."""
        account = self._account
        self._pending = None
        # The client is cut off before anything else is tried: that must not fail.
        self._stop_listening()
        self._gate.poller.forget(self._client.fileno())
        reset(self._client)
        self._gate.forget(self)
        account.error(Where.PEEK, error)
        if not account.is_decided:
            account.decided(refuse(self._gate.tenant, account.wanted, Reason.GATE_ERROR))

    def _settle(self, seen: "Seen | None") -> None:
        gate, account = self._gate, self._account
        metrics = gate.recorder.metrics
        heard = time.monotonic()
        metrics.peek_seconds.observe(heard - account.opened)
        judgement = gate.recall.judge(account.wanted, seen)
        metrics.decision_seconds.observe(time.monotonic() - heard)
        self._go_on(judgement)

    def _go_on(self, judgement: Judgement) -> None:
        """Leave the stage to whoever carries out what was decided; a refusal may wait a moment (`attributing`)."""
        self._stop_listening()
        whose = self._account.whose
        if whose is not None and whose.waiting and not judgement.decision.passes:
            self._pending = judgement
            whose.then(self._refuse_now)
        else:
            self._carry_out(judgement)

    def _refuse_now(self) -> None:
        """Carry out the refusal that waits. Never raises."""
        judgement, self._pending = self._pending, None
        if judgement is not None:
            try:
                self._carry_out(judgement)
            except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
                self.failed(error)

    def _carry_out(self, judgement: Judgement) -> None:
        if judgement.way is not Way.SPLICE:
            if judgement.decision.asks:
                from proxy.held import hold  # few are

                hold(self._gate, self, self._client, self._account, judgement)
                return
            conclude(self._gate, self, self._client, self._account, judgement)
            return
        passing = Passing(self._gate, self._client, self._account, judgement)
        self._gate.replace(self, passing)
        try:
            passing.begin()
        except Exception as error:  # noqa: BLE001 - it is its own affair from here on
            passing.failed(error)

    def _listen(self) -> None:
        self._asleep = False
        self._gate.poller.watch(self._client.fileno(), IN | ONCE, self)

    def _stop_listening(self) -> None:
        """Hear no more. A socket that has just been heard may stay in the poller: it is asleep there."""
        self._over = True
        if self._brief is not None:
            self._brief.cancel()
        if not self._asleep:
            self._gate.poller.forget(self._client.fileno())
        if self._had:
            with contextlib.suppress(OSError):
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
