"""Approval card: all that a person needs to decide, as JSON for programs and as text for a terminal.

A task's words are escaped in the text (invariant 7), and not in the JSON. What the agent says it wants stands apart.
"""

import shlex
import time
from typing import TYPE_CHECKING, NamedTuple

from proxy.approvals import lifecycle
from proxy.approvals.approval_request import Kind
from proxy.approvals.model import (
    Approval,
    ApprovalState,
    Ballot,
    DestinationHistory,
    Grant,
    GrantBounds,
    GrantTerms,
    PreRequestKind,
    ScopeTooWideError,
    Task,
    Vote,
    describe_bounds,
    format_duration,
)
from proxy.approvals.people import display_name
from proxy.telemetry.visible import unpadded, visible
from rules.decision import GrantScope

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.approvals.approval_request import ApprovalRequest, Rule, Source
    from proxy.approvals.transaction import Transaction
    from proxy.telemetry.baseline.anomalies import EarlierRuns

_NOTHING: "Mapping[str, str]" = {}


class CardChoice(NamedTuple):
    """One answer that a person can give, and its exact effect."""

    words: str  # of the command
    does: str


class Card(NamedTuple):
    """Everything known about one approval request, for the person who decides."""

    approval: Approval
    task: Task
    place: DestinationHistory | None  # what is known of the destination
    sources: "tuple[Source, ...]"  # untrusted ones that the task has read from by now
    ballots: tuple[Ballot, ...]
    missing: "tuple[tuple[Rule, int], ...]"  # how many approvals each rule still wants
    viewers: tuple[str, ...]
    grants: tuple[Grant, ...]
    choices: tuple[CardChoice, ...]
    now: float
    vain: "Mapping[str, str]" = _NOTHING  # by rule why its approvals can never be given, as approvers.yaml is now
    before: "EarlierRuns | None" = None  # what the journal tells of earlier runs of the task's name; None: nothing
    withheld: bool = False  # there is more to see for whoever decides: a rule says `log: pattern`

    def redacted(self) -> "Card":
        """Return the card without what its rules withhold from logs and receivers."""
        question = self.approval.question
        approval = self.approval._replace(question=question.redacted())
        return self._replace(approval=approval, withheld=question.withholds)

    def packed(self) -> dict[str, object]:
        """Return it as JSON; times are seconds since 1970."""
        approval, task, question = self.approval, self.task, self.approval.question
        whose = _picked(task, "name", "sandbox", "started_by", "host", "workspace")
        return {
            **_picked(approval, "id", "state", "said", "asked", "expires", "times", "stale", "answered", "why"),
            "asked_by_agent": approval.wish is not PreRequestKind.NONE,
            "needs_rule": approval.wish is PreRequestKind.UNRULED,
            "summary": question.line(),
            "task": {"id": task.run, **whose, "labels": dict(task.labels), "rule_files": list(task.rule_files)},
            "question": question.packed(),
            "withheld": self.withheld,
            "destination": None if self.place is None else self.place._asdict(),
            "earlier_runs": None if self.before is None else self.before._asdict(),
            "tainted_by": [source.packed() for source in self.sources],
            "votes": [
                {"by": display_name(one.person, reviewer=one.reviewer), **_picked(one, "vote", "why", "at")}
                for one in self.ballots
            ],
            "missing": [{"rule": asks.rule, "group": asks.terms.by, "count": count} for asks, count in self.missing],
            "in_vain": dict(self.vain),
            "seen_by": list(self.viewers),
            "by": list(approval.by),
            "grants": [
                {"grant": one.id, **_picked(one, "rule", "width", "uses", "bytes", "ends", "over", "ending")}
                for one in self.grants
            ],
            "choices": [choice._asdict() for choice in self.choices],
        }

    def text(self) -> str:
        """Return it as lines for a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> "Iterator[str]":
        yield from self._what()
        yield from self._so_far()
        for choice in self.choices:
            yield f"  {'exeat':<12} {visible(choice.words)}  -> {visible(choice.does)}"

    def _what(self) -> "Iterator[str]":
        approval, task, question = self.approval, self.task, self.approval.question
        wish = ", asked by the agent" if approval.wish else ""
        yield f"{approval.id}  {approval.state}{wish}: {unpadded(visible(question.line()))}"
        yield from _field("task", f"{task.name} ({task.run})" + "".join(f" {k}={v}" for k, v in task.labels.items()))
        yield from _field(
            "started by", f"{task.started_by} on {task.host}" + (f", in {task.workspace}" if task.workspace else "")
        )
        if question.process is not None:
            program = question.process
            above = " < ".join(map(shlex.quote, program.ancestors))
            parents = f", started by {above}" if above else ""
            exe = shlex.quote(program.exe)
            yield from _field("process", f"{program.pid} {exe}: {shlex.join(program.argv)}{parents}")
        yield from _decoded(question)
        if self.withheld:
            yield from _field(
                "withheld", f"some of its path or refs (`log: pattern`): `exeat approvals show {approval.id}`"
            )
        if question.kind is Kind.MERGE:
            yield from _field("lines", f"`exeat changes {task.run}` shows them, to whoever it is kept for")
        if question.host:
            yield from _field("destination", self._destination())
            if self.before is not None:
                yield from _field("usual", _usual(self.before, task.name))
        for asks in question.rules:
            yield from _field("rule", f"{asks.rule}: {asks.why or 'it gives no reason (`why`)'}")
        if approval.wish is PreRequestKind.UNRULED:
            yield from _field("rule", "no rule covers this; an approval with --as-rule writes one")
        if approval.said:
            yield from _field("agent says", approval.said)
        for source in self.sources:
            yield from _field("read before", f"{source.destination} (untrusted, says {source.rule})")

    def _so_far(self) -> "Iterator[str]":
        approval = self.approval
        yield from _field(
            "asked", f"{format_duration(self.now - approval.asked)} ago, {_times(approval.times)}{self._waits()}"
        )
        for ballot in self.ballots:
            why = f": {ballot.why}" if ballot.why else ""
            yield from _field(
                "said", f"{display_name(ballot.person, reviewer=ballot.reviewer)} {_VOTED[ballot.vote]}{why}"
            )
        for asks, count in self.missing:
            whom = f" of {asks.terms.by}" if asks.terms.by else ""
            yield from _field("wanted", f"{count} more{whom}, for {asks.rule}")
            if asks.rule in self.vain:
                yield from _field("in vain", f"nobody can give that: {self.vain[asks.rule]}")
        if approval.state in {ApprovalState.APPROVED, ApprovalState.REJECTED}:
            why = f": {approval.why}" if approval.why else ""
            lifted = "; lifted, so it may be requested again" if approval.lifted else ""
            yield from _field(approval.state, f"by {', '.join(approval.by)}{why}{lifted}")
        if approval.state in _UNANSWERED:
            yield from _field(approval.state, _UNANSWERED[approval.state].format(approval.why))
        for grant in self.grants:
            yield from _field("grant", f"{grant.id} for {grant.rule}: {_left(grant, self.now)}")

    def _waits(self) -> str:
        if self.approval.state is not ApprovalState.PENDING:
            return ""
        waits = "the client no longer waits" if self.approval.stale else "the client waits"
        return f"; {waits}; open for {format_duration(self.approval.expires - self.now)} more"

    def _destination(self) -> str:
        question = self.approval.question
        place = f"{question.protocol} {question.host} port {question.port}"
        if self.place is None:
            return place
        day = time.strftime("%Y-%m-%d", time.gmtime(self.place.first))
        often = f"asked about {_times(self.place.times)} since {day}"
        return f"{place}, {often}: {self.place.approved} approved, {self.place.rejected} rejected"


async def build_card(t: "Transaction", approval: str) -> Card | None:
    """Gather what is known of an approval request. Raises StoreError."""
    if (both := await t.found(approval)) is None:
        return None
    found, task = both
    question, pending = found.question, found.state is ApprovalState.PENDING and found.expires > t.now
    ballots = await t.votes(found.id)
    lacking = [(asks, t.people.lacking(asks, ballots, task.started_by)) for asks in question.rules] if pending else []
    missing = tuple((asks, count) for asks, count in lacking if count)
    return Card(
        found,
        task,
        await t.place(question.host, question.port) if question.host else None,
        await t.taints(task.run),
        ballots,
        missing,
        await t.viewers(found.id),
        await t.grants_of(found.id),
        tuple(_choices(found, t.now)) if pending else (),
        t.now,
        {asks.rule: why for asks, _ in missing if (why := t.people.short(asks, task.started_by))},
    )


def _choices(approval: Approval, now: float) -> "Iterator[CardChoice]":
    question = approval.question
    lets = {Kind.MERGE: "merges", Kind.COMMAND: "starts"}.get(question.kind, "allows")
    if approval.wish is PreRequestKind.UNRULED:
        yield CardChoice(f"approve {approval.id} --as-rule", "writes a rule that allows this, after testing it")
    else:
        offers = [
            ("", GrantTerms()),
            (" --for once", GrantTerms(uses=1)),
            (" --for 1h", GrantTerms(seconds=3600.0)),
            (" --for task", GrantTerms(task=True)),
        ]
        if question.covers is not GrantScope.ATTEMPT and not question.cut:
            offers.insert(1, (" --scope attempt", GrantTerms(GrantScope.ATTEMPT)))
        seen: set[str] = set()
        for words, offer in offers:
            try:
                extents = lifecycle.bounds_by_rule(question, [offer], now)
            except ScopeTooWideError:
                continue
            does = lifecycle.describe_reach(extents, now)
            if does not in seen:
                yield CardChoice(f"approve {approval.id}{words}", f"{lets} {does}")
            seen.add(does)
    yield CardChoice(
        f"reject {approval.id}",
        f"blocks it, and the same request for the next {format_duration(approval.expires - now)}",
    )


_UNANSWERED = {
    ApprovalState.OVER: "its task has ended",
    ApprovalState.EXPIRED: "nobody answered in time",
    ApprovalState.SUPERSEDED: "{}: an answer has no effect",
}
_VOTED = {Vote.APPROVE: "approves", Vote.REJECT: "rejects", Vote.PASS: "leaves it to people"}


def _decoded(question: "ApprovalRequest") -> "Iterator[str]":
    yield from _done(question)
    if question.secrets:
        yield from _field("secrets", f"{', '.join(question.secrets)}: the gate inserts the values")
    elif question.beforehand:
        yield from _field("secrets", "those that the rules allow, if any: it has not been tried yet")
    if question.cut:
        yield from _field("cut", "it does more than is shown here")


def _done(question: "ApprovalRequest") -> "Iterator[str]":
    match question.kind:
        case Kind.REQUEST:
            yield from _field(
                "request",
                f"{question.method} {question.path}, {_body(question)}"
                + (", a websocket" if question.websocket else ""),
            )
        case Kind.PUSH:
            if question.repo:
                yield from _field("repository", question.repo)
            for ref in question.refs:
                objects = f" {ref.old or '?'} -> {ref.new or '?'}" if ref.old or ref.new else ""
                yield from _field("ref", f"{ref.change} {ref.ref}{objects}")
            if not question.beforehand:
                yield from _field("sends", _body(question))
        case Kind.COMMAND:
            yield from _field("command", shlex.join(question.argv))
        case Kind.MERGE:
            yield from _merged(question)
        case Kind.CONNECTION | Kind.UDP:
            yield from _field("connection", "its content is not inspected")


def _merged(question: "ApprovalRequest") -> "Iterator[str]":
    """Show what a merge changes, path by path; what there is no room for is counted, and only the digest has it."""
    more = max(question.total - len(question.files), 0)
    if question.digest:
        yield from _field("content", f"{question.digest}: this and nothing else is what an approval merges")
    if more:
        paths = f"{question.total} paths, and {more} of them are not shown here"
        yield from _field("changes", f"{paths}: see all in `exeat changes` before you approve any")
    for file in question.files:
        lines = "" if file.added is None or file.deleted is None else f", +{file.added} -{file.deleted}"
        was = f"{file.was or 'nothing'} -> {file.now or 'nothing'}"
        said = f", SHA-256 {file.sha256}" if file.sha256 else ""
        yield from _field(file.change or "file", f"{shlex.quote(file.path)}: {was}{lines}{said}")


def _body(question: "ApprovalRequest") -> str:
    if question.size == 0:
        return "no body"
    if question.beforehand:
        return "a body of any size"
    if question.size is None:
        return "a body of unknown size"
    return f"a body of {question.size} byte{'' if question.size == 1 else 's'}"


def _usual(before: "EarlierRuns", name: str) -> str:
    runs = f"{before.runs} earlier {'run' if before.runs == 1 else 'runs'} of `{name}`"
    return f"none of {runs} went there" if not before.times else f"{before.times} of {runs} went there"


def _field(name: str, value: str) -> "Iterator[str]":
    yield f"  {visible(name):<12} {unpadded(visible(value))}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _left(grant: Grant, now: float) -> str:
    if grant.over is not None:
        return grant.ending
    uses = "any number of uses" if grant.uses is None else f"{_times(grant.uses)} more" if grant.uses else "in use"
    much = "" if grant.bytes is None else f", {grant.bytes} bytes left"
    end = "until the task ends" if grant.ends is None else f"for {format_duration(grant.ends - now)} more"
    return f"{grant.width}, {uses}{much}, {end}"


async def summary(t: "Transaction", approval: "Approval", task: "Task") -> dict[str, object]:
    """Return one approval request as JSON, for lists. Raises StoreError."""
    rules = approval.question.rules
    ballots = await t.votes(approval.id)
    wanted = max((asks.terms.needed for asks in rules), default=1)
    lacking = max((t.people.lacking(asks, ballots, task.started_by) for asks in rules), default=wanted)
    grants = await t.grants_of(approval.id)
    said = [{"by": each.person, **_picked(each, "vote", "reviewer")} for each in ballots]
    return {
        **_picked(approval, "id", "state", "lifted", "wish", "asked", "expires", "answered", "why", "times", "stale"),
        "task": task.run,
        "name": task.name,
        "kind": approval.question.kind,
        "line": approval.question.line(),
        "rules": [asks.rule for asks in rules],
        "by": list(approval.by),
        "votes": f"{wanted - lacking} of {wanted}",
        "said": said if any(each.vote is not Vote.PASS for each in ballots) else [],
        "grants": [_grant_summary(grant) for grant in grants],
    }


def _grant_summary(grant: "Grant") -> dict[str, object]:
    reach = GrantBounds(grant.width, grant.uses, grant.bytes, grant.ends)
    said = describe_bounds(reach, grant.made) if grant.over is None else f"over, {grant.ending}"
    return {**_picked(grant, "id", "rule", "width", "uses", "bytes", "ends", "over"), "said": f"{grant.rule}: {said}"}


def _picked(record: object, *names: str) -> dict[str, object]:
    return {name: getattr(record, name) for name in names}
