"""Finds the rule that came nearest to allowing an attempt, and what kept it from that: the hint in a refusal.

A hint only: nothing decides by it, and it looks at a bounded number of rules. What depends on the rules alone is a
`Hint` and worked out once; what the attempt had instead is added each time. Queries are never shown: they hold secrets.
"""

from itertools import islice
from typing import TYPE_CHECKING, Final

from rules.attempt import Attempt
from rules.decision import Near
from rules.matching.index import Index
from rules.matching.match import Match
from rules.matching.plan import Hint, Plan
from rules.matching.requests import Condition, carried, git_asked, url_length
from rules.names import is_own
from rules.ports import describe
from rules.rule import Rule, is_meant

if TYPE_CHECKING:
    from rules.attempt import Request
    from rules.names import HostName
    from rules.paths import Reading

_MOST: Final = 16  # rules that are looked at: a task that makes up methods asks for a new hint each time


def about_connection(plan: Plan) -> Hint | None:
    """Find a rule about the same target that lets out on other ports, or but for an exemption."""
    if plan.missed is None:
        return None
    rule, field = plan.missed
    return Hint(rule.id, field, describe(rule.ports) if field == "ports" else "")


def about_request(plan: Plan, request: "Request", reading: "Reading", length: int) -> Hint | None:
    """Find a rule that lets out other requests here; best one that wants but a credential, or another method."""
    letting_out = islice((rule for rule in plan.rules if rule.lets_out), _MOST)
    hints = [_kept_out(rule, request, reading, length) for rule in letting_out]
    if not hints:
        return about_connection(plan)
    first = {hint.field: hint for hint in reversed(hints)}
    return first.get("credential") or first.get("http.methods") or hints[0]


def about_name(index: Index, name: "HostName") -> Hint | None:
    """Find a rule about a name close by; or about that very name, for other tasks."""
    found = index.nearest(name)
    if found is None:
        return None
    rule, wanted = found
    if is_own(name) and (rule.selector is None or not is_meant(rule, name)):
        return None  # what lets out to our names says them
    if rule.selector is not None and any(pattern.matches(name) for pattern in rule.names):
        return Hint(rule.id, "for", str(rule.selector))
    return Hint(rule.id, "to", wanted)


def near(hint: Hint, attempt: Attempt) -> Near:
    """Put beside what the rule wants what the attempt had."""
    return Near(*hint, _got(hint.field, attempt))


def _got(field: str, attempt: Attempt) -> str:  # noqa: PLR0911 - a table
    if field == "to":
        return str(attempt.target)
    if field == "for":
        return "another task"  # a hint is kept for all tasks that are told apart by no rule
    request = attempt.request
    if request is None or field == "ports":
        return f"{attempt.port}/{attempt.protocol.value}"
    if field == "http.methods":
        return request.method
    path = request.path.partition("?")[0]
    if field == "http.paths":
        return path
    if field == "git" and request.git is not None:
        return git_asked(request)
    known = {
        "http.body": "a body" if request.body else "no body",
        "http.websocket": "a WebSocket",
        "credential": carried(request),
    }
    if field in known:
        return known[field]
    if field == "http.max_url":
        return f"{url_length(attempt.protocol, attempt.target, attempt.port, request.path)} bytes"
    if field.startswith(("http.query", "http.headers")):
        return "another"  # they hold secrets
    return f"{request.method} {path}"


def _kept_out(rule: Rule, request: "Request", reading: "Reading", length: int) -> Hint:
    for part in Condition.of_rule(rule).parts(request, reading, length):
        if part.match is not Match.YES:
            return Hint(rule.id, part.field, part.wanted)
    return Hint(rule.id, "except", "")
