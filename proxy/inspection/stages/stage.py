"""Base class of the stages: each handles one aspect of an allowed request and its response."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseTrailers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mitmproxy.proxy.layers.http._base import HttpEvent

    from proxy.dlp.head_scan import Heads
    from proxy.event_loop.turn import Sliced
    from proxy.inspection.stages.record import RequestRecord
    from proxy.inspection.stages.request_context import RequestContext, RequestDecision, ReviewResult
    from proxy.request.messages import WebOrigin
    from proxy.request.request_head import Head
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.rule_limits import Connections
    from proxy.supervisor_channel.channel import Attribution
    from rules.decision import Decision
    from rules.verdicts import Scan, Trust

type RequestPart = RequestData | RequestTrailers | RequestEndOfMessage  # what follows a head
type ResponsePart = ResponseData | ResponseTrailers | ResponseEndOfMessage


class RequestStoppedError(Exception):
    """A stage ends an allowed request; the text gives the reason, for the page and the event."""

    def __init__(self, decision: "Decision", detail: str) -> None:
        super().__init__(detail)
        self.decision = decision


class Needs(NamedTuple):
    """Properties of a decision and its task that determine the stages."""

    scan: "Scan"
    trust: "Trust"
    limits: bool  # it has some
    grants: bool  # people have approved it
    secrets: bool  # the task has some


class Session(Protocol):
    """The part of `proxy.inspection.session` that stages use."""

    recorder: "Recorder"
    record: "RequestRecord"
    origin: "WebOrigin"
    connection_event: str  # id of the connection's decision event
    attribution: "Attribution | None"
    refused: "Decision | None"  # what denied the connection
    pending_body_bytes: int  # bytes of bodies that are kept for a decision
    connections: "Connections"
    heads: "Heads"
    cut: "Callable[[frozenset[str]], None]"

    def is_unnamed(self) -> bool:
        """Whether no rule and no secret names the host."""
        ...


class Stage:
    """Base of the stages, which override the methods that they need. One object serves one request."""

    __slots__ = ("request", "session")

    sends = False  # overrides `request_head` or `send`
    receives = False  # overrides `receive`

    def __init__(self, session: "Session", request: "RequestContext") -> None:
        self.session = session
        self.request = request

    @staticmethod
    def needed(needs: Needs) -> bool:
        """Whether such requests need the stage."""
        raise NotImplementedError

    def admit(self, request_decision: "RequestDecision") -> "RequestDecision":
        """Deny the request, or pass it to the next stage, before its decision is recorded."""
        return request_decision

    def recorded(self, request_decision: "RequestDecision") -> None:
        """Handle the recorded decision, perhaps a denial by this stage. Raises RequestStoppedError."""

    def request_head(self, head: "Head") -> "Head":
        """Return the head to send."""
        return head

    def send(self, part: RequestPart) -> "Sliced[list[RequestPart]]":
        """Return the parts to send in place of `part`. Raises RequestStoppedError: send nothing, the request ends."""
        yield from ()
        return [part]

    def receive(self, event: "HttpEvent") -> "Iterator[HttpEvent]":
        """Yield what the client gets in place of a part of the response, also of its head."""
        yield event

    def review(self, result: "ReviewResult") -> None:
        """Apply other rules, with their `result` for the request; sets `request.by` to end the request."""

    def end(self) -> None:
        """Release resources: the request has ended, or was denied after all."""
