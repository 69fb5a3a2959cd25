"""Stages for grants, limits of rules, and reads from untrusted sources."""

from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.inspection.stages.stage import RequestStoppedError, Stage
from proxy.sandbox.rule_limits import Exceeded, budgets, exceeded
from proxy.sandbox.sandbox_state import TAINT_NOT_RECORDED
from rules.decision import deny
from rules.verdicts import Reason, Trust

if TYPE_CHECKING:
    from proxy.approvals.leases import Grant, Lease
    from proxy.inspection.stages.request_context import RequestContext, RequestDecision, ReviewResult
    from proxy.inspection.stages.stage import Needs, Session


class GrantStage(Stage):
    """Ends a request when the first of its grants ends; denies it if one has ended already."""

    __slots__ = ("_lease",)

    def __init__(self, session: "Session", request: "RequestContext") -> None:
        super().__init__(session, request)
        self._lease: Lease | None = None

    @staticmethod
    def needed(needs: "Needs") -> bool:
        """Only for approved requests."""
        return needs.grants

    def admit(self, request_decision: "RequestDecision") -> "RequestDecision":
        """Take a lease on the grants."""
        sandbox = self.session.recorder.sandbox
        self._lease = sandbox.lease(request_decision.grants, self._end_with_grant)
        if self._lease is not None:
            return request_decision
        decision = request_decision.decision
        by = deny(sandbox.policy, Reason.EXPIRED)._replace(rules=decision.rules, pattern=decision.pattern)
        return replace(request_decision, decision=by, detail="its approval has ended")

    def _end_with_grant(self, grant: "Grant") -> None:
        """End the request. Called from the loop."""
        if self.request.is_open:
            self.request.by = deny(self.session.recorder.sandbox.policy, Reason.EXPIRED)._replace(rules=(grant.rule,))
            self.session.cut(frozenset({self.request.key}))

    def end(self) -> None:
        """End the lease."""
        if self._lease is not None:
            self._lease.end()


class LimitStage(Stage):
    """Counts a request and its bytes against the `limits:` of its rules and the budgets of its grants."""

    __slots__ = ()

    @staticmethod
    def needed(needs: "Needs") -> bool:
        """Only where there are limits."""
        return needs.limits or needs.grants

    def admit(self, request_decision: "RequestDecision") -> "RequestDecision":
        """Count the request; deny it if a limit is used up."""
        session, grant_budgets = self.session, budgets(request_decision.grants)
        if not request_decision.decision.limits and not grant_budgets:
            return request_decision
        size = self.request.head.size
        found = session.recorder.sandbox.meters.admit(
            request_decision.decision.limits, session.connections, size, grant_budgets
        )
        if isinstance(found, Exceeded):
            return replace(request_decision, decision=exceeded(request_decision.decision, found), detail=str(found))
        self.request.meter = found
        return request_decision

    def review(self, result: "ReviewResult") -> None:
        """Apply the limits now in force."""
        if self.request.by is not None:
            return
        sandbox = self.session.recorder.sandbox
        found = sandbox.meters.apply_limits(result.limits, self.session.connections, self.request.meter)
        if isinstance(found, Exceeded):
            self.request.by = deny(sandbox.policy, Reason.LIMIT_EXCEEDED)._replace(rules=(found.rule,))
        else:
            self.request.meter = found


class TaintStage(Stage):
    """Records that the task reads from an untrusted source; if that fails, blocks the request."""

    __slots__ = ()

    @staticmethod
    def needed(needs: "Needs") -> bool:
        """Only where a rule that allows it doesn't trust the source."""
        return needs.trust is not Trust.TRUSTED

    def recorded(self, request_decision: "RequestDecision") -> None:
        """Record the read. Raises RequestStoppedError."""
        sandbox, origin = self.session.recorder.sandbox, self.session.origin
        if not sandbox.record_read(request_decision.decision, origin.target, origin.port, self.request.event):
            raise RequestStoppedError(deny(sandbox.policy, Reason.APPROVAL_UNAVAILABLE), TAINT_NOT_RECORDED)
