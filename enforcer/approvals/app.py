"""Approvals app: the registry with its store, people, journals, receivers and reviewers.

approvers.yaml is read anew when it changes. One that is broken is reported, and lets nobody approve.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enforcer.approvals import approvers, client
from enforcer.approvals.notifications import Notifications, Threads
from enforcer.journal import signing
from enforcer.journal.keeper import Keeper
from enforcer.system import state
from enforcer.system.errors import ExeatError, HostError
from proxy.approvals import approval_card
from proxy.approvals.approval_card import summary
from proxy.approvals.model import ApprovalState
from proxy.approvals.people import People
from proxy.approvals.recording import ApprovalRecorder, origin
from proxy.approvals.registry import Registry
from proxy.approvals.store import SqliteStore, StoreError
from proxy.approvals.votes import CastVote, VoteRefusedError
from proxy.approvals.waiters import ApprovalUpdate
from proxy.telemetry.events import Destination, Origin
from proxy.telemetry.journal.writer import Journal

if TYPE_CHECKING:
    from proxy.approvals.approval_request import ApprovalRequest
    from proxy.approvals.model import Approval, Task
    from proxy.approvals.people import Reviewer, StoreLocation
    from proxy.approvals.protocol import RegistryMessage
    from proxy.approvals.store import Store
    from proxy.telemetry.baseline.anomalies import EarlierRuns

_MOST_WRONG, FORGIVEN = 5, 60.0  # wrong tokens of one uid, in so many seconds
_MOST_KNOWN: Final = 1024  # uids whose wrong tokens are counted
_DUE: Final = 0.05  # seconds: what the registry says of what is overdue
_LONGEST: Final = 1000  # characters at a terminal of what is asked
_NOBODY: Final = "nobody can approve anything: "
_NEWS_OF_A_QUESTION = frozenset({"asked", "answered", "expired", "superseded", "over", "revoked"})


class WrongTokens:
    """Wrong tokens by uid: a uid with too many is refused for a while."""

    def __init__(self) -> None:
        self._tries: OrderedDict[int, list[float]] = OrderedDict()

    def refuses(self, uid: int, now: float) -> bool:
        """Whether this uid has tried too many."""
        recent = [at for at in self._tries.get(uid, ()) if now - at < FORGIVEN]
        if recent:
            self._tries[uid] = recent
        return len(recent) >= _MOST_WRONG

    def add(self, uid: int, now: float) -> bool:
        """Count one; whether it was the last that was looked at."""
        self._tries.setdefault(uid, []).append(now)
        self._tries.move_to_end(uid)
        if len(self._tries) > _MOST_KNOWN:
            self._tries.popitem(last=False)
        return self.refuses(uid, now)


class App:
    """Approvals app. For one event loop. `say` receives log lines."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        """Read who may approve. Raises HostError where what is kept can't be found."""
        self._say = say
        self.directory = directory
        self.broken = ""  # what is wrong with approvers.yaml, as a sentence
        self.wrong = WrongTokens()
        self._file = approvers.place()
        self._seen = approvers.looked_at(self._file)
        self._threads = Threads()
        people = self._people()
        self.journals = Journals()
        self.replies: dict[Hashable, Callable[[RegistryMessage], None]] = {}
        self.makers: dict[str, Callable[[dict[str, object]], None]] = {}  # who made the sandbox of a task, by its run
        self.watchers: set[Callable[[dict[str, object]], None]] = set()
        self._telling = Notifications(people, self._threads, say)
        try:
            self._store_place = people.store
            store = _opened(people.store, directory / client.STORE)
        except OSError as error:
            raise HostError(f"cannot use the approval store: {error.strerror}") from error
        self.registry = Registry(store, people, self.journals.recorder, reply=self._reply, news=self._news)
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open the store, and ask about what waits already. Raises HostError."""
        try:
            await self.registry.open()
            pending = await self._left_behind()
        except StoreError as error:
            raise HostError(str(error)) from error
        for approval in pending:
            self._news(ApprovalUpdate("asked", approval.task, approval.id))

    async def _left_behind(self) -> "list[Approval]":
        """Return what waits already; whoever waited for it on this host had their answers from another registry."""
        own, most = os.uname().nodename, self.registry.people.bounds.pending
        async with self.registry.transaction() as t:
            pending = await t.listed([ApprovalState.PENDING], (-1.0, ""), most)
            for approval in pending:
                task = await t.task(approval.task)
                if task is not None and task.host == own and await t.stale(approval.id):
                    self.journals.recorder(task).stale(approval)
        return pending

    async def turn(self) -> None:
        """Do what is due."""
        if approvers.looked_at(approvers.place()) != self._seen:
            self._file = approvers.place()
            self._seen = approvers.looked_at(self._file)
            self.registry.people = people = self._people()
            self._telling.close()
            self._telling = Notifications(people, self._threads, self._say)
            if people.store != self._store_place:
                self._say(f"`{self._file}` names another store; restart the approvals server to use it")
        due = self.registry.next_due()
        if due is not None and due <= _DUE:
            await self.registry.expire()

    async def close(self, *, sign: bool = True) -> None:
        """End it, and sign what was told. What waits is denied by those who wait."""
        self._telling.close()
        for task in self._tasks:
            task.cancel()
        self._threads.close()
        await self.registry.close()
        self.journals.close(sign=sign)

    @property
    def others(self) -> bool:
        """Whether another unix user may approve."""
        own = os.geteuid()
        named = self.registry.people.name_of(own)
        return any(
            (person.uid not in (None, own)) or (person.user not in ("", named))
            for person in self.registry.people.people.values()
        )

    def standing(self, told: Iterable[str]) -> list[str]:
        """Leave out of what an admin was told what was wrong with approvers.yaml and isn't any more."""
        return [each for each in told if not each.startswith(_NOBODY) or each == self.broken]

    async def card(self, approval: str, news: str = "asked") -> dict[str, object]:
        """Return the card of an approval request, as JSON and text. Raises StoreError, VoteRefusedError."""
        found, short = await self._known(approval)
        return {"kind": news, "approval": short, "card": found.packed(), "text": found.text()}

    async def _known(self, approval: str) -> tuple[approval_card.Card, dict[str, object]]:
        async with self.registry.reading() as t:
            found = await approval_card.build_card(t, approval)
            if found is None:
                raise VoteRefusedError("there is no such approval request")
            short = await summary(t, found.approval, found.task)
        before = await asyncio.to_thread(self.journals.count_earlier_runs, found.task, found.approval.question)
        return found._replace(before=before), short

    # --- what the registry says ---

    def _reply(self, connection: Hashable, reply: "RegistryMessage") -> None:
        say = self.replies.get(connection)
        if say is not None:
            say(reply)

    def _news(self, news: ApprovalUpdate) -> None:
        if news.approval and news.kind in _NEWS_OF_A_QUESTION:
            self._begin(self._spread(news))
        elif news.kind == "flood":
            self._say(f"task {news.task}: {news.text}")

    async def _spread(self, news: ApprovalUpdate) -> None:
        """Report a request to watchers, receivers and reviewers."""
        try:
            known, short = await self._known(news.approval)
        except (StoreError, VoteRefusedError) as error:
            self._say(f"cannot notify anybody of approval request {news.approval}: {error}")
            return
        card = known.packed()
        for watcher in tuple(self.watchers):
            watcher({"kind": news.kind, "approval": short, "card": card, "text": known.text()})
        if news.kind != "asked" or not news.here:
            return
        self._tell_maker(known)
        told = known.redacted()  # whom it notifies keeps what it sends; who reviews decides on all there is
        self._telling.asked(told.packed(), told.text(), news.task)
        async with self.registry.reading() as t:
            found = await t.approval(news.approval)
        if found is not None and found.state is ApprovalState.PENDING:
            for reviewer in self.registry.people.reviewers_of(found.question):
                self._begin(self._review(reviewer, news, card))

    def _tell_maker(self, card: approval_card.Card) -> None:
        say = self.makers.get(card.task.run)
        if say is not None:
            rules = ", ".join(asks.rule for asks, _ in card.missing)
            what = card.redacted().approval.question.line()[:_LONGEST]  # what is said there may be kept
            say({"asked": {"id": card.approval.id, "what": what, "rules": rules}})

    async def _review(self, reviewer: "Reviewer", news: ApprovalUpdate, card: dict[str, object]) -> None:
        """Have a program answer; what it says counts as its word, and its failure is a pass."""
        from proxy.telemetry.journal.writer import JournalWriteError

        approval = news.approval
        said = await self._telling.review(reviewer, card, news.task)
        who = self.registry.people.by_name(reviewer.name)
        if who is None:
            return  # it is named no more
        try:
            await self.registry.decide(approval, CastVote(who, said.vote, why=said.why))
        except VoteRefusedError:
            return  # somebody was quicker
        except (StoreError, JournalWriteError) as error:
            self._say(f"the answer of {reviewer.name} to {approval} can't be recorded: {error}")

    def _begin(self, what: "Coroutine[Any, Any, None]") -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _people(self) -> People:
        try:
            people = approvers.read(self._file)
        except ExeatError as error:
            self.broken = f"{_NOBODY}{error}"
            self._say(self.broken)
            return People(file=str(self._file))
        self.broken = ""
        return people


def _opened(where: "StoreLocation", file: Path) -> "Store":
    """Make the store of a place; nothing is opened yet. Raises OSError where its password can't be read."""
    if where.url:
        from proxy.approvals.postgres_store import PostgresStore  # 15 MB that a store in a file does without

        password = Path(where.password).read_text().rstrip("\r\n") if where.password else None
        return PostgresStore(where.url, password, where.ca or None)
    return SqliteStore(file)


class Journals:
    """The journals that the registry writes into: that of each task's gate, and this user's own for all else."""

    def __init__(self) -> None:
        self._own = state.make_private(state.journal_directory())
        self._of: dict[str, Path] = {}  # by task
        self._open: dict[Path, Journal] = {}

    def introduced(self, task: str, journal: Path) -> None:
        """Know where a task's gate writes."""
        self._of[task] = journal

    def recorder(self, task: "Task | None") -> ApprovalRecorder:
        """Return what tells of a task; None: of none that anybody knows. Raises JournalWriteError."""
        where = self._own if task is None else self._of.get(task.id, self._own)
        journal = self._open.get(where)
        if journal is None:
            journal = self._open[where] = Journal(where)
        return ApprovalRecorder(Origin(host=os.uname().nodename) if task is None else origin(task), journal)

    def count_earlier_runs(self, task: "Task", question: "ApprovalRequest") -> "EarlierRuns | None":
        """Return what is known of a task's name and of where it wants to go. Reads a file; never raises."""
        from proxy.telemetry.baseline.anomalies import count_earlier_runs

        if not question.host:
            return None
        try:
            kept = signing.keeper_directory(self._of.get(task.id, self._own))
        except HostError:
            return None
        return count_earlier_runs(kept, task.name, Destination(question.host, None, question.port))

    def gone(self, task: str) -> None:
        """Forget where a task's gate wrote: there is none any more. What is told of it later is in this user's own."""
        self._of.pop(task, None)

    def close(self, *, sign: bool) -> None:
        """Close all, and have what was written signed, as whoever writes to a journal does; not where that is gone."""
        for where, journal in self._open.items():
            journal.close()
            if sign:
                Keeper(where, signing.keeper_directory(where), _say).close((os.getpid(),))
        self._open.clear()


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))
