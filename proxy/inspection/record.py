"""What is recorded of the requests of one connection, and the request that was let out, until its answer is through.

How much is said of each: `log: pattern`, and secrets that were found. Whether something is told, and that it is told
once, is the session's (invariant 6).
"""

import time
from typing import TYPE_CHECKING, Final

from proxy.dialing.connecting import written
from proxy.inspection.leaking import NOT_LOOKED, Looked
from proxy.request.request_head import named
from proxy.telemetry.events import Git, Http, Kind
from rules.names import HostName
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from proxy.approvals.leases import Lease
    from proxy.inspection.judging import Place, Ruling
    from proxy.inspection.leaking import Outgoing
    from proxy.request.request_head import Head
    from proxy.sandbox.rule_limits import Meter
    from proxy.supervisor_channel.channel import Whose
    from proxy.telemetry.journal.recorder import Recorder
    from rules.addresses import Address
    from rules.attempt import Attempt
    from rules.decision import Decision


# Reasons that stand for many causes, each with a remedy of its own
_SAID: Final = frozenset({Reason.PROTOCOL_MISMATCH, Reason.AMBIGUOUS_REQUEST, Reason.SECRET_NOT_SENT})


class Teller:
    """Tells of one connection's requests: where it leads, and who opened it, is in each event."""

    __slots__ = ("_address", "_cause", "_name", "_place", "_recorder", "_whose")

    def __init__(self, recorder: "Recorder", place: "Place", cause: str, whose: "Whose | None") -> None:
        """`cause` is the event of the connection."""
        self._recorder = recorder
        self._place = place
        self._cause = cause
        self._whose = whose
        target = place.target
        self._name: str | None = target if isinstance(target, HostName) else None
        self._address = None if self._name else str(target)

    def http(self, ruling: "Ruling", head: "Head") -> Http:
        """Return what events say of a request: the host that was asked for, which may not be this one.

        Of the path no more than the rules want told: `log: pattern`.
        """
        host = self._place.authority if ruling.asked else named(head)
        pattern = ruling.decision.pattern
        path = ruling.path if pattern is None else pattern
        said = Http(ruling.method, host.decode("utf-8", "replace"), path, pattern=pattern is not None)
        request = None if ruling.attempt is None else ruling.attempt.request
        if request is None:
            return said
        query = len(request.path.partition("?")[2].encode("utf-8", "surrogateescape"))
        return said._replace(body=request.body, websocket=request.websocket, query=query)

    def decided(self, ruling: "Ruling", http: Http, via: str | None, address: str | None = None) -> str:
        """Record the decision and return the event's id. Raises JournalFailed.

        `address`: the first that is dialled for a name, if the request passes.
        """
        return self._recorder.decided(
            Kind.REQUEST_DECIDED,
            ruling.decision,
            name=self._name,
            address=(address if ruling.decision.passes else ruling.refused_at) or self._address,
            port=self._place.port,
            protocol=self._place.protocol,
            http=http,
            git=_git(ruling),
            process=None if self._whose is None else self._whose.process,
            cause=self._cause,
            via=via,
            detail=_detail(ruling),
            approval=ruling.approval,
        )

    def completed(  # noqa: PLR0917 - what is known of an end
        self,
        exchange: "Exchange",
        status: int | None,
        outcome: "Outcome",
        reason: "Reason | None",
        by: "Decision | None",
        detail: str,
    ) -> None:
        """Tell how a request ended. Never raises."""
        http = exchange.http
        self._recorder.completed(
            exchange.cause,
            name=self._name,
            address=self._address if exchange.address is None else written(exchange.address),
            port=self._place.port,
            protocol=self._place.protocol,
            http=Http(http.method, http.host, http.path, status, pattern=http.pattern),
            up=exchange.up,
            down=exchange.down,
            seconds=time.monotonic() - exchange.started,
            outcome=outcome,
            reason=reason,
            by=by,
            via=exchange.via,
            detail=detail,
        )

    def leaked(self, cause: str, http: Http, rules: tuple[str, ...], detail: str, *, blocked: bool) -> None:
        """Tell that a secret was found in what leaves. Never raises."""
        self._recorder.leaked(
            cause, detail, rules=rules, blocked=blocked, name=self._name, address=self._address,
            port=self._place.port, protocol=self._place.protocol, http=http,
        )  # fmt: skip

    def tampered(self, cause: str, detail: str) -> None:
        """Tell that a placeholder is where none belongs. Never raises."""
        self._recorder.tampered(cause, detail, name=self._name, address=self._address, port=self._place.port)


def _git(ruling: "Ruling") -> Git | None:
    """Return what a request is in git's protocol, as events say it; nothing where they don't say its path, either."""
    request = None if ruling.attempt is None else ruling.attempt.request
    if request is None or request.git is None or ruling.asked is None:
        return None
    if ruling.decision.pattern is not None or ruling.path != ruling.asked.path:  # `log: pattern`, or a secret is in it
        return None
    refs = () if ruling.pushed is None else ruling.pushed.commands
    return Git(request.git.service, request.git.repo, refs)


def _detail(ruling: "Ruling") -> str:
    """Return what an event says of a ruling in words; not which ref of a push counts, where that isn't told."""
    if not (ruling.undialled or ruling.approval or ruling.decision.reason in _SAID):
        return ""
    pushed = ruling.pushed
    if pushed is None or ruling.detail != pushed.detail:
        return ruling.detail
    counts = pushed.attempts[0].request
    quiet = counts is None or counts.git is None or counts.git.ref in pushed.quiet
    return "" if quiet or _git(ruling) is None else ruling.detail


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
