"""Lifecycle of grants and approval requests: serving, taking, granting, expiring, superseding. Inside a transaction.

A grant serves one task, one rule of one content, and attempts of one key. Grants whose time is over serve nobody,
whether their end was written or not.
"""

import hashlib
import secrets
from typing import TYPE_CHECKING, Final

from proxy.approvals import queries
from proxy.approvals.approval_request import key, keys
from proxy.approvals.model import Grant, State, Vote, Wider, given_by, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.approvals.approval_request import Question, Rule
    from proxy.approvals.model import Approval, Ballot, Extent, Offer, Task
    from proxy.approvals.recording import Recorders
    from proxy.approvals.store import Rows

_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # none that is taken for another
_LENGTH: Final = 8
FOREIGN: Final = "no grant of this task"


def new_id() -> str:
    """Make an id that is easy to type and was never there: 40 bits of noise."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))


def same(rules: "Sequence[Rule]", question: "Question") -> str:
    """Return what a question of a task has in common with those that it joins: its rules, and what it would cover."""
    named = sorted(f"{asks.rule} {asks.digest}" for asks in rules)
    text = "\0".join([*named, key(question, question._replace(rules=tuple(rules)).covers)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


async def serving(rows: "Rows", task: str, question: "Question", now: float) -> "tuple[list[Grant], list[Rule]]":
    """Return the grants that serve an attempt, one a rule, and the rules for which there is none."""
    good = keys(question)
    found: list[Grant] = []
    unmet: list[Rule] = []
    for asks in question.rules:
        grant = await queries.in_force(rows, task, asks, good, now)
        if grant is None:
            unmet.append(asks)
        else:
            found.append(grant)
    return found, unmet


async def taken(rows: "Rows", grants: "Sequence[Grant]", now: float) -> list[Grant]:
    """Take a use of each, and return them with what is left."""
    left = []
    for grant in grants:
        uses = await queries.take(rows, grant.id)
        if uses == 0 and not grant.cuts:
            await queries.end_grant(rows, grant.id, now, queries.USED)
        left.append(grant._replace(uses=uses))
    return left


async def granted(rows: "Rows", approval: "Approval", ballots: "Sequence[Ballot]", now: float) -> list[Grant]:
    """Make what an approval grants: one grant for each rule, as narrow as whoever approved would have it narrowest."""
    given = [ballot.offer for ballot in ballots if ballot.vote is Vote.APPROVE]
    found = []
    for asks, extent in extents(approval.question, given, now):
        grant = Grant(
            new_id(),
            approval.id,
            approval.task,
            asks.rule,
            asks.digest,
            extent.width,
            key(approval.question, extent.width),
            extent.uses,
            extent.bytes,
            extent.ends,
            extent.cuts,
            now,
        )
        await queries.put_grant(rows, grant)
        found.append(grant)
    return found


def extents(question: "Question", given: "Sequence[Offer]", now: float) -> "list[tuple[Rule, Extent]]":
    """Return how far the grant for each rule reaches. Raises Wider where more is offered than a rule gives."""
    width = question.covers
    found = [(asks, given_by(asks.terms, width, given, now)) for asks in question.rules]
    if question.cut and any(extent.width == "attempt" for _, extent in found):
        raise Wider("this does more than is shown here: it can't be approved by itself")
    return found


def reach(found: "Sequence[tuple[Rule, Extent]]", now: float) -> str:
    """Say how far grants reach in a sentence: in one for all rules, or rule by rule where they differ."""
    said = {asks.rule: sentence(extent, now) for asks, extent in found}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"for {rule} {text}" for rule, text in said.items())


async def spent(rows: "Rows", task: str, grant: str, many: int, now: float) -> str:
    """Take bytes of a grant's budget, and say why what passes is to be cut, or nothing: it goes on."""
    left = await queries.take_bytes(rows, task, grant, many)
    if left:
        return ""
    if left == 0:
        await queries.end_grant(rows, grant, now, "its bytes are used")
        return "its bytes are used"
    found = await queries.grant_of(rows, grant)
    if found is None or found.task != task:
        return FOREIGN
    return "" if found.over is None or found.ending == queries.USED else found.ending


BATCH: Final = 200  # at a time: whoever asks meanwhile waits for it


async def ended_questions(rows: "Rows", record: "Recorders", now: float) -> "list[Approval]":
    """End questions that nobody answered in time, at most BATCH, and return them."""
    gone = await queries.due(rows, now, BATCH)
    tasks: dict[str, Task | None] = {}
    await queries.conclude_all(rows, gone, State.EXPIRED, now)
    for approval in gone:
        if approval.task not in tasks:
            tasks[approval.task] = await queries.task_of(rows, approval.task)
        if (task := tasks[approval.task]) is not None:
            record(task).expired(approval.id, approval.question, "nobody answered in time")
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
    record: "Recorders",
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
        record(task).expired(one.id, one.question, f"superseded: {why}")
        rows.tell(f"settle {one.id}")


def _changed(before: "Question", question: "Question") -> list[str]:
    """List the rules that asked before and ask this question with another content."""
    digests = {asks.rule: asks.digest for asks in question.rules}
    return [asks.rule for asks in before.rules if digests.get(asks.rule, asks.digest) != asks.digest]


async def ended_grants(rows: "Rows", record: "Recorders", now: float) -> "list[Grant]":
    """End grants whose time is over, at most BATCH, and return them; what passes under those that cut is to end."""
    gone = await queries.due_grants(rows, now, BATCH)
    for grant in gone:
        await queries.end_grant(rows, grant.id, now, "its time is over")
        task = await queries.task_of(rows, grant.task)
        about = await queries.approval_of(rows, grant.approval)
        if task is not None and about is not None:
            record(task).expired(about.id, about.question, f"the grant {grant.id} is over")
        if grant.cuts:
            rows.tell(f"over {grant.task} {grant.id}")
    return gone


async def ended_task(rows: "Rows", record: "Recorders", task: "Task", now: float) -> "list[Approval]":
    """End a task with all it has, and return the questions that nobody has to answer any more."""
    gone: list[Approval] = []
    await queries.end_task(rows, task.id, now)
    while found := await queries.listed(rows, [State.PENDING], (-1.0, ""), BATCH, task.id):
        await queries.conclude_all(rows, found, State.OVER, now)
        for approval in found:
            record(task).expired(approval.id, approval.question, "its task has ended")
        gone += found
    for grant in await queries.granted_to(rows, task.id):
        await queries.end_grant(rows, grant.id, now, "its task has ended")
    return gone
