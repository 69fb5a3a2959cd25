"""Requests whose decision takes a while: a body has to be read first, or people are asked. None of it goes anywhere.

Of a push its refs are read first, of others all of the body, which is passed on as it came. A request that people are
asked about is woken by an answer, by its client's going away, and by whatever makes the rules be asked again.
"""

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage, RequestTrailers

from proxy.approvals.protocol import Answer, Result
from proxy.approvals.request_builder import ROUNDS, about_request
from proxy.inspection.git import judge_ahead
from proxy.request.git_push import Push
from proxy.request.request_head import Head, Unclear, values
from proxy.telemetry.events import GONE
from rules.attempt import Protocol
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.approvals.approval_request import Question
    from proxy.approvals.client import Asking, Ticket
    from proxy.approvals.leases import Grant
    from proxy.event_loop.slices import Sliced
    from proxy.inspection.judging import Ruling
    from proxy.inspection.session import Session
    from proxy.sandbox.tenant import Tenant
    from proxy.supervisor_channel.channel import Whose
    from proxy.telemetry.journal.recorder import Recorder
    from rules.attempt import Attempt
    from rules.decision import Asks, Decision


type Piece = RequestData | RequestTrailers | RequestEndOfMessage

MOST_HELD: Final = 4 << 20  # bytes of one client connection, which may have many requests at a time
_PACKED: Final = frozenset({"gzip", "x-gzip"})  # what git's server knows (http-backend.c)


class Held(ABC):
    """What has come so far of one request's body."""

    push: Push | None = None
    attempt: "Attempt | None" = None  # what was decided on at its head
    content: bytes | None = None  # all of it

    def __init__(self) -> None:
        self.problem: Unclear | None = None  # why it can't be decided by what it says
        self.events: list[Piece] = []
        self.size = 0

    def taking(self, event: Piece, session: "Session") -> "Sliced[bool]":
        """Take the next piece; returns whether the request can be decided now."""
        self.events.append(event)
        complete = False
        try:
            if isinstance(event, RequestData):
                self.size += len(event.data)
                session.held += len(event.data)
            complete = yield from self.reading(event)
        except Unclear as problem:
            self.problem = problem
        if session.held > MOST_HELD:
            self.problem = Unclear("more than 4 MB of bodies wait on this connection", Reason.LIMIT_EXCEEDED)
        return complete or self.problem is not None

    @abstractmethod
    def reading(self, event: Piece) -> "Sliced[bool]":
        """Read the next piece; returns whether that is enough. Raises Unclear."""

    def judging(self, session: "Session") -> "Sliced[None]":
        """Decide on many refs in slices, before the push itself is decided."""
        if self.push is not None and self.attempt is not None and self.problem is None:
            yield from judge_ahead(session.recorder.tenant.policy, self.attempt, self.push)

    def let_go(self, session: "Session") -> None:
        """Keep nothing any more."""
        session.held -= self.size
        self.size = 0
        self.events.clear()


class HeldPush(Held):
    """A push, up to the end of its refs."""

    def __init__(self, push: Push) -> None:
        super().__init__()
        self.push: Push = push

    @classmethod
    def of(cls, head: Head) -> "HeldPush":
        """Begin with a push; there is a problem already if its body is in a coding that git doesn't know."""
        codings = values(head, b"content-encoding")
        held = cls(Push(gzip=bool(codings)))
        if codings and (len(codings) > 1 or codings[0].lower() not in _PACKED):
            held.problem = Unclear("the body of the push is packed in another way than with gzip")
        return held

    def reading(self, event: Piece) -> "Sliced[bool]":
        """Read its refs."""
        if isinstance(event, RequestData):
            yield from self.push.feeding(event.data)
        elif isinstance(event, RequestEndOfMessage):
            self.push.end()
        return self.push.complete


class HeldBody(Held):
    """A body that is signed by its hash, or a form that may have a secret in it."""

    def reading(self, event: Piece) -> "Sliced[bool]":
        """Wait for its end."""
        yield from ()
        if isinstance(event, RequestEndOfMessage):
            self.content = b"".join(piece.data for piece in self.events if isinstance(piece, RequestData))
        return self.content is not None


class Waiting:
    """One such request, until it is decided. For one thread."""

    __slots__ = ("_about", "_answer", "_asking", "_gone", "_rounds", "_ticket", "_woken", "approval", "grants", "head",
                 "ruling")  # fmt: skip

    def __init__(self, asking: "Asking", head: "Head", ruling: "Ruling") -> None:
        self.head = head
        self.ruling = ruling
        self.grants: tuple[Grant, ...] = ()  # so far
        self.approval = ""
        self._asking = asking
        self._about: tuple[Asks, ...] = ()
        self._ticket: Ticket | None = None
        self._answer: Answer | None = None
        self._gone = False
        self._rounds = 0
        self._woken = asyncio.Event()

    @property
    def granted(self) -> frozenset[str]:
        """The digests of the rules that are satisfied so far."""
        return frozenset(grant.digest for grant in self.grants)

    def is_about(self, decision: "Decision") -> bool:
        """Whether these very rules are being asked about."""
        return self._ticket is not None and decision.approval == self._about

    def ask(self, question: "Question", decision: "Decision") -> None:
        """Ask, in place of whatever was asked before."""
        self.drop()
        self._rounds += 1
        self._about = decision.approval
        if self._rounds > ROUNDS:
            self._answered(
                Answer(0, Result.UNAVAILABLE, self.approval, why="there is no end of what is asked about it")
            )
        else:
            self._ticket = self._asking.ask(question, self._answered)

    async def word(self) -> Answer | None:
        """Wait for the answer; None: decide again, and wait on if the same is asked then."""
        await self._woken.wait()
        self._woken.clear()
        answer, self._answer = self._answer, None
        if self._gone:
            self.drop()
            return Answer(0, Result.TIMEOUT, self.approval, why=GONE)
        if answer is not None:
            self.approval = answer.approval or self.approval
            self.grants += self._asking.passes.grants(answer.approval, answer.grants)
        return answer

    def look_again(self) -> None:
        """Have it decided again: other rules are in force, it is another day, or the task has read something."""
        self._woken.set()

    def leave(self) -> None:
        """Take note that its client doesn't wait any more."""
        self._gone = True
        self._woken.set()

    def drop(self) -> None:
        """Wait for no answer. Idempotent."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self.approval = ticket.approval or self.approval
            ticket.drop()

    def _answered(self, answer: Answer) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self.approval = ticket.approval or self.approval
        self._answer = answer
        self._woken.set()


class Waitings:
    """All that wait of one connection, by their keys."""

    __slots__ = ("_cause", "_recorder", "_waiting", "_whose", "changed")

    def __init__(self, recorder: "Recorder", cause: str, whose: "Whose | None") -> None:
        """`cause` is the event of the connection, `whose` says who opened it."""
        self._recorder = recorder
        self._cause = cause
        self._whose = whose
        self._waiting: dict[str, Waiting] = {}
        self.changed: Callable[[bool], None] = lambda _: None  # is told whether there are any

    def begin(self, key: str, head: "Head", ruling: "Ruling", asking: "Asking") -> Waiting:
        """Note a request that people are asked about; with what they have granted, where it waited before."""
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = Waiting(asking, head, ruling)
            self.changed(True)
        waiting.ruling = ruling
        return waiting

    def has(self, key: str, waiting: Waiting) -> bool:
        """Whether that request still waits."""
        return self._waiting.get(key) is waiting

    def question(self, ruling: "Ruling", head: "Head", held: "Held | None") -> "Question":
        """Say what they are asked; `held` is what was read of the request's body."""
        attempt, tenant = ruling.attempt, self._recorder.tenant
        assert attempt is not None
        process = None if self._whose is None else self._whose.process
        push, content = (held.push, held.content) if held else (None, None)
        secrets = _secrets(tenant, attempt, head, content)
        quiet = frozenset[str]() if ruling.pushed is None else ruling.pushed.quiet
        return about_request(tenant.sources, attempt, ruling.decision, head, push, process, self._cause, secrets, quiet)

    def granted(self, key: str) -> frozenset[str]:
        """Return the digests of the rules that they have granted a request so far."""
        waiting = self._waiting.get(key)
        return frozenset() if waiting is None else waiting.granted

    def settle(self, key: str) -> Waiting | None:
        """Forget that a request waited: it is decided now. Returns what came of it, if it did."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting.drop()
            self.changed(bool(self._waiting))
        return waiting

    def settle_all(self) -> list[Waiting]:
        """Forget all of them: their connection is gone."""
        return [waiting for key in list(self._waiting) if (waiting := self.settle(key)) is not None]

    def look_again(self) -> None:
        """Have all of them decided again."""
        for waiting in self._waiting.values():
            waiting.look_again()

    def leave(self, key: str | None = None) -> None:
        """Take note that a client doesn't wait any more for a request, or for any."""
        for one in (self._waiting.get(key),) if key is not None else tuple(self._waiting.values()):
            if one is not None:
                one.leave()


def _secrets(tenant: "Tenant", attempt: "Attempt", head: "Head", content: bytes | None) -> tuple[str, ...]:
    """Return the ids of the secrets that a request leaves with, as the broker will put them in."""
    if tenant.broker is None or attempt.request is None:
        return ()
    if not attempt.request.body:
        content = b""
    tls = attempt.protocol is Protocol.TLS
    return tenant.broker.read(head, attempt.target, attempt.port, tls=tls, content=content).secrets
