"""Explains the decision on one attempt, in sentences and as a value for JSON.

Every rule about the target is shown with whether it matches, by the reference evaluator (`rules.matching.reference`)
and not by the compiled policy: where the two differ, a test fails.
"""

from typing import Any, NamedTuple

from rules.attempt import Attempt
from rules.decision import ApprovalTerms, Decision, Limits
from rules.explain.reasons import describe_reason
from rules.explain.sentences import explain_attempt, explain_run
from rules.loading.cases import AttemptText, verdict_of
from rules.matching.layers import Layer
from rules.matching.plan import PASSES, Leniency, is_settled
from rules.matching.policy import Policy
from rules.matching.precedence import Finding, Match, weigh
from rules.matching.reference import ConsideredRule, consider, covers_target, has_ended, is_closed, is_granted
from rules.names import InvalidNameError
from rules.paths import Reading, readings
from rules.problems import escape_unprintable
from rules.verdicts import Reason


class Explanation(NamedTuple):
    """A decision and what led to it."""

    question: AttemptText
    attempt: Attempt | None  # None: the host is no name and no address, or it is a program
    decision: Decision
    considered: tuple[ConsideredRule, ...] = ()
    proxied: bool = False  # whether the rules have an upstream proxy, and the attempt may go somewhere
    via: str | None = None  # the proxy that it goes through; None: it is dialled directly
    objecting: tuple[Layer, ...] = ()  # the layers that don't let it out, where that is what decides
    depends_on_taint: bool = False  # whether it matters to any rule what a task has read

    def lines(self) -> list[str]:
        """Return the explanation as sentences, one a line, the verdict first."""
        tell = explain_attempt if self.question.run is None else explain_run
        return [escape_unprintable(line) for line in tell(self, verdict_of(self.decision))]

    def value(self) -> dict[str, Any]:
        """Return the explanation as a value for JSON."""
        decision, attempt, caller = self.decision, self.attempt, self.question.caller
        return {
            "attempt": self.question.text,
            "target": None if attempt is None else str(attempt.target),
            "port": self.question.port or None,
            "record": self.question.record,
            "task": caller.task,
            "labels": dict(caller.labels),
            "tainted": caller.tainted,
            "at": None if caller.at is None else caller.at.isoformat(),
            "protocol": None if attempt is None else attempt.protocol.value,
            "verdict": verdict_of(decision).value,
            "outcome": decision.outcome.value,
            "reason": decision.reason.value,
            "meaning": describe_reason(decision.reason, None if attempt is None else attempt.target),
            "rules": list(decision.rules),
            "why": decision.why,
            "inspect": decision.inspect,
            "scan": decision.scan.value if decision.passes and decision.inspect else None,
            "trust": decision.trust.value if decision.allows else None,
            "via": self.via,
            "layers": [layer.name for layer in self.objecting],
            "expires": None if decision.expires is None else decision.expires.isoformat(),
            "limits": [{"rule": rule, **_set_terms(limits)} for rule, limits in decision.limits],
            "approval": [
                {"rule": asks.rule, "digest": asks.digest, **_set_terms(asks.terms)} for asks in decision.approval
            ],
            "revision": decision.revision,
            "near": decision.nearest and decision.nearest._asdict(),
            "considered": [
                {
                    "rule": entry.rule.id,
                    "action": entry.rule.action.value,
                    "default": entry.rule.default,
                    "match": entry.match.value,
                    "field": entry.field,
                    "wanted": entry.wanted,
                    "got": entry.got,
                }
                for entry in self.considered
            ],
        }


def explain(policy: Policy, question: AttemptText) -> Explanation:
    """Decide an attempt and explain the decision."""
    if question.run is not None:
        return Explanation(question, None, question.decide(policy))
    try:
        attempt = question.attempt(policy)
    except InvalidNameError:
        return Explanation(question, None, question.decide(policy))
    decision = question.decide(policy)
    proxied = policy.settings.upstream is not None and decision.passes and question.record is None
    upstream = policy.upstream_for(attempt) if proxied else None
    via = None if upstream is None else str(upstream)
    objecting = tuple(policy.objecting(attempt)) if decision.reason is Reason.LAYER else ()
    entries = tuple(consider_rules(policy, attempt))
    return Explanation(question, attempt, decision, entries, proxied, via, objecting, policy.needs.taint)


def consider_rules(policy: Policy, attempt: Attempt) -> list[ConsideredRule]:
    """Evaluate every rule about the target on its own; the path by the reading with the strictest result."""
    rules = [rule for rule in policy.rules if covers_target(rule, attempt)]
    paths: tuple[Reading | None, ...] = (None,)
    if attempt.request is not None:
        paths = readings(attempt.request.path)
    tried = [[consider(rule, attempt, path) for rule in rules] for path in paths]
    leniency = policy.leniency(attempt.target)
    return min(tried, key=lambda entries: leniency(weigh_considered(entries, attempt, leniency)), default=[])


def weigh_considered(entries: list[ConsideredRule], attempt: Attempt, leniency: Leniency | None = None) -> Finding:
    """Weigh rules that were evaluated one by one. Without `leniency` audit mode is ignored."""
    rules = [entry.rule for entry in entries]
    expired = {rule for rule in rules if has_ended(rule, attempt.at)}
    granted = {rule for rule in rules if is_granted(rule, attempt)}
    closed = {rule for rule in rules if is_closed(rule, attempt)}

    def weighed(matches: list[Match]) -> Finding:
        matching = [rule for rule, match in zip(rules, matches, strict=True) if match is Match.YES]
        perhaps = [rule for rule, match in zip(rules, matches, strict=True) if match is Match.PERHAPS]
        return weigh(matching, perhaps, expired, granted, closed)

    finding = weighed([Match.NO if entry.field == "resolves_to" else entry.match for entry in entries])
    late = [entry.resolved if entry.field == "resolves_to" else entry.match for entry in entries]
    return finding if is_settled(finding, leniency or _enforced) else weighed(late)


def _enforced(finding: Finding) -> int:
    return PASSES * finding.allows


def _set_terms(terms: Limits | ApprovalTerms) -> dict[str, Any]:
    """Give the terms that are set, by their names."""
    return {key: value for key, value in terms._asdict().items() if value is not None}
