"""Turns of sandboxes in a worker's event loop: slices of processor time, and the mark of the sandbox served now.

Long work yields, so that one sandbox doesn't delay the others of its worker (invariant 11). It is a generator that
yields after each piece of about `SLICE` seconds. Its caller either continues at once or in another turn of the loop.
A task can send little data that costs much time: compressed text, header fields that unpack to 64 KB, or text that
resembles credentials everywhere.

A worker marks in shared memory which sandbox it serves; the service reads the mark after the worker has died. The
sandbox's number is part of the context (contextvars) that the sandbox is set up in. So every callback and task started
there carries it, and `poller.Loop` marks each before it runs. 0 stands for the worker itself.
"""

import sys
from collections.abc import Generator
from contextvars import Context, ContextVar, copy_context
from mmap import mmap
from time import thread_time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

type Sliced[T] = Generator[None, None, T]

SLICE: Final = 0.003  # seconds of processor time in one turn, after which the rest waits for the next


class Slice:
    """Processor time that one turn may use. For one thread; made when the turn begins."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end = thread_time() + SLICE

    @property
    def is_over(self) -> bool:
        """Whether the turn's time is used up, so that the rest of the work waits for another turn."""
        return thread_time() >= self._end


async def run_in_turns[T](sliced: Sliced[T]) -> T:
    """Run sliced work over as many turns of the loop as it needs; returns its result."""
    turn = Slice()
    while True:
        try:
            next(sliced)
        except StopIteration as done:
            result: T = done.value
            return result
        if turn.is_over:
            import asyncio  # here: the service imports this module for the mark, and has no use for asyncio and ssl

            await asyncio.sleep(0)
            turn = Slice()


def run_at_once[T](sliced: Sliced[T]) -> T:
    """Run sliced work without a break; returns its result. For callers that serve no other sandbox."""
    while True:
        try:
            next(sliced)
        except StopIteration as done:
            result: T = done.value
            return result


NOBODY: Final = 0
_sandbox: Final[ContextVar[int]] = ContextVar("sandbox", default=NOBODY)


class Marker:
    """Writes the mark. For one thread."""

    __slots__ = ("_mark",)

    def __init__(self, page: mmap) -> None:
        """Write to a shared page: the service has the other mapping of it."""
        self._mark = memoryview(page).cast("Q")

    def run[**P, R](self, sandbox: int, work: "Callable[P, R]", *arguments: P.args, **named: P.kwargs) -> R:
        """Run `work` in the turn of a sandbox."""
        before = self._mark[0]
        self._mark[0] = sandbox
        try:
            return work(*arguments, **named)
        finally:
            self._mark[0] = before


def context_of(sandbox: int) -> Context:
    """Return a context whose tasks and callbacks belong to that sandbox."""
    context = copy_context()
    context.run(_sandbox.set, sandbox)
    return context


def sandbox_in(context: Context | None) -> int:
    """Return the sandbox that a context belongs to; None: the current context."""
    return _sandbox.get() if context is None else context.get(_sandbox, NOBODY)


def marked(page: mmap) -> int:
    """Return the sandbox that a dead worker last marked. The worker wrote it, so it is no proof."""
    return int.from_bytes(page[:8], sys.byteorder)  # as `Marker` writes it
