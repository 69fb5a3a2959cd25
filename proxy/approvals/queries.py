"""Queries of the approval store: all the SQL there is, as values in and out. Each runs inside a transaction.

Programs that review answer as fast as a task asks, a hundred times a second, and each request may take some KB: what
ended long ago is taken out (`forget`), and what a task has had rejected, which has to stay, keeps it from asking more.
The journal keeps all of it longer.
"""

import json
from collections.abc import Mapping, Set  # noqa: PYI025
from typing import TYPE_CHECKING, Final

from proxy.approvals.approval_request import Message, Real, Source, read
from proxy.approvals.model import Approval, Ballot, Grant, Place, State, Task
from proxy.approvals.store import StoreError
from proxy.wire import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.approvals.approval_request import Rule
    from proxy.approvals.store import Row, Rows, Value

_TABLES: Final[Mapping[type, str]] = {Task: "tasks", Approval: "approvals", Grant: "grants"}
_JSON: Final[Mapping[type, Set[int]]] = {Task: {3, 6}, Approval: {5, 10}, Ballot: {3}}  # columns
USED: Final = "used"  # why a grant is over whose uses are taken: what passes under it goes on
_MOST_SOURCES: Final = 64  # of one task


async def latest(rows: "Rows") -> float:
    """Return the latest time that anybody has seen, seconds since 1970."""
    return _real((await rows.run("SELECT value FROM exeat_approvals WHERE key = 'latest'"))[0][0])


async def saw(rows: "Rows", now: float) -> None:
    """Keep that it has been so late already."""
    await rows.run("UPDATE exeat_approvals SET value = ? WHERE key = 'latest'", repr(now))


async def task_of(rows: "Rows", task: str) -> Task | None:
    """Return a task."""
    return await _first(rows, Task, "WHERE id = ?", task)


async def put_task(rows: "Rows", task: Task) -> None:
    """Keep a task that is new."""
    await _insert(rows, task)


async def started_by(rows: "Rows", task: str, person: str) -> None:
    """Keep as whom who started a task is known now."""
    await rows.run("UPDATE tasks SET started_by = ? WHERE id = ?", person, task)


async def end_task(rows: "Rows", task: str, now: float) -> None:
    """Keep that a task is over."""
    await rows.run("UPDATE tasks SET ended = ? WHERE id = ? AND ended IS NULL", now, task)


async def taint(rows: "Rows", task: str, source: Source, now: float) -> bool:
    """Keep that a task read from there, and return whether that is new; of very many only the first are kept."""
    sql = (
        "INSERT INTO taints (task, rule, destination, event, at) SELECT ?, ?, ?, ?, CAST(? AS DOUBLE PRECISION) "
        "WHERE (SELECT count(*) FROM taints WHERE task = ?) < ? ON CONFLICT DO NOTHING RETURNING rule"
    )
    return bool(await rows.run(sql, task, source.rule, source.destination, source.event, now, task, _MOST_SOURCES))


async def taints(rows: "Rows", task: str, most: int = _MOST_SOURCES) -> tuple[Source, ...]:
    """List what a task read from, the first first."""
    sql = "SELECT rule, destination, event FROM taints WHERE task = ? ORDER BY at, rule, destination LIMIT ?"
    return tuple(Source(*map(str, row)) for row in await rows.run(sql, task, most))


async def approval_of(rows: "Rows", approval: str) -> Approval | None:
    """Return a question."""
    return await _first(rows, Approval, "WHERE id = ?", approval)


async def beginning(rows: "Rows", start: str, most: int = 8) -> list[Approval]:
    """List questions whose id begins like this, the latest first."""
    sql = "WHERE substr(id, 1, ?) = ? ORDER BY asked DESC LIMIT ?"
    return await _every(rows, Approval, sql, len(start), start, most)


async def last_of(rows: "Rows", task: str, key: str, states: "Sequence[State]") -> Approval | None:
    """Return the latest question of a task with a key that is in one of these states."""
    marks = ", ".join("?" * len(states))
    sql = f"WHERE task = ? AND key = ? AND state IN ({marks}) ORDER BY asked DESC LIMIT 1"
    return await _first(rows, Approval, sql, task, key, *states)


async def put_approval(rows: "Rows", approval: Approval) -> None:
    """Keep a question that is new."""
    await _insert(rows, approval, host=approval.question.host, port=approval.question.port)


async def asked_otherwise(rows: "Rows", task: str, rules: "Sequence[Rule]") -> list[Approval]:
    """List pending questions of a task that name one of these rules, at least one, with another digest."""
    texts = [text for one in rules for text in (f'"rule":{_json(one.rule)},', f'"digest":{_json(one.digest)}')]
    # No text of a task reads as these: its quotes are escaped
    other = " OR ".join(["replace(question, ?, '') <> question AND replace(question, ?, '') = question"] * len(rules))
    sql = f"WHERE task = ? AND state = ? AND ({other}) ORDER BY asked, id"
    return await _every(rows, Approval, sql, task, State.PENDING, *texts)


async def asked_again(rows: "Rows", approval: str) -> int:
    """Keep that a question was asked once more, and that somebody waits; return how often it was asked."""
    sql = "UPDATE approvals SET times = times + 1, stale = 0 WHERE id = ? RETURNING times"
    ((times,),) = await rows.run(sql, approval)
    return _whole(times)


async def stale(rows: "Rows", approval: str) -> bool:
    """Keep that nobody waits for a question any more; return whether that is new of one that is pending."""
    sql = "UPDATE approvals SET stale = 1 WHERE id = ? AND stale = 0 AND state = ? RETURNING id"
    return bool(await rows.run(sql, approval, State.PENDING))


async def conclude(
    rows: "Rows", approval: str, state: State, now: float, *, by: "Sequence[str]" = (), why: str = ""
) -> None:
    """Keep what became of a question that was pending."""
    sql = "UPDATE approvals SET state = ?, answered = ?, by = ?, why = ? WHERE id = ? AND state = ? RETURNING id"
    if not await rows.run(sql, state, now, _json(by), why, approval, State.PENDING):
        raise StoreError(f"the question {approval} is not pending")  # whoever calls has looked


async def conclude_all(rows: "Rows", approvals: "Sequence[Approval]", state: State, now: float) -> None:
    """Keep that nobody decided these questions."""
    if approvals:
        marks = ", ".join("?" * len(approvals))
        sql = f"UPDATE approvals SET state = ?, answered = ? WHERE state = ? AND id IN ({marks})"  # noqa: S608
        await rows.run(sql, state, now, State.PENDING, *[approval.id for approval in approvals])


async def lift(rows: "Rows", approval: str) -> None:
    """Let a question that was rejected be asked again."""
    sql = "UPDATE approvals SET key = '' WHERE id = ? AND state = ?"
    await rows.run(sql, approval, State.REJECTED)


async def counted(rows: "Rows", task: str = "") -> int:
    """Return how many questions are pending, of one task or of all."""
    if task:
        found = await rows.run("SELECT count(*) FROM approvals WHERE task = ? AND state = ?", task, State.PENDING)
    else:
        found = await rows.run("SELECT count(*) FROM approvals WHERE state = ?", State.PENDING)
    return _whole(found[0][0])


async def listed(
    rows: "Rows", states: "Sequence[State]", after: tuple[float, str], most: int, task: str = ""
) -> list[Approval]:
    """List questions in the order in which they were asked, those that come after a time and an id first."""
    marks = ", ".join("?" * len(states))
    of = "AND task = ?" if task else ""
    sql = f"WHERE state IN ({marks}) {of} AND (asked > ? OR (asked = ? AND id > ?)) ORDER BY asked, id LIMIT ?"
    values = (*states, *((task,) if task else ()), after[0], after[0], after[1], most)
    return await _every(rows, Approval, sql, *values)


async def due(rows: "Rows", now: float, most: int = 500) -> list[Approval]:
    """List pending questions whose time is over."""
    sql = "WHERE state = ? AND expires <= ? ORDER BY expires LIMIT ?"
    return await _every(rows, Approval, sql, State.PENDING, now, most)


async def next_end(rows: "Rows") -> float | None:
    """Return when the next question or grant ends, or None."""
    sql = (
        "SELECT min(at) FROM (SELECT min(expires) AS at FROM approvals WHERE state = ? "
        "UNION ALL SELECT min(ends) AS at FROM grants WHERE over IS NULL) AS ends"
    )
    ((found,),) = await rows.run(sql, State.PENDING)
    return None if found is None else _real(found)


async def vote(rows: "Rows", approval: str, ballot: Ballot) -> None:
    """Keep what somebody said; whoever said something before now says this."""
    sql = (
        "INSERT INTO votes (approval, person, verdict, reviewer, offer, why, at) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (approval, person) DO UPDATE SET verdict = excluded.verdict, offer = excluded.offer, "
        "why = excluded.why, at = excluded.at"
    )
    await rows.run(sql, approval, *_values(ballot))


async def votes(rows: "Rows", approval: str) -> tuple[Ballot, ...]:
    """List what was said to a question, the first first."""
    sql = "SELECT person, verdict, reviewer, offer, why, at FROM votes WHERE approval = ? ORDER BY at, person"
    return tuple(_read(Ballot, row) for row in await rows.run(sql, approval))


async def viewed(rows: "Rows", approval: str, person: str, now: float) -> bool:
    """Keep that somebody looked at a question, and return whether that is new."""
    sql = "INSERT INTO views (approval, person, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING person"
    return bool(await rows.run(sql, approval, person, now))


async def viewers(rows: "Rows", approval: str) -> tuple[str, ...]:
    """List who looked at a question, the first first."""
    sql = "SELECT person FROM views WHERE approval = ? ORDER BY at, person LIMIT 64"
    return tuple(str(person) for (person,) in await rows.run(sql, approval))


async def put_grant(rows: "Rows", grant: Grant) -> None:
    """Keep a grant that is new."""
    await _insert(rows, grant)


async def grant_of(rows: "Rows", grant: str) -> Grant | None:
    """Return a grant."""
    return await _first(rows, Grant, "WHERE id = ?", grant)


async def grants_of(rows: "Rows", approval: str) -> tuple[Grant, ...]:
    """List what an approval granted."""
    return tuple(await _every(rows, Grant, "WHERE approval = ? ORDER BY made, id", approval))


async def in_force(rows: "Rows", task: str, asks: "Rule", keys: "Sequence[str]", now: float) -> Grant | None:
    """Return the grant of a task that satisfies a rule for attempts of these keys; of several the first that ends."""
    marks = ", ".join("?" * len(keys))
    sql = (
        f"WHERE task = ? AND digest = ? AND rule = ? AND key IN ({marks}) "
        "AND over IS NULL AND (ends IS NULL OR ends > ?) AND (uses IS NULL OR uses > 0) "
        "AND (bytes IS NULL OR bytes > 0) ORDER BY CASE WHEN ends IS NULL THEN 1 ELSE 0 END, ends, made, id LIMIT 1"
    )
    return await _first(rows, Grant, sql, task, asks.digest, asks.rule, *keys, now)


async def granted_to(rows: "Rows", task: str) -> list[Grant]:
    """List the grants of a task that are not over."""
    sql = "WHERE task = ? AND over IS NULL ORDER BY made, id"
    return await _every(rows, Grant, sql, task)


async def take(rows: "Rows", grant: str) -> int | None:
    """Take one use of a grant that has one, and return how many are left; None: it has no bound of them."""
    sql = (
        "UPDATE grants SET uses = uses - 1 WHERE id = ? AND over IS NULL AND (uses IS NULL OR uses > 0) RETURNING uses"
    )
    found = await rows.run(sql, grant)
    if not found:
        raise StoreError(f"the grant {grant} has no use left")  # whoever calls has looked
    return None if found[0][0] is None else _whole(found[0][0])


async def take_bytes(rows: "Rows", task: str, grant: str, many: int) -> int | None:
    """Take bytes of a grant of this task that has a budget, and return what is left, at least 0. None: it has none."""
    sql = (
        "UPDATE grants SET bytes = CASE WHEN bytes > ? THEN bytes - ? ELSE 0 END "
        "WHERE id = ? AND task = ? AND bytes IS NOT NULL AND (over IS NULL OR ending = ?) RETURNING bytes"
    )
    found = await rows.run(sql, many, many, grant, task, USED)
    return _whole(found[0][0]) if found else None


async def end_grant(rows: "Rows", grant: str, now: float, why: str) -> None:
    """Keep that a grant is over."""
    sql = "UPDATE grants SET over = ?, ending = ? WHERE id = ? AND (over IS NULL OR ending = ?)"
    await rows.run(sql, now, why, grant, USED)


async def due_grants(rows: "Rows", now: float, most: int = 500) -> list[Grant]:
    """List grants whose time is over."""
    sql = "WHERE over IS NULL AND ends <= ? ORDER BY ends LIMIT ?"
    return await _every(rows, Grant, sql, now, most)


async def place_of(rows: "Rows", host: str, port: int) -> Place | None:
    """Return what is known of a destination, or None where it was never asked about."""
    sql = (
        "SELECT min(asked), sum(times), sum(CASE WHEN state = ? THEN 1 ELSE 0 END), "
        "sum(CASE WHEN state = ? THEN 1 ELSE 0 END) FROM approvals WHERE host = ? AND port = ?"
    )
    ((first, times, approved, rejected),) = await rows.run(sql, State.APPROVED, State.REJECTED, host, port)
    if first is None:
        return None
    return Place(_real(first), int(times or 0), int(approved or 0), int(rejected or 0))


async def _every[R: (Task, Approval, Grant)](rows: "Rows", kind: type[R], where: str, *values: "Value") -> list[R]:
    sql = f"SELECT {', '.join(kind._fields)} FROM {_TABLES[kind]} {where}"  # noqa: S608
    return [_read(kind, row) for row in await rows.run(sql, *values)]


async def _first[R: (Task, Approval, Grant)](rows: "Rows", kind: type[R], where: str, *values: "Value") -> R | None:
    return next(iter(await _every(rows, kind, where, *values)), None)


async def _insert(rows: "Rows", record: Task | Approval | Grant, **more: "Value") -> None:
    columns, values = (*record._fields, *more), (*_values(record), *more.values())
    marks = ", ".join("?" * len(columns))
    sql = f"INSERT INTO {_TABLES[type(record)]} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608
    await rows.run(sql, *values)


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
    """Return the record that `_values` made a row of. Raises StoreError."""
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


MOST_REJECTED: Final = 500  # of one task that stand: then nothing more is asked for it
MOST_ENDED: Final = 500  # of one task that are over
_LARGEST: Final = 1 << 30  # of LIMIT, which SQLite wants in front of OFFSET
_OLD: Final = "SELECT id FROM approvals WHERE state <> ? AND answered < ?"
# What has ended of a task and is of no effect any more, but for the latest of it
_BEYOND: Final = """
  SELECT id FROM approvals WHERE task = ? AND state <> ? AND (state <> ? OR expires <= ?)
    AND NOT EXISTS (SELECT 1 FROM grants WHERE grants.approval = approvals.id AND over IS NULL)
  ORDER BY asked DESC, id LIMIT ? OFFSET ?"""


async def forget(rows: "Rows", before: float) -> None:
    """Take out what ended so long ago."""
    await _take_out(rows, ("votes", "views"), _OLD, State.PENDING, before)
    await rows.run("DELETE FROM grants WHERE over < ?", before)
    ended = "SELECT id FROM tasks WHERE ended < ?"
    await rows.run(f"DELETE FROM taints WHERE task IN ({ended})", before)  # noqa: S608
    # Not the tasks themselves: an id is never used for another.


async def forget_of(rows: "Rows", task: str, now: float) -> None:
    """Take out what is too much of one task."""
    values = (task, State.PENDING, State.REJECTED, now, _LARGEST, MOST_ENDED)
    await _take_out(rows, ("votes", "views", "grants"), _BEYOND, *values)


async def rejections(rows: "Rows", task: str, now: float) -> int:
    """Return how many rejections of a task's questions stand."""
    sql = "SELECT count(*) FROM approvals WHERE task = ? AND state = ? AND expires > ?"
    return _whole((await rows.run(sql, task, State.REJECTED, now))[0][0])


async def _take_out(rows: "Rows", tables: tuple[str, ...], which: str, *values: "Value") -> None:
    for table in tables:
        await rows.run(f"DELETE FROM {table} WHERE approval IN ({which})", *values)  # noqa: S608
    await rows.run(f"DELETE FROM approvals WHERE id IN ({which})", *values)  # noqa: S608
