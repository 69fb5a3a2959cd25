"""Looks up records of other types than A and AAAA, as a rule's `dns_types` allows, at the host's name servers.

The query leaves this host, and its name may carry data; so only types that a rule lists are looked up. Each query is
sent anew with an id of our own, and only the records of an answer come back.
"""

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from rules.addresses import Address
    from rules.names import HostName

MOST_AT_ONCE: Final = 16  # questions
MOST_WAITING: Final = 256  # ... and those that wait for their turn
MOST_RECORDS: Final = 64
LONGEST_KEPT: Final = 300.0  # seconds that a client may keep an answer


class DnsLookupError(Exception):
    """A name has no record of the type, or no name server answered; the text says which."""


class Records(NamedTuple):
    """Records of a name: the data of each in wire format, as text, and how long they are valid."""

    data: tuple[bytes, ...] = ()
    texts: tuple[str, ...] = ()
    seconds: float = 0.0
    exists: bool = True  # the name itself
    problem: str = ""  # why nobody would say


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

    __slots__ = ("_has_room", "_servers", "_turns", "tasks")

    def __init__(
        self,
        servers: "Callable[[], Servers]",
        has_room: "Callable[[], bool]" = lambda: True,
        tasks: "set[asyncio.Task[None]] | None" = None,
    ) -> None:
        """Ask `servers`. `has_room`: for what asking takes (`DescriptorQuota`); `tasks` holds what is asked now."""
        self._servers = servers
        self._has_room = has_room
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
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
            async with self._turns:
                found = await self._servers().records(name, kind)
        except DnsLookupError as error:
            found = Records(problem=str(error))
        finally:
            asyncio.get_running_loop().call_soon(done, found)
