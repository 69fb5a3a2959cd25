"""Records which sandbox a worker serves at the moment, in memory that the service reads when the worker has died.

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
    """Marks turns. For one thread."""

    __slots__ = ("_mark",)

    def __init__(self, page: mmap) -> None:
        """Write to a shared page: the service has the other mapping of it."""
        self._mark = memoryview(page).cast("Q")

    def run[**P, R](self, sandbox: int, work: "Callable[P, R]", *arguments: P.args, **named: P.kwargs) -> R:
        """Do some work in the turn of a sandbox."""
        before = self._mark[0]
        self._mark[0] = sandbox
        try:
            return work(*arguments, **named)
        finally:
            self._mark[0] = before


def context_of(sandbox: int) -> Context:
    """Return a context in which all that begins is that sandbox's."""
    context = copy_context()
    context.run(_sandbox.set, sandbox)
    return context


def sandbox_in(context: Context | None) -> int:
    """Return whose a context is; None: the current one."""
    return _sandbox.get() if context is None else context.get(_sandbox, NOBODY)


def marked(page: mmap) -> int:
    """Return for which sandbox a worker worked when it died: what it says itself, so it proves nothing."""
    return int.from_bytes(page[:8], sys.byteorder)  # as `Marker` writes it
