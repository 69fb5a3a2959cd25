"""A question in a line, as lists of them have it."""

from typing import TYPE_CHECKING

from proxy.approvals.model import Extent, Vote, sentence
from proxy.approvals.store import queries

if TYPE_CHECKING:
    from proxy.approvals.model import Approval, Grant, Task
    from proxy.approvals.people import People
    from proxy.approvals.store.base import Rows


async def summary(rows: "Rows", people: "People", approval: "Approval", task: "Task") -> dict[str, object]:
    """Return one question as JSON. Raises StoreError."""
    rules = approval.question.rules
    ballots = await queries.votes(rows, approval.id)
    wanted = max((asks.terms.needed for asks in rules), default=1)
    lacking = max((people.lacking(asks, ballots, task.started_by) for asks in rules), default=wanted)
    grants = await queries.grants_of(rows, approval.id)
    return {
        "id": approval.id,
        "task": task.run,
        "name": task.name,
        "kind": approval.question.kind,
        "line": approval.question.line(),
        "rules": [asks.rule for asks in rules],
        "state": approval.state,
        "lifted": approval.lifted,
        "wish": approval.wish,
        "asked": approval.asked,
        "expires": approval.expires,
        "answered": approval.answered,
        "by": list(approval.by),
        "why": approval.why,
        "times": approval.times,
        "stale": approval.stale,
        "votes": f"{wanted - lacking} of {wanted}",
        "said": [{"by": each.person, "vote": each.vote, "reviewer": each.reviewer} for each in ballots]
        if any(each.vote is not Vote.PASS for each in ballots)
        else [],
        "grants": [_grant(grant) for grant in grants],
    }


def _grant(grant: "Grant") -> dict[str, object]:
    reach = Extent(grant.width, grant.uses, grant.bytes, grant.ends)
    said = sentence(reach, grant.made) if grant.over is None else f"over, {grant.ending}"
    return {
        "id": grant.id,
        "rule": grant.rule,
        "width": grant.width,
        "uses": grant.uses,
        "bytes": grant.bytes,
        "ends": grant.ends,
        "over": grant.over,
        "said": f"{grant.rule}: {said}",
    }
