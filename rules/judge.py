"""From what the rules say to what is to happen: outcome, reason, and how a connection is carried out."""

from rules.attempt import Attempt, Protocol
from rules.decision import Decision, Near
from rules.plan import Plan
from rules.precedence import Finding
from rules.settings import Settings
from rules.verdicts import Mode, Outcome, Reason, TlsMode, Verdict


class Judge:
    """Makes decisions under one policy's settings and revision."""

    __slots__ = ("revision", "settings")

    def __init__(self, settings: Settings, revision: str) -> None:
        self.settings = settings
        self.revision = revision

    def audits(self, finding: Finding) -> bool:
        """Whether audit mode lets out what `finding` blocks: only what no rule decided, or a default rule."""
        if finding.verdict is None:
            return self.settings.mode is Mode.AUDIT
        held_by_default = finding.by_default and finding.holds_back
        return held_by_default and all((rule.mode or self.settings.mode) is Mode.AUDIT for rule in finding.rules)

    def leniency(self, finding: Finding) -> int:
        """Rank findings: what lets more out is higher."""
        if finding.lets_out:
            return 4 if finding.verdict is Verdict.ALLOW else 3
        if self.audits(finding):
            return 2
        return 1 if finding.holds_back else 0

    def on_connection(self, finding: Finding, plan: Plan, attempt: Attempt) -> Decision:
        """Decide a connection."""
        return self._decision(finding, plan, inspect=self._inspects(finding, plan, attempt))

    def on_request(self, finding: Finding, plan: Plan) -> Decision:
        """Decide a request; that it was seen means that its connection is inspected."""
        return self._decision(finding, plan, inspect=True)

    def refusal(self, reason: Reason, rules: tuple[str, ...] = (), *, inspect: bool = True) -> Decision:
        """Deny for a reason that is not the rules'; `rules` are those that hold it back as well."""
        return Decision(
            Verdict.DENY, Outcome.BLOCKED, reason, rules, self.revision, inspect, self.settings.idle_timeout
        )

    def with_near(self, decision: Decision, near: Near) -> Decision:
        """Give a decision that no rule made the rule that came nearest."""
        return Decision(
            decision.verdict, decision.outcome, decision.reason, decision.rules, decision.revision, decision.inspect,
            decision.idle_timeout, near,
        )  # fmt: skip

    def _inspects(self, finding: Finding, plan: Plan, attempt: Attempt) -> bool:
        """Whether the connection's requests are to be read, or, if it is refused, whether a page may say why."""
        if attempt.protocol is not Protocol.TLS:
            return attempt.protocol is Protocol.HTTP
        if plan.looks_at_requests:
            return True
        if finding.lets_out:
            return not all(rule.splices(attempt.port) for rule in finding.letting_out)
        return not (self.audits(finding) and self.settings.tls is TlsMode.SPLICE)

    def _decision(self, finding: Finding, plan: Plan, *, inspect: bool) -> Decision:
        if plan.not_public and not finding.lets_out:
            return self._not_public(finding, plan, inspect=inspect)
        timeouts = [rule.idle_timeout for rule in finding.letting_out if rule.idle_timeout is not None]
        return Decision(
            verdict=finding.verdict if finding.verdict is not None and finding.lets_out else Verdict.DENY,
            outcome=self._outcome(finding),
            reason=_reason(finding),
            rules=tuple(rule.id for rule in finding.rules),
            revision=self.revision,
            inspect=inspect,
            idle_timeout=min(timeouts, default=self.settings.idle_timeout),
            why=next((rule.why for rule in finding.rules if rule.why), ""),
        )

    def _not_public(self, finding: Finding, plan: Plan, *, inspect: bool) -> Decision:
        """Refuse a non-public address that no rule lets out here; audit mode is about public ones only."""
        reason = _reason(finding) if plan.opened else Reason.NON_PUBLIC_ADDRESS
        return self.refusal(reason, tuple(rule.id for rule in finding.rules), inspect=inspect)

    def _outcome(self, finding: Finding) -> Outcome:
        if finding.lets_out:
            return Outcome.PASSED
        return Outcome.WOULD_BLOCK if self.audits(finding) else Outcome.BLOCKED


def _reason(finding: Finding) -> Reason:
    if finding.verdict is None:
        return Reason.NO_RULE
    if finding.verdict is Verdict.ASK:
        return Reason.APPROVAL_UNAVAILABLE
    return Reason.DEFAULT_RULE if finding.by_default else Reason.RULE
