"""Rules that wait for what never comes: a task that has read something, somebody who could still be asked."""

from typing import TYPE_CHECKING

from rules.lint.codes import NEVER_TAINTED, UNASKED
from rules.matching.requests import trust_of
from rules.verdicts import Mode, Trust, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.lint.finding import Finding, Reporter
    from rules.policy import Policy
    from rules.rule import Rule


def find(policy: "Policy", own: "list[Rule]", reporter: "Reporter") -> "Iterator[Finding]":
    """Tell of rules for tainted tasks where none can become one, and of asks that come too late to be answered."""
    if not _taints(policy):
        for rule in own:
            if rule.minds_taint:
                message = f"`{rule.id}` ({rule.action}) has `when: tainted`, and whatever rules let out they trust"
                yield reporter.about(NEVER_TAINTED, rule, message, at="when" if rule.when_tainted else "except")
    for rule in own:
        if rule.action is Verdict.ASK and rule.names and rule.resolves_to is not None:
            message = f"`{rule.id}` asks by the address of a name, which is known when it is too late to ask"
            yield reporter.about(UNASKED, rule, message, at="resolves_to")


def _taints(policy: "Policy") -> bool:
    if policy.settings.mode is Mode.AUDIT or any(rule.mode is Mode.AUDIT for rule in policy.rules):
        return True  # nobody vouches for what no rule lets out
    return any(trust_of(rule) is Trust.UNTRUSTED for rule in policy.rules if rule.action is not Verdict.DENY)
