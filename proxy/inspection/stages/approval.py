"""Approval of a request: it stays pending, and nothing of it is sent, until it is approved.

The answer, the end of its client, or a change that makes the rules decide again wakes it.
"""

import asyncio
from typing import TYPE_CHECKING

from proxy.approvals.approval_request import describe_request
from proxy.approvals.protocol import ROUNDS, Answer, Result
from proxy.telemetry.events import CLIENT_LEFT
from rules.attempt import Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.approvals.approval_request import ApprovalRequest
    from proxy.approvals.client import ApprovalsClient, Ticket
    from proxy.approvals.leases import Grant
    from proxy.inspection.stages.request_context import RequestContext, RequestDecision
    from proxy.inspection.stages.stage import Session
    from proxy.request.request_head import Head
    from proxy.sandbox.sandbox_state import SandboxState
    from rules.attempt import Attempt
    from rules.decision import Decision, RequiredApproval


class PendingApproval:
    """Pending approval of one request. For one thread."""

    __slots__ = (
        "_about", "_answer", "_asking", "_client_left", "_rounds", "_ticket", "_woken", "approval", "grants", "request",
        "request_decision",
    )  # fmt: skip

    def __init__(
        self, asking: "ApprovalsClient", request: "RequestContext", request_decision: "RequestDecision"
    ) -> None:
        self.request = request
        self.request_decision = request_decision
        self.grants: tuple[Grant, ...] = ()  # so far
        self.approval = ""
        self._asking = asking
        self._about: tuple[RequiredApproval, ...] = ()
        self._ticket: Ticket | None = None
        self._answer: Answer | None = None
        self._client_left = False
        self._rounds = 0
        self._woken = asyncio.Event()

    @property
    def granted(self) -> frozenset[str]:
        """Digests of the rules granted so far."""
        return frozenset(grant.digest for grant in self.grants)

    def is_about(self, decision: "Decision") -> bool:
        """Whether the pending request is about exactly these rules."""
        return self._ticket is not None and decision.approval == self._about

    def ask(self, approval_request: "ApprovalRequest", decision: "Decision") -> None:
        """Submit an approval request in place of the previous one."""
        self.drop()
        self._rounds += 1
        self._about = decision.approval
        if self._rounds > ROUNDS:
            self._answered(Answer(0, Result.UNAVAILABLE, self.approval, why="it needs too many approvals in a row"))
        else:
            self._ticket = self._asking.submit(approval_request, self._answered)

    async def answer(self) -> Answer | None:
        """Wait for the answer; None: decide again, and keep waiting if the same approval is needed."""
        await self._woken.wait()
        self._woken.clear()
        answer, self._answer = self._answer, None
        if self._client_left:
            self.drop()
            return Answer(0, Result.TIMEOUT, self.approval, why=CLIENT_LEFT)
        if answer is not None:
            self.approval = answer.approval or self.approval
            self.grants += self._asking.leases.grants(answer.approval, answer.grants)
        return answer

    def wake(self, *, client_left: bool = False) -> None:
        """Have the request decided again: rules, date or taint have changed. `client_left`: its client has left."""
        self._client_left = self._client_left or client_left
        self._woken.set()

    def drop(self) -> None:
        """Withdraw the approval request. Idempotent."""
        if ticket := self._take_ticket():
            ticket.drop()

    def _take_ticket(self) -> "Ticket | None":
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self.approval = ticket.approval or self.approval
        return ticket

    def _answered(self, answer: Answer) -> None:
        self._take_ticket()
        self._answer = answer
        self._woken.set()


class PendingApprovals:
    """Pending approvals of one connection."""

    __slots__ = ("_waiting", "changed")

    def __init__(self) -> None:
        self._waiting: dict[str, PendingApproval] = {}  # by the keys of their requests
        self.changed: Callable[[bool], None] = lambda _: None  # called with whether there are any

    def begin(
        self, request: "RequestContext", request_decision: "RequestDecision", asking: "ApprovalsClient"
    ) -> PendingApproval:
        """Add a pending request, with the grants of an earlier wait."""
        waiting = request.approval
        if waiting is None:
            waiting = request.approval = self._waiting[request.key] = PendingApproval(asking, request, request_decision)
            self.changed(True)
        waiting.request_decision = request_decision
        return waiting

    def remove(self, waiting: PendingApproval) -> None:
        """Remove a request that is decided or whose connection is closed."""
        waiting.request.approval = None
        del self._waiting[waiting.request.key]
        waiting.drop()
        self.changed(bool(self._waiting))

    def remove_all(self) -> list[PendingApproval]:
        """Remove all: their connection is closed."""
        every = list(self._waiting.values())
        for waiting in every:
            self.remove(waiting)
        return every

    def decide_again(self) -> None:
        """Have all of them decided again."""
        for waiting in self._waiting.values():
            waiting.wake()

    def end_for_client(self, key: str | None = None) -> None:
        """Handle a client that no longer waits for a request, or for any."""
        for one, waiting in self._waiting.items():
            if key is None or one == key:
                waiting.wake(client_left=True)


def make_approval_request(
    session: "Session", request: "RequestContext", request_decision: "RequestDecision"
) -> "ApprovalRequest":
    """Return the approval request for a request, with the parsed part of its body."""
    attempt, sandbox, pending_body = request_decision.attempt, session.recorder.sandbox, request.pending_body
    assert attempt is not None
    process = None if session.attribution is None else session.attribution.process
    push, content = (pending_body.push, pending_body.content) if pending_body else (None, None)
    secrets = _secrets(sandbox, attempt, request.head, content)
    quiet = frozenset[str]() if request_decision.pushed is None else request_decision.pushed.quiet
    return describe_request(
        sandbox.sources,
        attempt,
        request_decision.decision,
        request.head,
        push,
        process,
        session.connection_event,
        secrets,
        quiet,
    )


def _secrets(sandbox: "SandboxState", attempt: "Attempt", head: "Head", content: bytes | None) -> tuple[str, ...]:
    """Return the ids of the secrets that would be injected into a request."""
    if sandbox.secret_injector is None or attempt.request is None:
        return ()
    if not attempt.request.body:
        content = b""
    tls = attempt.protocol is Protocol.TLS
    return sandbox.secret_injector.read(head, attempt.target, attempt.port, tls=tls, content=content).secrets
