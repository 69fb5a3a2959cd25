"""The registry: keeps what is asked, counts what is said, and tells those who wait. A clock and a store, no sockets.

Home of the invariants of approvals: a grant serves its own task, rule and attempt and nothing else; nothing is granted
that isn't told; what can't be kept or told is denied; nothing that has ended comes back, whatever the clock does.

Whoever runs it calls `introduce` for a sandbox's pair of sockets, `received` for each word that comes through it, in
order and one at a time, and `leave` when the task is over; sends what `reply` is called with; and calls `expire` in
`next_due` seconds, asked anew after each of these. All of it in one event loop. `news` is called with what watchers,
notifiers and reviewers are to be told. What a worker says raises nothing; what people say may be Refused.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.approvals import deciding, ending, granting, wishing
from proxy.approvals.asked import Asked, is_told
from proxy.approvals.clock import Clock
from proxy.approvals.deciding import Decided, Refused, Said
from proxy.approvals.records import State, Task
from proxy.approvals.store import queries
from proxy.approvals.store.base import Store, StoreError
from proxy.approvals.telling import Recorders, Teller
from proxy.approvals.waiting import Link, Waiter, Waiting
from proxy.approvals.wire import (
    Answer,
    Ask,
    Drop,
    Granted,
    Hello,
    Introduction,
    Look,
    Over,
    Pending,
    Reply,
    Result,
    Seen,
    Tainted,
    Used,
    Wish,
    Word,
)
from proxy.approvals.wire import State as TaskState
from proxy.telemetry.journal.writing import JournalFailed

if TYPE_CHECKING:
    from proxy.approvals.people import Actor, People
    from proxy.approvals.store.base import Rows

_LOOK: Final = 30.0  # seconds after which the clock is looked at again, whatever is due: it may have been set
_KEPT: Final = 90 * 86400.0  # seconds that what ended can still be looked up here; the journal keeps it longer
_TROUBLE: Final = (StoreError, JournalFailed)


class News(NamedTuple):
    """Something that people who watch, notifiers and reviewers are told of."""

    kind: str  # asked, joined, answered, expired, over (its task is), revoked, flood, tainted
    task: str  # id; empty where only the question is known
    approval: str = ""
    text: str = ""  # as the sandbox has it: escape it
    here: bool = True  # no: another host's registry did it, and has told its receivers


class Registry:
    """See the module. A `connection` is whatever tells one pair of sockets from another."""

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
        self.rates = wishing.Rates()
        self.turn = asyncio.Lock()  # of whoever writes, or changes who waits
        self._teller = teller
        self._reply = reply
        self._waiting = Waiting()
        self._hearing: set[asyncio.Task[None]] = set()
        self._next_end: float | None = 0.0  # of a question or a grant; 0: nobody has looked
        self._tidied = 0.0

    async def open(self) -> None:
        """Open the store and see what has ended meanwhile. Raises StoreError."""
        await self.store.open(self._hear)
        await self.expire()

    async def close(self) -> None:
        """Let go of the store. Nobody is told anything: tasks go on, and what waits is denied by those who wait."""
        for hearing in self._hearing:
            hearing.cancel()
        await asyncio.gather(*self._hearing, return_exceptions=True)
        async with self.turn:
            await self.store.close()

    @property
    def is_needed(self) -> bool:
        """Whether there is a sandbox that may ask."""
        return bool(self._waiting.links)

    # What workers, and those who made their sandboxes, say

    async def introduce(self, connection: Hashable, who: Introduction) -> None:
        """Take a sandbox's pair of sockets. Raises ValueError where its task has ended or is another's, or StoreError.

        A task that was known before goes on with what it has: its taint, its grants, its questions.
        """
        async with self.turn:
            async with self.store.transaction() as rows:
                now = await self.now(rows)
                task = await queries.task_of(rows, who.task)
                starter = self.people.by_uid(who.started_by, who.host).name
                sandbox, id_, name, labels, _, host, files, workspace = who
                if task is None:
                    task = Task(id_, sandbox, name, labels, starter, host, files, workspace, now)
                    await queries.put_task(rows, task)
                elif task.ended is not None or (task.sandbox, task.started_by) != (sandbox, starter):
                    raise ValueError("this task has ended, or is another's")
                granted = await queries.granted_to(rows, task.id)
            if (old := self._waiting.link_of(task.id)) is not None:
                self._forget(old)
            self._waiting.links[connection] = link = Link(connection, task)
            link.grants.update(grant.id for grant in granted)

    async def leave(self, connection: Hashable) -> None:
        """Take note that a sandbox is gone: its task's questions and grants end with it. Never raises."""
        async with self.turn:
            link = self._waiting.links.get(connection)
            if link is None:
                return
            self._forget(link)
            self.asked.floods.forget(link.task.id)
            self.rates.forget(link.task.id)
            try:
                async with self.store.transaction() as rows:
                    gone = await ending.ended_task(rows, self._teller, link.task, await self.now(rows))
            except _TROUBLE:
                return  # what it left ends by its time; its id serves nobody else
        for approval in gone:
            self.news(News("over", approval.task, approval.id))

    async def received(self, connection: Hashable, word: Word) -> None:
        """Do what a worker says. One at a time for each connection, in order."""
        link = self._waiting.links.get(connection)
        if link is None:
            return
        match word:
            case Ask(number, question):
                hold = min((asks.terms.hold for asks in question.rules), default=0.0)
                waiter = Waiter(link, number, question, self.clock.now() + hold)
                self._waiting.add(waiter)
                async with self.turn:
                    await self._place(waiter)
            case Drop(number):
                waiters = [waiter for waiter in (link.waiters.get(number),) if waiter is not None]
                await self._gone(waiters)
            case Hello():
                await self._gone(list(link.waiters.values()))
                await self._say_state(link)
            case Tainted():
                await self._taint(link, word)
            case Used(grant, bytes_):
                await self._use(link, grant, bytes_)
            case Wish():
                async with self.turn:
                    state, put = await wishing.wish(self, link, word)
                self._say(link, Seen(word.number, state))
                if put is not None:
                    self.due(put.approval.expires)
                    self.news(News("joined" if put.joined else "asked", link.task.id, put.approval.id, state.attempt))
                self._alert(link)
            case Look(number, id_):
                self._say(link, Seen(number, await wishing.look(self, link, id_)))

    # What people say

    async def decide(self, approval: str, said: Said) -> Decided:
        """Take an answer. Raises Refused where it doesn't count; StoreError, JournalFailed where it can't be taken."""
        async with self.turn:
            try:
                async with self.store.transaction() as rows:
                    now = await self.now(rows)
                    found = await deciding.decide(rows, self.people, self._teller, approval, said, now)
                    if found.final:
                        rows.tell(f"settle {approval}")
            except Refused as refused:
                question = None if refused.approval is None else refused.approval.question
                self._teller.refused(refused.task, approval[:64], question, str(refused), said.who.name)
                raise
        for grant in found.grants:
            self.due(grant.ends)
        if found.final:
            await self._settle(approval)
        self.news(News("answered", found.approval.task, approval, found.text))
        return found

    async def seen(self, approval: str, who: "Actor") -> None:
        """Take note that somebody looked at a question: told once for each. Raises StoreError."""
        async with self.turn, self.store.transaction() as rows:
            found = await queries.approval_of(rows, approval)
            task = None if found is None else await queries.task_of(rows, found.task)
            if found is None or task is None or found.state is not State.PENDING:
                return
            if await queries.viewed(rows, approval, who.name, await self.now(rows)):
                self._teller.seen(task, found, who.name)

    async def revoke(self, id_: str, who: "Actor", why: str = "") -> str:
        """End a grant, or all that a question granted, or lift a rejection; return what was done as a sentence.

        Whoever could reject the question may. Raises Refused, StoreError.
        """
        async with self.turn:
            try:
                async with self.store.transaction() as rows:
                    now = await self.now(rows)
                    found, cut, text = await deciding.revoke(rows, self.people, id_, who, why, now)
                    detail = f"revoked by {who.name}: {why[:1000]}".rstrip(": ")
                    self._teller.expired(cut.task, found.id, found.question, detail)
            except Refused as refused:
                question = None if refused.approval is None else refused.approval.question
                self._teller.refused(refused.task, id_[:64], question, str(refused), who.name)
                raise
            self._cut(found.task, cut.grants)
        self.news(News("revoked", found.task, found.id, text))
        return text

    # Time

    async def expire(self) -> None:
        """End what is due: waits, questions, grants. Never raises: what can't be written now is ended next time."""
        now = self.clock.now()
        late = self._waiting.late(now)
        for waiter in late:
            self._answer(waiter, Answer(waiter.number, Result.TIMEOUT, waiter.approval, why="nobody answered in time"))
        await self._gone(late)
        if self._next_end is None or now < self._next_end:
            return
        try:
            async with self.turn:
                async with self.store.transaction() as rows:
                    now = await self.now(rows)
                    gone = await ending.ended_questions(rows, self._teller, now)
                    cut = await ending.ended_grants(rows, self._teller, now)
                    if now - self._tidied > _LOOK * 100:
                        await queries.forget(rows, now - _KEPT)
                        self._tidied = now
                    self._next_end = await queries.next_end(rows)
                for grant in cut:
                    self._cut(grant.task, [grant.id])
        except _TROUBLE:
            self._next_end = now + _LOOK
            return
        for approval in gone:
            await self._settle(approval.id)
            self.news(News("expired", approval.task, approval.id))

    def next_due(self) -> float | None:
        """Return in how many seconds `expire` is to be called next; None: not before something changes."""
        ends = [end for end in (self._waiting.next_deadline(), self._next_end) if end is not None]
        return min(max(min(ends) - self.clock.now(), 0.01), _LOOK) if ends else None

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

    # Those who wait

    async def _place(self, waiter: Waiter) -> None:
        """Answer an ask, or have it wait. With the turn."""
        if waiter.done:
            return
        waiter.busy = True
        news: News | None = None
        try:
            found, news = await self._considered(waiter)
        except _TROUBLE as error:
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
            grants, unmet = await granting.serving(rows, task.id, question, now)
            if not unmet:
                left = await granting.taken(rows, grants, now)
                self._teller.used(task, question, left)
                approvals = [await queries.approval_of(rows, grant.approval) for grant in left]
                by = dict.fromkeys(name for one in approvals if one is not None for name in one.by)
                told = tuple(Granted(one.rule, one.digest, one.id, one.bytes) for one in left)
                waiter.link.grants.update(one.id for one in left)
                return Answer(number, Result.GRANTED, left[0].approval, tuple(by), "", told), None
            put = await self.asked.put(rows, self.people.bounds, task, question._replace(rules=tuple(unmet)), now)
        if isinstance(put, Answer):
            return put._replace(number=number), None
        self.due(put.approval.expires)
        news = News("joined" if put.joined else "asked", task.id, put.approval.id, question.line())
        return Pending(number, put.approval.id, waiter.deadline), news

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
            if found is not None and found.state is State.APPROVED:
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
        except _TROUBLE:
            return  # nobody waits either way

    # What else a task does

    async def _say_state(self, link: Link) -> None:
        try:
            async with self.store.reading() as rows:
                sources = await queries.taints(rows, link.task.id)
        except StoreError:
            return  # without an answer it counts as tainted
        self._say(link, TaskState(bool(sources), sources))

    async def _taint(self, link: Link, word: Tainted) -> None:
        try:
            async with self.turn, self.store.transaction() as rows:
                if await queries.taint(rows, link.task.id, word.source, await self.now(rows)):
                    self._teller.tainted(link.task, word.source)
        except _TROUBLE:
            return  # its worker knows
        self.news(News("tainted", link.task.id, text=word.source.destination))

    async def _use(self, link: Link, grant: str, many: int) -> None:
        """Take bytes of a budget; where it is empty, or that can't be written, what passes is cut."""
        try:
            async with self.turn, self.store.transaction() as rows:
                over = await granting.spent(rows, link.task.id, grant, many, await self.now(rows))
            if over == granting.FOREIGN:
                self._teller.refused(link.task, "", None, f"bytes passed under {grant}, which is no grant of this task")
        except _TROUBLE:
            over = granting.FOREIGN
        if over:
            link.grants.discard(grant)
            self._say(link, Over((grant,)))

    def _alert(self, link: Link) -> None:
        for why in self.asked.alerts:
            self.news(News("flood", link.task.id, "", why))
        self.asked.alerts.clear()

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

    # What other hosts did

    def _hear(self, word: str) -> None:
        hearing = asyncio.get_running_loop().create_task(self._heard(word))
        self._hearing.add(hearing)
        hearing.add_done_callback(self._hearing.discard)

    async def _heard(self, word: str) -> None:
        match word.split(" "):
            case ["settle", approval]:
                async with self.turn:  # who is about to wait for it waits for it
                    pass
                await self._settle(approval)
                self.news(News("answered", "", approval, here=False))
            case ["over", task, grant]:
                self._cut(task, [grant])
            case ["asked", task, approval]:
                self.news(News("asked", task, approval, here=False))
            case _:  # some may have been missed
                for approval in self._waiting.questions():
                    await self._settle(approval)
                await self._look_at_grants()
                self._next_end = 0.0
                await self.expire()

    async def _look_at_grants(self) -> None:
        """Cut what passes under grants that are over and nobody has told us of."""
        for link in list(self._waiting.links.values()):
            try:
                async with self.store.reading() as rows:
                    found = [await queries.grant_of(rows, grant) for grant in sorted(link.grants)]
            except StoreError:
                return
            over = [one.id for one in found if one is not None and one.over is not None and one.ending != queries.USED]
            self._cut(link.task.id, over)
