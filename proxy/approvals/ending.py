"""What ends: questions and grants by their time, and all of a task with the task. Inside a transaction.

Grants whose time is over serve nobody, whether their end was written or not.
"""

from typing import TYPE_CHECKING, Final

from proxy.approvals.records import State
from proxy.approvals.store import queries

if TYPE_CHECKING:
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
