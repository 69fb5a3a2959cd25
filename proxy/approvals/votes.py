"""Votes on one approval request: whether an answer counts, what it decides, and what is granted. Inside a transaction.

Two answers at once come one after the other, and the first that is final wins: the second finds a request that is
answered.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.approvals import lifecycle, queries
from proxy.approvals.model import Approval, Ballot, Offer, State, Vote, Wider, WishKind
from proxy.approvals.people import told
from proxy.telemetry.events import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.approvals.model import Grant, Task
    from proxy.approvals.people import Actor, People
    from proxy.approvals.recording import Recorders
    from proxy.approvals.store import Rows

_LONGEST_WHY: Final = 1000  # characters
_IDLE: Final = "; nobody waits for it now: it serves the next try, unless its rules have changed by then"


class Refused(Exception):  # noqa: N818  what happened
    """An answer that doesn't count; the text says why, for whoever gave it. `approval`: what it was given to."""

    def __init__(self, why: str, approval: Approval | None = None, task: "Task | None" = None) -> None:
        super().__init__(why)
        self.approval = approval
        self.task = task


class Said(NamedTuple):
    """An answer as it was given."""

    who: "Actor"
    vote: Vote
    offer: Offer = Offer()
    why: str = ""
    as_rule: str = ""  # id of the rule that was written for it, with its file


class Decided(NamedTuple):
    """An answer that counts, and what came of it."""

    approval: Approval  # as it is now
    final: bool
    text: str  # one sentence
    grants: "tuple[Grant, ...]" = ()


async def decide(  # noqa: PLR0917
    rows: "Rows", people: "People", record: "Recorders", approval: str, said: Said, now: float
) -> Decided:
    """Take an answer. Raises Refused, StoreError, and JournalFailed where it can't be told."""
    said = said._replace(why=said.why[:_LONGEST_WHY])
    found, task = await _pending(rows, approval, now)
    ballots = await queries.votes(rows, found.id)
    name = told(said.who.name, reviewer=said.who.reviewer)
    earlier = next((ballot for ballot in ballots if told(ballot.person, reviewer=ballot.reviewer) == name), None)
    if earlier is not None and (earlier.vote is said.vote or said.vote is Vote.PASS):
        raise Refused(f"{name} has said {earlier.vote} already, and counts once", found, task)
    ballot = Ballot(said.who.name, said.vote, said.who.reviewer, said.offer, said.why, now)
    ballots = (*(other for other in ballots if other is not earlier), ballot)
    match said.vote:
        case Vote.PASS:
            if not said.who.reviewer:
                raise Refused("only a reviewer passes: leave it alone, and others will answer", found, task)
            await queries.vote(rows, found.id, ballot)
            record(task).answered(found, Answer.PASS, [name], said.why)
            return Decided(found, final=False, text=f"{name} leaves it to people")
        case Vote.REJECT:
            if not people.can_reject(said.who, found.question.rules, task.started_by):
                raise Refused(_objection(people, said.who, found, task), found, task)
            await queries.vote(rows, found.id, ballot)
            record(task).answered(found, Answer.REJECTED, [name], said.why, ())
            done = await _concluded(rows, found, State.REJECTED, [name], said.why, now)
            return Decided(done, final=True, text=f"rejected: {found.question.line()}")
        case Vote.APPROVE:
            return await _approve(rows, people, record, found, task, said, ballots, now)


async def _approve(  # noqa: PLR0917
    rows: "Rows",
    people: "People",
    record: "Recorders",
    found: Approval,
    task: "Task",
    said: Said,
    ballots: "Sequence[Ballot]",
    now: float,
) -> Decided:
    name = told(said.who.name, reviewer=said.who.reviewer)
    rules = found.question.rules
    if found.wish is WishKind.UNRULED:
        if not said.as_rule:
            raise Refused(
                "no rule says anything about this, so there is nothing that an approval could satisfy: "
                "approve it with `--as-rule`, which writes one, or reject it",
                found,
                task,
            )
        if not said.who.known or said.who.reviewer:
            raise Refused(people.nobody(said.who), found, task)
        await queries.vote(rows, found.id, ballots[-1])
        record(task).answered(found, Answer.APPROVED, [name], said.why, (), f"written down as {said.as_rule}")
        done = await _concluded(rows, found, State.APPROVED, [name], said.why, now)
        return Decided(done, final=True, text=f"approved, as {said.as_rule} says from now on")
    if all(people.objection(said.who, asks, task.started_by) for asks in rules):
        raise Refused(_objection(people, said.who, found, task), found, task)
    try:
        lifecycle.extents(found.question, [said.offer], now)
    except Wider as error:
        raise Refused(str(error), found, task) from error
    await queries.vote(rows, found.id, ballots[-1])
    missing = [(asks, people.lacking(asks, ballots, task.started_by)) for asks in rules]
    missing = [(asks, count) for asks, count in missing if count]
    if missing:
        still = ", ".join(f"{count} more for {asks.rule}{_by(asks.terms.by)}" for asks, count in missing)
        record(task).answered(found, Answer.APPROVED, [name], said.why, detail=f"it takes {still}")
        return Decided(found, final=False, text=f"{name} approves; it takes {still}")
    grants = await lifecycle.granted(rows, found, ballots, now)
    everybody = [told(one.person, reviewer=one.reviewer) for one in ballots if one.vote is Vote.APPROVE]
    detail = f"written down as {said.as_rule}" if said.as_rule else ""
    record(task).answered(found, Answer.APPROVED, everybody, said.why, grants, detail)
    done = await _concluded(rows, found, State.APPROVED, everybody, said.why, now)
    reach = lifecycle.reach(lifecycle.extents(found.question, _offers(ballots), now), now)
    return Decided(done, final=True, text=f"approved: {reach}{_IDLE if found.stale else ''}", grants=tuple(grants))


async def _pending(rows: "Rows", approval: str, now: float) -> "tuple[Approval, Task]":
    """Return a question that can be answered. Raises Refused."""
    found = await queries.approval_of(rows, approval)
    task = None if found is None else await queries.task_of(rows, found.task)
    if found is None or task is None:
        raise Refused("there is no such question")
    if found.state is State.PENDING and found.expires <= now:
        raise Refused("nobody answered in time: it has expired", found, task)
    match found.state:
        case State.PENDING if task.ended is None:
            return found, task
        case State.PENDING | State.OVER:
            raise Refused("its task has ended", found, task)
        case State.EXPIRED:
            raise Refused("nobody answered in time: it has expired", found, task)
        case State.SUPERSEDED:
            raise Refused(f"an answer to it opens nothing: {found.why}", found, task)
        case State.APPROVED | State.REJECTED:
            raise Refused(f"it was {found.state} already, by {', '.join(found.by)}", found, task)


async def _concluded(  # noqa: PLR0917
    rows: "Rows", approval: Approval, state: State, by: list[str], why: str, now: float
) -> Approval:
    await queries.conclude(rows, approval.id, state, now, by=by, why=why)
    return approval._replace(state=state, answered=now, by=tuple(by), why=why)


def _offers(ballots: "Sequence[Ballot]") -> list[Offer]:
    return [ballot.offer for ballot in ballots if ballot.vote is Vote.APPROVE]


def _objection(people: "People", who: "Actor", approval: Approval, task: "Task") -> str:
    """Say why somebody has no say in a question."""
    objections = [people.objection(who, asks, task.started_by) for asks in approval.question.rules]
    return next((objection for objection in objections if objection), people.nobody(who))


def _by(group: str | None) -> str:
    return f" by {group}" if group else ""


class Revoked(NamedTuple):
    """What ends at somebody's word."""

    task: "Task"
    grants: tuple[str, ...]


async def revoke(  # noqa: PLR0917
    rows: "Rows", people: "People", id_: str, who: "Actor", why: str, now: float
) -> tuple[Approval, Revoked, str]:
    """End a grant, or all that a question granted, or lift a rejection. Raises Refused, StoreError."""
    grant = await queries.grant_of(rows, id_)
    found = await queries.approval_of(rows, id_ if grant is None else grant.approval)
    task = None if found is None else await queries.task_of(rows, found.task)
    if found is None or task is None:
        raise Refused("there is no such grant or question")
    if not people.can_reject(who, found.question.rules, task.started_by):
        raise Refused(_objection(people, who, found, task), found, task)
    if found.state is State.REJECTED:
        if found.lifted or found.expires <= now:
            over = "its rejection was lifted already" if found.lifted else "its rejection is over"
            raise Refused(f"{over}; nothing has changed", found, task)
        await queries.lift(rows, found.id)
        return found, Revoked(task, ()), "rejection lifted: it may be asked again"
    grants = [grant] if grant is not None else list(await queries.grants_of(rows, found.id))
    standing = [one for one in grants if one.over is None or (one.ending == queries.USED and task.ended is None)]
    if not standing:
        over = (
            f"it is over: {grants[0].ending}" if len(grants) == 1 else "nothing that was granted for this is in force"
        )
        raise Refused(f"{over}; nothing has changed", found, task)
    revoked = f"revoked by {who.name}: {why[:_LONGEST_WHY]}".rstrip(": ")
    for one in standing:
        before = "" if one.over is None else f"{one.ending}, then "
        await queries.end_grant(rows, one.id, now, before + revoked)
        rows.tell(f"over {task.id} {one.id}")
    used = all(one.over is not None for one in standing)
    text = "its uses were taken: what still passes under it is cut" if used else "revoked: what passes under it is cut"
    return found, Revoked(task, tuple(one.id for one in standing)), text
