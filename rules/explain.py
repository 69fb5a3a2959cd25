"""The verdict on one attempt and why, in sentences and as a value for JSON.

Every rule about the target is shown with whether it matches, by the plain reading of the rule itself (`rules.plain`)
and not by the compiled policy: where the two differ, a test fails.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rules.attempt import Attempt
from rules.cases import Question, said
from rules.names import InvalidName
from rules.paths import readings
from rules.plain import Considered, Match, consider, covers_target
from rules.precedence import Finding, weigh
from rules.reasons import MEANING
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from rules.decision import Decision
    from rules.paths import Reading
    from rules.policy import Policy

_MARKS: Final = {Match.YES: "matches", Match.PERHAPS: "could match", Match.NO: "doesn't match"}


class Explanation(NamedTuple):
    """A decision and what led to it."""

    question: Question
    attempt: Attempt | None  # None: the host is no name and no address
    decision: "Decision"
    considered: tuple[Considered, ...] = ()

    def lines(self) -> list[str]:
        """Tell it to a person, a sentence a line, the verdict first."""
        decision = self.decision
        blocked = " (would be blocked if `mode: audit` were off)" if decision.outcome is Outcome.WOULD_BLOCK else ""
        named = f" by {', '.join(f'`{rule}`' for rule in decision.rules)}" if decision.rules else ""
        lines = [f"{said(decision)}{named}: {decision.reason}{blocked}", MEANING[decision.reason]]
        if decision.why:
            lines.append(f"the rule says: {decision.why}")
        if self.attempt is not None and self.attempt.request is None and decision.passes and decision.inspect:
            lines.append("the connection is inspected: each request on it is decided by itself")
        if decision.near is not None:
            near = decision.near
            wanted = (
                f"which wants `{near.wanted}` and not `{near.got}`" if near.wanted else f"which exempts `{near.got}`"
            )
            lines.append(f"the nearest rule is `{near.rule}`, {wanted} as `{near.field}`")
        if self.considered:
            lines.append("rules about this target:")
            lines += [f"  {_line(entry)}" for entry in sorted(self.considered, key=_telling)]
        return lines

    def value(self) -> dict[str, Any]:
        """Tell it to a program."""
        decision, attempt = self.decision, self.attempt
        near = decision.near
        return {
            "attempt": self.question.text,
            "target": None if attempt is None else str(attempt.target),
            "port": self.question.port,
            "protocol": None if attempt is None else attempt.protocol.value,
            "verdict": said(decision).value,
            "outcome": decision.outcome.value,
            "reason": decision.reason.value,
            "meaning": MEANING[decision.reason],
            "rules": list(decision.rules),
            "why": decision.why,
            "inspect": decision.inspect,
            "revision": decision.revision,
            "near": near and {"rule": near.rule, "field": near.field, "wanted": near.wanted, "got": near.got},
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


def explain(policy: "Policy", question: Question) -> Explanation:
    """Decide an attempt and say why."""
    try:
        attempt = question.attempt(policy)
    except InvalidName:
        return Explanation(question, None, question.decide(policy))
    return Explanation(question, attempt, policy.decide(attempt), tuple(considered(policy, attempt)))


def considered(policy: "Policy", attempt: Attempt) -> list[Considered]:
    """Hold every rule about the target against the attempt; its path by the reading that is judged strictest."""
    rules = [rule for rule in policy.rules if covers_target(rule, attempt)]
    paths: tuple[Reading | None, ...] = (None,)
    if attempt.request is not None:
        paths = readings(attempt.request.path)
    tried = [[consider(rule, attempt, path) for rule in rules] for path in paths]
    return min(tried, key=lambda entries: policy.leniency(finding_of(entries)), default=[])


def finding_of(entries: list[Considered]) -> Finding:
    """Weigh rules that were considered one by one."""
    matching = [entry.rule for entry in entries if entry.match is Match.YES]
    perhaps = [entry.rule for entry in entries if entry.match is Match.PERHAPS and entry.field != "resolves_to"]
    return weigh(matching, perhaps)


def _telling(entry: Considered) -> tuple[bool, int, str]:
    """Order rules so that those that decide come first, and defaults, which seldom do, last."""
    return entry.rule.default, -list(Match).index(entry.match), entry.rule.id


def _line(entry: Considered) -> str:
    kind = f"{entry.rule.action}, default" if entry.rule.default else entry.rule.action
    line = f"`{entry.rule.id}` ({kind}) {_MARKS[entry.match]}"
    if not entry.field:
        return line
    wanted = f" wants {entry.wanted}, and this is {entry.got}" if entry.wanted else f" exempts {entry.got}"
    return f"{line}: `{entry.field}`{wanted}"
