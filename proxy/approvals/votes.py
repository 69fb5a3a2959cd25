"""Votes on one approval request: whether a vote counts, what it decides, and what it grants. Inside a transaction.

Two answers at once come one after the other, and the first that is final wins: the second finds a request that is
answered.
"""

from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from proxy.approvals import lifecycle
from proxy.approvals.model import Approval, ApprovalState, Ballot, GrantTerms, PreRequestKind, ScopeTooWideError, Vote
from proxy.approvals.people import display_name
from proxy.approvals.transaction import USED
from proxy.telemetry.events import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.approvals.model import Grant, Task
    from proxy.approvals.people import Actor
    from proxy.approvals.transaction import Transaction

_LONGEST_WHY: Final = 1000  # characters
_IDLE: Final = "; the client no longer waits: the approval serves its next try, unless the rules change before"
_NO_RULE: Final = (
    "no rule covers this, so an approval alone would not allow it: approve it with "
    "`--as-rule`, which writes a rule, or reject it"
)


class VoteRefusedError(Exception):
    """A vote that does not count; the text says why. `approval`: the request it was for."""

    def __init__(self, why: str, approval: Approval | None = None, task: "Task | None" = None) -> None:
        super().__init__(why)
        self.approval = approval
        self.task = task


class CastVote(NamedTuple):
    """Vote as the approver cast it."""

    who: "Actor"
    vote: Vote
    offer: GrantTerms = GrantTerms()
    why: str = ""
    as_rule: str = ""  # id of the rule that was written for it, with its file

    @property
    def name(self) -> str:
        """What whoever answers is called in records."""
        return display_name(self.who.name, reviewer=self.who.reviewer)


class VoteResult(NamedTuple):
    """Vote that counts, and its effect."""

    approval: Approval  # as it is now
    final: bool
    text: str  # one sentence
    grants: "tuple[Grant, ...]" = ()


async def decide(t: "Transaction", approval: str, said: CastVote) -> VoteResult:
    """Count a vote. Raises VoteRefusedError, StoreError, and JournalWriteError where it can't be recorded."""
    said = said._replace(why=said.why[:_LONGEST_WHY])
    found, task = await _pending(t, approval)
    ballots = await t.votes(found.id)
    earlier = next(
        (ballot for ballot in ballots if display_name(ballot.person, reviewer=ballot.reviewer) == said.name), None
    )
    if earlier is not None and (earlier.vote is said.vote or said.vote is Vote.PASS):
        raise VoteRefusedError(
            f"{said.name} has said {earlier.vote} already; a second vote does not count", found, task
        )
    ballot = Ballot(said.who.name, said.vote, said.who.reviewer, said.offer, said.why, t.now)
    ballots = (*(other for other in ballots if other is not earlier), ballot)
    match said.vote:
        case Vote.PASS:
            if not said.who.reviewer:
                raise VoteRefusedError("only a reviewer can pass: leave the request unanswered instead", found, task)
            await t.vote(found.id, ballot)
            t.record(task).answered(found, Answer.PASS, [said.name], said.why)
            return VoteResult(found, final=False, text=f"{said.name} leaves it to people")
        case Vote.REJECT:
            if not t.people.can_reject(said.who, found.question.rules, task.started_by):
                _refuse(t, said.who, found, task)
            await t.vote(found.id, ballot)
            t.record(task).answered(found, Answer.REJECTED, [said.name], said.why, ())
            done = await _concluded(t, found, ApprovalState.REJECTED, [said.name], said.why)
            return VoteResult(done, final=True, text=f"rejected: {found.question.line()}")
        case Vote.APPROVE if found.wish is PreRequestKind.UNRULED:
            return await _approve_by_rule(t, found, task, said, ballot)
        case Vote.APPROVE:
            return await _approve(t, found, task, said, ballots)


async def _approve_by_rule(
    t: "Transaction", found: Approval, task: "Task", said: CastVote, ballot: Ballot
) -> VoteResult:
    if not said.as_rule:
        raise VoteRefusedError(_NO_RULE, found, task)
    if not said.who.known or said.who.reviewer:
        raise VoteRefusedError(t.people.nobody(said.who), found, task)
    await t.vote(found.id, ballot)
    t.record(task).answered(found, Answer.APPROVED, [said.name], said.why, (), f"written down as {said.as_rule}")
    done = await _concluded(t, found, ApprovalState.APPROVED, [said.name], said.why)
    return VoteResult(done, final=True, text=f"approved, as {said.as_rule} says from now on")


async def _approve(
    t: "Transaction", found: Approval, task: "Task", said: CastVote, ballots: "Sequence[Ballot]"
) -> VoteResult:
    rules = found.question.rules
    if all(t.people.objection(said.who, asks, task.started_by) for asks in rules):
        _refuse(t, said.who, found, task)
    try:
        lifecycle.bounds_by_rule(found.question, [said.offer], t.now)
    except ScopeTooWideError as error:
        raise VoteRefusedError(str(error), found, task) from error
    await t.vote(found.id, ballots[-1])
    lacking = ((asks, t.people.lacking(asks, ballots, task.started_by)) for asks in rules)
    if missing := [(asks, count) for asks, count in lacking if count]:
        by = {asks.rule: f" by {asks.terms.by}" if asks.terms.by else "" for asks in rules}
        still = ", ".join(f"{count} more for {asks.rule}{by[asks.rule]}" for asks, count in missing)
        t.record(task).answered(found, Answer.APPROVED, [said.name], said.why, detail=f"it takes {still}")
        return VoteResult(found, final=False, text=f"{said.name} approves; it takes {still}")
    grants = await lifecycle.make_grants(t, found, ballots)
    everybody = [display_name(one.person, reviewer=one.reviewer) for one in ballots if one.vote is Vote.APPROVE]
    detail = f"written down as {said.as_rule}" if said.as_rule else ""
    t.record(task).answered(found, Answer.APPROVED, everybody, said.why, grants, detail)
    done = await _concluded(t, found, ApprovalState.APPROVED, everybody, said.why)
    reach = lifecycle.describe_reach(
        lifecycle.bounds_by_rule(found.question, lifecycle.approved_terms(ballots), t.now), t.now
    )
    return VoteResult(done, final=True, text=f"approved: {reach}{_IDLE if found.stale else ''}", grants=tuple(grants))


async def _pending(t: "Transaction", approval: str) -> "tuple[Approval, Task]":
    """Return an approval request that can be answered. Raises VoteRefusedError."""
    if (both := await t.found(approval)) is None:
        raise VoteRefusedError("there is no such approval request")
    found, task = both
    if found.state is ApprovalState.PENDING and found.expires > t.now and task.ended is None:
        return both
    if found.state is ApprovalState.EXPIRED or (found.state is ApprovalState.PENDING and found.expires <= t.now):
        why = "nobody answered in time: it has expired"
    elif found.state in {ApprovalState.PENDING, ApprovalState.OVER}:
        why = "its task has ended"
    elif found.state is ApprovalState.SUPERSEDED:
        why = f"an answer has no effect: {found.why}"
    else:
        why = f"it was {found.state} already, by {', '.join(found.by)}"
    raise VoteRefusedError(why, found, task)


async def _concluded(t: "Transaction", approval: Approval, state: ApprovalState, by: list[str], why: str) -> Approval:
    await t.conclude(approval.id, state, by=by, why=why)
    return approval._replace(state=state, answered=t.now, by=tuple(by), why=why)


def _refuse(t: "Transaction", who: "Actor", approval: Approval, task: "Task") -> NoReturn:
    """Raise VoteRefusedError with why somebody has no say in an approval request."""
    objections = [t.people.objection(who, asks, task.started_by) for asks in approval.question.rules]
    raise VoteRefusedError(next(filter(None, objections), t.people.nobody(who)), approval, task)


async def revoke(t: "Transaction", id_: str, who: "Actor", why: str) -> "tuple[Approval, Task, tuple[str, ...], str]":
    """End a grant, or all that a request granted, or lift a rejection; returns the grants that end, and a sentence.

    Raises VoteRefusedError, StoreError.
    """
    grant = await t.grant(id_)
    both = await t.found(id_ if grant is None else grant.approval)
    if both is None:
        raise VoteRefusedError("there is no such grant or approval request")
    found, task = both
    if not t.people.can_reject(who, found.question.rules, task.started_by):
        _refuse(t, who, found, task)
    if found.state is ApprovalState.REJECTED:
        if found.lifted or found.expires <= t.now:
            over = "its rejection was lifted already" if found.lifted else "its rejection has expired"
            raise VoteRefusedError(f"{over}; nothing has changed", found, task)
        await t.lift(found.id)
        return found, task, (), "rejection lifted: it may be requested again"
    grants = [grant] if grant is not None else list(await t.grants_of(found.id))
    standing = [one for one in grants if one.over is None or (one.ending == USED and task.ended is None)]
    if not standing:
        over = "no grant of this is in force"
        over = f"it is over: {grants[0].ending}" if len(grants) == 1 else over
        raise VoteRefusedError(f"{over}; nothing has changed", found, task)
    revoked = f"revoked by {who.name}: {why[:_LONGEST_WHY]}".rstrip(": ")
    for one in standing:
        await t.end_grant(one.id, revoked if one.over is None else f"{one.ending}, then {revoked}")
        t.tell(f"over {task.id} {one.id}")
    used = all(one.over is not None for one in standing)
    text = (
        "its uses are taken: connections that still use it are cut"
        if used
        else "revoked: connections that use it are cut"
    )
    return found, task, tuple(one.id for one in standing), text
