"""What a reviewer would ask about: no `why`, audit mode, an `until` that is past or near, tasks nobody vouches for."""

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from rules.lint.codes import AUDITED, EXPIRED, EXPIRES_SOON, NO_WHY, OBEYED, UNCLAIMED, UNREVIEWED
from rules.sandbox import WorkspaceMode
from rules.verdicts import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from rules.lint import Surroundings
    from rules.lint.finding import Finding, Reporter
    from rules.matching.policy import Policy
    from rules.rule import Rule

SOON: Final = timedelta(days=30)
_MOST_NAMED: Final = 3


def find(policy: "Policy", own: "list[Rule]", reporter: "Reporter", around: "Surroundings") -> "Iterator[Finding]":
    """Tell what should be said, and what should not stay."""
    yield from _lifetimes(own, reporter, around.today)
    if policy.settings.mode is Mode.AUDIT:
        yield reporter.about_settings(AUDITED, "mode", "audit mode is on: what no rule decides is let out")
    if policy.box.approval and policy.box.workspace is not WorkspaceMode.REVIEW:
        message = "`approval` is asked for where changes are reviewed, and no file says `workspace: review`"
        yield from reporter.about_boxes(UNREVIEWED, "approval", message)
    for path in filter(around.is_obeyed, policy.box.write):
        message = f"`{path}` under `write`: this host runs or obeys it, so nothing of it is covered"
        yield from reporter.about_boxes(OBEYED, "write", message, entry=path)
    silent: dict[str, list[Rule]] = {}
    for rule in own:
        if not rule.why:
            silent.setdefault(rule.id.partition(":")[0], []).append(rule)
        if rule.mode is Mode.AUDIT and not rule.lets_out:
            yield reporter.about(AUDITED, rule, f"`{rule.id}` is audited: what it holds back is let out", at="mode")
        if rule.selector is not None and not rule.lets_out and not around.identities:
            message = (
                f"`{rule.id}` ({rule.action}) is for {rule.selector}, and whoever starts a task can call it otherwise"
            )
            yield reporter.about(UNCLAIMED, rule, message, at="for")
    for rules in silent.values():
        rules.sort(key=reporter.number)
        named = ", ".join(f"`{rule.id}`" for rule in rules[:_MOST_NAMED])
        if len(rules) > _MOST_NAMED:
            named += f" and {len(rules) - _MOST_NAMED} more"
        verb = "has" if len(rules) == 1 else "have"
        yield reporter.about(NO_WHY, rules[0], f"{named} {verb} no `why`")


def _lifetimes(own: "list[Rule]", reporter: "Reporter", today: "date") -> "Iterator[Finding]":
    """Tell of rules that have ended, or will; `until` is the last day (UTC) on which they count."""
    for rule in own:
        if rule.until is None:
            continue
        left = rule.until - today
        if left < timedelta(0):
            became = "doesn't match any more" if rule.lets_out else "denies now"
            yield reporter.about(EXPIRED, rule, f"`{rule.id}` ended with {rule.until} and {became}", at="until")
        elif left <= SOON:
            days = {0: "today", 1: "tomorrow"}.get(left.days, f"in {left.days} days")
            yield reporter.about(EXPIRES_SOON, rule, f"`{rule.id}` ends {days}, with {rule.until}", at="until")
