"""Looks up records of types other than A and AAAA, which a rule's `dns_types` allows, at the host's name servers.

Such a query leaves this host, and its name may carry data, so a rule must list the type. The gate sends a new query
with its own id, and returns only the records of the answer.
"""

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from rules.values.addresses import Address
    from rules.values.names import HostName

MOST_AT_ONCE: Final = 16  # queries
MOST_WAITING: Final = 256  # queries that run or wait
MOST_RECORDS: Final = 64
LONGEST_KEPT: Final = 300.0  # seconds that a client may cache an answer


class DnsLookupError(Exception):
    """A name has no record of the type, or no name server answered; the text says which."""


class Records(NamedTuple):
    """Records of a name: the data of each in wire format, as text, and how long they are valid."""

    data: tuple[bytes, ...] = ()
    texts: tuple[str, ...] = ()
    seconds: float = 0.0
    exists: bool = True  # whether the name exists
    problem: str = ""  # why the lookup failed


class Servers(Protocol):
    """Name servers to query: `upstream_servers.NameServers`."""

    async def ask(self, name: "HostName", kind: str) -> "tuple[tuple[Address, ...], float]":
        """Return the addresses of `kind` (A or AAAA) and their TTL in seconds. Raises DnsLookupError."""
        ...

    async def records(self, name: "HostName", kind: str) -> Records:
        """Return the records of another type. Raises DnsLookupError when no server answers."""
        ...


class RecordLookup:
    """Looks up records. For one thread, within a running loop."""

    __slots__ = ("_concurrency", "_has_room", "_servers", "tasks")

    def __init__(
        self,
        servers: "Callable[[], Servers]",
        has_room: "Callable[[], bool]" = lambda: True,
        tasks: "set[asyncio.Task[None]] | None" = None,
    ) -> None:
        """Query `servers`. `has_room`: whether a descriptor is free (`DescriptorQuota`); `tasks`: running queries."""
        self._servers = servers
        self._has_room = has_room
        self._concurrency = asyncio.Semaphore(MOST_AT_ONCE)
        self.tasks = set() if tasks is None else tasks

    def ask(self, name: "HostName", kind: str, done: "Callable[[Records], None]") -> None:
        """Look up the records of one type; `done` is called exactly once."""
        loop = asyncio.get_running_loop()
        if len(self.tasks) >= MOST_WAITING or not self._has_room():
            loop.call_soon(done, Records(problem=f"{len(self.tasks)} queries are pending already"))
            return
        task = loop.create_task(self._ask(name, kind, done))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _ask(self, name: "HostName", kind: str, done: "Callable[[Records], None]") -> None:
        found = Records(problem="the lookup broke off")
        try:
            async with self._concurrency:
                found = await self._servers().records(name, kind)
        except DnsLookupError as error:
            found = Records(problem=str(error))
        finally:
            asyncio.get_running_loop().call_soon(done, found)
