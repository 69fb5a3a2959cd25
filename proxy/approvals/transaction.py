"""Transactions of the approval store: all SQL of the registry, as values in and out, at one point in time.

Reviewing programs answer as fast as a task asks. So `forget` and `forget_of` delete what ended, and rejections, which
must stay while they stand, keep a task from asking more. The journal keeps all of it longer.
"""

import json
from collections.abc import Mapping, Set  # noqa: PYI025
from typing import TYPE_CHECKING, Final

from proxy.approvals.approval_request import Message, Real, Source, read
from proxy.approvals.model import Approval, ApprovalState, Ballot, DestinationHistory, Grant, Task
from proxy.approvals.store import StoreError
from proxy.wire import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from proxy.approvals.approval_request import Rule
    from proxy.approvals.people import People
    from proxy.approvals.recording import Recorders
    from proxy.approvals.store import Row, Rows, Value

_TABLES: Final[Mapping[type, str]] = {Task: "tasks", Approval: "approvals", Grant: "grants"}
_JSON: Final[Mapping[type, Set[int]]] = {Task: {3, 6}, Approval: {5, 10}, Ballot: {3}}  # columns
USED: Final = "used"  # why a grant is over whose uses are taken: what passes under it goes on
MOST_REJECTED: Final = 500  # of one task that stand: then nothing more is asked for it
MOST_ENDED: Final = 500  # of one task that are over
_MOST_SOURCES: Final = 64  # of one task
_LARGEST: Final = 1 << 30  # of LIMIT, which SQLite wants in front of OFFSET
# What has ended of a task and is of no effect any more, but for the latest of it
_BEYOND: Final = """
  SELECT id FROM approvals WHERE task = ? AND state <> ? AND (state <> ? OR expires <= ?)
    AND NOT EXISTS (SELECT 1 FROM grants WHERE grants.approval = approvals.id AND over IS NULL)
  ORDER BY asked DESC, id LIMIT ? OFFSET ?"""


class Transaction:
    """One transaction: `now` is its time, `people` who may approve, `record` what writes into the journal."""

    __slots__ = ("_rows", "now", "people", "record")

    def __init__(self, rows: "Rows", now: float, people: "People", record: "Recorders") -> None:
        self._rows = rows
        self.now = now
        self.people = people
        self.record = record

    def tell(self, word: str) -> None:
        """Send a word to the registries that share the store, once the transaction has happened."""
        self._rows.tell(word)

    # Tasks

    async def task(self, task: str) -> Task | None:
        """Return a task."""
        return await self._first(Task, "WHERE id = ?", task)

    async def put(self, record: Task | Approval | Grant) -> None:
        """Insert a record."""
        more = {"host": record.question.host, "port": record.question.port} if isinstance(record, Approval) else {}
        columns = (*record._fields, *more)
        sql = f"INSERT INTO {_TABLES[type(record)]} ({', '.join(columns)}) VALUES ({_marks(columns)})"  # noqa: S608
        await self._rows.run(sql, *_values((*record, *more.values())))

    async def started_by(self, task: str, person: str) -> None:
        """Update who started a task."""
        await self._rows.run("UPDATE tasks SET started_by = ? WHERE id = ?", person, task)

    async def end_task(self, task: str) -> None:
        """Mark a task as ended."""
        await self._rows.run("UPDATE tasks SET ended = ? WHERE id = ? AND ended IS NULL", self.now, task)

    async def taint(self, task: str, source: Source) -> bool:
        """Insert what a task read from; returns whether it is new. Of very many only the first are kept."""
        sql = (
            "INSERT INTO taints (task, rule, destination, event, at) SELECT ?, ?, ?, ?, CAST(? AS DOUBLE PRECISION) "
            "WHERE (SELECT count(*) FROM taints WHERE task = ?) < ? ON CONFLICT DO NOTHING RETURNING rule"
        )
        values = (task, source.rule, source.destination, source.event, self.now, task, _MOST_SOURCES)
        return bool(await self._rows.run(sql, *values))

    async def taints(self, task: str, most: int = _MOST_SOURCES) -> tuple[Source, ...]:
        """List what a task read from, oldest first."""
        sql = "SELECT rule, destination, event FROM taints WHERE task = ? ORDER BY at, rule, destination LIMIT ?"
        return tuple(Source(*map(str, row)) for row in await self._rows.run(sql, task, most))

    # Approval requests

    async def approval(self, approval: str) -> Approval | None:
        """Return an approval request."""
        return await self._first(Approval, "WHERE id = ?", approval)

    async def found(self, approval: str) -> tuple[Approval, Task] | None:
        """Return an approval request and its task."""
        found = await self.approval(approval)
        task = None if found is None else await self.task(found.task)
        return None if found is None or task is None else (found, task)

    async def beginning(self, start: str, most: int = 8) -> list[Approval]:
        """List approval requests whose id begins like this, newest first."""
        sql = "WHERE substr(id, 1, ?) = ? ORDER BY asked DESC LIMIT ?"
        return await self._every(Approval, sql, len(start), start, most)

    async def last_of(self, task: str, key: str, state: ApprovalState) -> Approval | None:
        """Return a task's latest approval request with a key that is in this state."""
        sql = "WHERE task = ? AND key = ? AND state = ? ORDER BY asked DESC LIMIT 1"
        return await self._first(Approval, sql, task, key, state)

    async def asked_otherwise(self, task: str, rules: "Sequence[Rule]") -> list[Approval]:
        """List a task's pending approval requests that name one of these rules with another digest."""
        texts = [text for one in rules for text in (f'"rule":{_json(one.rule)},', f'"digest":{_json(one.digest)}')]
        # No text of a task reads as these: its quotes are escaped
        each = "replace(question, ?, '') <> question AND replace(question, ?, '') = question"
        sql = f"WHERE task = ? AND state = ? AND ({' OR '.join([each] * len(rules))}) ORDER BY asked, id"
        return await self._every(Approval, sql, task, ApprovalState.PENDING, *texts)

    async def asked_again(self, approval: str) -> int:
        """Count another attempt that waits for the same; returns how many there were."""
        sql = "UPDATE approvals SET times = times + 1, stale = 0 WHERE id = ? RETURNING times"
        return _whole((await self._rows.run(sql, approval))[0][0])

    async def stale(self, approval: str) -> bool:
        """Mark a pending approval request that nobody waits for any more; returns whether that is new."""
        sql = "UPDATE approvals SET stale = 1 WHERE id = ? AND stale = 0 AND state = ? RETURNING id"
        return bool(await self._rows.run(sql, approval, ApprovalState.PENDING))

    async def conclude(self, approval: str, state: ApprovalState, *, by: "Sequence[str]" = (), why: str = "") -> None:
        """Move a pending approval request to its last state. Raises StoreError for one that isn't pending."""
        sql = "UPDATE approvals SET state = ?, answered = ?, by = ?, why = ? WHERE id = ? AND state = ? RETURNING id"
        if not await self._rows.run(sql, state, self.now, _json(by), why, approval, ApprovalState.PENDING):
            raise StoreError(f"the question {approval} is not pending")  # callers have looked

    async def conclude_all(self, approvals: "Sequence[Approval]", state: ApprovalState) -> None:
        """Move approval requests that nobody decided to their last state."""
        if approvals:
            sql = f"UPDATE approvals SET state = ?, answered = ? WHERE state = ? AND id IN ({_marks(approvals)})"  # noqa: S608
            await self._rows.run(sql, state, self.now, ApprovalState.PENDING, *[approval.id for approval in approvals])

    async def lift(self, approval: str) -> None:
        """Let what was rejected be asked again."""
        await self._rows.run(
            "UPDATE approvals SET key = '' WHERE id = ? AND state = ?", approval, ApprovalState.REJECTED
        )

    async def counted(self, task: str = "") -> int:
        """Return how many approval requests are pending, of one task or of all."""
        sql, of = "SELECT count(*) FROM approvals WHERE state = ?", (task,) if task else ()
        return _whole((await self._rows.run(sql + " AND task = ?" * len(of), ApprovalState.PENDING, *of))[0][0])

    async def rejections(self, task: str) -> int:
        """Return how many rejections of a task's approval requests stand."""
        sql = "SELECT count(*) FROM approvals WHERE task = ? AND state = ? AND expires > ?"
        return _whole((await self._rows.run(sql, task, ApprovalState.REJECTED, self.now))[0][0])

    async def listed(
        self, states: "Sequence[ApprovalState]", after: tuple[float, str], most: int, task: str = ""
    ) -> list[Approval]:
        """List approval requests, oldest first, beginning after a time and an id."""
        of = (task,) if task else ()
        sql = f"WHERE state IN ({_marks(states)}) {'AND task = ?' * len(of)} AND (asked > ? OR (asked = ? AND id > ?))"
        values = (*states, *of, after[0], *after, most)
        return await self._every(Approval, f"{sql} ORDER BY asked, id LIMIT ?", *values)

    async def due(self, most: int) -> list[Approval]:
        """List pending approval requests whose time is over."""
        sql = "WHERE state = ? AND expires <= ? ORDER BY expires LIMIT ?"
        return await self._every(Approval, sql, ApprovalState.PENDING, self.now, most)

    async def next_end(self) -> float | None:
        """Return when the next approval request or grant ends."""
        sql = (
            "SELECT min(at) FROM (SELECT min(expires) AS at FROM approvals WHERE state = ? "
            "UNION ALL SELECT min(ends) AS at FROM grants WHERE over IS NULL) AS ends"
        )
        ((found,),) = await self._rows.run(sql, ApprovalState.PENDING)
        return None if found is None else _real(found)

    async def place(self, host: str, port: int) -> DestinationHistory | None:
        """Return what the store knows of a destination; None: it was never asked about."""
        sql = (
            "SELECT min(asked), sum(times), sum(CASE WHEN state = ? THEN 1 ELSE 0 END), "
            "sum(CASE WHEN state = ? THEN 1 ELSE 0 END) FROM approvals WHERE host = ? AND port = ?"
        )
        ((first, *counts),) = await self._rows.run(sql, ApprovalState.APPROVED, ApprovalState.REJECTED, host, port)
        return None if first is None else DestinationHistory(_real(first), *(int(count or 0) for count in counts))

    # Votes and views

    async def vote(self, approval: str, ballot: Ballot) -> None:
        """Keep a vote, instead of the same person's earlier one."""
        sql = (
            "INSERT INTO votes (approval, person, verdict, reviewer, offer, why, at) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (approval, person) DO UPDATE SET verdict = excluded.verdict, offer = excluded.offer, "
            "why = excluded.why, at = excluded.at"
        )
        await self._rows.run(sql, approval, *_values(ballot))

    async def votes(self, approval: str) -> tuple[Ballot, ...]:
        """List the votes on an approval request, oldest first."""
        sql = "SELECT person, verdict, reviewer, offer, why, at FROM votes WHERE approval = ? ORDER BY at, person"
        return tuple(_read(Ballot, row) for row in await self._rows.run(sql, approval))

    async def viewed(self, approval: str, person: str) -> bool:
        """Keep that somebody looked at an approval request; returns whether that is new."""
        sql = "INSERT INTO views (approval, person, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING person"
        return bool(await self._rows.run(sql, approval, person, self.now))

    async def viewers(self, approval: str) -> tuple[str, ...]:
        """List who looked at an approval request, oldest first."""
        sql = "SELECT person FROM views WHERE approval = ? ORDER BY at, person LIMIT 64"
        return tuple(str(person) for (person,) in await self._rows.run(sql, approval))

    # Grants

    async def grant(self, grant: str) -> Grant | None:
        """Return a grant."""
        return await self._first(Grant, "WHERE id = ?", grant)

    async def grants_of(self, approval: str) -> tuple[Grant, ...]:
        """List what an approval granted."""
        return tuple(await self._every(Grant, "WHERE approval = ? ORDER BY made, id", approval))

    async def granted_to(self, task: str) -> list[Grant]:
        """List a task's grants that are not over."""
        return await self._every(Grant, "WHERE task = ? AND over IS NULL ORDER BY made, id", task)

    async def in_force(self, task: str, asks: "Rule", keys: "Sequence[str]") -> Grant | None:
        """Return a task's grant that satisfies a rule for attempts of these keys; of several the first that ends."""
        sql = (
            f"WHERE task = ? AND digest = ? AND rule = ? AND key IN ({_marks(keys)}) "
            "AND over IS NULL AND (ends IS NULL OR ends > ?) AND (uses IS NULL OR uses > 0) "
            "AND (bytes IS NULL OR bytes > 0) ORDER BY CASE WHEN ends IS NULL THEN 1 ELSE 0 END, ends, made, id LIMIT 1"
        )
        return await self._first(Grant, sql, task, asks.digest, asks.rule, *keys, self.now)

    async def take(self, grant: str) -> int | None:
        """Take one use of a grant, and return how many are left; None: any number. Raises StoreError without one."""
        sql = "UPDATE grants SET uses = uses - 1 WHERE id = ? AND over IS NULL AND (uses IS NULL OR uses > 0)"
        found = await self._rows.run(f"{sql} RETURNING uses", grant)
        if not found:
            raise StoreError(f"the grant {grant} has no use left")  # callers have looked
        return None if found[0][0] is None else _whole(found[0][0])

    async def take_bytes(self, task: str, grant: str, many: int) -> int | None:
        """Take bytes of a task's grant, and return how many are left, at least 0; None: it has no budget."""
        sql = (
            "UPDATE grants SET bytes = CASE WHEN bytes > ? THEN bytes - ? ELSE 0 END "
            "WHERE id = ? AND task = ? AND bytes IS NOT NULL AND (over IS NULL OR ending = ?) RETURNING bytes"
        )
        found = await self._rows.run(sql, many, many, grant, task, USED)
        return _whole(found[0][0]) if found else None

    async def end_grant(self, grant: str, why: str) -> None:
        """End a grant."""
        sql = "UPDATE grants SET over = ?, ending = ? WHERE id = ? AND (over IS NULL OR ending = ?)"
        await self._rows.run(sql, self.now, why, grant, USED)

    async def due_grants(self, most: int) -> list[Grant]:
        """List grants whose time is over."""
        return await self._every(Grant, "WHERE over IS NULL AND ends <= ? ORDER BY ends LIMIT ?", self.now, most)

    # Acknowledgements: who has looked at flagged events; a row an event, since others may come in between two ids

    async def acknowledge(self, events: "Sequence[str]", person: str) -> int:
        """Keep that somebody has looked at these events; returns how many nobody had before."""
        sql = "INSERT INTO acks (event, person, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING event"
        return sum([len(await self._rows.run(sql, event, person, self.now)) for event in dict.fromkeys(events)])

    async def acknowledged(self, after: str, most: int = 500) -> list[tuple[str, str, float]]:
        """List events after this one, by id, with who looked first and when."""
        sql = "SELECT event, person, at FROM acks WHERE event > ? ORDER BY event LIMIT ?"
        found = await self._rows.run(sql, after, most)
        return [(str(event), str(person), float(at or 0)) for event, person, at in found]

    # What ended long ago

    async def forget(self, before: float) -> None:
        """Delete what ended before a time. Tasks stay: an id is never used for another."""
        old = "SELECT id FROM approvals WHERE state <> ? AND answered < ?"
        await self._take_out(("votes", "views"), old, ApprovalState.PENDING, before)
        await self._rows.run("DELETE FROM grants WHERE over < ?", before)
        await self._rows.run("DELETE FROM taints WHERE task IN (SELECT id FROM tasks WHERE ended < ?)", before)

    async def forget_of(self, task: str) -> None:
        """Delete what a task has too much of."""
        values = (task, ApprovalState.PENDING, ApprovalState.REJECTED, self.now, _LARGEST, MOST_ENDED)
        await self._take_out(("votes", "views", "grants"), _BEYOND, *values)

    async def _take_out(self, tables: tuple[str, ...], which: str, *values: "Value") -> None:
        for table in tables:
            await self._rows.run(f"DELETE FROM {table} WHERE approval IN ({which})", *values)  # noqa: S608
        await self._rows.run(f"DELETE FROM approvals WHERE id IN ({which})", *values)  # noqa: S608

    async def _every[R: (Task, Approval, Grant)](self, kind: type[R], where: str, *values: "Value") -> list[R]:
        sql = f"SELECT {', '.join(kind._fields)} FROM {_TABLES[kind]} {where}"  # noqa: S608
        return [_read(kind, row) for row in await self._rows.run(sql, *values)]

    async def _first[R: (Task, Approval, Grant)](self, kind: type[R], where: str, *values: "Value") -> R | None:
        return next(iter(await self._every(kind, where, *values)), None)


async def latest(rows: "Rows", now: "Callable[[float], float]") -> float:
    """Return the time, never less than any registry that shares the store has seen, and keep it; seconds since 1970."""
    seen = _real((await rows.run("SELECT value FROM exeat_approvals WHERE key = 'latest'"))[0][0])
    found = now(seen)
    if found > seen:
        await rows.run("UPDATE exeat_approvals SET value = ? WHERE key = 'latest'", repr(found))
    return found


def _marks(values: "Sequence[object]") -> str:
    return ", ".join("?" * len(values))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _values(record: "Iterable[object]") -> "list[Value]":
    """Return a record as the store's columns have it: what is more than a text or a number is JSON."""
    found: list[Value] = []
    for each in record:
        if isinstance(each, Message):
            found.append(_json(each.packed()))
        elif each is None or isinstance(each, str | int | float):
            found.append(int(each) if isinstance(each, bool) else each)
        else:
            found.append(_json(dict(each) if isinstance(each, Mapping) else each))
    return found


def _read[R](kind: type[R], row: "Row") -> R:
    json_at = _JSON.get(kind, frozenset())
    try:
        values = [strict_json.loads(str(value)) if at in json_at else value for at, value in enumerate(row)]
        found: R = read(values, kind, strict=False)  # a column has 0 and 1 for no and yes
    except ValueError as error:
        raise StoreError(f"what is in the store can't be read: {error}") from error
    return found


def _whole(value: "Value") -> int:
    return _read(tuple[int], (value,))[0]


def _real(value: "Value") -> float:
    return _read(tuple[Real], (value,))[0]
