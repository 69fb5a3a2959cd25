"""Registry of approvals: keeps requests, counts votes, and answers each waiter once. A clock and a store, no sockets.

Home of the invariants of approvals. A grant serves its own task, rule and attempt, and nothing else. Nothing is granted
that is not recorded. A request that can't be stored or recorded is denied. Nothing that has ended becomes valid again,
whatever the clock does.

The caller runs it in one event loop: `introduce` for a sandbox's pair of sockets, `received` for each word that comes
through it, in order and one at a time, and `leave` when the task is over. It sends what `reply` is called with, and
calls `expire` in `next_due` seconds, asked anew after each of these. `news` is called with what watchers, notifiers and
reviewers are to be told. What a worker says raises nothing; what people say may be VoteRefusedError.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from proxy.approvals import approval_card, lifecycle, protocol, transaction, votes
from proxy.approvals.model import ApprovalState, Task
from proxy.approvals.protocol import Answer, GrantsEnded, RegistryMessage, RequestStatus, Result
from proxy.approvals.store import Store, StoreError
from proxy.approvals.submit import Submitted, Submitter, is_recorded
from proxy.approvals.transaction import Transaction
from proxy.approvals.votes import CastVote, VoteRefusedError, VoteResult
from proxy.approvals.waiters import ApprovalUpdate, Clock, SandboxChannel, Waiter, Waiters
from proxy.telemetry.journal.writer import JournalWriteError

if TYPE_CHECKING:
    from proxy.approvals.model import Grant
    from proxy.approvals.people import Actor, People
    from proxy.approvals.recording import Recorders

_TROUBLE: Final = (StoreError, JournalWriteError)
_LOOK: Final = 30.0  # seconds after which the clock is looked at again, whatever is due: it may have been set
_AT_ONCE: Final = 16  # waiters that are served in the transaction that grants
_TIDY: Final = 3600.0  # seconds between looks for what is old
_KEPT: Final = 90 * 86400.0  # seconds that what ended can still be looked up here; the journal keeps it longer


class Registry:
    """Registry of approvals. A `connection` is any hashable value that identifies a socket pair."""

    def __init__(
        self,
        store: Store,
        people: "People",
        recorders: "Recorders",
        *,
        reply: Callable[[Hashable, RegistryMessage], None],
        news: Callable[[ApprovalUpdate], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self.people = people  # swapped whole when its file has changed
        self.clock = clock or Clock()
        self.store = store
        self._news = news
        self._record = recorders
        self._reply = reply
        self._waiting = Waiters()
        self._submitter = Submitter(recorders, self._waiting.of)
        self._turn = asyncio.Lock()  # of whatever writes, or changes what waits
        self._hearing: set[asyncio.Task[None]] = set()
        self._next_end: float | None = 0.0  # of an approval request or a grant; 0: nobody has looked
        self._tidied = 0.0

    async def open(self) -> None:
        """Open the store and see what has ended meanwhile. Raises StoreError."""
        await self.store.open(self._hear)
        await self.expire()

    async def close(self) -> None:
        """Close the store. Nobody is answered: tasks go on, and their gates deny what waits."""
        for hearing in self._hearing:
            hearing.cancel()
        await asyncio.gather(*self._hearing, return_exceptions=True)
        async with self._turn:
            await self.store.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Write into the store. Raises StoreError."""
        async with self.store.transaction() as rows:
            now = await transaction.latest(rows, self.clock.now)
            yield Transaction(rows, now, self.people, self._record)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """Read the store, without keeping anybody from writing. Raises StoreError."""
        async with self.store.reading() as rows:
            yield Transaction(rows, self.clock.now(), self.people, self._record)

    async def introduce(self, connection: Hashable, who: protocol.Introduction) -> None:
        """Take a sandbox's pair of sockets. Raises ValueError where its task has ended or is another's, or StoreError.

        A task that was known before goes on with what it has: its taint, its grants, its approval requests.
        """
        async with self._turn:
            async with self.transaction() as t:
                task = await t.task(who.task)
                starter = self.people.by_uid(who.started_by, who.host).name
                if task is None:
                    where = who.host, who.rule_files, who.workspace
                    task = Task(who.task, who.sandbox, who.name, who.labels, starter, *where, t.now)
                    await t.put(task)
                elif task.ended is not None or (task.sandbox, task.host) != (who.sandbox, who.host):
                    raise ValueError("this task has ended, or is another's")
                granted = await t.granted_to(task.id)
            if (old := self._waiting.link_of(task.id)) is not None:
                self._waiting.forget(old)
            self._waiting.links[connection] = link = SandboxChannel(connection, task, who.started_by)
            link.grants.update(grant.id for grant in granted)

    async def leave(self, connection: Hashable) -> None:
        """End what a sandbox has that is gone: its task's approval requests and grants. Never raises.

        Those of a merge of changes stay: an answer serves the next one that merges just those.
        """
        link = self._waiting.links.get(connection)
        if link is not None and link.task.stays:
            await self._gone(list(link.waiters.values()))
            async with self._turn:
                self._waiting.forget(link)
            return
        async with self._turn:
            link = self._waiting.links.get(connection)
            if link is None:
                return
            self._waiting.forget(link)
            self._submitter.forget(link.task.id)
            try:
                async with self.transaction() as t:
                    gone = await lifecycle.end_task(t, link.task)
            except _TROUBLE:
                return  # what it left ends by its time; its id serves nobody else
        for approval in gone:
            self._news(ApprovalUpdate("over", approval.task, approval.id))

    async def received(self, connection: Hashable, word: protocol.WorkerMessage) -> None:
        """Do what a worker says. One at a time for each connection, in order."""
        link = self._waiting.links.get(connection)
        if link is None:
            return
        match word:
            case protocol.Submit(number, question):
                hold = min((asks.terms.hold for asks in question.rules), default=0.0)
                waiter = Waiter(link, number, question, self.clock.now() + hold)
                self._waiting.add(waiter)
                async with self._turn:
                    await self._place(waiter)
            case protocol.Withdraw(number):
                await self._gone([waiter for waiter in (link.waiters.get(number),) if waiter is not None])
            case protocol.Hello():
                await self._gone(list(link.waiters.values()))
                await self._say_state(link)
            case protocol.Tainted():
                await self._taint(link, word)
            case protocol.BytesUsed(grant, bytes_):
                await self._use(link, grant, bytes_)
            case protocol.PreRequest():
                await self._wish(link, word)
            case protocol.StatusQuery(number, id_):
                try:
                    async with self.reading() as t:
                        state = await self._submitter.look(t, link.task, id_)
                except StoreError:
                    state = protocol.RequestState(
                        RequestStatus.UNKNOWN, why="the status is not available now: try again in a minute"
                    )
                self._say(link, protocol.StatusReply(number, state))

    async def decide(self, approval: str, said: CastVote) -> VoteResult:
        """Count a vote. Raises VoteRefusedError if it doesn't count, StoreError or JournalWriteError if that fails."""
        first: list[tuple[Waiter, Answer]] = []
        async with self._turn:
            waiters = self._waiting.of(approval)[:_AT_ONCE]
            for waiter in waiters:
                waiter.busy = True
            try:
                with self._refusals(approval, said.who):
                    async with self.transaction() as t:
                        await self._know_starters(t)
                        found = await votes.decide(t, approval, said)
                        if found.grants:
                            first = await self._serve_first(t, waiters)
                        if found.final:
                            t.tell(f"settle {approval}")
            finally:
                for waiter in waiters:
                    waiter.busy = False
            for waiter, answer in first:
                self._answer(waiter, answer)
        for grant in found.grants:
            self._due(grant.ends)
        if found.final:
            await self._settle(approval)
        self._news(ApprovalUpdate("answered", found.approval.task, approval, found.text))
        return found

    async def seen(self, approval: str, who: "Actor") -> None:
        """Record that somebody looked at an approval request, once for each. Raises StoreError."""
        async with self._turn, self.transaction() as t:
            both = await t.found(approval)
            if both is not None and both[0].state is ApprovalState.PENDING and await t.viewed(approval, who.name):
                self._record(both[1]).seen(both[0], who.name)

    async def revoke(self, id_: str, who: "Actor", why: str = "") -> str:
        """End a grant, or all that a request granted, or lift a rejection; return what was done as a sentence.

        Whoever could reject the request may. Raises VoteRefusedError, StoreError.
        """
        async with self._turn:
            with self._refusals(id_, who):
                async with self.transaction() as t:
                    found, task, grants, text = await votes.revoke(t, id_, who, why)
                    detail = f"revoked by {who.name}: {why[:1000]}".rstrip(": ")
                    self._record(task).expired(found.id, found.question, detail)
            self._cut(found.task, grants)
        self._news(ApprovalUpdate("revoked", found.task, found.id, text))
        return text

    async def card(self, approval: str) -> approval_card.Card | None:
        """Return all that is known of an approval request, or None. Raises StoreError."""
        async with self.reading() as t:
            return await approval_card.build_card(t, approval)

    @contextmanager
    def _refusals(self, id_: str, who: "Actor") -> Iterator[None]:
        """Record that an answer doesn't count, once its transaction has not happened."""
        try:
            yield
        except VoteRefusedError as refused:
            question = None if refused.approval is None else refused.approval.question
            self._record(refused.task).refused(id_[:64], question, str(refused), who.name)
            raise

    async def _know_starters(self, t: Transaction) -> None:
        """See who they are now who started our tasks: nobody gets a second name by a change of approvers.yaml."""
        for link in self._waiting.links.values():
            starter = self.people.by_uid(link.uid, link.task.host).name
            if starter != link.task.started_by:
                link.task = link.task._replace(started_by=starter)
                await t.started_by(link.task.id, starter)

    # Asks that wait

    async def _place(self, waiter: Waiter) -> None:
        """Answer an ask, or have it wait. With the turn."""
        if waiter.done:
            return
        waiter.busy = True
        try:
            async with self.transaction() as t:
                found = await self._considered(t, waiter)
        except _TROUBLE as error:
            found = Answer(waiter.number, Result.UNAVAILABLE, why=str(error)[:1000])
        finally:
            waiter.busy = False
        put = None if isinstance(found, Answer) else found
        if isinstance(found, Answer):
            self._answer(waiter, found)
        elif not waiter.done:
            self._waiting.put(waiter, found.approval.id)
            self._say(waiter.link, protocol.Pending(waiter.number, found.approval.id, waiter.deadline))
        self._tell_submitted(waiter.link, put, waiter.question.line())

    async def _considered(self, t: Transaction, waiter: Waiter) -> Answer | Submitted:
        """Take what is granted already, or ask people. Raises StoreError, JournalWriteError."""
        task = await t.task(waiter.link.task.id)
        if task is None or task.ended is not None:
            return Answer(waiter.number, Result.UNAVAILABLE, why="the task has ended")
        found = await self._submitter.submit(t, task, waiter.question, again=bool(waiter.approval))
        if isinstance(found, Answer):
            return found._replace(number=waiter.number)
        return found if isinstance(found, Submitted) else await self._served(t, task, waiter, found)

    async def _served(self, t: Transaction, task: Task, waiter: Waiter, grants: "list[Grant]") -> Answer:
        left = await lifecycle.take_uses(t, grants)
        self._record(task).used(waiter.question, left)
        approvals = [await t.approval(grant.approval) for grant in left]
        by = dict.fromkeys(name for one in approvals if one is not None for name in one.by)
        told = tuple(protocol.Granted(one.rule, one.digest, one.id, one.bytes) for one in left)
        waiter.link.grants.update(one.id for one in left)
        return Answer(waiter.number, Result.GRANTED, left[0].approval, tuple(by), "", told)

    async def _serve_first(self, t: Transaction, waiters: Iterable[Waiter]) -> list[tuple[Waiter, Answer]]:
        """Take what was granted just now for those who waited longest: one commit is all that they wait for then."""
        found: list[tuple[Waiter, Answer]] = []
        for waiter in waiters:
            task = None if waiter.done else await t.task(waiter.link.task.id)
            grants, unmet = await lifecycle.find_grants(t, waiter.link.task.id, waiter.question)
            if task is None or unmet:
                break
            found.append((waiter, await self._served(t, task, waiter, grants)))
        return found

    async def _settle(self, approval: str) -> None:
        """Answer what waits for an approval request that has ended; others have their turn between two of them.

        What is granted goes to them in the order in which they asked. Those for which nothing is left ask anew.
        """
        waiters = self._waiting.of(approval)
        if not waiters:
            return
        found, why = None, "the task has ended"
        try:
            async with self.reading() as t:
                found = await t.approval(approval)
        except StoreError as error:
            why = str(error)[:1000]
        for waiter in waiters:
            match None if found is None else found.state:
                case ApprovalState.PENDING:
                    return
                case ApprovalState.APPROVED | ApprovalState.SUPERSEDED:
                    async with self._turn:
                        await self._place(waiter)
                case ApprovalState.REJECTED if found is not None:
                    self._answer(waiter, Answer(waiter.number, Result.DENIED, approval, found.by, found.why))
                case ApprovalState.EXPIRED:
                    self._answer(waiter, _timeout(waiter))
                case _:
                    self._answer(waiter, Answer(waiter.number, Result.UNAVAILABLE, approval, why=why))

    async def _gone(self, waiters: Iterable[Waiter]) -> None:
        """Have some wait no more; a request that nothing waits for is stale, and still open."""
        approvals = dict.fromkeys(waiter.approval for waiter in waiters if waiter.approval)
        for waiter in waiters:
            self._waiting.remove(waiter)
        if not approvals:
            return
        try:
            async with self._turn, self.transaction() as t:
                for approval in approvals:
                    if self._waiting.of(approval) or not await t.stale(approval):
                        continue
                    both = await t.found(approval)
                    if both is not None and is_recorded(both[0].times):
                        self._record(both[1]).stale(both[0])
        except _TROUBLE:
            return  # nobody waits either way

    async def _wish(self, link: SandboxChannel, word: protocol.PreRequest) -> None:
        put = None
        async with self._turn:
            if (state := self._submitter.refuses(link.task, word)) is None:
                try:
                    async with self.transaction() as t:
                        state, put = await self._submitter.wish(t, link.task.id, word)
                except _TROUBLE:
                    line = word.attempt.question.line()
                    state = protocol.RequestState(
                        RequestStatus.REFUSED, attempt=line, why="approval requests are not possible now"
                    )
        self._say(link, protocol.StatusReply(word.number, state))
        self._tell_submitted(link, put, state.attempt)

    def _tell_submitted(self, link: SandboxChannel, put: Submitted | None, line: str) -> None:
        if put is not None:
            self._due(put.approval.expires)
            self._news(ApprovalUpdate("joined" if put.joined else "asked", link.task.id, put.approval.id, line))
        for why in self._submitter.alerts:
            self._news(ApprovalUpdate("flood", link.task.id, "", why))
        for approval in self._submitter.superseded:
            self._news(ApprovalUpdate("superseded", link.task.id, approval.id))
        self._submitter.alerts.clear()
        self._submitter.superseded.clear()

    def _answer(self, waiter: Waiter, answer: Answer) -> None:
        if not waiter.done:
            self._waiting.remove(waiter)
            self._say(waiter.link, answer)

    def _cut(self, task: str, grants: Iterable[str]) -> None:
        link = self._waiting.link_of(task)
        told = tuple(grant for grant in grants if link is not None and grant in link.grants)
        if link is not None and told:
            link.grants.difference_update(told)
            self._say(link, GrantsEnded(told))

    def _say(self, link: SandboxChannel, reply: RegistryMessage) -> None:
        if self._waiting.links.get(link.connection) is link:
            self._reply(link.connection, reply)

    async def expire(self) -> None:
        """End what is due: waits, requests, grants. Never raises: what can't be written now is ended next time."""
        now = self.clock.now()
        late = self._waiting.late(now)
        for waiter in late:
            self._answer(waiter, _timeout(waiter))
        await self._gone(late)
        if self._next_end is None or now < self._next_end:
            return
        try:
            while await self._end_some():
                pass
        except _TROUBLE:
            self._next_end = now + _LOOK

    async def _end_some(self) -> bool:
        """End some of what is due; return whether there may be more. Raises StoreError."""
        async with self._turn:
            async with self.transaction() as t:
                gone, grants = await lifecycle.expire_requests(t), await lifecycle.expire_grants(t)
                if t.now - self._tidied > _TIDY:
                    await t.forget(t.now - _KEPT)
                    self._tidied = t.now
                self._next_end = await t.next_end()
            for grant in grants:
                if grant.cuts:
                    self._cut(grant.task, [grant.id])
        for approval in gone:
            await self._settle(approval.id)
            self._news(ApprovalUpdate("expired", approval.task, approval.id))
        return lifecycle.BATCH in {len(gone), len(grants)}

    def next_due(self) -> float | None:
        """Return in how many seconds `expire` is to be called next; None: not before something changes."""
        ends = [end for end in (self._waiting.next_deadline(), self._next_end) if end is not None]
        return min(max(min(ends) - self.clock.now(), 0.01), _LOOK) if ends else None

    def _due(self, end: float | None) -> None:
        if end is not None:
            self._next_end = end if self._next_end is None else min(self._next_end, end)

    # What else a task does

    async def _say_state(self, link: SandboxChannel) -> None:
        try:
            async with self.reading() as t:
                sources = await t.taints(link.task.id)
        except StoreError:
            return  # without an answer it counts as tainted
        self._say(link, protocol.TaskState(protocol.TaskTaint(bool(sources), sources)))

    async def _taint(self, link: SandboxChannel, word: protocol.Tainted) -> None:
        try:
            async with self._turn, self.transaction() as t:
                if await t.taint(link.task.id, word.source):
                    self._record(link.task).tainted(word.source)
        except _TROUBLE:
            return  # its worker knows
        self._news(ApprovalUpdate("tainted", link.task.id, text=word.source.destination))

    async def _use(self, link: SandboxChannel, grant: str, many: int) -> None:
        """Take bytes of a budget; where it is empty, or that can't be written, what passes is cut."""
        try:
            async with self._turn, self.transaction() as t:
                over = await lifecycle.spend_bytes(t, link.task.id, grant, many)
            if over == lifecycle.FOREIGN:
                self._record(link.task).refused("", None, f"bytes passed under {grant}, which is no grant of this task")
        except _TROUBLE:
            over = lifecycle.FOREIGN
        if over:
            link.grants.discard(grant)
            self._say(link, GrantsEnded((grant,)))

    # What other hosts did

    def _hear(self, word: str) -> None:
        hearing = asyncio.get_running_loop().create_task(self._heard(word))
        self._hearing.add(hearing)
        hearing.add_done_callback(self._hearing.discard)

    async def _heard(self, word: str) -> None:
        match word.split(" "):
            case ["settle", approval]:
                async with self._turn:  # what is about to wait for it waits for it
                    pass
                await self._settle(approval)
                self._news(ApprovalUpdate("answered", "", approval, here=False))
            case ["over", task, grant]:
                self._cut(task, [grant])
            case ["asked", task, approval]:
                self._news(ApprovalUpdate("asked", task, approval, here=False))
            case _:  # some may have been missed
                for approval in self._waiting.approvals():
                    await self._settle(approval)
                await self._look_at_grants()
                self._next_end = 0.0
                await self.expire()

    async def _look_at_grants(self) -> None:
        """Cut what passes under grants that ended without our hearing of it."""
        for link in list(self._waiting.links.values()):
            try:
                async with self.reading() as t:
                    found = [await t.grant(grant) for grant in sorted(link.grants)]
            except StoreError:
                return
            over = [one for one in found if one is not None and one.over is not None]
            self._cut(link.task.id, [one.id for one in over if one.ending != transaction.USED])


def _timeout(waiter: Waiter) -> Answer:
    return Answer(waiter.number, Result.TIMEOUT, waiter.approval, why="nobody answered in time")
