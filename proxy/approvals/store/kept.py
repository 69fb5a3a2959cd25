"""How much is kept of questions that have ended: so long, and so many of each task. The journal keeps them longer.

Programs that review answer as fast as a task asks, a hundred times a second, and each question may take some KB: what
ended long ago is taken out, and what a task has had rejected, which has to stay, keeps it from asking more.
"""

from typing import TYPE_CHECKING, Final

from proxy.approvals.records import State

if TYPE_CHECKING:
    from proxy.approvals.store.base import Rows, Value

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
    return int(str((await rows.run(sql, task, State.REJECTED, now))[0][0]))


async def _take_out(rows: "Rows", tables: tuple[str, ...], which: str, *values: "Value") -> None:
    for table in tables:
        await rows.run(f"DELETE FROM {table} WHERE approval IN ({which})", *values)  # noqa: S608
    await rows.run(f"DELETE FROM approvals WHERE id IN ({which})", *values)  # noqa: S608
