"""What people are asked and what they say, told in the journal of the gate that asks: for the process that keeps it.

That process has no tenant and decides nothing about packets; it writes lines of the same journal in a segment of its
own. What an answer depends on is told before the answer is given (invariant 6): that raises JournalFailed, and then
nothing may pass. What has only happened never raises. Who closes the journal has its keeper sign it
(`journal.keeper.Keeper.close` with its own process id), as every writer does.
"""

import time
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Answer, Approval, Destination, Event, Git, Http, Instant, Kind, Origin, Process
from proxy.telemetry.ids import IdMaker
from proxy.telemetry.journal.writer import Journal, JournalFailed
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.telemetry.metrics import Metrics
    from rules.attempt import Protocol

_ids = IdMaker()  # one a process: ids grow across all tasks that it answers for
_REASONS = {
    Answer.REJECTED: Reason.APPROVAL_DENIED,
    Answer.UNAVAILABLE: Reason.APPROVAL_UNAVAILABLE,
    Answer.FLOOD: Reason.APPROVAL_FLOOD,
    Answer.TIMEOUT: Reason.APPROVAL_TIMEOUT,
    Answer.APPROVED: Reason.APPROVAL_GRANTED,
}


class Subject(NamedTuple):
    """What an attempt that people are asked about is: every field may hold text that the task chose.

    `argv` has to be masked by whoever makes it; of `http` and `process` what may be secret is dropped as they are made.
    """

    about: str = ""  # connection, request, push, udp, command, merge
    rules: tuple[str, ...] = ()  # that ask, as `file:id`
    revision: str = ""
    destination: Destination | None = None
    protocol: "Protocol | None" = None
    http: Http | None = None
    argv: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    git: Git | None = None
    process: Process | None = None
    cause: str | None = None  # id of the event that it is part of: a request's connection


class Grant(NamedTuple):
    """What an answer lets through, or what is left of that."""

    ids: tuple[str, ...] = ()
    width: str = ""  # attempt, destination, rule
    uses: int | None = None
    bytes: int | None = None
    until: int | None = None  # s since 1970


NOTHING = Grant()


class ApprovalRecorder:
    """Tells of one task's questions. For one thread; several may share one journal, which stays the caller's."""

    __slots__ = ("_journal", "_metrics", "_origin")

    def __init__(self, origin: Origin, journal: Journal, metrics: "Metrics | None" = None) -> None:
        self._origin = origin
        self._journal = journal
        self._metrics = metrics

    def asked(
        self,
        approval: str,
        subject: Subject,
        *,
        why: str = "",
        width: str = "",
        until: int | None = None,
        agent: bool = False,
        joined: bool = False,
    ) -> str:
        """Tell that people are asked, and return the event's id. Call it before anybody is.

        `why` is what the rule says, or what the task says where it asks by itself (`agent`); `until` (s since 1970)
        is how long an answer counts. Raises JournalFailed: ask nobody then.
        """
        said = Approval(approval, subject.about, why=why, width=width, until=until, agent=agent, joined=joined)
        return self._write(self._event(Kind.APPROVAL_ASKED, said, subject)._replace(verdict=Verdict.ASK))

    def seen(self, approval: str, subject: Subject, by: str, detail: str = "") -> None:
        """Tell who looked at a question, or what showed it to them. Never raises."""
        said = Approval(approval, subject.about, (by,))
        self._report(self._event(Kind.APPROVAL_SEEN, said, subject)._replace(detail=detail))

    def answered(
        self,
        approval: str,
        subject: Subject,
        answer: Answer,
        by: "Sequence[str]",
        *,
        why: str = "",
        final: bool = False,
        grant: Grant = NOTHING,
        detail: str = "",
    ) -> str:
        """Tell what somebody said, and return the event's id. Call it before the answer takes effect.

        `final`: no other counts after it; then `grant` is what it lets through, and `by` everybody whom it took.
        Raises JournalFailed: it must have no effect then.
        """
        said = Approval(approval, subject.about, tuple(by), answer, final=final, why=why)
        event = self._event(Kind.APPROVAL_ANSWERED, _granted(said, grant), subject)
        if final:
            event = event._replace(
                reason=_REASONS.get(answer), outcome=Outcome.PASSED if answer is Answer.APPROVED else Outcome.BLOCKED
            )
        return self._write(event._replace(detail=detail))

    def expired(self, approval: str, subject: Subject, detail: str = "") -> None:
        """Tell that nobody answered in time, or that a grant is over; `detail` says which. Never raises."""
        said = Approval(approval, subject.about, answer=Answer.TIMEOUT)
        event = self._event(Kind.APPROVAL_EXPIRED, said, subject)
        self._report(event._replace(reason=Reason.APPROVAL_TIMEOUT, detail=detail))

    def used(self, approval: str, subject: Subject, left: Grant, detail: str = "") -> str:
        """Tell that grants let something through, and what is `left` of them; return the event's id.

        Raises JournalFailed: nothing must pass then.
        """
        said = _granted(Approval(approval, subject.about), left)
        event = self._event(Kind.APPROVAL_USED, said, subject)
        return self._write(event._replace(outcome=Outcome.PASSED, reason=Reason.APPROVAL_GRANTED, detail=detail))

    def refused(
        self,
        approval: str,
        subject: Subject,
        *,
        by: str = "",
        answer: Answer | None = None,
        why: str = "",
        detail: str = "",
    ) -> None:
        """Tell of an answer or a use that doesn't count, or of a question that is not asked (`answer` says why not).

        `by` is who they say they are, `detail` what was wrong. Never raises.
        """
        said = Approval(approval, subject.about, (by,) if by else (), answer, why=why)
        reason = None if answer is None else _REASONS.get(answer)
        event = self._event(Kind.APPROVAL_REFUSED, said, subject)
        self._report(event._replace(outcome=Outcome.BLOCKED, reason=reason, detail=detail))

    def stale(self, approval: str, subject: Subject, detail: str = "") -> None:
        """Tell that whoever waited for the answer is gone. Never raises."""
        self._report(self._event(Kind.APPROVAL_STALE, Approval(approval, subject.about), subject, detail))

    def looked_at(self, event: str, by: str) -> None:
        """Tell who has looked at a flagged event. Raises JournalFailed: it doesn't count as looked at then."""
        self._write(self._event(Kind.FLAG_SEEN, None, Subject(cause=event))._replace(by=by))

    def tainted(self, rule: str, destination: Destination, cause: str | None, detail: str = "") -> str:
        """Tell that the task reads from a source that `rule` calls untrusted, and return the event's id.

        Call it before anything of it reaches the task. Raises JournalFailed: nothing may reach it then.
        """
        event = self._event(Kind.TASK_TAINTED, None, Subject(rules=(rule,), destination=destination, cause=cause))
        return self._write(event._replace(reason=Reason.TAINTED, detail=detail))

    def _event(self, kind: Kind, said: Approval | None, subject: Subject, detail: str = "") -> Event:
        now = time.time_ns()
        return Event(
            time=Instant(now),
            id=_ids.make(now),
            kind=kind,
            **self._origin._asdict(),
            rules=subject.rules,
            revision=subject.revision,
            cause=subject.cause or None,
            process=subject.process,
            destination=subject.destination,
            protocol=subject.protocol,
            http=subject.http,
            argv=subject.argv,
            detail=detail,
            paths=subject.paths,
            git=subject.git,
            approval=said,
        )

    def _write(self, event: Event) -> str:
        """Write an event and return its id. Raises JournalFailed, whatever goes wrong: a bug of ours is no answer."""
        try:
            written = self._journal.append(encode(event), event.time)
        except Exception as error:
            if self._metrics is not None:
                self._metrics.events_dropped += 1
            if isinstance(error, JournalFailed):
                raise
            raise JournalFailed(None, f"cannot tell an event: {type(error).__name__}: {error}") from error
        if self._metrics is not None:
            self._metrics.told(event.kind, written)
        return event.id

    def _report(self, event: Event) -> None:
        try:
            self._write(event)
        except JournalFailed:
            return  # counted


def _granted(said: Approval, grant: Grant) -> Approval:
    return said._replace(grants=grant.ids, width=grant.width, uses=grant.uses, bytes=grant.bytes, until=grant.until)
