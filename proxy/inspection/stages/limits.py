"""Stages that count what a request uses (grants, limits of rules), and record untrusted sources."""

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


class Grants(Stage):
    """Ends a request with the first of the grants that it passes under; denies it where one has ended already."""

    __slots__ = ("_lease",)

    def __init__(self, session: "Session", request: "RequestContext") -> None:
        super().__init__(session, request)
        self._lease: Lease | None = None

    @staticmethod
    def needed(needs: "Needs") -> bool:
        """Only where people have approved it."""
        return needs.grants

    def admit(self, ruling: "RequestDecision") -> "RequestDecision":
        """Enter the grants."""
        sandbox = self.session.recorder.sandbox
        self._lease = sandbox.lease(ruling.grants, self._over)
        if self._lease is not None:
            return ruling
        decision = ruling.decision
        by = deny(sandbox.policy, Reason.EXPIRED)._replace(rules=decision.rules, pattern=decision.pattern)
        return replace(ruling, decision=by, detail="its approval has ended meanwhile")

    def _over(self, grant: "Grant") -> None:
        """End the request. Called from the loop."""
        if self.request.is_open:
            self.request.by = deny(self.session.recorder.sandbox.policy, Reason.EXPIRED)._replace(rules=(grant.rule,))
            self.session.cut(frozenset({self.request.key}))

    def end(self) -> None:
        """Leave the grants."""
        if self._lease is not None:
            self._lease.end()


class Limits(Stage):
    """Counts a request against `limits:` of its rules and what its grants have left; its bytes count by its meter."""

    __slots__ = ()

    @staticmethod
    def needed(needs: "Needs") -> bool:
        """Only where there are limits."""
        return needs.limits or needs.grants

    def admit(self, ruling: "RequestDecision") -> "RequestDecision":
        """Count it; deny it where a limit is used up."""
        session, left = self.session, budgets(ruling.grants)
        if not ruling.decision.limits and not left:
            return ruling
        size = self.request.head.size
        found = session.recorder.sandbox.meters.admit(ruling.decision.limits, session.connections, size, left)
        if isinstance(found, Exceeded):
            return replace(ruling, decision=exceeded(ruling.decision, found), detail=str(found))
        self.request.meter = found
        return ruling

    def review(self, now: "ReviewResult") -> None:
        """Go on under the limits of the rules in force now."""
        if self.request.by is not None:
            return
        sandbox = self.session.recorder.sandbox
        found = sandbox.meters.go_on(now.limits, self.session.connections, self.request.meter)
        if isinstance(found, Exceeded):
            self.request.by = deny(sandbox.policy, Reason.LIMIT_EXCEEDED)._replace(rules=(found.rule,))
        else:
            self.request.meter = found


class Taint(Stage):
    """Notes that the task is about to read what nobody vouches for; what can't be noted isn't read."""

    __slots__ = ()

    @staticmethod
    def needed(needs: "Needs") -> bool:
        """Only where a rule that allows it doesn't trust the source."""
        return needs.trust is not Trust.TRUSTED

    def recorded(self, ruling: "RequestDecision") -> None:
        """Note it. Raises RequestStoppedError."""
        sandbox, place = self.session.recorder.sandbox, self.session.place
        if not sandbox.record_read(ruling.decision, place.target, place.port, self.request.cause):
            raise RequestStoppedError(deny(sandbox.policy, Reason.APPROVAL_UNAVAILABLE), TAINT_NOT_RECORDED)
