"""Which rule came nearest to letting an attempt out, and what kept it out: the hint in a refusal.

A hint only: nothing decides by it, and it looks at a bounded number of rules. What depends on the rules alone is a
`Hint` and worked out once; what the attempt had instead is added each time. Queries are never shown: they hold secrets.
"""

from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import Attempt
from rules.decision import Near
from rules.ports import describe
from rules.rule import Http, Rule

if TYPE_CHECKING:
    from rules.index import Index
    from rules.names import HostName
    from rules.paths import Reading
    from rules.plan import Plan

_MOST: Final = 64
_ANYTHING: Final = Http()


class Hint(NamedTuple):
    """A rule that lets out, and the field that it wants otherwise."""

    rule: str
    field: str
    wanted: str


def about_connection(plan: "Plan") -> Hint | None:
    """Find a rule about the same target that lets out on other ports, or but for an exemption."""
    if plan.missed is None:
        return None
    rule, field = plan.missed
    return Hint(rule.id, field, describe(rule.ports) if field == "ports" else "")


def about_request(plan: "Plan", method: str, reading: "Reading") -> Hint | None:
    """Find a rule that lets out other requests here; best one that wants but another method."""
    letting_out = islice((rule for rule in plan.rules if rule.lets_out), _MOST)
    hints = [_kept_out(rule, rule.http or _ANYTHING, method, reading) for rule in letting_out]
    if not hints:
        return about_connection(plan)
    return next((hint for hint in hints if hint.field == "http.methods"), hints[0])


def about_name(index: "Index", name: "HostName") -> Hint | None:
    """Find a rule about a name close by."""
    found = index.nearest(name)
    return None if found is None else Hint(found[0].id, "to", found[1])


def near(hint: Hint, attempt: Attempt) -> Near:
    """Put beside what the rule wants what the attempt had."""
    return Near(hint.rule, hint.field, hint.wanted, _got(hint.field, attempt))


def _got(field: str, attempt: Attempt) -> str:
    if field == "to":
        return str(attempt.target)
    request = attempt.request
    if request is None or field == "ports":
        return f"{attempt.port}/{attempt.protocol.value}"
    if field == "http.methods":
        return request.method
    path = request.path.partition("?")[0]
    return path if field == "http.paths" else f"{request.method} {path}"


def _kept_out(rule: Rule, http: Http, method: str, reading: "Reading") -> Hint:
    if http.paths is not None and not any(path.matches(reading) for path in http.paths):
        return Hint(rule.id, "http.paths", ", ".join(path.text for path in http.paths[:_MOST]))
    if http.methods is not None and method not in http.methods:
        return Hint(rule.id, "http.methods", ", ".join(sorted(http.methods)))
    return Hint(rule.id, "except", "")
