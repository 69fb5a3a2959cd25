import asyncio

import pytest

from proxy.approvals.store import SqliteStore
from tests.proxy.approvals.postgres_server import Server
from tests.proxy.approvals.registry_lab import RegistryLab
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
def run_scenario(tmp_path):
    """Play a scenario in a lab with a store, to its end: in a file where the test doesn't say which."""

    def run(scenario, store=None, **more):
        async def whole():
            lab = RegistryLab(store() if store is not None else SqliteStore(tmp_path / "approvals.sqlite"), **more)
            await lab.registry.open()
            try:
                await scenario(lab)
            finally:
                await lab.registry.close()
            event_schema.hold(lab.journal.events)

        asyncio.run(whole())

    return run
