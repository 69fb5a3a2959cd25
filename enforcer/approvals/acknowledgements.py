"""Acknowledgements: who has looked at what `flag` let go. The journal alone says what there was.

A row an event, also of `--all`: a range of ids would take in events that nobody was shown, since another process's with
an id in it can come into the journal later.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.approvals.store import Store

MOST: Final = 1000  # events that are acknowledged at a time
_LONGEST: Final = 64  # characters of an event's id
_TABLE: Final = """CREATE TABLE IF NOT EXISTS acks (
  event TEXT PRIMARY KEY, person TEXT NOT NULL, at DOUBLE PRECISION NOT NULL)"""
_BATCH: Final = 500


class Ack(NamedTuple):
    """Somebody has looked at an event; `at` is in seconds since 1970."""

    event: str
    person: str
    at: float


async def prepare(store: "Store") -> None:
    """Make the table where there is none. Raises StoreError."""
    async with store.transaction() as rows:
        await rows.run(_TABLE)


async def acknowledge(store: "Store", events: "Sequence[str]", person: str, at: float) -> int:
    """Take note that somebody has looked at these; how many nobody had before. Raises StoreError, ValueError."""
    if len(events) > MOST or not all(0 < len(event) <= _LONGEST and event.isascii() for event in events):
        raise ValueError("these are no events' ids")
    new = 0
    async with store.transaction() as rows:
        for event in dict.fromkeys(events):
            # The first who looked is the one who is told of
            new += len(
                await rows.run(
                    "INSERT INTO acks (event, person, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING event",
                    event,
                    person,
                    at,
                )
            )
    return new


async def acknowledged(store: "Store", after: str = "") -> list[Ack]:
    """Return the next of what was looked at, by id. Raises StoreError."""
    async with store.reading() as rows:
        found = await rows.run(
            f"SELECT event, person, at FROM acks WHERE event > ? ORDER BY event LIMIT {_BATCH}",  # noqa: S608
            after,
        )
    return [Ack(str(event), str(person), float(at or 0)) for event, person, at in found]
