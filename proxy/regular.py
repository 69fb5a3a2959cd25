"""One connection that compiled code dials and passes on (`regulars`): told, and soon over.

One that isn't over within a round of the gate, or a few where there are many, becomes a connection like any other,
`passing`, and so does one that is to be decided on again: there is one place where that is done.
"""

import time
from typing import TYPE_CHECKING, Final

from proxy.compiled.library import Over
from proxy.dialling.connecting import said
from proxy.dialling.dial import CONNECT_TIMEOUT, NO_ANSWER
from proxy.passing import Passing
from proxy.poller import COMPILED
from proxy.relay import reset
from proxy.telemetry.events import Where
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from proxy.account import Account
    from proxy.compiled.lane import News
    from proxy.gate import Gate
    from proxy.regulars import Regulars, Usual

NS: Final = 1e-9  # seconds


class Regular:
    """One connection, told and about to be dialled."""

    __slots__ = ("_deadline", "_gate", "_regulars", "account", "fd", "id", "usual")

    def __init__(self, gate: "Gate", regulars: "Regulars", account: "Account", usual: "Usual", news: "News") -> None:
        self._gate = gate
        self._regulars = regulars
        self._deadline = account.opened + CONNECT_TIMEOUT
        self.account = account
        self.usual = usual
        self.id = news.id
        self.fd = news.fd

    def over(self, news: "News") -> None:
        """Tell its end: both sockets are closed."""
        how, account = news.over, self.account
        account.closed = news.ended * NS
        if news.dialled >= 0:
            self._gate.recorder.metrics.dialled(None, news.dialled * NS)
        if how in (Over.IN_PEACE, Over.NEAR_BROKE):
            self._end(news.up, news.down, Outcome.PASSED, None)
        elif how == Over.FAILED:
            account.error(Where.RELAY, OSError("a socket could not be watched, or there is no memory"))
            self._end(news.up, news.down, Outcome.FAILED, Reason.GATE_ERROR)
        elif news.dialled < 0:
            self.not_dialled(news.error)
        else:
            self._end(news.up, news.down, Outcome.FAILED, Reason.UPSTREAM_FAILED)

    def not_dialled(self, number: int) -> None:
        """Tell that no connection could be made, for an errno."""
        self._unanswered(said(number, self.usual.hops[0]))

    def broke(self, error: Exception) -> None:
        """Tell of an exception that nobody expected, before anything was dialled."""
        self.account.error(Where.DIAL, error)
        self._end(0, 0, Outcome.FAILED, Reason.GATE_ERROR)

    # for the gate's rounds

    def tick(self, now: float) -> None:
        """Be like any other from now on, if it is connected."""
        if self._regulars.is_dialled(self):
            if self._regulars.may_grow():
                self._grow()
        elif now >= self._deadline and (taken := self._regulars.take(self)) is not None:
            near, far, pair, _ = taken
            assert COMPILED is not None
            COMPILED.release(pair)
            reset(near)
            reset(far)
            self._unanswered(NO_ANSWER)

    def review(self) -> None:
        """Decide again."""
        if (passing := self._grow()) is not None:
            passing.review()

    def abort(self) -> None:
        """End it now."""
        if (passing := self._grow()) is not None:
            passing.abort()

    def failed(self, error: Exception) -> None:
        """End it after an exception that nobody expected."""
        if (passing := self._grow()) is not None:
            passing.failed(error)

    def _grow(self) -> Passing | None:
        """Make it a connection like any other; None: it is over, and its end was told, or is about to be heard of."""
        taken = self._regulars.take(self)
        if taken is None:
            return None
        near, far, pair, dialled = taken
        if dialled >= 0:
            self._gate.recorder.metrics.dialled(None, dialled)
        passing = Passing(self._gate, near, self.account, self.usual.judgement)
        self._gate.replace(self, passing)
        try:
            passing.go_on(far, self.usual.hops[0], pair)
        except Exception as error:  # noqa: BLE001 - it is its own affair from here on
            passing.failed(error)
            return None
        return passing

    def _unanswered(self, detail: str) -> None:
        self._gate.recorder.metrics.dialled(Reason.UPSTREAM_FAILED, time.monotonic() - self.account.opened)
        self._end(0, 0, Outcome.FAILED, Reason.UPSTREAM_FAILED, detail)

    def _end(self, up: int, down: int, outcome: Outcome, reason: Reason | None, detail: str = "") -> None:
        try:
            self.account.ended(up, down, outcome, reason, detail=detail)
        finally:  # or it would count as open for ever
            self._gate.forget(self)
