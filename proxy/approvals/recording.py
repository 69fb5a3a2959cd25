"""Records what the registry does in the journal of the gate that asks: each step of an approval once.

What an answer depends on is recorded inside the transaction that makes it so. If that fails, it doesn't happen.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.approvals.approval_request import Kind
from proxy.telemetry.approving import ApprovalRecorder, Subject
from proxy.telemetry.approving import Grant as Left
from proxy.telemetry.events import Answer, Destination, Git, Http, Origin, Process
from proxy.telemetry.masking import masked
from rules.addresses import parse_host
from rules.attempt import Protocol
from rules.names import HostName, InvalidName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.approvals.approval_request import Question, Source
    from proxy.approvals.model import Approval, Grant, Task

type Recorders = Callable[[Task | None], ApprovalRecorder]  # None: of no task that anybody knows


def origin(task: "Task") -> Origin:
    """Return a task as events name it."""
    return Origin.of(task.run, task.name, task.labels, task.sandbox, task.host)


def subject(question: "Question") -> Subject:
    """Return a question as events name it: without what may be secret, or what its rules want told to nobody."""
    question = question.told()
    process = question.process
    return Subject(
        about=question.kind,
        rules=tuple(asks.rule for asks in question.rules),
        revision=question.revision,
        destination=_destination(question.host, question.port) if question.host else None,
        protocol=Protocol(question.protocol) if question.protocol in set(Protocol) else None,
        http=Http(question.method, question.host, question.path) if question.method else None,
        argv=tuple(masked(question.argv)),
        git=_git(question),
        paths=tuple(file.path for file in question.files),
        process=None if process is None else Process(process.pid, process.exe, process.argv, None, process.ancestors),
        cause=question.event or None,
    )


def _git(question: "Question") -> Git | None:
    if not question.repo:
        return None
    refs = tuple(" ".join(filter(None, (each.change, each.ref, each.old, each.new))) for each in question.refs)
    return Git("push" if question.kind is Kind.PUSH else "fetch", question.repo, refs)


class Teller:
    """Tells of questions. `recorders` gives what writes to the journal of a task's gate."""

    def __init__(self, recorders: Recorders) -> None:
        self._of = recorders

    def asked(self, task: "Task", approval: "Approval", *, joined: bool) -> None:
        """Tell that people are asked. Raises JournalFailed."""
        question = approval.question
        why = approval.said or next((asks.why for asks in question.rules if asks.why), "")
        self._of(task).asked(
            approval.id,
            subject(question),
            why=why,
            width=question.covers,
            until=int(approval.expires),
            agent=bool(approval.wish),
            joined=joined,
        )

    def seen(self, task: "Task", approval: "Approval", by: str) -> None:
        """Tell who looked at a question. Never raises."""
        self._of(task).seen(approval.id, subject(approval.question), by)

    def answered(  # noqa: PLR0917
        self,
        task: "Task",
        approval: "Approval",
        answer: Answer,
        by: "Sequence[str]",
        why: str,
        grants: "Sequence[Grant] | None" = None,
        detail: str = "",
    ) -> None:
        """Tell what somebody said; with `grants`, none among them, it is final. Raises JournalFailed."""
        self._of(task).answered(
            approval.id,
            subject(approval.question),
            answer,
            by,
            why=why,
            final=grants is not None,
            grant=_left(grants or ()),
            detail=detail,
        )

    def expired(self, task: "Task", approval: str, question: "Question", detail: str) -> None:
        """Tell that a question or a grant is over. Never raises."""
        self._of(task).expired(approval, subject(question), detail)

    def used(self, task: "Task", question: "Question", grants: "Sequence[Grant]") -> None:
        """Tell that grants let something through; they say what is left. Raises JournalFailed."""
        self._of(task).used(grants[0].approval, subject(question), _left(grants))

    def refused(  # noqa: PLR0917
        self,
        task: "Task | None",
        approval: str,
        question: "Question | None",
        detail: str,
        by: str = "",
        answer: Answer | None = None,
    ) -> None:
        """Tell of what doesn't count. Never raises."""
        about = Subject() if question is None else subject(question)
        self._of(task).refused(approval, about, by=by, answer=answer, detail=detail)

    def stale(self, task: "Task", approval: "Approval") -> None:
        """Tell that nobody waits any more. Never raises."""
        self._of(task).stale(approval.id, subject(approval.question))

    def tainted(self, task: "Task", source: "Source") -> None:
        """Tell what the task reads from. Raises JournalFailed."""
        host, _, port = source.destination.rpartition(":")  # as a task's gate writes it: `host:port`, `[v6]:port`
        known = bool(host) and port.isascii() and port.isdigit()
        where = _destination(host.removeprefix("[").removesuffix("]"), int(port)) if known else None
        self._of(task).tainted(source.rule, where or Destination(source.destination), source.event or None)


def _destination(host: str, port: int) -> Destination:
    try:
        found = parse_host(host)
    except (InvalidName, ValueError):
        return Destination(host, None, port)
    return Destination(host, None, port) if isinstance(found, HostName) else Destination(None, host, port)


def _left(grants: "Sequence[Grant]") -> Left:
    if not grants:
        return Left()
    first = min(grants, key=lambda grant: (grant.uses is None, grant.uses or 0))
    ends = [grant.ends for grant in grants if grant.ends is not None]
    budgets = [grant.bytes for grant in grants if grant.bytes is not None]
    return Left(
        tuple(grant.id for grant in grants),
        first.width,
        first.uses,
        min(budgets, default=None),
        int(min(ends)) if ends else None,
    )
