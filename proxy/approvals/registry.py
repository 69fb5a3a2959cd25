"""The registry: keeps what is asked, counts what is said, and tells those who wait. A clock and a store, no sockets.

Home of the invariants of approvals: a grant serves its own task, rule and attempt and nothing else; nothing is granted
that isn't told; what can't be kept or told is denied; nothing that has ended comes back, whatever the clock does.

Whoever runs it calls `introduce` for a sandbox's pair of sockets, `received` for each word that comes through it, in
order and one at a time, and `leave` when the task is over; sends what `reply` is called with; and calls `expire` in
`next_due` seconds, asked anew after each of these. All of it in one event loop. `news` is called with what watchers,
notifiers and reviewers are to be told. What a worker says raises nothing; what people say may be Refused.
"""

import asyncio
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final

from proxy.approvals import approval_card, lifecycle, pre_request, queries, votes
from proxy.approvals.approval_card import Card
from proxy.approvals.model import State, Task
from proxy.approvals.pending import TROUBLE, Link, News, PendingApprovals, Waiter
from proxy.approvals.protocol import (
    Answer,
    Ask,
    Done,
    Drop,
    Hello,
    Introduction,
    Look,
    Over,
    Result,
    Seen,
    Tainted,
    Used,
    Wish,
    Word,
)
from proxy.approvals.protocol import State as TaskState
from proxy.approvals.store import StoreError
from proxy.approvals.votes import Decided, Refused, Said

if TYPE_CHECKING:
    from proxy.approvals.people import Actor
    from proxy.approvals.store import Rows

_LOOK: Final = 30.0  # seconds after which the clock is looked at again, whatever is due: it may have been set
_AT_ONCE: Final = 16  # who wait that are served in the transaction that grants
_TIDY: Final = 3600.0  # seconds between looks for what is old
_KEPT: Final = 90 * 86400.0  # seconds that what ended can still be looked up here; the journal keeps it longer


class Registry(PendingApprovals):
    """See the module. A `connection` is whatever tells one pair of sockets from another."""

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
                if task is None:
                    task = Task(
                        who.task,
                        who.sandbox,
                        who.name,
                        who.labels,
                        starter,
                        who.host,
                        who.rule_files,
                        who.workspace,
                        now,
                    )
                    await queries.put_task(rows, task)
                elif task.ended is not None or (task.sandbox, task.host) != (who.sandbox, who.host):
                    raise ValueError("this task has ended, or is another's")
                granted = await queries.granted_to(rows, task.id)
            if (old := self._waiting.link_of(task.id)) is not None:
                self._forget(old)
            self._waiting.links[connection] = link = Link(connection, task, who.started_by)
            link.grants.update(grant.id for grant in granted)

    async def leave(self, connection: Hashable) -> None:
        """Take note that a sandbox is gone: its task's questions and grants end with it. Never raises.

        Of who merges changes they stay: an answer serves the next one that merges just those.
        """
        link = self._waiting.links.get(connection)
        if link is not None and link.task.stays:
            await self._gone(list(link.waiters.values()))
            async with self.turn:
                self._forget(link)
            return
        async with self.turn:
            link = self._waiting.links.get(connection)
            if link is None:
                return
            self._forget(link)
            self.asked.forget(link.task.id)
            self.rates.forget(link.task.id)
            self.strays.forget(link.task.id)
            try:
                async with self.store.transaction() as rows:
                    gone = await lifecycle.ended_task(rows, self._record, link.task, await self.now(rows))
            except TROUBLE:
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
                    state, put = await pre_request.wish(self, link, word)
                self._say(link, Seen(word.number, state))
                if put is not None:
                    self.due(put.approval.expires)
                    self.news(News("joined" if put.joined else "asked", link.task.id, put.approval.id, state.attempt))
                self._alert(link)
            case Look(number, id_):
                self._say(link, Seen(number, await pre_request.look(self, link, id_)))

    # What people say

    async def decide(self, approval: str, said: Said) -> Decided:
        """Take an answer. Raises Refused where it doesn't count; StoreError, JournalFailed where it can't be taken."""
        first: list[tuple[Waiter, Answer]] = []
        async with self.turn:
            waiters = self._waiting.of(approval)[:_AT_ONCE]
            for waiter in waiters:
                waiter.busy = True
            try:
                async with self.store.transaction() as rows:
                    now = await self.now(rows)
                    await self._know_starters(rows)
                    found = await votes.decide(rows, self.people, self._record, approval, said, now)
                    if found.grants:
                        first = await self._serve_first(rows, waiters, now)
                    if found.final:
                        rows.tell(f"settle {approval}")
            except Refused as refused:
                question = None if refused.approval is None else refused.approval.question
                self._record(refused.task).refused(approval[:64], question, str(refused), said.who.name)
                raise
            finally:
                for waiter in waiters:
                    waiter.busy = False
            for waiter, answer in first:
                self._answer(waiter, answer)
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
                self._record(task).seen(found, who.name)

    async def revoke(self, id_: str, who: "Actor", why: str = "") -> str:
        """End a grant, or all that a question granted, or lift a rejection; return what was done as a sentence.

        Whoever could reject the question may. Raises Refused, StoreError.
        """
        async with self.turn:
            try:
                async with self.store.transaction() as rows:
                    now = await self.now(rows)
                    found, cut, text = await votes.revoke(rows, self.people, id_, who, why, now)
                    detail = f"revoked by {who.name}: {why[:1000]}".rstrip(": ")
                    self._record(cut.task).expired(found.id, found.question, detail)
            except Refused as refused:
                question = None if refused.approval is None else refused.approval.question
                self._record(refused.task).refused(id_[:64], question, str(refused), who.name)
                raise
            self._cut(found.task, cut.grants)
        self.news(News("revoked", found.task, found.id, text))
        return text

    async def card(self, approval: str) -> Card | None:
        """Return all that is known of a question, or None. Raises StoreError."""
        async with self.store.reading() as rows:
            return await approval_card.card(rows, self.people, approval, self.clock.now())

    async def _know_starters(self, rows: "Rows") -> None:
        """See who they are now who started our tasks: nobody gets a second name by a change of approvers.yaml."""
        for link in self._waiting.links.values():
            starter = self.people.by_uid(link.uid, link.task.host).name
            if starter != link.task.started_by:
                link.task = link.task._replace(started_by=starter)
                await queries.started_by(rows, link.task.id, starter)

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
            while await self._end_some():
                pass
        except TROUBLE:
            self._next_end = now + _LOOK

    async def _end_some(self) -> bool:
        """End some of what is due; return whether there may be more. Raises StoreError."""
        async with self.turn:
            async with self.store.transaction() as rows:
                now = await self.now(rows)
                gone = await lifecycle.ended_questions(rows, self._record, now)
                grants = await lifecycle.ended_grants(rows, self._record, now)
                if now - self._tidied > _TIDY:
                    await queries.forget(rows, now - _KEPT)
                    self._tidied = now
                self._next_end = await queries.next_end(rows)
            for grant in grants:
                if grant.cuts:
                    self._cut(grant.task, [grant.id])
        for approval in gone:
            await self._settle(approval.id)
            self.news(News("expired", approval.task, approval.id))
        return len(gone) == lifecycle.BATCH or len(grants) == lifecycle.BATCH

    def next_due(self) -> float | None:
        """Return in how many seconds `expire` is to be called next; None: not before something changes."""
        ends = [end for end in (self._waiting.next_deadline(), self._next_end) if end is not None]
        return min(max(min(ends) - self.clock.now(), 0.01), _LOOK) if ends else None

    # What else a task does

    async def _say_state(self, link: Link) -> None:
        try:
            async with self.store.reading() as rows:
                sources = await queries.taints(rows, link.task.id)
        except StoreError:
            return  # without an answer it counts as tainted
        self._say(link, TaskState(Done(bool(sources), sources)))

    async def _taint(self, link: Link, word: Tainted) -> None:
        try:
            async with self.turn, self.store.transaction() as rows:
                if await queries.taint(rows, link.task.id, word.source, await self.now(rows)):
                    self._record(link.task).tainted(word.source)
        except TROUBLE:
            return  # its worker knows
        self.news(News("tainted", link.task.id, text=word.source.destination))

    async def _use(self, link: Link, grant: str, many: int) -> None:
        """Take bytes of a budget; where it is empty, or that can't be written, what passes is cut."""
        try:
            async with self.turn, self.store.transaction() as rows:
                over = await lifecycle.spent(rows, link.task.id, grant, many, await self.now(rows))
            if over == lifecycle.FOREIGN:
                self._record(link.task).refused("", None, f"bytes passed under {grant}, which is no grant of this task")
        except TROUBLE:
            over = lifecycle.FOREIGN
        if over:
            link.grants.discard(grant)
            self._say(link, Over((grant,)))

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
