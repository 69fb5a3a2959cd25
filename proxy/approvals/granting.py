"""Grants: which serve an attempt, what is taken of them, and what an approval makes. Inside a transaction.

Nothing serves by resembling: a grant is for one task, one rule of one content, and attempts of one key.
"""

import hashlib
import secrets
from typing import TYPE_CHECKING, Final

from proxy.approvals import offers
from proxy.approvals.questions import key, keys
from proxy.approvals.records import Grant, Vote
from proxy.approvals.store import queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.approvals.offers import Extent
    from proxy.approvals.questions import Question, Rule
    from proxy.approvals.records import Approval, Ballot
    from proxy.approvals.store.base import Rows

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


def extents(question: "Question", given: "Sequence[offers.Offer]", now: float) -> "list[tuple[Rule, Extent]]":
    """Return how far the grant for each rule reaches. Raises Wider where more is offered than a rule gives."""
    width = question.covers
    found = [(asks, offers.given(asks.terms, width, given, now)) for asks in question.rules]
    if question.cut and any(extent.width == "attempt" for _, extent in found):
        raise offers.Wider("this does more than is shown here: it can't be approved by itself")
    return found


def reach(found: "Sequence[tuple[Rule, Extent]]", now: float) -> str:
    """Say how far grants reach in a sentence: in one for all rules, or rule by rule where they differ."""
    said = {asks.rule: offers.sentence(extent, now) for asks, extent in found}
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
