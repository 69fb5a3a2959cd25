"""Rules whose `until` has passed, or will soon."""

from datetime import date, timedelta
from typing import TYPE_CHECKING, Final

from rules.lint.codes import EXPIRED, EXPIRES_SOON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.lint.finding import Finding, Reporter
    from rules.rule import Rule

SOON: Final = timedelta(days=30)


def find(own: "list[Rule]", reporter: "Reporter", today: date) -> "Iterator[Finding]":
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
