"""What ends: questions and grants by their time or a change of rules, all of a task with it. Inside a transaction.

Grants whose time is over serve nobody, whether their end was written or not.
"""

from typing import TYPE_CHECKING, Final

from proxy.approvals.questions import key, keys
from proxy.approvals.records import State
from proxy.approvals.store import queries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.approvals.questions import Question
    from proxy.approvals.records import Approval, Grant, Task
    from proxy.approvals.store.base import Rows
    from proxy.approvals.telling import Teller

BATCH: Final = 200  # at a time: whoever asks meanwhile waits for it


async def ended_questions(rows: "Rows", teller: "Teller", now: float) -> "list[Approval]":
    """End questions that nobody answered in time, at most BATCH, and return them."""
    gone = await queries.due(rows, now, BATCH)
    tasks: dict[str, Task | None] = {}
    await queries.conclude_all(rows, gone, State.EXPIRED, now)
    for approval in gone:
        if approval.task not in tasks:
            tasks[approval.task] = await queries.task_of(rows, approval.task)
        if (task := tasks[approval.task]) is not None:
            teller.expired(task, approval.id, approval.question, "nobody answered in time")
    return gone


async def outdated(
    rows: "Rows", task: "Task", question: "Question", waits: "Callable[[str], object]", now: float
) -> "list[Approval]":
    """List what a task has asked about rules that are others by now, as a new `question` shows.

    What somebody still `waits` for stays: who holds it decides again under the new rules, and drops it then.
    """
    pending = await queries.asked_otherwise(rows, task.id, question.rules) if question.rules else []
    return [one for one in pending if one.expires > now and _changed(one.question, question) and not waits(one.id)]


async def superseded(  # noqa: PLR0917
    rows: "Rows",
    teller: "Teller",
    task: "Task",
    gone: "Sequence[Approval]",
    question: "Question",
    instead: "Approval | None",
    now: float,
) -> None:
    """End what is `outdated`, and say why, and what is asked `instead` where that covers the same."""
    for one in gone:
        changed = _changed(one.question, question)
        why = f"{', '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed since it was asked"
        if instead is not None and key(one.question, one.question.covers) in keys(instead.question):
            why += f", and it is asked as {instead.id} now"
        await queries.conclude(rows, one.id, State.SUPERSEDED, now, why=why)
        teller.expired(task, one.id, one.question, f"superseded: {why}")
        rows.tell(f"settle {one.id}")


def _changed(before: "Question", question: "Question") -> list[str]:
    """List the rules that asked before and ask this question with another content."""
    digests = {asks.rule: asks.digest for asks in question.rules}
    return [asks.rule for asks in before.rules if digests.get(asks.rule, asks.digest) != asks.digest]


async def ended_grants(rows: "Rows", teller: "Teller", now: float) -> "list[Grant]":
    """End grants whose time is over, at most BATCH, and return them; what passes under those that cut is to end."""
    gone = await queries.due_grants(rows, now, BATCH)
    for grant in gone:
        await queries.end_grant(rows, grant.id, now, "its time is over")
        task = await queries.task_of(rows, grant.task)
        about = await queries.approval_of(rows, grant.approval)
        if task is not None and about is not None:
            teller.expired(task, about.id, about.question, f"the grant {grant.id} is over")
        if grant.cuts:
            rows.tell(f"over {grant.task} {grant.id}")
    return gone


async def ended_task(rows: "Rows", teller: "Teller", task: "Task", now: float) -> "list[Approval]":
    """End a task with all it has, and return the questions that nobody has to answer any more."""
    gone: list[Approval] = []
    await queries.end_task(rows, task.id, now)
    while found := await queries.listed(rows, [State.PENDING], (-1.0, ""), BATCH, task.id):
        await queries.conclude_all(rows, found, State.OVER, now)
        for approval in found:
            teller.expired(task, approval.id, approval.question, "its task has ended")
        gone += found
    for grant in await queries.granted_to(rows, task.id):
        await queries.end_grant(rows, grant.id, now, "its task has ended")
    return gone
