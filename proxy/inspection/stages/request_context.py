"""One request and its response on an inspected connection: its decision, stages and counts until its end."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import Attempt
from rules.decision import Decision
from rules.verdicts import Outcome, Scan

if TYPE_CHECKING:
    from http import HTTPStatus

    from proxy.approvals.leases import Grant
    from proxy.dialing.connect_race import Hop
    from proxy.event_loop.turn import Sliced
    from proxy.gate.block_page import Page
    from proxy.inspection.stages.approval import PendingApproval
    from proxy.inspection.stages.git import PushDecision
    from proxy.inspection.stages.pending_body import PendingBody
    from proxy.inspection.stages.secret_scan import HeadScan
    from proxy.inspection.stages.stage import RequestPart, Stage
    from proxy.request.request_head import Head, RequestedResource
    from proxy.sandbox.rule_limits import Meter
    from proxy.telemetry.events import Http
    from rules.decision import Limits
    from rules.values.addresses import Address


NOTHING: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class RequestDecision:
    """Decision on one request, with the fields for its event and its block page."""

    decision: Decision
    method: str
    path: str
    resource: "RequestedResource | None" = None  # None: the head can't be read, or asks for another host
    attempt: Attempt | None = None  # the attempt that the rules decided on
    detail: str = ""
    status: "HTTPStatus | None" = None
    refs_wanted: bool = False  # nothing is decided yet: it is a push, whose refs have to be read first
    pushed: "PushDecision | None" = None  # the decision on each ref of a push
    refs_for_events: bool = False  # only events need the refs: where they can't be read, it is decided without them
    body_wanted: bool = False  # nothing is decided yet: the secrets that it carries depend on its body
    misused: bool = False  # a placeholder is where it doesn't belong, and `detail` says where
    undialled: bool = False  # it is refused for where it would be dialled, and `detail` is told with the decision
    refused_at: str | None = None  # the address that it is refused for
    advice: str = ""  # what can be done about that, where the reason doesn't say it
    approval: str = ""  # id of its approval request
    grants: "tuple[Grant, ...]" = ()  # under which it passes


class ReviewResult(NamedTuple):
    """Result of a review of a request under way."""

    denial: "Decision | None"  # by which it may not go on
    limits: "tuple[tuple[str, Limits], ...]" = ()  # that it goes on under
    scan: Scan = Scan.BLOCK  # what is done about secrets in what is still to come
    untrusted: "Decision | None" = None  # that lets it read from an untrusted source, if one does


class RequestContext:
    """State of one request. `key` identifies it in this process."""

    __slots__ = (
        "_length", "address", "addresses", "approval", "attempts", "authorities", "body", "by", "closing",
        "down", "event", "head", "http", "is_last", "is_open", "key", "meter", "pending_body", "reads_on",
        "receivers", "refusal", "reviewed", "rules", "seen", "senders", "server_proven", "stages", "started",
        "status", "up", "via",
    )  # fmt: skip

    http: "Http"  # what events say of it, once it is decided

    def __init__(self, key: str, head: "Head", *, body: bool) -> None:
        self.key = key
        self.head = head  # as the client sent it; once the request is allowed, as it is forwarded
        self.body = body  # whether a body follows, or may follow

        # until it is decided
        self.seen: dict[bool, HeadScan] | None = None  # results of scanning its head, by whether the scan was strict
        self.pending_body: PendingBody | None = None  # its body, where the decision depends on that
        self.approval: PendingApproval | None = None  # the approval request that it waits for

        # the decision: `refusal`, or `addresses`; while it has neither, it waits for `pending_body`
        self.refusal: Page | None = None
        self.is_last = False  # it can't be parsed, so nothing behind it on the connection can be
        self.reads_on = False  # the refusal is sent after the whole request has come: git reads no response earlier
        self.addresses: tuple[Hop, ...] | None = None  # those that may be dialled for it
        self.authorities: tuple[bytes, ...] = ()  # certificates that its server may be verified with, those of `ca:`

        # while it is under way
        self.is_open = False  # it was allowed, and its end isn't recorded yet
        self.event = ""  # id of its decision event
        self.rules: tuple[str, ...] = ()  # ids of the rules that allowed it
        self.attempts: tuple[Attempt, ...] = ()  # the attempts that the rules decided on
        self.via: str | None = None  # the proxy that it goes through
        self.address: Address | None = None  # where it was sent; None: not yet, or to a proxy, which alone knows it
        self.server_proven = False  # its server has proved, over TLS, to be the checked name
        self.by: Decision | None = None  # the decision that ends it: of a stage, or of a later policy or day
        self.reviewed = False  # rules or the day have changed since its addresses were found
        self.stages: tuple[Stage, ...] = ()
        self.senders: tuple[Stage, ...] = ()  # the stages that change or stop what is sent
        self.receivers: tuple[Stage, ...] = ()  # the stages that change what is received
        self.meter: Meter | None = None  # counts its bytes, if its rules have limits
        self.started = 0.0
        self.up = self.down = 0  # bytes of body
        self.status: int | None = None  # of the response, once its head was passed on
        self.closing = False  # it is a WebSocket, and a Close frame has begun: how it ends says nothing
        self._length: int | None = None  # bytes of the response's body, where its head says so

    @property
    def granted(self) -> frozenset[str]:
        """Digests of the rules granted so far."""
        return NOTHING if self.approval is None else self.approval.granted

    def may_use(self, *addresses: "Hop") -> bool:
        """Whether a connection to one of these addresses may carry it."""
        return all(address in (self.addresses or ()) for address in addresses)

    def may_trust(self, authorities: tuple[bytes, ...]) -> bool:
        """Whether a connection verified with these CA certificates, too, may carry it."""
        return set(authorities) <= set(self.authorities)

    def enter(self, stages: "tuple[Stage, ...]") -> None:
        """Set the request's stages."""
        self.stages = stages
        self.senders = tuple([stage for stage in stages if stage.sends])
        self.receivers = tuple([stage for stage in stages if stage.receives])

    def begin(self, rules: tuple[str, ...], attempts: "tuple[Attempt, ...]", via: str | None) -> None:
        """Mark the request as allowed and recorded."""
        self.rules, self.attempts, self.via = rules, attempts, via
        self.is_open, self.started, self.seen = True, time.monotonic(), None

    def parts_to_send(self, part: "RequestPart") -> "Sliced[list[RequestPart]]":
        """Return the parts to send in place of `part`. Raises RequestStoppedError: send nothing, the request ends."""
        parts = [part]
        for stage in self.senders:
            if self.by is not None:
                return []
            following: list[RequestPart] = []
            for one in parts:
                following += yield from stage.send(one)
            parts = following
        return parts

    def note_response(self, status: int, length: int | None) -> None:
        """Record the status of a forwarded response, and its length."""
        self.status, self._length = status, length

    def outcome_when_client_leaves(self) -> tuple[Outcome, str]:
        """Return the outcome and its detail text, if the client leaves now.

        A server may say only later that a response ends where its length said (RFC 9113 section 8.1). Of a response
        without a length, as a stream of events or a WebSocket, only the client knows how much of it it wants.
        """
        if self.status is None:
            return Outcome.FAILED, "the client left before the server answered"
        if self.closing:
            return Outcome.PASSED, ""
        if self._length is None:
            return Outcome.PASSED, "the client left before the end"
        if self.down < self._length:
            return Outcome.FAILED, "the client left before it had the whole response"
        return Outcome.PASSED, ""

    def may_send(self, size: int) -> bool:
        """Whether a piece of the request's body may be sent; if so, it is counted."""
        if not self.is_open or (self.meter is not None and not self.meter.up(size)):
            return False
        self.up += size
        return True

    def may_repeat(self) -> bool:
        """Whether the request's head may be sent again; if so, it is counted."""
        return self.is_open and (self.meter is None or self.meter.up(self.head.size))

    def may_receive(self, size: int) -> bool:
        """Whether a piece of the response's body may be forwarded; if so, it is counted."""
        if not self.is_open or (self.meter is not None and not self.meter.down(size)):
            return False
        self.down += size
        return True
