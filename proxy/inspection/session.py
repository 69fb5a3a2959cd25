"""Requests of one client connection: decides on, records and reviews each, and records its end.

Home of invariant 6 for requests: `admit` records exactly one decision before anything passes, and `complete` records
once how a request ended. Nothing here touches a socket or mitmproxy.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.dlp.head_scan import Heads
from proxy.gate.block_page import Page, Refusal, page
from proxy.inspection.decide_request import (
    RuleInputs,
    attempts_of,
    decide,
    deny_unanswered,
    misuse,
    shown,
    standing,
    unclear,
)
from proxy.inspection.pipeline import stages_for
from proxy.inspection.stages.approval import PendingApprovals
from proxy.inspection.stages.limits import Limits
from proxy.inspection.stages.record import RequestRecord
from proxy.inspection.stages.request_context import NOTHING, RequestContext, RequestDecision
from proxy.inspection.stages.stage import Needs, RequestStoppedError
from proxy.request.messages import Unreadable, WebOrigin, advice_on_unreadable
from proxy.request.request_head import UnclearError, grpc_kind, may_trail, user_agent
from proxy.sandbox.rule_limits import Connections, cut_by
from proxy.telemetry.events import CLIENT_LEFT
from proxy.telemetry.journal.writer import JournalWriteError
from rules.decision import Decision, deny
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.dialing.connect_race import Hop
    from proxy.event_loop.turn import Sliced
    from proxy.request.git_push import Push
    from proxy.request.request_head import Head
    from proxy.sandbox.recorder import Recorder
    from proxy.supervisor_channel.channel import Attribution

UNTOLD = ""  # the event of what no event was written for


class Session:
    """Requests of one client connection."""

    __slots__ = (
        "_advice",
        "_approval",
        "_detail",
        "_looks",
        "approvals",
        "asked",
        "attribution",
        "cause",
        "client_left",
        "connections",
        "cut",
        "ending",
        "heads",
        "held",
        "holding",
        "open",
        "place",
        "record",
        "recorder",
        "refused",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 - what is known of a connection
        self,
        recorder: "Recorder",
        place: WebOrigin,
        cause: str,
        refused: Decision | None = None,
        detail: str = "",
        advice: str = "",
        attribution: "Attribution | None" = None,
        approval: str = "",
    ) -> None:
        """`detail`, `advice` and `approval` are for the pages of a connection that was `refused`.

        `attribution` says who opened it.
        """
        self._approval = approval
        self.approvals = PendingApprovals()
        self.cut: Callable[[frozenset[str]], None] = lambda _: None  # ends requests (by their keys) in the middle
        self.recorder = recorder
        self.place = place
        self.cause = cause  # id of the connection's decision event
        self.attribution = attribution
        self.refused = refused  # the connection was denied: its requests are told so, and nothing is decided again
        self._detail = detail
        self._advice = advice
        self.asked = 0  # requests so far
        self.ending: Reason | None = None  # why the connection didn't end by itself
        self.client_left = False  # its end, or its cut, was seen
        self.open: dict[str, RequestContext] = {}  # requests that were allowed, and whose end isn't recorded yet
        self.holding: dict[str, RequestContext] = {}  # ... that can't be decided before more of them is there
        self.held = 0  # bytes of bodies that are kept for those
        self.connections = Connections()  # whose limits count this one
        self.heads = Heads()  # that were looked at
        self._looks: RuleInputs | None = None
        self.record = RequestRecord(recorder, place, cause, attribution)

    def rule(
        self, request: RequestContext, *, push: "Push | None" = None, content: bytes | None = None
    ) -> RequestDecision:
        """Decide on a request without recording it; again when more of it is parsed: `push` or `content`."""
        self.asked += push is None and content is None
        sandbox, head = self.recorder.sandbox, request.head
        if self.refused is not None:
            request_decision = RequestDecision(self.refused, *shown(head), detail=self._detail, advice=self._advice)
            if where := misuse(sandbox, self.place, head):  # worse than what refused the connection
                decision = deny(sandbox.policy, Reason.SECRET_MISUSE)
                request_decision = replace(request_decision, decision=decision, detail=where, advice="", misused=True)
            return request_decision
        looks = self._looks
        if looks is None or looks.policy is not sandbox.policy:
            looks = self._looks = RuleInputs.of(sandbox.policy, self.place)
        return decide(
            sandbox,
            self.place,
            head,
            looks,
            body=request.body,
            push=push,
            content=content,
            granted=NOTHING if request.approval is None else request.approval.granted,
        )

    def may_trail(self, name: bytes) -> bool:
        """Whether a field may be a trailer. None may where rules match headers, as those are decided on before."""
        return may_trail(name) and self._looks is not None and not self._looks.headers

    def is_unnamed(self) -> bool:
        """Whether no rule and no secret names the host, so that credentials sent there are suspicious."""
        return not self.recorder.sandbox.policy.needs.names_host(self.place.target)

    def abandon(self, request: RequestContext) -> None:
        """Record a held request whose rest never came."""
        if self.holding.pop(request.key, None) is not None:
            problem = UnclearError("the request broke off")
            self.admit(request, unclear(self.recorder.sandbox, request.head, problem))

    def misread(self, head: "Head", problem: "UnclearError") -> Page:
        """Deny and record a request that can't be parsed; `head` holds what could be."""
        self.asked += 1
        if self.refused is not None:
            return self._page(RequestDecision(self.refused, *shown(head)), head, self.cause)
        request = RequestContext("", head, body=False)
        page = self.admit(request, unclear(self.recorder.sandbox, head, problem))
        assert page is not None
        return page

    def admit(
        self,
        request: RequestContext,
        request_decision: RequestDecision,
        via: str | None = None,
        address: str | None = None,
    ) -> Page | None:
        """Record the decision and return the page that refuses the request; None: it may pass.

        `via` is the proxy that it is to go through, `address` the one that is dialled first, where that is known.
        """
        head, record = request.head, self.record
        if self.refused is not None:
            if request_decision.misused:
                record.tampered(self.cause, request_decision.detail)
            return self._page(request_decision, head, self.cause)
        request_decision, passes = self._through_stages(request, request_decision)
        request.http = record.http(request_decision, head)
        try:
            request.cause = cause = record.decided(
                request_decision, request.http, via, address if passes else request_decision.refused_at
            )
        except JournalWriteError:  # whatever was decided: what can't be recorded doesn't pass (invariant 6)
            if passes:
                self._leave_stages(request)
            decision = deny(self.recorder.sandbox.policy, Reason.JOURNAL_FAILED)
            return self._page(RequestDecision(decision, request_decision.method, request_decision.path), head, UNTOLD)
        if request_decision.misused:
            record.tampered(cause, request_decision.detail)
        if passes:
            request.begin(request_decision.decision.rules, attempts_of(request_decision), via)
            self.open[request.key] = request
        try:
            for stage in request.stages:
                stage.recorded(request_decision)
        except RequestStoppedError as stopped:
            passes, request.by = False, stopped.decision
            self.complete(request, None, detail=str(stopped))
            request_decision = replace(request_decision, decision=stopped.decision, detail=str(stopped))
        return None if passes else self._page(request_decision, head, cause)

    def _through_stages(
        self, request: RequestContext, request_decision: RequestDecision
    ) -> tuple[RequestDecision, bool]:
        """Pass an allowed request to its stages, up to the first that denies it; also returns whether none did."""
        if not request_decision.decision.outcome.passes or request_decision.asked is None:
            return request_decision, False
        decision, early = request_decision.decision, request.stages
        secrets = self.recorder.sandbox.secret_injector is not None
        needs = Needs(decision.scan, decision.trust, bool(decision.limits), bool(request_decision.grants), secrets)
        entered = {type(stage) for stage in early}
        stages = [kind(self, request) for kind in stages_for(needs) if kind not in entered]
        request.enter((*stages, *early))  # which are the last, as in the list
        for number, stage in enumerate(stages, 1):
            try:
                request_decision = stage.admit(request_decision)
            except BaseException:  # nothing passes, and nothing of a grant stays taken
                self._leave_stages(request)
                raise
            if not request_decision.decision.outcome.passes:
                self._leave_stages(request)
                request.enter((*stages[:number], *early))  # the others have no part in what never comes to them
                return request_decision, False
        return request_decision, True

    @staticmethod
    def _leave_stages(request: RequestContext) -> None:
        for stage in request.stages:
            stage.end()

    def reviewing(self, leads_to: "Mapping[str, Hop]") -> "Sliced[frozenset[str]]":
        """Decide again on requests under way; returns those to end. `leads_to`: where each was sent."""
        for request in list(self.open.values()):
            yield from self._reviewing(request, leads_to.get(request.key))
        return frozenset(request.key for request in self.open.values() if request.by is not None)

    def _reviewing(self, request: RequestContext, leads_to: "Hop | None") -> "Sliced[None]":
        request.reviewed = True
        now = yield from standing(self.recorder.sandbox, request.attempts, leads_to)
        request.by = now.denial or request.by
        if now.limits and not any(type(stage) is Limits for stage in request.stages):
            request.enter((Limits(self, request), *request.stages))
        for stage in request.stages:
            stage.review(now)
        sandbox, place = self.recorder.sandbox, self.place
        if now.untrusted is not None and not sandbox.record_read(
            now.untrusted, place.target, place.port, request.cause
        ):
            request.by = deny(sandbox.policy, Reason.APPROVAL_UNAVAILABLE)

    def may_go(self, request: RequestContext, leads_to: "Hop | None") -> "Sliced[bool]":
        """Whether a request may be sent to where its connection leads: there may be other rules since it was allowed.

        A review sees no address while there is only a dial, so then it is asked for here.
        """
        if not request.is_open:
            return False
        request.address = None if isinstance(leads_to, tuple) else leads_to  # a proxy's is its own to know
        sandbox, by = self.recorder.sandbox, None
        while request.reviewed and by != (now := (sandbox.policy, sandbox.calendar.today(), sandbox.tainted)):
            by = now  # others may come into force between two slices
            yield from self._reviewing(request, leads_to)
        return request.by is None

    def revoke_all(self, decision: Decision) -> None:
        """Mark the connection as denied, with everything on it."""
        self.ending = decision.reason
        for request in self.open.values():
            request.by = decision

    def stop(self, request: RequestContext, stopped: RequestStoppedError) -> Page:
        """Record that a stage ends a request; returns the page to end it with."""
        detail, event = str(stopped), UNTOLD
        if request.is_open:
            request.by, event = stopped.decision, request.cause
        return self._page(RequestDecision(stopped.decision, *shown(request.head), detail=detail), request.head, event)

    def stray(self, request: RequestContext, detail: str) -> None:
        """Record a protocol error of an allowed request."""
        if request.is_open:
            request.by = deny(self.recorder.sandbox.policy, Reason.PROTOCOL_MISMATCH)._replace(rules=request.rules)
            self.complete(request, None, detail=detail)

    def fail(self, request: RequestContext, reason: Reason, detail: str) -> Page:
        """Record that an allowed request failed, and why; returns the page for the client."""
        advice = advice_on_unreadable(self.place) if isinstance(detail, Unreadable) else ""
        decision = Decision(verdict=Verdict.ALLOW, outcome=Outcome.FAILED, reason=reason)
        request_decision = RequestDecision(decision, *shown(request.head), detail=detail, advice=advice)
        page = self._page(request_decision, request.head, UNTOLD)
        self.complete(request, page.status, Outcome.FAILED, reason, detail)
        return page

    def complete(
        self,
        request: RequestContext,
        status: int | None,
        outcome: Outcome = Outcome.PASSED,
        reason: Reason | None = None,
        detail: str = "",
    ) -> None:
        """Record how a request ended, and in words what went wrong; nothing of one that was refused or ended before.

        `status` None: that of the response which was passed on, if there was one.
        """
        if not request.is_open:
            return
        request.is_open = False
        del self.open[request.key]
        for stage in request.stages:
            stage.end()
        by = request.by
        if by is None and reason is Reason.LIMIT_EXCEEDED and request.meter is not None:
            now = Decision(revision=self.recorder.sandbox.policy.revision)
            by = cut_by(now, request.meter.rule_over())
        if by is not None:
            outcome, reason = Outcome.BLOCKED, by.reason
        self.record.completed(request, request.status if status is None else status, outcome, reason, by, detail)

    def left(self, request: RequestContext) -> None:
        """Record the end of a request whose client has left, or whose connection the gate ends."""
        if not request.is_open or request.by is not None or self.ending is not None:
            self.complete(request, None, Outcome.FAILED, self.ending)
        else:
            outcome, detail = request.left()
            self.complete(request, None, outcome, detail=detail)

    def end(self) -> None:
        """Record the end of every open request: their connection is closed."""
        for request in list(self.holding.values()):
            self.abandon(request)
        for waiting in self.approvals.settle_all():
            request_decision = deny_unanswered(
                self.recorder.sandbox,
                waiting.request_decision,
                self.ending or Reason.APPROVAL_TIMEOUT,
                CLIENT_LEFT if self.ending is None else "",
            )
            self.admit(waiting.request, replace(request_decision, approval=waiting.approval))
        self.connections.close()
        for request in list(self.open.values()):
            if self.client_left:
                self.left(request)
            else:
                self.complete(request, None, Outcome.FAILED, self.ending)

    def _page(self, request_decision: RequestDecision, head: "Head", event: str) -> Page:
        attempt = f"{request_decision.method} {self.place}{request_decision.path}"
        refusal = Refusal(
            request_decision.decision, attempt, event, request_decision.detail, request_decision.status,
            self.place.target, request_decision.advice,
            request_decision.approval or self._approval, self.recorder.sandbox.has_info_api,
        )  # fmt: skip
        return page(refusal, user_agent(head), grpc=grpc_kind(head))
