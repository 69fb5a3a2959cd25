import asyncio

import pytest

from proxy.approvals.store import SqliteStore
from tests.proxy.approvals.approval_postgres import Server
from tests.proxy.approvals.approval_world import World
from tests.support import event_schema


@pytest.fixture(scope="session")
def postgres():
    """A server; one a session, for tests of the group `postgres`."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def shared(postgres):
    """What makes a store in PostgreSQL, each time the same one, empty at first. For tests of the group `postgres`."""
    from proxy.approvals.postgres_store import PostgresStore

    async def emptied():
        import asyncpg

        connection = await asyncpg.connect(postgres.url())
        await connection.execute("DROP SCHEMA IF EXISTS exeat CASCADE")
        await connection.close()

    asyncio.run(emptied())
    return lambda: PostgresStore(postgres.url())


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.xdist_group("postgres"))])
def store(request, tmp_path):
    """What makes a store, each time the same one: in a file, and in PostgreSQL."""
    if request.param == "sqlite":
        return lambda: SqliteStore(tmp_path / "approvals.sqlite")
    return request.getfixturevalue("shared")


@pytest.fixture
def play(tmp_path):
    """Play a story in a world with a store, to its end: in a file where the test doesn't say which."""

    def played(story, store=None, **more):
        async def whole():
            world = World(store() if store is not None else SqliteStore(tmp_path / "approvals.sqlite"), **more)
            await world.registry.open()
            try:
                await story(world)
            finally:
                await world.registry.close()
            event_schema.hold(world.journal.events)

        asyncio.run(whole())

    return played
