"""Submits approval requests: joins an equal one, and refuses what was rejected, is too wide, or is too much.

Inside a transaction. A rejection stands for as long as the request could have been answered, so that no task wears
people down by asking again. A pre-request is what an agent asks for before it tries: it opens nothing by itself, and is
bounded in number, rate and size, because only the agent decides how many there are.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.approvals import lifecycle, transaction
from proxy.approvals.model import Approval, ApprovalState, PreRequestKind
from proxy.approvals.protocol import Answer, RequestState, RequestStatus, Result
from proxy.event_loop.rate_limiter import RateLimiter
from proxy.telemetry.events import Answer as Told
from rules.decision import GrantScope
from rules.verdicts import Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.approvals.approval_request import ApprovalRequest
    from proxy.approvals.model import Grant, Task
    from proxy.approvals.protocol import PreRequest
    from proxy.approvals.recording import Recorders
    from proxy.approvals.transaction import Transaction

_BURST, _A_SECOND = 10, 1 / 30  # pre-requests of one task: so many at once, and then twice a minute
_OPEN: Final = 86400.0  # seconds that a pre-request stays open that no rule says anything about
_LOOK: Final = 50  # requests of a task between looks at how many of its are kept
_STATUS: Final = {
    ApprovalState.PENDING: RequestStatus.PENDING,
    ApprovalState.APPROVED: RequestStatus.APPROVED,
    ApprovalState.REJECTED: RequestStatus.REJECTED,
    ApprovalState.EXPIRED: RequestStatus.EXPIRED,
    ApprovalState.SUPERSEDED: RequestStatus.EXPIRED,
    ApprovalState.OVER: RequestStatus.EXPIRED,
}


class Submitted(NamedTuple):
    """Pending approval request. `joined`: an equal one was pending already."""

    approval: Approval
    joined: bool


class FloodDetector:
    """Reports a flood of requests once, not with each that is refused. Keyed by task; the empty name is all."""

    def __init__(self) -> None:
        self._under_way: set[str] = set()

    def begins(self, whose: str, waiting: int, bound: int) -> bool:
        """Whether a flood begins with this request. It is over when half of what may wait is answered."""
        if waiting >= bound and whose not in self._under_way:
            self._under_way.add(whose)
            return True
        if waiting <= bound // 2:
            self._under_way.discard(whose)
        return False

    def forget(self, whose: str) -> None:
        """Forget a task that has ended."""
        self._under_way.discard(whose)


class Submitter:
    """Submits approval requests. `waits` says whether something waits for one."""

    def __init__(self, record: "Recorders", waits: "Callable[[str], object]") -> None:
        self._record = record
        self._waits = waits
        self._floods, self._rejected = FloodDetector(), FloodDetector()
        self._wishes: defaultdict[str, RateLimiter] = defaultdict(_limiter)  # by task
        self._strays: defaultdict[str, RateLimiter] = defaultdict(_limiter)
        self._put: dict[str, int] = {}  # how many since it was looked how many are kept, by task
        self.alerts: list[str] = []  # sentences that nobody was told yet
        self.superseded: list[Approval] = []  # as above

    async def submit(
        self,
        t: "Transaction",
        task: "Task",
        question: "ApprovalRequest",
        wish: PreRequestKind = PreRequestKind.NONE,
        said: str = "",
        *,
        again: bool = False,
    ) -> "list[Grant] | Submitted | Answer":
        """Return the grants that serve an attempt, a pending request, or a refusal (with number 0).

        `again`: it has waited, and may know older rules than others. Raises StoreError, JournalWriteError.
        """
        gone = [] if again else await lifecycle.find_outdated(t, task, question, self._waits)
        grants, unmet = await lifecycle.find_grants(t, task.id, question)
        put = None
        if unmet or not question.rules:
            put = await self._ask(t, task, question._replace(rules=tuple(unmet)), wish, said, len(gone))
        await lifecycle.supersede(t, task, gone, question, put.approval if isinstance(put, Submitted) else None)
        self.superseded += gone
        return put or grants

    def forget(self, task: str) -> None:
        """Forget a task that has ended."""
        self._floods.forget(task)
        self._rejected.forget(task)
        for each in (self._wishes, self._strays, self._put):
            each.pop(task, None)

    async def _ask(  # noqa: PLR0917
        self, t: "Transaction", task: "Task", question: "ApprovalRequest", wish: PreRequestKind, said: str, leaving: int
    ) -> Submitted | Answer:
        """Ask people. So many others of this task are `leaving`, and not counted among those that wait."""
        same = lifecycle.request_key(question.rules, question)
        found = await t.last_of(task.id, same, ApprovalState.PENDING)
        if found is not None and found.expires > t.now:
            times = found.times if wish else await t.asked_again(found.id)
            if is_recorded(times):
                t.record(task).asked(found, joined=True)
            return Submitted(found, joined=True)
        rejected = await t.last_of(task.id, same, ApprovalState.REJECTED)
        if rejected is not None and rejected.expires > t.now:
            return Answer(0, Result.DENIED, rejected.id, rejected.by, rejected.why)
        if question.cut and question.covers is GrantScope.ATTEMPT:
            why = "it does more than one approval request can show"
            t.record(task).refused("", question, why, answer=Told.WIDE)
            return Answer(0, Result.WIDE, why=why)
        if flood := await self._flood(t, task, question, leaving):
            return Answer(0, Result.FLOOD, why=flood)
        hold = min((asks.terms.hold for asks in question.rules), default=0.0)
        ends = t.now + hold + min((asks.terms.open for asks in question.rules), default=_OPEN)
        new, stale = lifecycle.new_id(), wish is not PreRequestKind.NONE
        approval = Approval(new, task.id, ApprovalState.PENDING, wish, same, question, said, t.now, ends, stale=stale)
        await t.put(approval)
        self._put[task.id] = put = self._put.get(task.id, 0) + 1
        if put % _LOOK == 0:
            await t.forget_of(task.id)
        t.record(task).asked(approval, joined=False)
        t.tell(f"asked {task.id} {approval.id}")
        return Submitted(approval, joined=False)

    async def _flood(self, t: "Transaction", task: "Task", question: "ApprovalRequest", leaving: int) -> str:
        """Say why no more may be asked; empty: it may."""
        bounds, most = t.people.bounds, transaction.MOST_REJECTED
        own, every = await t.counted(task.id) - leaving, await t.counted() - leaving
        rejected = await t.rejections(task.id)
        begins = self._floods.begins(task.id, own, bounds.pending_per_task)
        begins |= self._floods.begins("", every, bounds.pending)
        begins |= self._rejected.begins(task.id, rejected, most)
        if own >= bounds.pending_per_task:
            why = f"{own} approval requests of this task are pending, and no more are taken"
        elif every >= bounds.pending:
            why = f"{every} approval requests are pending, and no more are taken"
        elif rejected >= most:
            why = f"{rejected} approval requests of this task were rejected, and no more are taken until these expire"
        else:
            return ""
        if begins:
            t.record(task).refused("", question, why, answer=Told.FLOOD)
            self.alerts.append(why)
        return why

    # Pre-requests

    def refuses(self, task: "Task", said: "PreRequest") -> RequestState | None:
        """Answer a pre-request that nobody is asked about; None: people are."""
        line, verdict, reason = said.attempt.question.line(), said.attempt.verdict, said.attempt.reason
        if verdict in {Verdict.ALLOW, Verdict.FLAG}:
            return RequestState(RequestStatus.ALLOWED, attempt=line, why="the rules allow this: try it")
        if verdict is Verdict.DENY and reason is not Reason.NO_RULE:
            named = f" ({', '.join(said.attempt.rules)})" if said.attempt.rules else ""
            why = f"the rules deny this: {reason}{named}; nobody can approve this"
            return RequestState(RequestStatus.REFUSED, attempt=line, why=why)
        if not self._wishes[task.id].take():
            return RequestState(RequestStatus.REFUSED, attempt=line, why="too many requests: wait a minute")
        return None

    async def wish(self, t: "Transaction", task: str, said: "PreRequest") -> tuple[RequestState, Submitted | None]:
        """Submit a pre-request. Raises StoreError, JournalWriteError."""
        found = await t.task(task)
        if found is None or found.ended is not None:
            return RequestState(RequestStatus.REFUSED, why="the task has ended"), None
        kind = PreRequestKind.UNRULED if said.attempt.verdict is Verdict.DENY else PreRequestKind.ASKS
        put = await self.submit(t, found, said.attempt.question, kind, said.why)
        if isinstance(put, Submitted):
            return await _state(t, put.approval), put
        id_ = put.approval if isinstance(put, Answer) else put[0].approval
        known = await t.approval(id_) if id_ else None
        if known is not None:
            return await _state(t, known), None
        line = said.attempt.question.line()
        if isinstance(put, Answer):
            return RequestState(RequestStatus.REFUSED, attempt=line, why=put.why), None
        return RequestState(RequestStatus.ALLOWED, attempt=line, why="this is granted already: try it"), None

    async def look(self, t: "Transaction", task: "Task", id_: str) -> RequestState:
        """Return what became of a task's own request; of another's nothing is known."""
        found = await t.approval(id_) if id_ else None
        if found is not None and found.task == task.id:
            return await _state(t, found)
        if id_ and self._strays[task.id].take():
            self._record(task).refused(id_, None, "a task asked for the status of another task's approval request")
        return RequestState(RequestStatus.UNKNOWN, why="this task has no approval request with this id")


async def _state(t: "Transaction", approval: Approval) -> RequestState:
    until, standing = approval.expires, _STATUS[approval.state]
    if standing is RequestStatus.PENDING and approval.expires <= t.now:
        standing = RequestStatus.EXPIRED
    if standing is RequestStatus.APPROVED:
        ends = [grant.ends for grant in await t.grants_of(approval.id) if grant.over is None]
        until = min((end for end in ends if end is not None), default=0.0)
    return RequestState(standing, approval.id, approval.question.line(), approval.by, approval.why, until)


def _limiter() -> RateLimiter:
    return RateLimiter(_BURST, _A_SECOND)


def is_recorded(times: int) -> bool:
    """Whether an event is recorded for the so-manieth time: ever more rarely (1, 2, 4, 8, ...)."""
    return times & (times - 1) == 0
