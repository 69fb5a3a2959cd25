"""Records approvals in the journal of the gate that asks: requests, votes, grants, and their ends.

The registry writes lines of the same journal in a segment of its own. What an answer depends on is recorded before it
counts (invariant 6), inside its transaction: JournalWriteError undoes it. Records of what has already happened never
raise. After closing the journal, the caller has the journal process sign it (`enforcer.journal.keeper.Keeper.close`).
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proxy.approvals.approval_request import Kind
from proxy.telemetry import events
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Answer, Destination, Event, Git, Http, IdMaker, Instant, Origin, Process
from proxy.telemetry.journal.writer import Journal, JournalWriteError
from proxy.telemetry.masking import masked
from rules.attempt import Protocol
from rules.values.addresses import parse_host
from rules.values.names import HostName, InvalidNameError
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.approvals.approval_request import ApprovalRequest, Source
    from proxy.approvals.model import Approval, Grant, Task
    from proxy.telemetry.prometheus.metrics import Metrics

type Recorders = Callable[[Task | None], ApprovalRecorder]  # None: of no task that anybody knows

_ids = IdMaker()  # one a process: ids grow across all tasks that it answers for
_REASONS = {
    Answer.REJECTED: Reason.APPROVAL_DENIED,
    Answer.UNAVAILABLE: Reason.APPROVAL_UNAVAILABLE,
    Answer.FLOOD: Reason.APPROVAL_FLOOD,
    Answer.TIMEOUT: Reason.APPROVAL_TIMEOUT,
    Answer.APPROVED: Reason.APPROVAL_GRANTED,
}


def origin(task: "Task") -> Origin:
    """Return a task as events name it."""
    return Origin.of(task.run, task.name, task.labels, task.sandbox, task.host)


class ApprovalRecorder:
    """Records one task's approvals. For one thread; several may share one journal, which stays the caller's."""

    __slots__ = ("_journal", "_metrics", "_origin")

    def __init__(self, origin: Origin, journal: Journal, metrics: "Metrics | None" = None) -> None:
        self._origin = origin
        self._journal = journal
        self._metrics = metrics

    # What raises JournalWriteError, and then must not happen

    def asked(self, approval: "Approval", *, joined: bool) -> None:
        """Record that people are asked, before anybody is."""
        question = approval.question
        said = events.Approval(
            approval.id,
            question.kind,
            why=approval.said or next((asks.why for asks in question.rules if asks.why), ""),
            width=question.covers,
            until=int(approval.expires),
            agent=bool(approval.wish),
            joined=joined,
        )
        self._write(self._event(events.Kind.APPROVAL_ASKED, question, said, verdict=Verdict.ASK))

    def answered(  # noqa: PLR0917
        self,
        approval: "Approval",
        answer: Answer,
        by: "Sequence[str]",
        why: str = "",
        grants: "Sequence[Grant] | None" = None,
        detail: str = "",
    ) -> None:
        """Record what somebody said, before it takes effect; with `grants`, none among them, no other counts after it.

        Then `by` is everybody whom it took.
        """
        final = grants is not None
        said = events.Approval(
            approval.id, approval.question.kind, tuple(by), answer, final=final, why=why, **_left(grants or ())
        )
        event = self._event(events.Kind.APPROVAL_ANSWERED, approval.question, said, detail=detail)
        if final:
            outcome = Outcome.PASSED if answer is Answer.APPROVED else Outcome.BLOCKED
            event = event._replace(reason=_REASONS.get(answer), outcome=outcome)
        self._write(event)

    def used(self, question: "ApprovalRequest", grants: "Sequence[Grant]") -> None:
        """Record that grants let something through; they say what is left."""
        said = events.Approval(grants[0].approval, question.kind, **_left(grants))
        how = {"outcome": Outcome.PASSED, "reason": Reason.APPROVAL_GRANTED}
        self._write(self._event(events.Kind.APPROVAL_USED, question, said, **how))

    def looked_at(self, event: str, by: str) -> None:
        """Record who has looked at a flagged event."""
        self._write(self._event(events.Kind.FLAG_SEEN, cause=event, by=by))

    def tainted(self, source: "Source") -> None:
        """Record what untrusted source the task reads from, before anything of it reaches the task."""
        host, _, port = source.destination.rpartition(":")  # as a task's gate writes it: `host:port`, `[v6]:port`
        known = bool(host) and port.isascii() and port.isdigit()
        where = _destination(host.removeprefix("[").removesuffix("]"), int(port)) if known else None
        told: dict[str, Any] = {"rules": (source.rule,), "destination": where or Destination(source.destination)}
        told |= {"cause": source.event or None, "reason": Reason.TAINTED}
        self._write(self._event(events.Kind.TASK_TAINTED, **told))

    # What never raises

    def seen(self, approval: "Approval", by: str) -> None:
        """Record who looked at a request."""
        said = events.Approval(approval.id, approval.question.kind, (by,))
        self._report(self._event(events.Kind.APPROVAL_SEEN, approval.question, said))

    def expired(self, approval: str, question: "ApprovalRequest", detail: str) -> None:
        """Record that nobody answered in time, or that a grant is over; `detail` says which."""
        said = events.Approval(approval, question.kind, answer=Answer.TIMEOUT)
        how = {"reason": Reason.APPROVAL_TIMEOUT, "detail": detail}
        self._report(self._event(events.Kind.APPROVAL_EXPIRED, question, said, **how))

    def refused(
        self, approval: str, question: "ApprovalRequest | None", detail: str, by: str = "", answer: Answer | None = None
    ) -> None:
        """Record an answer or a use that doesn't count, or a request that people aren't asked (`answer` says why not).

        `by` is who they say they are, `detail` what was wrong.
        """
        said = events.Approval(approval, "" if question is None else question.kind, (by,) if by else (), answer)
        how = {"outcome": Outcome.BLOCKED, "reason": None if answer is None else _REASONS.get(answer), "detail": detail}
        self._report(self._event(events.Kind.APPROVAL_REFUSED, question, said, **how))

    def stale(self, approval: "Approval") -> None:
        """Record that whoever waited for the answer is gone."""
        said = events.Approval(approval.id, approval.question.kind)
        self._report(self._event(events.Kind.APPROVAL_STALE, approval.question, said))

    def _event(
        self,
        kind: events.Kind,
        question: "ApprovalRequest | None" = None,
        said: events.Approval | None = None,
        **more: Any,
    ) -> Event:
        now = time.time_ns()
        about = {} if question is None else _about(question)
        return Event(
            time=Instant(now), id=_ids.make(now), kind=kind, **self._origin._asdict(), approval=said, **about, **more
        )

    def _write(self, event: Event) -> None:
        """Write an event. Raises JournalWriteError, whatever goes wrong: a bug of ours is no answer."""
        try:
            written = self._journal.append(encode(event), event.time)
        except Exception as error:
            if self._metrics is not None:
                self._metrics.events_dropped += 1
            if isinstance(error, JournalWriteError):
                raise
            raise JournalWriteError(None, f"cannot tell an event: {type(error).__name__}: {error}") from error
        if self._metrics is not None:
            self._metrics.count_events(event.kind, written)

    def _report(self, event: Event) -> None:
        try:
            self._write(event)
        except JournalWriteError:
            return  # counted


def _about(question: "ApprovalRequest") -> dict[str, Any]:
    """Return a request as fields of an event: without what may be secret, or what its rules want told to nobody."""
    question = question.redacted()
    process = question.process
    return {
        "rules": tuple(asks.rule for asks in question.rules),
        "revision": question.revision,
        "destination": _destination(question.host, question.port) if question.host else None,
        "protocol": Protocol(question.protocol) if question.protocol in set(Protocol) else None,
        "http": Http(question.method, question.host, question.path) if question.method else None,
        "argv": tuple(masked(question.argv)),
        "git": _git(question),
        "paths": tuple(file.path for file in question.files),
        "process": process and Process(process.pid, process.exe, process.argv, None, process.ancestors),
        "cause": question.event or None,
    }


def _git(question: "ApprovalRequest") -> Git | None:
    if not question.repo:
        return None
    refs = tuple(" ".join(filter(None, (each.change, each.ref, each.old, each.new))) for each in question.refs)
    return Git("push" if question.kind is Kind.PUSH else "fetch", question.repo, refs)


def _destination(host: str, port: int) -> Destination:
    try:
        found = parse_host(host)
    except (InvalidNameError, ValueError):
        return Destination(host, None, port)
    return Destination(host, None, port) if isinstance(found, HostName) else Destination(None, host, port)


def _left(grants: "Sequence[Grant]") -> dict[str, Any]:
    """Return what grants let through, or what is left of that, as fields of an event's approval."""
    if not grants:
        return {}
    first = min(grants, key=lambda grant: (grant.uses is None, grant.uses or 0))
    ends = [grant.ends for grant in grants if grant.ends is not None]
    budgets = [grant.bytes for grant in grants if grant.bytes is not None]
    return {
        "grants": tuple(grant.id for grant in grants),
        "width": first.width,
        "uses": first.uses,
        "bytes": min(budgets, default=None),
        "until": int(min(ends)) if ends else None,
    }
