"""Slices of processor time: long work yields, so one sandbox doesn't delay the others of its worker (invariant 11).

What may take long is a generator that yields after each small piece of work, within `SLICE` or so. Its caller decides
whether it goes on at once or in another turn of the loop. What a task sends can be small and cost much: packed text,
fields that unpack to 64 KB, texts that look like credentials all over.
"""

import asyncio
from collections.abc import Generator
from time import thread_time
from typing import Final

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
