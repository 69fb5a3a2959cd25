"""Queries the host's name servers (resolv.conf(5)) for one absolute name.

No search list is applied: the checked name is the name in the query (invariant 3). dnspython checks that an answer
belongs to its query (id, question, source), and repeats truncated ones over TCP. Imported on the first lookup, since
dnspython takes 75 ms.

Answers are bounded before they are parsed, and one answer is parsed in a turn of the loop. The owner of a zone chooses
its content, and a task can look up many names in it at once. dnspython parses up to 8 microseconds a byte, during which
no other sandbox of this process has a turn (invariant 11): an answer of 64 KB over TCP took half a second.
"""

import asyncio
import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Any, Final, Self

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from proxy.dns.records import LONGEST_KEPT, MOST_RECORDS, DnsLookupError, Records
from rules.values.addresses import normalize
from rules.values.names import is_exeat_name

if TYPE_CHECKING:
    from rules.values.addresses import Address
    from rules.values.names import HostName


# Bytes of an answer. At most 16 addresses or 64 other records are used.
LONGEST: Final = 8192


class AnswerTooLongError(dns.exception.FormError):
    """an answer is longer than 8 KB"""  # noqa: D400  dnspython shows it


class DnsBackend:
    """Asyncio backend for dnspython. `turn`: a lock, so that the answers of one sandbox are parsed one by one."""

    def __init__(self, turn: asyncio.Lock) -> None:
        self._turn = turn
        self._backend: Any = dns.asyncbackend.get_backend("asyncio")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def make_socket(self, af: int, socktype: int, *more: Any, **named: Any) -> "_Socket":
        """Return a socket for a query."""
        sock = await self._backend.make_socket(af, socktype, *more, **named)
        return _TcpSocket(sock, self._turn) if socktype == socket.SOCK_STREAM else _UdpSocket(sock, self._turn)


class _Socket:
    """Asyncio socket with the interface that dnspython expects."""

    def __init__(self, sock: Any, turn: asyncio.Lock) -> None:
        self._sock = sock
        self._turn = turn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sock.close()

    async def _wait_for_turn(self) -> None:
        """Wait until other answers of the sandbox are parsed, and yield to other work."""
        async with self._turn:
            await asyncio.sleep(0)


class _UdpSocket(_Socket):
    """UDP socket; ignores answers that are too long, and waits for others until the timeout."""

    async def recvfrom(self, size: int, timeout: float | None) -> Any:  # noqa: ASYNC109  dnspython's
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            seconds_left = None if deadline is None else deadline - time.monotonic()
            if seconds_left is not None and seconds_left <= 0:
                raise dns.exception.Timeout
            data, sender = await self._sock.recvfrom(size, seconds_left)
            await self._wait_for_turn()
            if len(data) <= LONGEST:
                return data, sender


class _TcpSocket(_Socket):
    """TCP connection with one answer, after its length in two bytes (RFC 1035 section 4.2.2)."""

    def __init__(self, sock: Any, turn: asyncio.Lock) -> None:
        super().__init__(sock, turn)
        self._head = b""
        self._bytes_left = 0

    async def recv(self, size: int, timeout: float | None) -> bytes:  # noqa: ASYNC109  dnspython's
        data: bytes = await self._sock.recv(size, timeout)
        if len(self._head) < 2:
            self._head += data
            self._bytes_left = int.from_bytes(self._head)
            if len(self._head) == 2 and self._bytes_left > LONGEST:
                raise AnswerTooLongError
        else:
            self._bytes_left -= len(data)
            if not self._bytes_left:
                await self._wait_for_turn()
        return data


LIFETIME: Final = 5.0  # seconds for one query, with all repeats and name servers
MOST_ALIASES: Final = 8  # CNAMEs in a chain


class NameServers:
    """Name servers of a resolv.conf, which is read once."""

    __slots__ = ("_backend_with_turns", "_resolver")

    def __init__(self, path: str = "/etc/resolv.conf", turn: asyncio.Lock | None = None) -> None:
        """Read the file. `turn`: see `DnsBackend`. Raises DnsLookupError when it names no server."""
        self._backend_with_turns = DnsBackend(turn or asyncio.Lock())
        try:
            self._resolver = dns.asyncresolver.Resolver(path)
        except (dns.exception.DNSException, ValueError) as error:
            raise DnsLookupError(f"`{path}` names no usable name server: {error}") from error
        self._resolver.cache = None

    async def ask(self, name: "HostName", kind: str) -> "tuple[tuple[Address, ...], float]":
        """Return the addresses of `kind` (A or AAAA) and their TTL in seconds. Raises DnsLookupError."""
        try:
            found, seconds = await self._find(name, kind)
            if not found:
                raise DnsLookupError(f"`{name}` has no {kind} record")
            return tuple(normalize(ipaddress.ip_address(record.address)) for record in found), seconds
        except dns.resolver.NXDOMAIN as error:
            raise DnsLookupError(f"`{name}` does not exist") from error
        except ValueError as error:
            raise DnsLookupError(f"no name server answered for `{name}`: {error}") from error

    async def records(self, name: "HostName", kind: str) -> Records:
        """Return the records of one type, perhaps none. Raises DnsLookupError when no server answers."""
        try:
            found, seconds = await self._find(name, kind)
        except dns.resolver.NXDOMAIN:
            return Records(exists=False)
        records = found[:MOST_RECORDS]
        data = tuple(record.to_wire() or b"" for record in records)
        return Records(data, tuple(record.to_text() for record in records), min(seconds, LONGEST_KEPT))

    async def _find(self, name: "HostName", kind: str) -> "tuple[list[Any], float]":
        """Return the records of a name or of its alias (CNAME), and their TTL in seconds.

        Raises DnsLookupError when no server answers, and NXDOMAIN.
        """
        current_name = dns.name.from_text(name + ".")
        minimum_ttl = float("inf")
        try:
            for _ in range(MOST_ALIASES):
                answer = await self._resolver.resolve(
                    current_name,
                    kind,
                    search=False,
                    lifetime=LIFETIME,
                    raise_on_no_answer=False,
                    backend=self._backend_with_turns,
                )
                minimum_ttl = min(minimum_ttl, float(answer.chaining_result.minimum_ttl))
                if answer.rrset is not None:
                    return list(answer.rrset), minimum_ttl
                if answer.canonical_name == current_name:
                    return [], minimum_ttl
                current_name = answer.canonical_name
                if is_exeat_name(
                    current_name.to_text(omit_final_dot=True).lower()
                ):  # no external DNS may define these names
                    return [], minimum_ttl
        except dns.resolver.NXDOMAIN:
            raise
        except dns.exception.Timeout as error:
            raise DnsLookupError(f"no name server answered for `{name}` in {LIFETIME:.0f} seconds") from error
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise DnsLookupError(f"no name server answered for `{name}`: {error}") from error
        raise DnsLookupError(f"`{name}` has too long a chain of aliases (CNAME)")
