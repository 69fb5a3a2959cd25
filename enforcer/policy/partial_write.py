"""Whether files are whole: rules that are cut off where somebody is still writing them may lack their last denies.

fcntl(2): nobody gets a lease to read a file that is open for writing anywhere (F_SETLEASE, EAGAIN). A lease is for
whose file it is; of another's, and where a file system has no leases, the time of the last change has to do.
"""

import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Final

PATIENCE: Final = 5.0  # seconds that a file may take to be written before that is told
_BETWEEN: Final = 0.02  # seconds between two looks
_SETTLED: Final = 0.5  # seconds since the last change of a file of which nothing else is known


def unwritten(paths: Iterable[str]) -> str | None:
    """Wait until nobody is writing any of these files; one that still is written then. For a process of one's own."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # whoever opens a file meanwhile waits for its lease, and says so
    deadline = time.monotonic() + PATIENCE
    waiting = dict.fromkeys(paths)
    while waiting := dict.fromkeys(_still(waiting)):
        if time.monotonic() >= deadline:
            return next(iter(waiting))
        time.sleep(_BETWEEN)
    return None


def _still(paths: Iterable[str]) -> Iterator[str]:
    yield from (path for path in paths if _is_being_written(path))


def _is_being_written(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # nothing to be read, which whoever reads says
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return False
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN or abs(time.time() - status.st_ctime) < _SETTLED
    finally:
        os.close(descriptor)  # and its lease
    return False
