"""Submits approval requests: joined with the same one, refused where it was rejected, is too wide, or too many wait.

Inside a transaction. What was rejected stays rejected for as long as it could have been answered: who is asked the same
again and again gives in at last.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.approvals import lifecycle, queries
from proxy.approvals.model import Approval, State, WishKind
from proxy.approvals.protocol import Answer, Result
from proxy.sandbox.rate_limiter import Bucket
from proxy.telemetry.events import Answer as Told
from rules.limits import Covers

if TYPE_CHECKING:
    from proxy.approvals.approval_request import Question
    from proxy.approvals.model import Task
    from proxy.approvals.people import Bounds
    from proxy.approvals.recording import Recorders
    from proxy.approvals.store import Rows

_BURST, _A_SECOND = 10, 1 / 30  # pre-requests of one task
OPEN: Final = 86400.0  # seconds that a wish stays open that no rule says anything about
_LOOK: Final = 50  # questions of a task between looks at how many of its are kept


class Put(NamedTuple):
    """A question that people have before them. `joined`: it was there before."""

    approval: Approval
    joined: bool


class Floods:
    """Who has too many questions waiting: told once a flood, not with each that is refused. The empty name is all."""

    def __init__(self) -> None:
        self._under_way: set[str] = set()

    def begins(self, whose: str, waiting: int, bound: int) -> bool:
        """Whether a flood begins with this question. It is over when half of what may wait is answered."""
        if waiting >= bound and whose not in self._under_way:
            self._under_way.add(whose)
            return True
        if waiting <= bound // 2:
            self._under_way.discard(whose)
        return False

    def forget(self, whose: str) -> None:
        """Forget a task that has ended."""
        self._under_way.discard(whose)


class RateLimits:
    """How often each task may wish: ten at once, and then two a minute."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def take(self, task: str) -> bool:
        """Whether there is room for one more."""
        return self._buckets.setdefault(task, Bucket(_BURST, _A_SECOND)).take() == 1

    def forget(self, task: str) -> None:
        """Forget a task that has ended."""
        self._buckets.pop(task, None)


class Submitter:
    """Puts questions. `alert` is called with a sentence once a flood."""

    def __init__(self, record: "Recorders") -> None:
        self._record = record
        self._floods = Floods()
        self._rejected = Floods()
        self._put: dict[str, int] = {}  # how many since it was looked how many are kept, by task
        self.alerts: list[str] = []  # sentences that nobody was told yet

    async def put(  # noqa: PLR0917
        self,
        rows: "Rows",
        bounds: "Bounds",
        task: "Task",
        question: "Question",
        now: float,
        wish: WishKind = WishKind.NONE,
        said: str = "",
        leaving: int = 0,
    ) -> Put | Answer:
        """Put a question, or say why it isn't put, with no number yet. Raises StoreError, JournalFailed.

        So many others of this task are `leaving`: they are pending still, and not counted among what waits.
        """
        same = lifecycle.same(question.rules, question)
        found = await queries.last_of(rows, task.id, same, [State.PENDING])
        if found is not None and found.expires > now:
            times = found.times if wish else await queries.asked_again(rows, found.id)
            if is_told(times):
                self._record(task).asked(found, joined=True)
            return Put(found, joined=True)
        rejected = await queries.last_of(rows, task.id, same, [State.REJECTED])
        if rejected is not None and rejected.expires > now:
            return Answer(0, Result.DENIED, rejected.id, rejected.by, rejected.why)
        if question.cut and question.covers is Covers.ATTEMPT:
            why = "it does more than one question can show, and its approval would cover just that"
            self._record(task).refused("", question, why, answer=Told.WIDE)
            return Answer(0, Result.WIDE, why=why)
        if (flood := await self._flood(rows, bounds, task, question, leaving, now)) is not None:
            return flood
        hold = min((asks.terms.hold for asks in question.rules), default=0.0)
        open_ = min((asks.terms.open for asks in question.rules), default=OPEN)
        ends = now + hold + open_
        approval = Approval(
            lifecycle.new_id(),
            task.id,
            State.PENDING,
            wish,
            same,
            question,
            said,
            now,
            ends,
            stale=wish is not WishKind.NONE,
        )
        await queries.put_approval(rows, approval)
        self._put[task.id] = put = self._put.get(task.id, 0) + 1
        if put % _LOOK == 0:
            await queries.forget_of(rows, task.id, now)
        self._record(task).asked(approval, joined=False)
        rows.tell(f"asked {task.id} {approval.id}")
        return Put(approval, joined=False)

    def stray(self, task: "Task", approval: str) -> None:
        """Tell that a task asks about a question that is none of its own. Never raises."""
        self._record(task).refused(approval, None, "a task asks about a question that is none of its own")

    def forget(self, task: str) -> None:
        """Forget a task that has ended."""
        self._floods.forget(task)
        self._rejected.forget(task)
        self._put.pop(task, None)

    async def _flood(  # noqa: PLR0917
        self, rows: "Rows", bounds: "Bounds", task: "Task", question: "Question", leaving: int, now: float
    ) -> Answer | None:
        own, every = await queries.counted(rows, task.id) - leaving, await queries.counted(rows) - leaving
        begins = self._floods.begins(task.id, own, bounds.pending_per_task)
        begins |= self._floods.begins("", every, bounds.pending)
        rejected = await queries.rejections(rows, task.id, now)
        begins |= self._rejected.begins(task.id, rejected, queries.MOST_REJECTED)
        if own >= bounds.pending_per_task:
            why = f"{own} questions of this task wait, and no more are taken"
        elif every >= bounds.pending:
            why = f"{every} questions wait, and no more are taken"
        elif rejected >= queries.MOST_REJECTED:
            why = f"{rejected} questions of this task were rejected, and no more are taken while that stands"
        else:
            return None
        if begins:
            self._record(task).refused("", question, why, answer=Told.FLOOD)
            self.alerts.append(why)
        return Answer(0, Result.FLOOD, why=why)


def is_told(times: int) -> bool:
    """Whether it is told that something was asked for the so-manieth time: ever more rarely (1, 2, 4, 8, ...)."""
    return times & (times - 1) == 0
