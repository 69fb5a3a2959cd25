"""Approval store in PostgreSQL, for the registries of many hosts that share one queue.

One transaction at a time over all of them: each takes the same advisory lock
(https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS). Registries hear what another did by
NOTIFY, on a connection that only reads. A server that is gone is an error after seconds, and is tried again.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from proxy.approvals.store import Row, Rows, StoreError, Value, prepare, storable

_PATIENCE: Final = 5.0  # seconds for a statement, the wait for the lock among them
_PAUSE: Final = 1.0  # seconds after a failure before the next try
_PULSE: Final = 15.0  # seconds between looks whether the listening connection still is one
_APART: Final = 60.0  # seconds that the clocks of two hosts may differ
_LOCK: Final = 0x6578656174  # `exeat`
_CHANNEL: Final = "exeat_approvals"
_SCHEMA: Final = "exeat"
_SETTINGS: Final = {
    "application_name": "exeat approvals",
    "search_path": _SCHEMA,
    "default_transaction_isolation": "read committed",  # with the lock held nobody else commits
    "synchronous_commit": "on",
    "statement_timeout": str(int(_PATIENCE * 1000)),
    "lock_timeout": str(int(_PATIENCE * 1000)),
    "idle_in_transaction_session_timeout": str(int(_PATIENCE * 1000)),  # a host that hangs gives the lock back
}
_FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError)


class _Rows(Rows):
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.words: list[str] = []

    async def run(self, sql: str, *values: Value) -> list[Row]:
        try:
            found = await self._connection.fetch(_numbered(sql), *map(storable, values))
        except TimeoutError as error:
            self._connection.terminate()  # whoever is silent isn't asked to undo anything either
            raise StoreError("the shared approvals can't be used: the server doesn't answer") from error
        except _FAILURES as error:
            raise StoreError(f"the shared approvals can't be used: {_said(error)}") from error
        return [tuple(row) for row in found]

    def tell(self, word: str) -> None:
        self.words.append(word)


class PostgresStore:
    """See the module. `ca`: a file of certificates to trust instead of the host's own, for a server elsewhere."""

    def __init__(self, url: str, password: str | None = None, ca: str | None = None) -> None:
        self._url, self._password, self._ca = url, password, ca
        self._writing: Any = None
        self._listening: Any = None
        self._writer, self._reader = asyncio.Lock(), asyncio.Lock()
        self._again = 0.0  # when the next try may be, by the monotonic clock
        self._trouble = ""
        self._heard: Callable[[str], None] = lambda _: None
        self._watch: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()  # the connection that listens has ended

    async def open(self, heard: Callable[[str], None]) -> None:
        """Connect, and make the tables where there are none."""
        self._heard = heard
        try:
            async with self.transaction() as rows:
                await _check_clock(rows)
                if not await rows.run("SELECT 1 FROM pg_namespace WHERE nspname = ?", _SCHEMA):
                    await rows.run(f"CREATE SCHEMA {_SCHEMA}")
                await prepare(rows)
            async with self._reader:
                await self._listen()
        except BaseException:
            await self.close()
            raise
        self._watch = asyncio.create_task(self._keep_listening())

    async def close(self) -> None:
        """Disconnect."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        async with self._writer, self._reader:
            for connection in (self._writing, self._listening):
                await _closed(connection)
            self._writing = self._listening = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Rows]:
        """Write, while nobody else does on any host."""
        async with self._writer:
            if self._writing is None or self._writing.is_closed():
                self._writing = await self._connected()
            connection = self._writing
            rows = _Rows(connection)
            try:
                await rows.run("BEGIN")
                await rows.run("SELECT pg_advisory_xact_lock(?)", _LOCK)
                yield rows
                for word in rows.words:
                    await rows.run("SELECT pg_notify(?, ?)", _CHANNEL, word)
                await rows.run("COMMIT")
            except BaseException:
                await asyncio.shield(self._undo(connection))
                raise

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Rows]:
        """Read, all of it at one point in time."""
        async with self._reader:
            if self._listening is None or self._listening.is_closed():
                await self._listen()
            connection = self._listening
            rows = _Rows(connection)
            try:
                await rows.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                yield rows
                await rows.run("COMMIT")
            except BaseException:
                await asyncio.shield(self._undo(connection))
                raise

    async def _undo(self, connection: Any) -> None:
        """End what didn't end well; a connection that can't even do that is no longer used."""
        try:
            if not connection.is_closed() and connection.is_in_transaction():
                await connection.execute("ROLLBACK")
        except _FAILURES:
            connection.terminate()

    async def _connected(self) -> Any:
        """Connect; soon after a failure only say what it was, for whoever waits is held on the line."""
        if time.monotonic() < self._again:
            raise StoreError(self._trouble)
        began = time.monotonic()
        try:
            return await asyncpg.connect(
                self._url,
                password=self._password,
                ssl=self._tls(),
                timeout=_PATIENCE,
                command_timeout=_PATIENCE,
                server_settings=_SETTINGS,
            )
        except _FAILURES as error:
            failed = time.monotonic()
            self._again = failed + max(_PAUSE, 3 * (failed - began))  # most of the time nobody waits for it
            self._trouble = f"the shared approvals can't be reached: {_said(error)}"
            raise StoreError(self._trouble) from error

    def _tls(self) -> Any:
        """Say how to speak to the server: elsewhere only under TLS, with its certificate verified."""
        if is_local(self._url):
            return False
        import ssl

        return ssl.create_default_context(cafile=self._ca)

    async def _listen(self) -> None:
        """Have a connection that hears what others tell; with the reader's lock held."""
        connection = await self._connected()
        try:
            await connection.add_listener(_CHANNEL, self._hear)
            connection.add_termination_listener(lambda _: self._lost.set())
        except _FAILURES as error:
            await _closed(connection)
            raise StoreError(f"the shared approvals can't be listened to: {_said(error)}") from error
        self._listening = connection

    def _hear(self, _connection: object, process: int, _channel: str, word: object) -> None:
        writing = self._writing
        own = writing is not None and not writing.is_closed() and process == writing.get_server_pid()
        if not own:
            self._heard(str(word))

    async def _keep_listening(self) -> None:
        """See that others are heard: what they told while nobody listened, nobody will say again."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), _PULSE)
            try:
                async with self._reader:
                    if self._listening is None or self._listening.is_closed():
                        await self._listen()
                        self._heard("")
                    else:
                        await self._listening.execute("SELECT 1")
                    self._lost.clear()
            except StoreError:
                await asyncio.sleep(_PAUSE)
            except _FAILURES:
                self._listening.terminate()


async def _check_clock(rows: Rows) -> None:
    """Refuse to share a queue with others who would take what we call now for another day. Raises StoreError."""
    ((there,),) = await rows.run("SELECT CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)")
    apart = float(there or 0) - time.time()
    if abs(apart) > _APART:
        raise StoreError(f"the clock of this host is {abs(apart):.0f} s away from the database's: set it first")


async def _closed(connection: Any) -> None:
    if connection is None or connection.is_closed():
        return
    try:
        await connection.close(timeout=1.0)
    except _FAILURES:
        connection.terminate()


def is_local(url: str) -> bool:
    """Whether what is said to a server stays on this host: a unix socket, or a loopback address by its number."""
    parts = urlsplit(url)
    directory = dict(parse_qsl(parts.query)).get("host", "")
    if directory:
        return directory.startswith("/") and not parts.hostname
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _numbered(sql: str) -> str:
    """Put `$1`, `$2`, ... where values go; no statement of ours has a `?` for anything else."""
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it doesn't answer"
    if untrusted := getattr(error, "verify_message", ""):  # ssl.SSLCertVerificationError, whose errno says nothing
        return f"its certificate isn't to be trusted: {untrusted}"
    return (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)) or type(
        error
    ).__name__
