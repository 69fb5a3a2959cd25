"""Approvals in one file (SQLite with a write-ahead log), for the registry of one host.

Every commit is on the disk before it counts (https://www.sqlite.org/pragma.html#pragma_synchronous, FULL). A second
process that has the file open waits for a writer as we do (`busy_timeout`), but hears of nothing that others did: one
registry a file.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from proxy.approvals.store import Row, Rows, StoreError, Value, prepare, storable

_PATIENCE: Final = 5000  # ms that a writer waits for another
_SETTINGS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA trusted_schema = OFF",  # a file that somebody else wrote calls nothing
    f"PRAGMA busy_timeout = {_PATIENCE}",
)


class _Rows(Rows):
    """Statements on the one connection, in the one thread that has it."""

    def __init__(self, store: "SqliteStore") -> None:
        self._store = store

    async def run(self, sql: str, *values: Value) -> list[Row]:
        return await self._store.call(self._store.execute, sql, [storable(value) for value in values])

    def tell(self, word: str) -> None:
        """Nobody else is there to hear it."""


class SqliteStore:
    """See the module."""

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
