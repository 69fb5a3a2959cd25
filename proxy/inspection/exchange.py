"""One request that was let out: what it passes under, how much it has passed, and whatever ends it before its time."""

import time
from typing import TYPE_CHECKING

from proxy.inspection.leaking import NOT_LOOKED, Looked
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from proxy.approvals.leases import Lease
    from proxy.inspection.leaking import Outgoing
    from proxy.sandbox.rule_limits import Meter
    from proxy.telemetry.events import Http
    from rules.addresses import Address
    from rules.attempt import Attempt
    from rules.decision import Decision


class Exchange:
    """One request that was let out, until its answer is through."""

    __slots__ = (
        "_length", "address", "attempts", "by", "cause", "down", "http", "lease", "looked", "meter", "outgoing",
        "reviewed", "rules", "started", "status", "up", "via",
    )  # fmt: skip

    def __init__(
        self,
        cause: str,
        http: "Http",
        meter: "Meter | None" = None,
        attempts: "tuple[Attempt, ...]" = (),
        via: str | None = None,
        *,
        looked: Looked = NOT_LOOKED,
        rules: tuple[str, ...] = (),
    ) -> None:
        self.cause = cause
        self.address: Address | None = None  # where it was sent; None: not yet, or to a proxy, which alone knows it
        self.rules = rules  # that let it out
        self.looked = looked  # what was found in its head
        self.outgoing: Outgoing | None = None  # what looks at the rest
        self.via = via  # the proxy that it goes through
        self.http = http
        self.attempts = attempts  # what the rules were asked
        self.by: Decision | None = None  # the decision of a later policy, or day, that ends it
        self.reviewed = False  # by such a one: the addresses that were found for it are of an earlier
        self.meter = meter  # where its rules have limits
        self.lease: Lease | None = None  # where it passes under grants
        self.started = time.monotonic()
        self.up = self.down = 0  # bytes of body
        self.status: int | None = None  # of the response, once its head was passed on
        self._length: int | None = None  # bytes of the response's body, where its head says so

    def answered(self, status: int, length: int | None) -> None:
        """Take note of the head of a response that is passed on, and how long it says that its body is."""
        self.status, self._length = status, length

    def left(self) -> tuple[Outcome, str]:
        """Return the outcome, and words for it, when the client leaves now.

        A server may say only later that a response ends where its length said (RFC 9113 section 8.1). Of a response
        without a length, as a stream of events or a WebSocket, only the client knows how much of it it wants.
        """
        if self.status is None:
            return Outcome.FAILED, "the client left before the server answered"
        if self._length is None:
            return Outcome.PASSED, "the client left before the end"
        if self.down < self._length:
            return Outcome.FAILED, "the client left before it had the whole response"
        return Outcome.PASSED, ""

    def may_send(self, size: int) -> bool:
        """Whether a piece of the request's body may leave; it is counted then."""
        if self.meter is not None and not self.meter.up(size):
            return False
        self.up += size
        return True

    def may_repeat(self, size: int) -> bool:
        """Whether the request's head may leave once more; it is counted then, as it was the first time."""
        return self.meter is None or self.meter.up(size)

    def may_receive(self, size: int) -> bool:
        """Whether a piece of the response's body may enter; it is counted then."""
        if self.meter is not None and not self.meter.down(size):
            return False
        self.down += size
        return True
