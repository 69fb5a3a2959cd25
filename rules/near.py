"""Which rule came nearest to letting an attempt out, and what kept it out: the hint in a refusal.

A hint only: nothing decides by it, and it looks at a bounded number of rules.
"""

from itertools import islice
from typing import Final

from rules.attempt import Attempt, Request
from rules.decision import Near
from rules.index import Index
from rules.names import HostName
from rules.paths import Reading
from rules.plan import Plan
from rules.ports import describe
from rules.rule import Http, Rule

_MOST: Final = 64
_ANYTHING: Final = Http()


def nearest(index: Index, plan: Plan, attempt: Attempt, reading: Reading | None) -> Near | None:
    """Find the nearest rule for an attempt that no rule matches."""
    if attempt.request is not None and reading is not None:
        looking = islice((rule for rule in plan.rules if rule.lets_out), _MOST)
        hints = [_by_request(rule, rule.http or _ANYTHING, attempt.request, reading) for rule in looking]
        if hints:
            return next((hint for hint in hints if hint.field == "http.methods"), hints[0])
    if plan.missed is not None:
        rule, field = plan.missed
        wanted = describe(rule.ports) if field == "ports" else ""
        return Near(rule.id, field, wanted, f"{attempt.port}/{attempt.protocol}")
    found = index.nearest(attempt.target) if isinstance(attempt.target, HostName) else None
    return None if found is None else Near(found[0].id, "to", found[1], str(attempt.target))


def _by_request(rule: Rule, http: Http, request: Request, reading: Reading) -> Near:
    if http.paths is not None and not any(path.matches(reading) for path in http.paths):
        wanted = ", ".join(path.text for path in http.paths[:_MOST])
        return Near(rule.id, "http.paths", wanted, request.path.partition("?")[0])
    if http.methods is not None and request.method not in http.methods:
        return Near(rule.id, "http.methods", ", ".join(sorted(http.methods)), request.method)
    return Near(rule.id, "except", "", f"{request.method} {request.path.partition('?')[0]}")
