"""Requests of one client connection: decides on, records and reviews each, and records its end.

Home of invariant 6 for requests: `record_decision` records exactly one decision before anything passes, and `complete`
records once how a request ended. Nothing here touches a socket or mitmproxy.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.dlp.head_scan import Heads
from proxy.gate.block_page import Page, Refusal, page
from proxy.inspection.decide_request import (
    RuleInputs,
    attempts_of,
    decide,
    decide_request_again,
    deny_unanswered,
    misuse,
    shown,
    unclear,
)
from proxy.inspection.pipeline import stages_for
from proxy.inspection.stages.approval import PendingApprovals
from proxy.inspection.stages.limits import LimitStage
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
        "_rule_inputs",
        "approvals",
        "attribution",
        "awaiting_body",
        "client_left",
        "connection_event",
        "connections",
        "cut",
        "ending",
        "heads",
        "open",
        "origin",
        "pending_body_bytes",
        "record",
        "recorder",
        "refused",
        "request_count",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 - what is known of a connection
        self,
        recorder: "Recorder",
        origin: WebOrigin,
        connection_event: str,
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
        self.origin = origin
        self.connection_event = connection_event  # id of the connection's decision event
        self.attribution = attribution
        self.refused = refused  # the connection's denial, which every request on it gets as its answer
        self._detail = detail
        self._advice = advice
        self.request_count = 0  # requests so far
        self.ending: Reason | None = None  # why the connection didn't end by itself
        self.client_left = False  # its end, or its cut, was seen
        self.open: dict[str, RequestContext] = {}  # allowed requests whose end isn't recorded yet, by key
        self.awaiting_body: dict[str, RequestContext] = {}  # requests whose decision needs their body, by key
        self.pending_body_bytes = 0  # bytes buffered of such requests' bodies
        self.connections = Connections()  # whose limits count this one
        self.heads = Heads()  # scans their heads
        self._rule_inputs: RuleInputs | None = None
        self.record = RequestRecord(recorder, origin, connection_event, attribution)

    def evaluate(
        self, request: RequestContext, *, push: "Push | None" = None, content: bytes | None = None
    ) -> RequestDecision:
        """Return the rules' decision on a request, unrecorded; again once `push` or `content` of its body is read."""
        self.request_count += push is None and content is None
        sandbox, head = self.recorder.sandbox, request.head
        if self.refused is not None:
            request_decision = RequestDecision(self.refused, *shown(head), detail=self._detail, advice=self._advice)
            if where := misuse(sandbox, self.origin, head):  # worse than what refused the connection
                decision = deny(sandbox.policy, Reason.SECRET_MISUSE)
                request_decision = replace(request_decision, decision=decision, detail=where, advice="", misused=True)
            return request_decision
        inputs = self._rule_inputs
        if inputs is None or inputs.policy is not sandbox.policy:
            inputs = self._rule_inputs = RuleInputs.of(sandbox.policy, self.origin)
        return decide(
            sandbox,
            self.origin,
            head,
            inputs,
            body=request.body,
            push=push,
            content=content,
            granted=NOTHING if request.approval is None else request.approval.granted,
        )

    def may_trail(self, name: bytes) -> bool:
        """Whether a field may be a trailer. None may where rules match headers, as those are decided on before."""
        return may_trail(name) and self._rule_inputs is not None and not self._rule_inputs.headers

    def is_unnamed(self) -> bool:
        """Whether no rule and no secret names the host, so that credentials sent there are suspicious."""
        return not self.recorder.sandbox.policy.needs.names_host(self.origin.target)

    def abandon(self, request: RequestContext) -> None:
        """Deny and record a request whose decision needs its body, as the rest of the body never came."""
        if self.awaiting_body.pop(request.key, None) is not None:
            problem = UnclearError("the request broke off")
            self.record_decision(request, unclear(self.recorder.sandbox, request.head, problem))

    def misread(self, head: "Head", problem: "UnclearError") -> Page:
        """Deny and record a request that can't be parsed; `head` holds what could be."""
        self.request_count += 1
        if self.refused is not None:
            return self._page(RequestDecision(self.refused, *shown(head)), head, self.connection_event)
        request = RequestContext("", head, body=False)
        page = self.record_decision(request, unclear(self.recorder.sandbox, head, problem))
        assert page is not None
        return page

    def record_decision(
        self,
        request: RequestContext,
        request_decision: RequestDecision,
        via: str | None = None,
        address: str | None = None,
    ) -> Page | None:
        """Run the stages on an allowed request, and record the decision, also of a denied one.

        Returns the page that refuses the request; None: it may pass. `via` is the proxy that it is to go through,
        `address` the one that is dialed first, where that is known.
        """
        head, record = request.head, self.record
        if self.refused is not None:
            if request_decision.misused:
                record.record_tampering(self.connection_event, request_decision.detail)
            return self._page(request_decision, head, self.connection_event)
        request_decision, passes = self._through_stages(request, request_decision)
        request.http = record.http(request_decision, head)
        try:
            request.event = event = record.decided(
                request_decision, request.http, via, address if passes else request_decision.refused_at
            )
        except JournalWriteError:  # invariant 6; `on_journal_failure: continue` has fewer of these (Recorder.decided)
            if passes:
                self._leave_stages(request)
            decision = deny(self.recorder.sandbox.policy, Reason.JOURNAL_FAILED)
            return self._page(RequestDecision(decision, request_decision.method, request_decision.path), head, UNTOLD)
        if request_decision.misused:
            record.record_tampering(event, request_decision.detail)
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
        return None if passes else self._page(request_decision, head, event)

    def _through_stages(
        self, request: RequestContext, request_decision: RequestDecision
    ) -> tuple[RequestDecision, bool]:
        """Pass an allowed request to its stages, up to the first that denies it; also returns whether none did."""
        if not request_decision.decision.outcome.passes or request_decision.resource is None:
            return request_decision, False
        # SecretInjection may be entered already (`Pipeline.decide`). It is the last of STAGES, so the order holds.
        decision, already_entered = request_decision.decision, request.stages
        secrets = self.recorder.sandbox.secret_injector is not None
        needs = Needs(decision.scan, decision.trust, bool(decision.limits), bool(request_decision.grants), secrets)
        entered = {type(stage) for stage in already_entered}
        stages = [kind(self, request) for kind in stages_for(needs) if kind not in entered]
        request.enter((*stages, *already_entered))
        for number, stage in enumerate(stages, 1):
            try:
                request_decision = stage.admit(request_decision)
            except BaseException:  # nothing passes, and nothing of a grant stays taken
                self._leave_stages(request)
                raise
            if not request_decision.decision.outcome.passes:
                self._leave_stages(request)
                request.enter((*stages[:number], *already_entered))  # the stages behind it never saw the request
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
        result = yield from decide_request_again(self.recorder.sandbox, request.attempts, leads_to)
        request.by = result.denial or request.by
        if result.limits and not any(type(stage) is LimitStage for stage in request.stages):
            request.enter((LimitStage(self, request), *request.stages))
        for stage in request.stages:
            stage.review(result)
        sandbox, origin = self.recorder.sandbox, self.origin
        if result.untrusted is not None and not sandbox.record_read(
            result.untrusted, origin.target, origin.port, request.event
        ):
            request.by = deny(sandbox.policy, Reason.APPROVAL_UNAVAILABLE)

    def may_go(self, request: RequestContext, leads_to: "Hop | None") -> "Sliced[bool]":
        """Whether a request may be sent to `leads_to`: the rules may have changed since it was allowed.

        A review during the dial knows no address, so this repeats the review with the address.
        """
        if not request.is_open:
            return False
        request.address = None if isinstance(leads_to, tuple) else leads_to  # a proxy's is its own to know
        sandbox, reviewed_under = self.recorder.sandbox, None
        while request.reviewed and reviewed_under != (
            current := (sandbox.policy, sandbox.calendar.today(), sandbox.tainted)
        ):
            reviewed_under = current  # other rules may come into force between two slices
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
            request.by, event = stopped.decision, request.event
        return self._page(RequestDecision(stopped.decision, *shown(request.head), detail=detail), request.head, event)

    def stray(self, request: RequestContext, detail: str) -> None:
        """Record a protocol error of an allowed request."""
        if request.is_open:
            request.by = deny(self.recorder.sandbox.policy, Reason.PROTOCOL_MISMATCH)._replace(rules=request.rules)
            self.complete(request, None, detail=detail)

    def fail(self, request: RequestContext, reason: Reason, detail: str) -> Page:
        """Record that an allowed request failed, and why; returns the page for the client."""
        advice = advice_on_unreadable(self.origin) if isinstance(detail, Unreadable) else ""
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

    def complete_for_leaving_client(self, request: RequestContext) -> None:
        """Record the end of a request whose client has left, or whose connection the gate ends."""
        if not request.is_open or request.by is not None or self.ending is not None:
            self.complete(request, None, Outcome.FAILED, self.ending)
        else:
            outcome, detail = request.outcome_when_client_leaves()
            self.complete(request, None, outcome, detail=detail)

    def end(self) -> None:
        """Record the end of every open request: their connection is closed."""
        for request in list(self.awaiting_body.values()):
            self.abandon(request)
        for waiting in self.approvals.remove_all():
            request_decision = deny_unanswered(
                self.recorder.sandbox,
                waiting.request_decision,
                self.ending or Reason.APPROVAL_TIMEOUT,
                CLIENT_LEFT if self.ending is None else "",
            )
            self.record_decision(waiting.request, replace(request_decision, approval=waiting.approval))
        self.connections.close()
        for request in list(self.open.values()):
            if self.client_left:
                self.complete_for_leaving_client(request)
            else:
                self.complete(request, None, Outcome.FAILED, self.ending)

    def _page(self, request_decision: RequestDecision, head: "Head", event: str) -> Page:
        attempt = f"{request_decision.method} {self.origin}{request_decision.path}"
        refusal = Refusal(
            request_decision.decision, attempt, event, request_decision.detail, request_decision.status,
            self.origin.target, request_decision.advice,
            request_decision.approval or self._approval, self.recorder.sandbox.has_info_api,
        )  # fmt: skip
        return page(refusal, user_agent(head), grpc=grpc_kind(head))
