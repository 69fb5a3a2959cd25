"""Those who are held: each gets what is granted, or waits until people have said something, and is told once.

What is granted goes to them in the order in which they asked, one use each; for whom nothing is left it is asked anew.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.approvals import ending, granting, wishing
from proxy.approvals.asked import Asked, is_told
from proxy.approvals.clock import Clock
from proxy.approvals.records import State, Task
from proxy.approvals.store import queries
from proxy.approvals.store.base import Store, StoreError
from proxy.approvals.telling import Recorders, Teller
from proxy.approvals.waiting import Link, Waiter, Waiting
from proxy.approvals.wire import Answer, Granted, Over, Pending, Reply, Result
from proxy.telemetry.journal.writing import JournalFailed

if TYPE_CHECKING:
    from proxy.approvals.people import People
    from proxy.approvals.questions import Question, Rule
    from proxy.approvals.records import Approval
    from proxy.approvals.store.base import Rows

TROUBLE: Final = (StoreError, JournalFailed)


class News(NamedTuple):
    """Something that people who watch, notifiers and reviewers are told of."""

    kind: str  # asked, joined, answered, expired, superseded, over (its task is), revoked, flood, tainted
    task: str  # id; empty where only the question is known
    approval: str = ""
    text: str = ""  # as the sandbox has it: escape it
    here: bool = True  # no: another host's registry did it, and has told its receivers


class Holding:
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
        self.asked = Asked(teller := Teller(recorders))
        self.rates = wishing.Rates()  # of wishes
        self.strays = wishing.Rates()  # of looks at what is another's, as far as they are told
        self.turn = asyncio.Lock()  # of whoever writes, or changes who waits
        self._teller = teller
        self._reply = reply
        self._waiting = Waiting()
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
        """List what a task has asked about rules that are others by now, as a new question shows (`ending`)."""
        return await ending.outdated(rows, task, question, self._waiting.of, now)

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
        await ending.superseded(rows, self._teller, task, gone, question, instead, now)
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
        grants, unmet = await granting.serving(rows, task.id, waiter.question, now)
        if unmet:
            return None, unmet
        left = await granting.taken(rows, grants, now)
        self._teller.used(task, waiter.question, left)
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
                        self._teller.stale(task, found)
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
