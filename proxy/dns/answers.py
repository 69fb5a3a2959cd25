"""What name servers answer, before it is read: bounded, and one answer a turn of the loop.

Who has a zone chooses what is in it, and whoever may ask for names in one can ask for many at once. Reading an answer
takes dnspython up to 8 microseconds a byte, in which nobody else in this process has a turn (invariant 11): the 64 KB
that fit one over TCP took half a second, and there were as many in a row as were asked for.
"""

import asyncio
import socket
import time
from typing import Any, Final, Self

import dns.asyncbackend
import dns.exception

# Bytes. Of addresses 16 are used, of other records 64; and a name server that isn't told of more sends 512 without TCP.
LONGEST: Final = 8192


class TooLong(dns.exception.FormError):
    """an answer is longer than any that is of use"""  # noqa: D400  dnspython shows it


class Answers:
    """A backend of dnspython, asking as asyncio does. `turn`: of whose answer is read, of all that a tenant asks."""

    def __init__(self, turn: asyncio.Lock) -> None:
        self._turn = turn
        self._plain: Any = dns.asyncbackend.get_backend("asyncio")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    async def make_socket(self, af: int, socktype: int, *more: Any, **named: Any) -> "_Socket":
        """Return a socket to ask over."""
        sock = await self._plain.make_socket(af, socktype, *more, **named)
        return _Stream(sock, self._turn) if socktype == socket.SOCK_STREAM else _Datagrams(sock, self._turn)


class _Socket:
    """One of asyncio's sockets as dnspython has them."""

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
        """Wait for those whose answers are there already, and give everybody else a turn: what follows is reading."""
        async with self._turn:
            await asyncio.sleep(0)


class _Datagrams(_Socket):
    """Answers that come whole. What is too long is nobody's: the question goes on, for as long as it would have."""

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
    """One answer, behind its length in two bytes (RFC 1035 section 4.2.2)."""

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
                raise TooLong
        else:
            self._left -= len(data)
            if not self._left:
                await self._have_turn()
        return data
