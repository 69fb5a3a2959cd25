"""Approval store: the interface, the tables, and the store in a file (SQLite). Its transactions exclude each other.

What is decided is decided inside a transaction: of two answers at once, also on two hosts, the second sees what the
first did. A transaction happens as a whole or not at all. SQLite and PostgreSQL (`postgres_store`) read the same SQL;
times are seconds since 1970.

In a file every commit is on the disk before it counts (https://www.sqlite.org/pragma.html#pragma_synchronous, FULL). A
second process that has the file open waits for a writer (`busy_timeout`), but hears of nothing that others did: one
registry a file.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

type Value = str | int | float | None
type Row = Sequence[Value]


class StoreError(Exception):
    """The store can't be used. What was under way has not happened, and nothing may be let out for it."""


class Rows(Protocol):
    """What is done inside one transaction."""

    async def run(self, sql: str, *values: Value) -> list[Row]:
        """Run one statement, with `?` where its values go, and return the rows that it gives. Raises StoreError."""

    def tell(self, word: str) -> None:
        """Have everybody who shares the store hear a word, us excepted, once the transaction has happened."""


class Store(Protocol):
    """A place where approvals are kept. For one event loop."""

    async def open(self, heard: Callable[[str], None]) -> None:
        """Get ready. `heard` is called with each word that others tell. Raises StoreError.

        An empty word says that some may have been missed: look at everything anew.
        """

    async def close(self) -> None:
        """Let go of it. What is under way ends first."""

    def transaction(self) -> AbstractAsyncContextManager[Rows]:
        """Begin a transaction, once no other one is under way anywhere. It happens if the block ends well.

        Raises StoreError, after seconds and not minutes, where it can't.
        """

    def reading(self) -> AbstractAsyncContextManager[Rows]:
        """Begin to read what is there, without keeping anybody from writing."""


def storable(value: Value) -> Value:
    """Return a value as both kinds of store can hold it: no NUL and no lone surrogates in texts."""
    if not isinstance(value, str) or (value.isascii() and "\0" not in value):
        return value
    return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


VERSION: Final = 1
_KNOWN: Final = "CREATE TABLE IF NOT EXISTS exeat_approvals (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
_ACKS: Final = """CREATE TABLE IF NOT EXISTS acks (
  event TEXT PRIMARY KEY, person TEXT NOT NULL, at DOUBLE PRECISION NOT NULL)"""
_TABLES: Final = (
    """CREATE TABLE tasks (
      id TEXT PRIMARY KEY, sandbox TEXT NOT NULL, name TEXT NOT NULL, labels TEXT NOT NULL, started_by TEXT NOT NULL,
      host TEXT NOT NULL, rule_files TEXT NOT NULL, workspace TEXT NOT NULL, introduced DOUBLE PRECISION NOT NULL,
      ended DOUBLE PRECISION)""",
    """CREATE TABLE taints (
      task TEXT NOT NULL, rule TEXT NOT NULL, destination TEXT NOT NULL, event TEXT NOT NULL,
      at DOUBLE PRECISION NOT NULL, PRIMARY KEY (task, rule, destination))""",
    # `key`: what the same question has too; `wish`: empty, or which kind of wish; `stale`: nobody waits for it
    """CREATE TABLE approvals (
      id TEXT PRIMARY KEY, task TEXT NOT NULL, state TEXT NOT NULL, wish TEXT NOT NULL, key TEXT NOT NULL,
      question TEXT NOT NULL, host TEXT NOT NULL, port INTEGER NOT NULL, said TEXT NOT NULL,
      asked DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION NOT NULL, answered DOUBLE PRECISION, by TEXT NOT NULL,
      why TEXT NOT NULL, times BIGINT NOT NULL, stale INTEGER NOT NULL)""",
    "CREATE INDEX approvals_by_task ON approvals (task, state)",
    "CREATE INDEX approvals_by_key ON approvals (task, key, state)",
    "CREATE INDEX approvals_by_end ON approvals (state, expires)",
    "CREATE INDEX approvals_by_place ON approvals (host, port)",
    "CREATE INDEX approvals_by_age ON approvals (state, asked, id)",
    """CREATE TABLE votes (
      approval TEXT NOT NULL, person TEXT NOT NULL, verdict TEXT NOT NULL, reviewer INTEGER NOT NULL,
      offer TEXT NOT NULL, why TEXT NOT NULL, at DOUBLE PRECISION NOT NULL, PRIMARY KEY (approval, person))""",
    """CREATE TABLE views (
      approval TEXT NOT NULL, person TEXT NOT NULL, at DOUBLE PRECISION NOT NULL, PRIMARY KEY (approval, person))""",
    # `uses`, `bytes`: what is left, NULL: no bound; `ends` NULL: with the task; `over`: when it did
    """CREATE TABLE grants (
      id TEXT PRIMARY KEY, approval TEXT NOT NULL, task TEXT NOT NULL, rule TEXT NOT NULL, digest TEXT NOT NULL,
      width TEXT NOT NULL, key TEXT NOT NULL, uses BIGINT, bytes BIGINT, ends DOUBLE PRECISION,
      cuts INTEGER NOT NULL, made DOUBLE PRECISION NOT NULL, over DOUBLE PRECISION, ending TEXT NOT NULL)""",
    "CREATE INDEX grants_in_force ON grants (task, digest) WHERE over IS NULL",
    "CREATE INDEX grants_by_end ON grants (ends) WHERE over IS NULL",
    "CREATE INDEX grants_by_approval ON grants (approval)",
)


async def prepare(rows: "Rows") -> None:
    """Make the tables where there are none. Raises StoreError where they are of a version that isn't ours."""
    await rows.run(_KNOWN)
    await rows.run(_ACKS)
    found = await rows.run("SELECT value FROM exeat_approvals WHERE key = 'version'")
    if not found:
        for sql in _TABLES:
            await rows.run(sql)
        await rows.run("INSERT INTO exeat_approvals (key, value) VALUES ('version', ?)", str(VERSION))
        await rows.run("INSERT INTO exeat_approvals (key, value) VALUES ('latest', '0')")
    elif found[0][0] != str(VERSION):
        raise StoreError(
            f"the approvals are kept in version {found[0][0]}, and this is a program for version {VERSION}: "
            "use the one that wrote them"
        )


_PATIENCE: Final = 5000  # ms that a writer waits for another
_SETTINGS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA trusted_schema = OFF",  # a file that somebody else wrote calls nothing
    f"PRAGMA busy_timeout = {_PATIENCE}",
)


class _Rows(Rows):
    def __init__(self, store: "SqliteStore") -> None:
        self._store = store

    async def run(self, sql: str, *values: Value) -> list[Row]:
        return await self._store.call(self._store.execute, sql, [storable(value) for value in values])

    def tell(self, word: str) -> None:
        """Nobody else is there to hear it."""


class SqliteStore:
    """The approval store of one host, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "approvals")
        self._connection: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()

    async def open(self, heard: Callable[[str], None]) -> None:  # noqa: ARG002  nobody else is there to be heard
        """Open the file, or make it."""
        await self.call(self._open)
        try:
            async with self.transaction() as rows:
                await prepare(rows)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the file."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await self.call(connection.close)
        self._thread.shutdown(wait=False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Rows]:
        """Write. The lock on the file is taken at once, so that nothing read here is old when it is acted on."""
        async with self._turn:
            await self.call(self.execute, "BEGIN IMMEDIATE", ())
            try:
                yield _Rows(self)
                await self.call(self.execute, "COMMIT", ())
            except BaseException:
                await asyncio.shield(self.call(self._undo))
                raise

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Rows]:
        """Read, on the same connection: there is one thread, and its turns are short."""
        async with self._turn:
            yield _Rows(self)

    async def call[*A, T](self, function: Callable[[*A], T], *arguments: *A) -> T:
        """Have the store's thread do something. Raises StoreError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        except (sqlite3.Error, OSError, RuntimeError) as error:
            raise StoreError(f"the approvals in {self._path} can't be used: {error}") from error

    def execute(self, sql: str, values: "list[Value] | tuple[Value, ...]") -> list[Row]:
        """Run one statement; in the store's thread."""
        if self._connection is None:
            raise RuntimeError("they are closed")
        return self._connection.execute(sql, values).fetchall()

    def _undo(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _open(self) -> None:
        # Made by us and for us alone: what SQLite lays beside it has the same mode (https://www.sqlite.org/wal.html)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        connection = sqlite3.connect(self._path, autocommit=True, check_same_thread=False, cached_statements=256)
        for sql in _SETTINGS:
            connection.execute(sql)
        self._connection = connection
