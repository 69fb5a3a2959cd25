"""What a store holds, in SQL that SQLite and PostgreSQL read alike. Times are seconds since 1970."""

from typing import TYPE_CHECKING, Final

from proxy.approvals.store.base import StoreError

if TYPE_CHECKING:
    from proxy.approvals.store.base import Rows

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
