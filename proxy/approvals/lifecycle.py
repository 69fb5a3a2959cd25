"""Lifecycle of approval requests and grants: serve, take, grant, expire, supersede, end. Inside a transaction.

A pending approval request becomes approved, rejected, expired, superseded or over, and then nothing else
(`Transaction.conclude`). A grant serves one task, one rule of one content, and attempts of one key. Grants whose time
is over serve nobody, whether their end was written or not.
"""

import hashlib
import secrets
from typing import TYPE_CHECKING, Final

from proxy.approvals.approval_request import grant_key, grant_keys
from proxy.approvals.model import ApprovalState, Grant, ScopeTooWideError, Vote, describe_bounds, limit_bounds
from proxy.approvals.transaction import USED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.approvals.approval_request import ApprovalRequest, Rule
    from proxy.approvals.model import Approval, Ballot, GrantBounds, GrantTerms, Task
    from proxy.approvals.transaction import Transaction

_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # none that is taken for another
_LENGTH: Final = 8
FOREIGN: Final = "no grant of this task"
BATCH: Final = 200  # at a time: other tasks wait for it


def new_id() -> str:
    """Make an id that is easy to type and was never there: 40 bits of noise."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))


def request_key(rules: "Sequence[Rule]", question: "ApprovalRequest") -> str:
    """Return the key that equal requests of a task share: their rules, and the grant key."""
    named = sorted(f"{asks.rule} {asks.digest}" for asks in rules)
    text = "\0".join([*named, grant_key(question, question._replace(rules=tuple(rules)).covers)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


async def find_grants(t: "Transaction", task: str, question: "ApprovalRequest") -> "tuple[list[Grant], list[Rule]]":
    """Return the grants that serve an attempt, one a rule, and the rules for which there is none."""
    good = grant_keys(question)
    found: list[Grant] = []
    unmet: list[Rule] = []
    for asks in question.rules:
        if (grant := await t.in_force(task, asks, good)) is None:
            unmet.append(asks)
        else:
            found.append(grant)
    return found, unmet


async def take_uses(t: "Transaction", grants: "Sequence[Grant]") -> list[Grant]:
    """Take one use of each grant, and return the grants with the uses left."""
    left = []
    for grant in grants:
        uses = await t.take(grant.id)
        if uses == 0 and not grant.cuts:
            await t.end_grant(grant.id, USED)
        left.append(grant._replace(uses=uses))
    return left


async def make_grants(t: "Transaction", approval: "Approval", ballots: "Sequence[Ballot]") -> list[Grant]:
    """Create the grants of an approval: one for each rule, with the narrowest terms of all approvers."""
    found = []
    for asks, (width, uses, bytes_, ends, cuts) in bounds_by_rule(approval.question, approved_terms(ballots), t.now):
        covers = grant_key(approval.question, width)
        rule, digest = asks.rule, asks.digest
        grant = Grant(
            new_id(), approval.id, approval.task, rule, digest, width, covers, uses, bytes_, ends, cuts, t.now
        )
        await t.put(grant)
        found.append(grant)
    return found


def approved_terms(ballots: "Sequence[Ballot]") -> "list[GrantTerms]":
    """Return the terms of all approving votes."""
    return [ballot.offer for ballot in ballots if ballot.vote is Vote.APPROVE]


def bounds_by_rule(
    question: "ApprovalRequest", given: "Sequence[GrantTerms]", now: float
) -> "list[tuple[Rule, GrantBounds]]":
    """Return the bounds of each rule's grant. Raises ScopeTooWideError if an approver offers more than a rule gives."""
    width = question.covers
    found = [(asks, limit_bounds(asks.terms, width, given, now)) for asks in question.rules]
    if question.cut and any(extent.width == "attempt" for _, extent in found):
        raise ScopeTooWideError("this does more than is shown here: it can't be approved by itself")
    return found


def describe_reach(found: "Sequence[tuple[Rule, GrantBounds]]", now: float) -> str:
    """Describe the bounds of grants: one sentence for all rules, or one for each where they differ."""
    said = {asks.rule: describe_bounds(extent, now) for asks, extent in found}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"for {rule} {text}" for rule, text in said.items())


async def spend_bytes(t: "Transaction", task: str, grant: str, many: int) -> str:
    """Take bytes of a grant's budget; returns why what passes is to be cut, empty where it goes on."""
    left = await t.take_bytes(task, grant, many)
    if left:
        return ""
    if left == 0:
        await t.end_grant(grant, "its bytes are used")
        return "its bytes are used"
    found = await t.grant(grant)
    if found is None or found.task != task:
        return FOREIGN
    return "" if found.over is None or found.ending == USED else found.ending


async def find_outdated(
    t: "Transaction", task: "Task", question: "ApprovalRequest", waits: "Callable[[str], object]"
) -> "list[Approval]":
    """List what a task has asked about rules whose content has changed since, as a new `question` shows.

    What something still `waits` for stays: its gate decides again under the new rules, and drops it then.
    """
    pending = await t.asked_otherwise(task.id, question.rules) if question.rules else []
    return [one for one in pending if one.expires > t.now and _changed(one.question, question) and not waits(one.id)]


async def supersede(
    t: "Transaction", task: "Task", gone: "Sequence[Approval]", question: "ApprovalRequest", instead: "Approval | None"
) -> None:
    """End what is `outdated`; the reason names what is asked `instead` where that covers the same."""
    for one in gone:
        changed = _changed(one.question, question)
        why = f"{', '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed since it was asked"
        if instead is not None and grant_key(one.question, one.question.covers) in grant_keys(instead.question):
            why += f", and it is asked as {instead.id} now"
        await t.conclude(one.id, ApprovalState.SUPERSEDED, why=why)
        t.record(task).expired(one.id, one.question, f"superseded: {why}")
        t.tell(f"settle {one.id}")


def _changed(before: "ApprovalRequest", question: "ApprovalRequest") -> list[str]:
    digests = {asks.rule: asks.digest for asks in question.rules}
    return [asks.rule for asks in before.rules if digests.get(asks.rule, asks.digest) != asks.digest]


async def expire_requests(t: "Transaction") -> "list[Approval]":
    """End approval requests that nobody answered in time, at most BATCH, and return them."""
    gone = await t.due(BATCH)
    await t.conclude_all(gone, ApprovalState.EXPIRED)
    tasks = {one: await t.task(one) for one in dict.fromkeys(approval.task for approval in gone)}
    for approval in gone:
        if (task := tasks[approval.task]) is not None:
            t.record(task).expired(approval.id, approval.question, "nobody answered in time")
    return gone


async def expire_grants(t: "Transaction") -> "list[Grant]":
    """End grants whose time is over, at most BATCH, and return them; what passes under those that cut is to end."""
    gone = await t.due_grants(BATCH)
    for grant in gone:
        await t.end_grant(grant.id, "its time is over")
        if (found := await t.found(grant.approval)) is not None:
            t.record(found[1]).expired(found[0].id, found[0].question, f"the grant {grant.id} is over")
        if grant.cuts:
            t.tell(f"over {grant.task} {grant.id}")
    return gone


async def end_task(t: "Transaction", task: "Task") -> "list[Approval]":
    """End a task with all its grants and approval requests; returns the latter."""
    gone: list[Approval] = []
    await t.end_task(task.id)
    while found := await t.listed([ApprovalState.PENDING], (-1.0, ""), BATCH, task.id):
        await t.conclude_all(found, ApprovalState.OVER)
        for approval in found:
            t.record(task).expired(approval.id, approval.question, "its task has ended")
        gone += found
    for grant in await t.granted_to(task.id):
        await t.end_grant(grant.id, "its task has ended")
    return gone
