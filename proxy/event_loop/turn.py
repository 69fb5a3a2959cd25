"""Marks in shared memory which sandbox a worker serves now; the service reads it after the worker has died.

The number is part of the context (contextvars) in which a sandbox is put together, so every callback and task that
begins there carries it: `poller.Loop` marks each before it runs. 0 stands for the worker itself.
"""

import sys
from contextvars import Context, ContextVar, copy_context
from mmap import mmap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

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
