"""Buffers the body of a request whose decision depends on it; nothing of it is sent before the decision.

`PendingPush` reads the refs of a push; `PendingContent` keeps the whole body of another request. Both forward the body
unchanged.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage

from proxy.inspection.stages.git import decide_refs_ahead
from proxy.request.git_push import Push
from proxy.request.request_head import Head, UnclearError, values
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.event_loop.turn import Sliced
    from proxy.inspection.stages.stage import RequestPart, Session
    from rules.attempt import Attempt

MOST_HELD: Final = 4 << 20  # bytes of one client connection, which may have many requests at a time
_PACKED: Final = frozenset({"gzip", "x-gzip"})  # what git's server knows (http-backend.c)


class PendingBody(ABC):
    """Body of one request, as far as it has arrived."""

    push: Push | None = None
    attempt: "Attempt | None" = None  # what was decided on at its head
    content: bytes | None = None  # all of it

    def __init__(self) -> None:
        self.problem: UnclearError | None = None  # why it can't be decided by what it says
        self.events: list[RequestPart] = []
        self.size = 0

    def take(self, event: "RequestPart", session: "Session") -> "Sliced[bool]":
        """Add the next piece; returns whether the request can be decided now."""
        self.events.append(event)
        complete = False
        try:
            if isinstance(event, RequestData):
                self.size += len(event.data)
                session.pending_body_bytes += len(event.data)
            complete = yield from self.read(event)
        except UnclearError as problem:
            self.problem = problem
        if session.pending_body_bytes > MOST_HELD:
            self.problem = UnclearError(
                "more than 4 MB of request bodies are held on this connection", Reason.LIMIT_EXCEEDED
            )
        return complete or self.problem is not None

    @abstractmethod
    def read(self, event: "RequestPart") -> "Sliced[bool]":
        """Parse the next piece; returns whether that suffices for a decision. Raises UnclearError."""

    def decide_refs_ahead(self, session: "Session") -> "Sliced[None]":
        """Decide on many refs in slices, before the push itself is decided."""
        if self.push is not None and self.attempt is not None and self.problem is None:
            yield from decide_refs_ahead(session.recorder.sandbox.policy, self.attempt, self.push)

    def let_go(self, session: "Session") -> None:
        """Drop the body."""
        session.pending_body_bytes -= self.size
        self.size = 0
        self.events.clear()
        self.content = None


class PendingPush(PendingBody):
    """Body of a git push, up to the end of its refs."""

    def __init__(self, push: Push) -> None:
        super().__init__()
        self.push: Push = push

    @classmethod
    def of(cls, head: Head) -> "PendingPush":
        """Start to parse a push; a content coding that git doesn't know is an error."""
        codings = values(head, b"content-encoding")
        held = cls(Push(gzip=bool(codings)))
        if codings and (len(codings) > 1 or codings[0].lower() not in _PACKED):
            held.problem = UnclearError("the push has a content coding other than gzip")
        return held

    def read(self, event: "RequestPart") -> "Sliced[bool]":
        """Parse its refs."""
        if isinstance(event, RequestData):
            yield from self.push.feeding(event.data)
        elif isinstance(event, RequestEndOfMessage):
            self.push.end()
        return self.push.complete


class PendingContent(PendingBody):
    """Whole body: signed by its hash, or a form that may have a secret in it."""

    def read(self, event: "RequestPart") -> "Sliced[bool]":
        """Wait for the end of the body."""
        yield from ()
        if isinstance(event, RequestEndOfMessage):
            self.content = b"".join(piece.data for piece in self.events if isinstance(piece, RequestData))
        return self.content is not None
