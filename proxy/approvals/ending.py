"""What ends: questions and grants by their time, and all of a task with the task. Inside a transaction.

Grants whose time is over serve nobody, whether their end was written or not.
"""

from typing import TYPE_CHECKING

from proxy.approvals.records import State
from proxy.approvals.store import queries

if TYPE_CHECKING:
    from proxy.approvals.records import Approval, Grant, Task
    from proxy.approvals.store.base import Rows
    from proxy.approvals.telling import Teller


async def ended_questions(rows: "Rows", teller: "Teller", now: float) -> "list[Approval]":
    """End the questions that nobody answered in time, and return them."""
    gone: list[Approval] = []
    while found := await queries.due(rows, now):
        for approval in found:
            await queries.conclude(rows, approval.id, State.EXPIRED, now)
            if (task := await queries.task_of(rows, approval.task)) is not None:
                teller.expired(task, approval.id, approval.question, "nobody answered in time")
        gone += found
    return gone


async def ended_grants(rows: "Rows", teller: "Teller", now: float) -> "list[Grant]":
    """End the grants whose time is over, and return those under which nothing may go on."""
    cut: list[Grant] = []
    while found := await queries.due_grants(rows, now):
        for grant in found:
            await queries.end_grant(rows, grant.id, now, "its time is over")
            task = await queries.task_of(rows, grant.task)
            about = await queries.approval_of(rows, grant.approval)
            if task is not None and about is not None:
                teller.expired(task, about.id, about.question, f"the grant {grant.id} is over")
            if grant.cuts:
                rows.tell(f"over {grant.task} {grant.id}")
                cut.append(grant)
    return cut


async def ended_task(rows: "Rows", teller: "Teller", task: "Task", now: float) -> "list[Approval]":
    """End a task with all it has, and return the questions that nobody has to answer any more."""
    gone: list[Approval] = []
    await queries.end_task(rows, task.id, now)
    while found := await queries.listed(rows, [State.PENDING], (-1.0, ""), 500, task.id):
        for approval in found:
            await queries.conclude(rows, approval.id, State.OVER, now)
            teller.expired(task, approval.id, approval.question, "its task has ended")
        gone += found
    for grant in await queries.granted_to(rows, task.id):
        await queries.end_grant(rows, grant.id, now, "its task has ended")
    return gone
