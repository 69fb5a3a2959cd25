"""Pre-requests: what an agent asks for beforehand, and what it is told of its own requests. With the registry's turn.

A pre-request opens nothing by itself: it submits what a rule asks anyway, or writes down what no rule knows of. It is
bounded in number, rate and size, because nobody but the agent decides how many there are.
"""

from typing import TYPE_CHECKING, Final

from proxy.approvals import lifecycle, queries
from proxy.approvals.model import State, WishKind
from proxy.approvals.protocol import Answer, Result, Standing, Wish, WishState
from proxy.approvals.store import StoreError
from proxy.telemetry.journal.writer import JournalFailed
from rules.verdicts import Reason, Verdict

if TYPE_CHECKING:
    from proxy.approvals.model import Approval, Task
    from proxy.approvals.pending import Link, PendingApprovals
    from proxy.approvals.store import Rows
    from proxy.approvals.submit import Put

_NOBODY: Final = "nobody can approve this"
_STANDING: Final = {
    State.PENDING: Standing.PENDING,
    State.APPROVED: Standing.APPROVED,
    State.REJECTED: Standing.REJECTED,
    State.EXPIRED: Standing.EXPIRED,
    State.SUPERSEDED: Standing.EXPIRED,
    State.OVER: Standing.EXPIRED,
}


async def wish(registry: "PendingApprovals", link: "Link", said: Wish) -> "tuple[WishState, Put | None]":
    """Put what an agent asks for, or say why that makes no sense. With the turn."""
    line = said.attempt.question.line()
    if said.attempt.verdict in {Verdict.ALLOW, Verdict.FLAG}:
        return WishState(Standing.ALLOWED, attempt=line, why="the rules let this out: try it"), None
    unruled = said.attempt.verdict is Verdict.DENY and said.attempt.reason is Reason.NO_RULE
    if said.attempt.verdict is Verdict.DENY and not unruled:
        named = f" ({', '.join(said.attempt.rules)})" if said.attempt.rules else ""
        return WishState(
            Standing.REFUSED, attempt=line, why=f"the rules deny this: {said.attempt.reason}{named}; {_NOBODY}"
        ), None
    if not registry.rates.take(link.task.id):
        return WishState(Standing.REFUSED, attempt=line, why="too many requests: wait a minute"), None
    try:
        async with registry.store.transaction() as rows:
            return await _put(registry, rows, link, said, WishKind.UNRULED if unruled else WishKind.ASKS)
    except (StoreError, JournalFailed):
        return WishState(Standing.REFUSED, attempt=line, why="nobody can be asked at the moment"), None


async def look(registry: "PendingApprovals", link: "Link", id_: str) -> WishState:
    """Say what became of a question of this task; of another's nothing is known."""
    try:
        async with registry.store.reading() as rows:
            found = await queries.approval_of(rows, id_) if id_ else None
            if found is None or found.task != link.task.id:
                if id_ and registry.strays.take(link.task.id):
                    registry.asked.stray(link.task, id_)
                return WishState(Standing.UNKNOWN, why="this task has asked nothing of that id")
            return await _state(rows, found, registry.clock.now())
    except StoreError:
        return WishState(Standing.UNKNOWN, why="nothing can be looked up at the moment")


async def _put(
    registry: "PendingApprovals", rows: "Rows", link: "Link", said: Wish, kind: WishKind
) -> "tuple[WishState, Put | None]":
    now = await registry.now(rows)
    task = await queries.task_of(rows, link.task.id)
    if task is None or task.ended is not None:
        return WishState(Standing.REFUSED, why="the task has ended"), None
    gone = await registry.outdated(rows, task, said.attempt.question, now)
    state, put = await _put_to(registry, rows, task, said, kind, now, len(gone))
    await registry.superseded(rows, task, gone, said.attempt.question, None if put is None else put.approval, now)
    return state, put


async def _put_to(  # noqa: PLR0917
    registry: "PendingApprovals", rows: "Rows", task: "Task", said: Wish, kind: WishKind, now: float, leaving: int
) -> "tuple[WishState, Put | None]":
    question = said.attempt.question
    if question.rules:
        grants, unmet = await lifecycle.serving(rows, task.id, question, now)
        if not unmet and (given := await queries.approval_of(rows, grants[0].approval)) is not None:
            return await _state(rows, given, now), None
        question = question._replace(rules=tuple(unmet))
    put = await registry.asked.put(rows, registry.people.bounds, task, question, now, kind, said.why, leaving)
    if not isinstance(put, Answer):
        return await _state(rows, put.approval, now), put
    if put.result is Result.DENIED and (rejected := await queries.approval_of(rows, put.approval)) is not None:
        return await _state(rows, rejected, now), None
    return WishState(Standing.REFUSED, attempt=question.line(), why=put.why), None


async def _state(rows: "Rows", approval: "Approval", now: float) -> WishState:
    until = approval.expires
    standing = _STANDING[approval.state]
    if standing is Standing.PENDING and approval.expires <= now:
        standing = Standing.EXPIRED
    if standing is Standing.APPROVED:
        ends = [grant.ends for grant in await queries.grants_of(rows, approval.id) if grant.over is None]
        until = min((end for end in ends if end is not None), default=0.0)
    return WishState(standing, approval.id, approval.question.line(), approval.by, approval.why, until)
