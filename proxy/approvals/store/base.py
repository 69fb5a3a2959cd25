"""What a store of approvals is: transactions that exclude each other, and word of what others did.

Whatever is decided is decided inside a transaction: two answers at once, also on two hosts, come one after the other,
and the second sees what the first did. A transaction either happened as a whole or not at all.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

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
