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
from rules.addresses import normalize
from rules.names import is_exeat_name

if TYPE_CHECKING:
    from rules.addresses import Address
    from rules.names import HostName


# Bytes. Of addresses 16 are used, of other records 64; and a name server that isn't told of more sends 512 without TCP.
LONGEST: Final = 8192


class AnswerTooLongError(dns.exception.FormError):
    """an answer is longer than any that is of use"""  # noqa: D400  dnspython shows it


class DnsBackend:
    """Backend for dnspython on asyncio. `turn`: a lock, so that answers of one sandbox are read one by one."""

    def __init__(self, turn: asyncio.Lock) -> None:
        self._turn = turn
        self._plain: Any = dns.asyncbackend.get_backend("asyncio")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    async def make_socket(self, af: int, socktype: int, *more: Any, **named: Any) -> "_Socket":
        """Return a socket for a query."""
        sock = await self._plain.make_socket(af, socktype, *more, **named)
        return _Stream(sock, self._turn) if socktype == socket.SOCK_STREAM else _Datagrams(sock, self._turn)


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

    async def _have_turn(self) -> None:
        """Wait for other answers of the sandbox to be read, and yield to other work."""
        async with self._turn:
            await asyncio.sleep(0)


class _Datagrams(_Socket):
    """UDP socket; ignores answers that are too long, and the query goes on until its timeout."""

    async def recvfrom(self, size: int, timeout: float | None) -> Any:  # noqa: ASYNC109  dnspython's
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise dns.exception.Timeout
            data, sender = await self._sock.recvfrom(size, left)
            await self._have_turn()
            if len(data) <= LONGEST:
                return data, sender


class _Stream(_Socket):
    """TCP connection with one answer, after its length in two bytes (RFC 1035 section 4.2.2)."""

    def __init__(self, sock: Any, turn: asyncio.Lock) -> None:
        super().__init__(sock, turn)
        self._head = b""
        self._left = 0

    async def recv(self, size: int, timeout: float | None) -> bytes:  # noqa: ASYNC109  dnspython's
        data: bytes = await self._sock.recv(size, timeout)
        if len(self._head) < 2:
            self._head += data
            self._left = int.from_bytes(self._head)
            if len(self._head) == 2 and self._left > LONGEST:
                raise AnswerTooLongError
        else:
            self._left -= len(data)
            if not self._left:
                await self._have_turn()
        return data


LIFETIME: Final = 5.0  # seconds for one question, with all repeats and name servers
MOST_ALIASES: Final = 8  # answers in a row that only say where to ask next


class NameServers:
    """Name servers of a resolv.conf, read when this is made."""

    __slots__ = ("_answers", "_resolver")

    def __init__(self, path: str = "/etc/resolv.conf", turn: asyncio.Lock | None = None) -> None:
        """Read the file. `turn`: see `DnsBackend`. Raises DnsLookupError when it names no server."""
        self._answers = DnsBackend(turn or asyncio.Lock())
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
        kept = found[:MOST_RECORDS]
        data = tuple(record.to_wire() or b"" for record in kept)
        return Records(data, tuple(record.to_text() for record in kept), min(seconds, LONGEST_KEPT))

    async def _find(self, name: "HostName", kind: str) -> "tuple[list[Any], float]":
        """Return the records of a name or of its alias (CNAME), and their TTL in seconds.

        Raises DnsLookupError when no server answers, and NXDOMAIN.
        """
        asked = dns.name.from_text(name + ".")
        least = float("inf")
        try:
            for _ in range(MOST_ALIASES):
                answer = await self._resolver.resolve(
                    asked, kind, search=False, lifetime=LIFETIME, raise_on_no_answer=False, backend=self._answers
                )
                least = min(least, float(answer.chaining_result.minimum_ttl))
                if answer.rrset is not None:
                    return list(answer.rrset), least
                if answer.canonical_name == asked:
                    return [], least
                asked = answer.canonical_name
                if is_exeat_name(asked.to_text(omit_final_dot=True).lower()):  # nobody's DNS has a say in our names
                    return [], least
        except dns.resolver.NXDOMAIN:
            raise
        except dns.exception.Timeout as error:
            raise DnsLookupError(f"no name server answered for `{name}` in {LIFETIME:.0f} seconds") from error
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise DnsLookupError(f"no name server answered for `{name}`: {error}") from error
        raise DnsLookupError(f"`{name}` has too long a chain of aliases (CNAME)")
