"""Approval store: transactions that exclude each other, word of what others did, where it is, and its tables.

Whatever is decided is decided inside a transaction: two answers at once, also on two hosts, come one after the other,
and the second sees what the first did. A transaction either happened as a whole or not at all. The SQL is read alike by
SQLite and PostgreSQL; times are seconds since 1970.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from ipaddress import ip_address
from typing import Final, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

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


SCHEMES: Final = ("postgresql", "postgres")


class Place(NamedTuple):
    """Where approvals are kept. `url` empty: in a file beside the registry's socket."""

    url: str = ""
    password: str = ""  # the name of a file with nothing else in it
    ca: str = ""  # the name of a file of certificates to trust, instead of the host's own


def check_url(text: str) -> str:
    """Take the URL of a server. Raises ValueError with what to write instead."""
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ValueError("is no URL of a PostgreSQL server: `postgresql://exeat@db.corp.example/approvals`")
    if parts.password is not None:
        raise ValueError("has a password in it: put that into a file, and name it as `password`")
    asked = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if asked not in ([], ["host"]) or parts.fragment:
        raise ValueError("may have `?host=/run/postgresql` at its end, the directory of a socket, and nothing else")
    if parts.port == 0:
        raise ValueError("has a port that is none")
    if not parts.path.strip("/"):
        raise ValueError("names no database: `postgresql://exeat@db.corp.example/approvals`")
    return text


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


VERSION: Final = 1
_KNOWN: Final = "CREATE TABLE IF NOT EXISTS exeat_approvals (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
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
