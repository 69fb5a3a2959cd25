"""Bounds how many locks on bytes of files (fcntl(2)) the processes of a sandbox have together.

The kernel keeps each in some 190 bytes that no cgroup counts (CVE-2022-0480), so a task could take the host's memory
with them. Every call that may make some is counted here; once as many calls were made as locks may be, those that
there are get counted in /proc (proc_pid_fdinfo(5)), with all calls waiting, and the rest may be made.
"""

import ctypes
import time
from collections.abc import Callable
from typing import Final

from enforcer import linux
from enforcer.notify.whose import Looks, begotten, listed, read
from enforcer.sandbox.syscalls import NUMBERS

CALL: Final = "fcntl"
MOST: Final = 50_000  # 10 MB
_MOST_LOOKS: Final = 400_000  # processes, threads and descriptors: a second; who has more has no more locks
_MADE: Final = 2  # by one call at most: it may split another one
_OF_FILES: Final = frozenset({37, 38})  # F_OFD_SETLK, F_OFD_SETLKW
_REST: Final = 0.1  # seconds between two counts, where there are many
_FILES: Final = 2  # KCMP_FILES (kcmp(2))

_libc = ctypes.CDLL(None, use_errno=True)


class Locks:
    """Of one sandbox. `proc` is /proc outside, `first` the sandbox's first process."""

    def __init__(self, proc: int, first: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._proc, self._first, self._clock = proc, first, clock
        self._free = MOST
        self._of_files = MOST
        self._due = 0.0  # when they may be counted again

    def allows(self, command: int) -> bool:
        """Whether one more call may make locks."""
        # Those of an open file may be where no process has it: in a socket. They are never given back.
        if command in _OF_FILES:
            self._of_files -= _MADE
            if self._of_files < 0:
                return False
        self._free -= _MADE
        if self._free < 0 and self._clock() >= self._due:
            self._free = MOST - _MADE - held(self._proc, self._first)
            if self._free < MOST // 10:
                self._due = self._clock() + _REST
        return self._free >= 0


def held(proc: int, first: int) -> int:
    """Count the locks of a process and all that it has begot; MOST where that is too much to look at."""
    looks, found = Looks(_MOST_LOOKS), 0
    try:
        for pid in (first, *(pid for pid, _ in begotten(proc, first, looks))):
            for thread in map(int, listed(proc, f"{pid}/task", looks)):
                if thread == pid or not _is_one_table(pid, thread):
                    table = f"{pid}/task/{thread}/fdinfo"
                    found += sum(read(proc, f"{table}/{name}").count(b"\nlock:") for name in listed(proc, table, looks))
    except ValueError:
        return MOST
    return found


def _is_one_table(pid: int, thread: int) -> bool:
    """Whether a thread has the descriptors of its process, as all have but those that want their own."""
    number = NUMBERS[linux.platform_machine()]["kcmp"]
    return int(_libc.syscall(number, pid, thread, _FILES, 0, 0)) == 0
