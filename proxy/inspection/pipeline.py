"""Pipeline of a request, step by step; the gate and the mitmproxy addon take every request through it.

    parse      bytes become a head                                            http1, http2
    normalise  it says one host, one length and one thing, or it is refused   request_head
    buffer     where the decision depends on its body: all of it, or refs     stages.pending_body, stages.git
    decide     the rules allow, deny or ask, also about each ref of a push    decide_request
    approve    it waits for approval, and is decided again                    stages.approval
    resolve    its addresses are found, and the rules check each              dialing.dialer
    STAGES     may deny it; then its decision is recorded                     Session.record_decision
    send       what is sent goes through the stages in their order
    receive    what the client gets goes through SecretInjection, the only stage that receives
    record     how it ended                                                   Session.complete

A name is looked up before the decision is recorded, as its addresses are a part of that (invariant 9). None is looked
up for a request that the rules deny, nor, unless a rule spells it out, for one that isn't approved yet.
"""

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from proxy.approvals.protocol import Result, reason_of
from proxy.dialing.address_check import DialError, deny_undialable
from proxy.dialing.connect_race import address_text
from proxy.dialing.dialer import as_approved, futile_error
from proxy.event_loop.turn import run_at_once, run_in_turns
from proxy.gate.block_page import is_for_git
from proxy.inspection.decide_request import deny_unanswered, fail_undialled, unclear
from proxy.inspection.stages.approval import make_approval_request
from proxy.inspection.stages.git import FEW_REFS, report
from proxy.inspection.stages.limits import GrantStage, LimitStage, TaintStage
from proxy.inspection.stages.pending_body import PendingContent, PendingPush
from proxy.inspection.stages.secret_injection import SecretInjection
from proxy.inspection.stages.secret_scan import SecretScan
from proxy.inspection.stages.stage import Needs, Stage
from proxy.inspection.upstream_proxy import route_through_proxy
from proxy.request.messages import head_to_send
from proxy.request.request_head import UnclearError
from rules.settings import ProxyDestination
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.approvals.client import ApprovalsClient
    from proxy.dialing.connect_race import Hop
    from proxy.event_loop.turn import Sliced
    from proxy.inspection.session import Session
    from proxy.inspection.stages.request_context import RequestContext, RequestDecision
    from rules.attempt import Attempt
    from rules.matching.policy import Policy

type Found = tuple[Hop, ...] | DialError

# In this order they may deny, and change what is sent. Bytes are counted before any of them sees a part of a body
# (`RequestContext.may_send`), so that a piece beyond a limit is cut and not looked at.
STAGES: Final[tuple[type[Stage], ...]] = (
    SecretScan,  # first: what stays for a secret in it counts against no limit, and uses up nothing of a grant
    GrantStage,
    LimitStage,  # the last that denies: it counts only what goes on
    TaintStage,  # once the decision is recorded, and before anything can be read
    # Last, so that no other stage sees a value. `Stream.to_client` calls receiving stages in this order, too: another
    # one that receives would see values before this one masks them.
    SecretInjection,
)


@lru_cache(maxsize=1024)
def stages_for(needs: Needs) -> "tuple[type[Stage], ...]":
    """Return the stages that such requests need, in their order."""
    return tuple(stage for stage in STAGES if stage.needed(needs))


class Pipeline:
    """Takes the requests of one session through every step before they are sent."""

    def __init__(
        self, session: "Session", addresses: "Callable[[Attempt], Found | Awaitable[Found]]", *, can_buffer: bool = True
    ) -> None:
        """`addresses` returns the addresses that an attempt may be dialed at, or why there are none; it may wait.

        `can_buffer`: the caller can buffer a request's body; else a request whose decision needs its body is denied.
        """
        self._session = session
        self._addresses = addresses
        self._can_buffer = can_buffer

    def decide(self, request: "RequestContext") -> "Awaitable[None] | None":
        """Decide on a request: afterwards it has a refusal, or addresses to dial.

        If it has neither, its decision needs `pending_body`: then call this again once that is complete.
        """
        # From the start: pages and informational responses that are sent before a decision go through its mask, too.
        if not request.stages and self._session.recorder.sandbox.secret_injector is not None:
            request.enter((SecretInjection(self._session, request),))
        request_decision = self._evaluate(request)
        if request_decision is None:
            return None
        asking = self._session.recorder.sandbox.approvals
        if asking is not None and request_decision.decision.needs_approval and request_decision.attempt is not None:
            return self._ask(request, request_decision, asking)
        return self._look_up_and_record(request, request_decision)

    def _evaluate(self, request: "RequestContext") -> "RequestDecision | None":
        """Return the rules' decision on what was read of a request; None: it needs more of the body."""
        session, pending_body = self._session, request.pending_body
        read = (
            (pending_body.push, pending_body.content)
            if pending_body is not None and pending_body.problem is None
            else (None, None)
        )
        request_decision = session.evaluate(request, push=read[0], content=read[1])
        if pending_body is None:
            if not request_decision.refs_wanted and not request_decision.body_wanted:
                return request_decision
            pending_body = PendingPush.of(request.head) if request_decision.refs_wanted else PendingContent()
            if not self._can_buffer:
                pending_body.problem = UnclearError("no bodies are read here", Reason.PROTOCOL_MISMATCH)
            if pending_body.problem is not None and request_decision.refs_for_events:
                return request_decision
            pending_body.attempt = request_decision.attempt
            request.pending_body = pending_body
            if pending_body.problem is None:
                session.awaiting_body[request.key] = request
                return None
        else:
            session.awaiting_body.pop(request.key, None)
            if (
                pending_body.problem is None
                and (request_decision.refs_wanted or request_decision.body_wanted)
                and not request_decision.refs_for_events
            ):
                pending_body.problem = UnclearError(
                    "it is a push, and its body also has to be checked for a signature or a secret"
                )
        may_pass = (
            request_decision.decision.outcome.passes or request_decision.decision.needs_approval
        ) and not request_decision.refs_for_events
        if pending_body.problem is not None and may_pass:
            return unclear(session.recorder.sandbox, request.head, pending_body.problem)
        return request_decision

    async def _ask(
        self, request: "RequestContext", request_decision: "RequestDecision", asking: "ApprovalsClient"
    ) -> None:
        """Submit approval requests until the answers, or the rules by then, decide."""
        session = self._session
        waiting = session.approvals.begin(request, request_decision, asking)
        while request_decision.decision.needs_approval:
            if not waiting.is_about(request_decision.decision):
                failure = await self._approval_problem(request_decision)
                if request.approval is not waiting:
                    return  # its connection is gone, and that was told
                if failure is not None:
                    request_decision = fail_undialled(request_decision, failure)
                    request_decision = replace(
                        request_decision, decision=deny_undialable(request_decision.decision, failure)
                    )
                    break
                waiting.ask(make_approval_request(session, request, request_decision), request_decision.decision)
            answer = await waiting.answer()
            if answer is not None and answer.result is not Result.GRANTED:
                request_decision = deny_unanswered(
                    session.recorder.sandbox, request_decision, reason_of(answer), answer.why
                )
                break
            await self._decide_refs_again(request)
            if request.approval is not waiting:
                return  # its connection is gone, and that was told
            found = self._evaluate(request)
            if found is None:  # under other rules more has to be read first
                session.approvals.remove(waiting)
                return
            request_decision = waiting.request_decision = found
        pending = self._look_up_and_record(request, request_decision)
        if pending is not None:
            await pending

    async def _decide_refs_again(self, request: "RequestContext") -> None:
        """Decide again on the refs of a push, in slices, under the rules now in force."""
        pending_body = request.pending_body
        if pending_body is None or pending_body.attempt is None:
            return
        sandbox = self._session.recorder.sandbox
        pending_body.attempt = pending_body.attempt._replace(
            at=sandbox.calendar.today(), tainted=sandbox.tainted, granted=request.granted
        )
        await run_in_turns(pending_body.decide_refs_ahead(self._session))

    async def _approval_problem(self, request_decision: "RequestDecision") -> DialError | None:
        """Return why an approval would open nothing; None: it may."""
        assert request_decision.attempt is not None
        would = as_approved(self._session.recorder.sandbox.policy, request_decision.attempt, request_decision.decision)
        if would is None:
            return None
        found = self._addresses(would)
        return futile_error(found if isinstance(found, tuple | DialError) else await found)

    def _look_up_and_record(
        self, request: "RequestContext", request_decision: "RequestDecision"
    ) -> "Awaitable[None] | None":
        """Record the decision; for an allowed request, look up its addresses first."""
        if request_decision.attempt is None or not request_decision.decision.outcome.passes:
            return self._record_and_prepare(request, request_decision, ())
        found = self._addresses(request_decision.attempt)
        pushed = request_decision.pushed
        if not isinstance(found, tuple | DialError) or (pushed and len(pushed.attempts) > FEW_REFS):
            return self._finish_after_lookup(request, request_decision, self._session.recorder.sandbox.policy, found)
        if pushed is not None:
            found = run_at_once(among(self._session.recorder.sandbox.policy, pushed.attempts, found))
        return self._record_and_prepare(request, request_decision, found)

    async def _finish_after_lookup(
        self,
        request: "RequestContext",
        request_decision: "RequestDecision",
        policy: "Policy",
        found: "Found | Awaitable[Found]",
    ) -> None:
        sandbox, attempt = self._session.recorder.sandbox, request_decision.attempt
        addresses = found if isinstance(found, tuple | DialError) else await found
        if request_decision.pushed is not None:
            addresses = await run_in_turns(among(policy, request_decision.pushed.attempts, addresses))
        same = attempt is not None and sandbox.calendar.today() == attempt.at and sandbox.tainted is attempt.tainted
        if sandbox.policy is policy and same:
            pending = self._record_and_prepare(request, request_decision, addresses)
        else:  # by now it is for other rules, or another day, and nothing was told
            await self._decide_refs_again(request)
            pending = self.decide(request)
        if pending is not None:
            await pending

    def _record_and_prepare(
        self, request: "RequestContext", request_decision: "RequestDecision", found: "Found"
    ) -> "Awaitable[None] | None":
        """Record the decision; then set the request's page, or what it needs to be sent.

        If its address needs an approval, ask for that instead.
        """
        session, head = self._session, request.head
        if isinstance(found, DialError) and found.pending_decision is not None:
            asking = session.recorder.sandbox.approvals
            if asking is not None:
                return self._ask(request, replace(request_decision, decision=found.pending_decision), asking)
        if (waiting := request.approval) is not None:
            session.approvals.remove(waiting)
            request_decision = replace(request_decision, approval=waiting.approval, grants=waiting.grants)
        via = address = None
        if isinstance(found, DialError):
            request_decision, found = fail_undialled(request_decision, found), ()
        elif found:
            if isinstance(found[0], ProxyDestination):
                found = route_through_proxy(found, head, request_decision)
                via = str(found[0])
            else:
                address = address_text(found[0])
        page = session.record_decision(request, request_decision, via, address)
        if page is not None:
            told = report(request_decision.pushed, page) if request_decision.pushed and is_for_git(page) else None
            request.refusal = told or page
            request.reads_on = told is not None
            request.is_last = request_decision.resource is None
            return None
        assert request_decision.resource is not None
        packed = not (
            request_decision.resource.websocket and request_decision.decision.scan.blocks
        )  # ... messages can't be looked into
        request.head = head_to_send(head, request_decision.resource, session.origin, extensions=packed)
        request.addresses = found
        policy = session.recorder.sandbox.policy
        every = policy.settings.upstream_ca
        files = request_decision.decision.ca if every is None else (*request_decision.decision.ca, every)
        if files:
            request.authorities = tuple(policy.authorities[path] for path in files)
        return None


def among(policy: "Policy", attempts: "tuple[Attempt, ...]", found: "Found") -> "Sliced[Found]":
    """Return the found addresses that every ref of a push may be sent to."""
    if isinstance(found, DialError):
        return found
    for attempt in attempts[1:]:
        reasons = [policy.check_address(attempt, address) for address in found]
        found = tuple(address for address, reason in zip(found, reasons, strict=True) if reason is None)
        if not found:
            return DialError(next(filter(None, reasons), Reason.UNRESOLVED), "no address will do for every ref")
        yield
    return found
