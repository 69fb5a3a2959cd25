"""Pending approvals: each waiter gets what is granted, or waits until people have answered, and is told once.

What is granted goes to waiters in the order in which they asked, one use each; one for whom nothing is left asks anew.
Who waits is in memory alone. `Clock` gives the time that everything ends by: it never goes back, so nothing that has
ended is good again after the host's clock was set back.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.approvals import lifecycle, queries
from proxy.approvals.model import State, Task
from proxy.approvals.protocol import Answer, Granted, Over, Pending, Reply, Result
from proxy.approvals.recording import Recorders
from proxy.approvals.store import Store, StoreError
from proxy.approvals.submit import RateLimits, Submitter, is_told
from proxy.telemetry.journal.writer import JournalFailed

if TYPE_CHECKING:
    from proxy.approvals.approval_request import Question, Rule
    from proxy.approvals.model import Approval
    from proxy.approvals.people import People
    from proxy.approvals.store import Rows


@dataclass(slots=True, eq=False)
class Waiter:
    """One ask that has no answer yet. `busy`: it is being seen to, and its time doesn't run out meanwhile."""

    link: "Link"
    number: int
    question: "Question"
    deadline: float
    approval: str = ""
    busy: bool = False
    done: bool = False


@dataclass(slots=True, eq=False)
class Link:
    """One sandbox's pair of sockets, as the registry knows it."""

    connection: Hashable
    task: Task
    uid: int  # of who started the task
    waiters: dict[int, Waiter] = field(default_factory=dict)
    grants: set[str] = field(default_factory=set)  # that its worker was told of


class Waiters:
    """All links and all waiters."""

    def __init__(self) -> None:
        self.links: dict[Hashable, Link] = {}
        self._of: dict[str, list[Waiter]] = {}  # by question, in the order in which they asked

    def link_of(self, task: str) -> Link | None:
        """Return a task's link, if it is one of ours."""
        return next((link for link in self.links.values() if link.task.id == task), None)

    def add(self, waiter: Waiter) -> None:
        """Have an ask wait; for which question is said by `put`."""
        if (other := waiter.link.waiters.get(waiter.number)) is not None:
            self.remove(other)  # no number is used twice: nobody waits for the other
        waiter.link.waiters[waiter.number] = waiter

    def put(self, waiter: Waiter, approval: str) -> None:
        """Have it wait for a question."""
        self._leave(waiter)
        waiter.approval = approval
        self._of.setdefault(approval, []).append(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Have it wait no more. Idempotent."""
        waiter.done = True
        waiter.link.waiters.pop(waiter.number, None)
        self._leave(waiter)

    def of(self, approval: str) -> list[Waiter]:
        """List who waits for a question, the first first."""
        return list(self._of.get(approval, ()))

    def questions(self) -> list[str]:
        """List the questions that somebody waits for."""
        return list(self._of)

    def late(self, now: float) -> list[Waiter]:
        """List who has waited long enough."""
        return [
            waiter
            for link in self.links.values()
            for waiter in link.waiters.values()
            if waiter.deadline <= now and not waiter.busy
        ]

    def next_deadline(self) -> float | None:
        """Return when the next has."""
        return min((waiter.deadline for link in self.links.values() for waiter in link.waiters.values()), default=None)

    def _leave(self, waiter: Waiter) -> None:
        waiters = self._of.get(waiter.approval)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._of[waiter.approval]


def since_boot() -> float:
    """Return seconds since the host's start, those that it slept included (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Seconds since 1970, never less than what was seen before."""

    __slots__ = ("_at", "_latest", "_steady", "_wall")

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot) -> None:
        self._wall, self._steady = wall, steady
        self._at = steady()
        self._latest = wall()

    def now(self, seen: float = 0.0) -> float:
        """Return the time; `seen` is what somebody else knows to have been already."""
        at = self._steady()
        self._latest = max(self._wall(), self._latest + max(at - self._at, 0.0), seen)
        self._at = at
        return self._latest


TROUBLE: Final = (StoreError, JournalFailed)


class News(NamedTuple):
    """Something that people who watch, notifiers and reviewers are told of."""

    kind: str  # asked, joined, answered, expired, superseded, over (its task is), revoked, flood, tainted
    task: str  # id; empty where only the question is known
    approval: str = ""
    text: str = ""  # as the sandbox has it: escape it
    here: bool = True  # no: another host's registry did it, and has told its receivers


class PendingApprovals:
    """The part of a registry that knows who waits. `Registry` says how it is used."""

    def __init__(
        self,
        store: Store,
        people: "People",
        recorders: Recorders,
        *,
        reply: Callable[[Hashable, Reply], None],
        news: Callable[[News], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self.store = store
        self.people = people  # swapped whole when its file has changed
        self.clock = clock or Clock()
        self.news = news
        self.asked = Submitter(recorders)
        self.rates = RateLimits()  # of wishes
        self.strays = RateLimits()  # of looks at what is another's, as far as they are told
        self.turn = asyncio.Lock()  # of whoever writes, or changes who waits
        self._record = recorders
        self._reply = reply
        self._waiting = Waiters()
        self._superseded: list[Approval] = []  # questions, of which nobody was told yet
        self._hearing: set[asyncio.Task[None]] = set()
        self._next_end: float | None = 0.0  # of a question or a grant; 0: nobody has looked
        self._tidied = 0.0

    def due(self, end: float | None) -> None:
        """Take note of something that ends."""
        if end is not None:
            self._next_end = end if self._next_end is None else min(self._next_end, end)

    async def now(self, rows: "Rows") -> float:
        """Return the time, which is never less than anybody who shares the store has seen."""
        seen = await queries.latest(rows)
        now = self.clock.now(seen)
        if now > seen:
            await queries.saw(rows, now)
        return now

    async def outdated(self, rows: "Rows", task: Task, question: "Question", now: float) -> "list[Approval]":
        """List what a task has asked about rules that are others by now, as a new question shows (`lifecycle`)."""
        return await lifecycle.outdated(rows, task, question, self._waiting.of, now)

    async def superseded(  # noqa: PLR0917
        self,
        rows: "Rows",
        task: Task,
        gone: "list[Approval]",
        question: "Question",
        instead: "Approval | None",
        now: float,
    ) -> None:
        """End what is `outdated`, and say what is asked `instead`."""
        await lifecycle.superseded(rows, self._record, task, gone, question, instead, now)
        self._superseded += gone

    async def _place(self, waiter: Waiter) -> None:
        """Answer an ask, or have it wait. With the turn."""
        if waiter.done:
            return
        waiter.busy = True
        news: News | None = None
        try:
            found, news = await self._considered(waiter)
        except TROUBLE as error:
            found = Answer(waiter.number, Result.UNAVAILABLE, why=str(error)[:1000])
        finally:
            waiter.busy = False
        if isinstance(found, Answer):
            self._answer(waiter, found)
        elif not waiter.done:
            self._waiting.put(waiter, found.approval)
            self._say(waiter.link, found)
        if news is not None:
            self.news(news)
        self._alert(waiter.link)

    async def _considered(self, waiter: Waiter) -> tuple[Answer | Pending, News | None]:
        """Take what is granted already, or put the question. Raises StoreError, JournalFailed."""
        number, question = waiter.number, waiter.question
        async with self.store.transaction() as rows:
            now = await self.now(rows)
            task = await queries.task_of(rows, waiter.link.task.id)
            if task is None or task.ended is not None:
                return Answer(number, Result.UNAVAILABLE, why="the task has ended"), None
            # Who has waited and asks anew may know older rules than others
            gone = [] if waiter.approval else await self.outdated(rows, task, question, now)
            served, unmet = await self._served(rows, task, waiter, now)
            if served is not None:
                await self.superseded(rows, task, gone, question, None, now)
                return served, None
            question = question._replace(rules=tuple(unmet))
            put = await self.asked.put(rows, self.people.bounds, task, question, now, leaving=len(gone))
            instead = None if isinstance(put, Answer) else put.approval
            await self.superseded(rows, task, gone, waiter.question, instead, now)
        if isinstance(put, Answer):
            return put._replace(number=number), None
        self.due(put.approval.expires)
        news = News("joined" if put.joined else "asked", task.id, put.approval.id, question.line())
        return Pending(number, put.approval.id, waiter.deadline), news

    async def _served(self, rows: "Rows", task: Task, waiter: Waiter, now: float) -> "tuple[Answer | None, list[Rule]]":
        """Take what serves an ask, if every rule of it is granted; else return those that are not."""
        grants, unmet = await lifecycle.serving(rows, task.id, waiter.question, now)
        if unmet:
            return None, unmet
        left = await lifecycle.taken(rows, grants, now)
        self._record(task).used(waiter.question, left)
        approvals = [await queries.approval_of(rows, grant.approval) for grant in left]
        by = dict.fromkeys(name for one in approvals if one is not None for name in one.by)
        told = tuple(Granted(one.rule, one.digest, one.id, one.bytes) for one in left)
        waiter.link.grants.update(one.id for one in left)
        return Answer(waiter.number, Result.GRANTED, left[0].approval, tuple(by), "", told), []

    async def _serve_first(self, rows: "Rows", waiters: Iterable[Waiter], now: float) -> list[tuple[Waiter, Answer]]:
        """Take what was granted just now for those who waited longest: one commit is all that they wait for then."""
        found: list[tuple[Waiter, Answer]] = []
        for waiter in waiters:
            task = await queries.task_of(rows, waiter.link.task.id)
            answer = None if task is None or waiter.done else (await self._served(rows, task, waiter, now))[0]
            if answer is None:
                break
            found.append((waiter, answer))
        return found

    async def _settle(self, approval: str) -> None:
        """Tell those who wait for a question what became of it; others have their turn between two of them.

        What is granted goes to them in the order in which they asked. For whom nothing is left, that one asks anew.
        """
        waiters = self._waiting.of(approval)
        if not waiters:
            return
        try:
            async with self.store.reading() as rows:
                found = await queries.approval_of(rows, approval)
        except StoreError as error:
            found, why = None, str(error)[:1000]
        else:
            why = "the task has ended"
        for waiter in waiters:
            if found is not None and found.state is State.PENDING:
                return
            if found is not None and found.state in {State.APPROVED, State.SUPERSEDED}:
                async with self.turn:
                    await self._place(waiter)
            elif found is not None and found.state is State.REJECTED:
                self._answer(waiter, Answer(waiter.number, Result.DENIED, approval, found.by, found.why))
            elif found is not None and found.state is State.EXPIRED:
                self._answer(waiter, Answer(waiter.number, Result.TIMEOUT, approval, why="nobody answered in time"))
            else:
                self._answer(waiter, Answer(waiter.number, Result.UNAVAILABLE, approval, why=why))

    async def _gone(self, waiters: Iterable[Waiter]) -> None:
        """Have some wait no more; a question that nobody waits for is stale, and still open."""
        questions = dict.fromkeys(waiter.approval for waiter in waiters if waiter.approval)
        for waiter in waiters:
            self._waiting.remove(waiter)
        if not questions:
            return
        try:
            async with self.turn, self.store.transaction() as rows:
                for approval in questions:
                    if self._waiting.of(approval) or not await queries.stale(rows, approval):
                        continue
                    found = await queries.approval_of(rows, approval)
                    task = None if found is None else await queries.task_of(rows, found.task)
                    if found is not None and task is not None and is_told(found.times):
                        self._record(task).stale(found)
        except TROUBLE:
            return  # nobody waits either way

    def _alert(self, link: Link) -> None:
        for why in self.asked.alerts:
            self.news(News("flood", link.task.id, "", why))
        self.asked.alerts.clear()
        for approval in self._superseded:
            self.news(News("superseded", link.task.id, approval.id))
        self._superseded.clear()

    def _answer(self, waiter: Waiter, answer: Answer) -> None:
        if not waiter.done:
            self._waiting.remove(waiter)
            self._say(waiter.link, answer)

    def _cut(self, task: str, grants: Iterable[str]) -> None:
        link = self._waiting.link_of(task)
        told = tuple(grant for grant in grants if link is not None and grant in link.grants)
        if link is not None and told:
            link.grants.difference_update(told)
            self._say(link, Over(told))

    def _forget(self, link: Link) -> None:
        for waiter in list(link.waiters.values()):
            self._waiting.remove(waiter)
        self._waiting.links.pop(link.connection, None)

    def _say(self, link: Link, reply: Reply) -> None:
        if self._waiting.links.get(link.connection) is link:
            self._reply(link.connection, reply)
