"""How much a task may take of the host: what the rules say, and what holds where they say nothing.

The defaults are for one purpose: a task that takes all it can get must not take the host down. They are not meant to be
noticed by a task that works. Why each is what it is stands in docs/resources.md.
"""

import os
from typing import NamedTuple

from rules.sandbox import Box

PROCESSES = 4096
TIMED_OUT = 124  # the exit status of a task whose time was up, as timeout(1) has it
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")  # IEC 80000-13
_MEMORY_SHARE, _DISK_SHARE = 3 / 4, 1 / 2
_PAGE = 4096  # bytes; a file that holds anything takes one
_OF_OURS = 64  # files: the directories that a view has before a task makes any


class Limits(NamedTuple):
    """Of one task. None: not limited. `said` names those that a rule file or an option says."""

    memory: int | None = None  # bytes
    cpu: float | None = None  # cores
    processes: int = PROCESSES  # and threads
    files: int | None = None  # open at a time, a process
    disk: int = 0  # bytes in all that is writable and in memory
    timeout: float | None = None  # seconds
    said: frozenset[str] = frozenset()


def limits_of(box: Box, host_memory: int | None = None) -> Limits:
    """Return what a task in this box may take. `host_memory` (bytes) is this machine's, unless a test says another."""
    memory = _memory_of_host() if host_memory is None else host_memory
    said = {name: value for name in Limits._fields if (value := getattr(box, name, None)) is not None}
    usual = {"memory": int(memory * _MEMORY_SHARE), "disk": int(memory * _DISK_SHARE)}
    return Limits(**{**usual, **said}, said=frozenset(said))


def files_in(disk: int) -> int:
    """Return how many files go with so many bytes of `disk`: empty ones cost what no size counts."""
    return disk // _PAGE + _OF_OURS


def _memory_of_host() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def in_bytes(count: int) -> str:
    """Return an amount in the unit that suits it."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.4g} {_UNITS[unit]}"


def in_seconds(seconds: float) -> str:
    """Return a time in seconds."""
    return f"{seconds:g} s"
