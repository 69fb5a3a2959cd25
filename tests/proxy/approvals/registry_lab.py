"""A registry with everything around it that is not on this host's disk replaced: the clock, the journal, the sockets."""

import json
from collections import defaultdict

from proxy.approvals.model import ApprovalState, GrantTerms, Vote
from proxy.approvals.people import Actor, PendingLimits, People, Person, Reviewer
from proxy.approvals.protocol import Answer, Introduction, Pending, Submit
from proxy.approvals.recording import ApprovalRecorder, origin
from proxy.approvals.registry import Registry
from proxy.approvals.votes import CastVote, VoteRefusedError
from proxy.approvals.waiters import Clock
from proxy.telemetry.events import Origin
from proxy.telemetry.journal.writer import JournalWriteError
from rules.values.patterns import Pattern

STARTER, ADA, BO, CY, MALLORY = 1000, 1001, 1002, 1003, 6666
USERS = {STARTER: "starter", ADA: "ada", BO: "bo", CY: "cy", MALLORY: "mallory"}
PEOPLE = People(
    {name: Person(name, user=name) for name in ("starter", "ada", "bo", "cy")},
    {"release": frozenset({"starter", "ada", "bo", "linter"}), "dba": frozenset({"cy"})},
    {"linter": Reviewer("linter", (Pattern.parse("web:*"),)), "other": Reviewer("other", (Pattern.parse("other:*"),))},
    file="approvers.yaml",
    name_of=lambda uid: USERS.get(uid, ""),
)
LINTER = Actor("linter", known=True, reviewer=True)
START = 1_800_000_000.0


class ManualClock:
    """A clock that is moved by hand: `wall` is set, `steady` only goes on."""

    def __init__(self):
        self.wall = START
        self.steady = 50.0

    def clock(self):
        return Clock(lambda: self.wall, lambda: self.steady)

    def advance(self, seconds):
        self.wall += seconds
        self.steady += seconds


class Journal:
    """Keeps events instead of writing them; `broken`: it can't."""

    def __init__(self):
        self.events = []
        self.broken = False

    def append(self, line, _now):
        if self.broken:
            raise JournalWriteError(28, "no space left on device")
        self.events.append(json.loads(line[: line.rindex(b"}") + 1] if line.endswith(b"\n") else line + b"}"))
        return len(line)


class RegistryLab:
    """One registry and who speaks to it. Use it inside a running loop."""

    def __init__(self, store, people=PEOPLE, clock=None):
        self.clock = clock or ManualClock()
        self.journal = Journal()
        self.replies = defaultdict(list)
        self.news = []
        self.registry = Registry(
            store, people, self._recorder, reply=lambda to, what: self.replies[to].append(what), news=self.news.append,
            clock=self.clock.clock(),
        )  # fmt: skip
        self._numbers = iter(range(1, 1 << 30))

    def _recorder(self, task):
        return ApprovalRecorder(Origin() if task is None else origin(task), self.journal)

    async def task(self, name="t1", starter=STARTER, host="host"):
        await self.registry.introduce(name, Introduction(f"s-{name}", name, name, {"team": "web"}, starter, host))
        return name

    async def submit(self, task, question):
        """Submit, and return the number of it."""
        number = next(self._numbers)
        await self.registry.received(task, Submit(number, question))
        return number

    def answer(self, number):
        """The one answer to an ask, or None."""
        found = [
            one
            for replies in self.replies.values()
            for one in replies
            if isinstance(one, Answer) and one.number == number
        ]
        assert len(found) < 2
        return found[0] if found else None

    def pending(self, number):
        """The id of the question that an ask waits for last."""
        found = [
            one
            for replies in self.replies.values()
            for one in replies
            if isinstance(one, Pending) and one.number == number
        ]
        return found[-1].approval if found else None

    async def submit_pending(self, task, question):
        """Submit what is held, and return its number and the question's id."""
        number = await self.submit(task, question)
        assert self.answer(number) is None
        return number, self.pending(number)

    async def submit_answered(self, task, question):
        """Submit what is answered at once, and return the answer."""
        number = await self.submit(task, question)
        found = self.answer(number)
        assert found is not None
        return found

    def who(self, uid):
        return self.registry.people.by_uid(uid, "host")

    async def approve(self, id_, uid=ADA, *words, covers="", why="", as_rule=""):
        said = CastVote(self.who(uid), Vote.APPROVE, GrantTerms.parse(words, covers), why, as_rule)
        return await self.registry.decide(id_, said)

    async def reject(self, id_, uid=ADA, why=""):
        return await self.registry.decide(id_, CastVote(self.who(uid), Vote.REJECT, why=why))

    async def listed(self, after=(0.0, ""), most=100):
        """What is pending, the first first."""
        async with self.registry.reading() as t:
            return await t.listed((ApprovalState.PENDING,), after, most)

    async def refused(self, deciding):
        """Wait for what must be refused, and return why."""
        try:
            await deciding
        except VoteRefusedError as refused:
            return str(refused)
        raise AssertionError("it was not refused")

    def recorded(self, kind=""):
        """The kinds of events, or the events of one kind."""
        if kind:
            return [event for event in self.journal.events if event["kind"] == kind]
        return [event["kind"] for event in self.journal.events]


def bounded(task, whole):
    """Everybody, with these bounds."""
    return PEOPLE._replace(bounds=PendingLimits(task, whole))
