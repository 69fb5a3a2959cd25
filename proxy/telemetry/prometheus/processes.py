"""Reads process_* metrics of our processes from /proc (proc_pid_stat(5), proc_pid_limits(5))."""

import os
import re
import resource
from pathlib import Path
from typing import NamedTuple

from proxy.telemetry.events import Count, Real

_AFTER_COMMAND = 3  # the first field that stands behind the command's name, counted from 1 as the manual page does
_UTIME, _STIME, _STARTTIME, _VSIZE, _RSS = 14, 15, 22, 23, 24
_OPEN_FILES = re.compile(rb"^Max open files\s+(\d+)", re.MULTILINE)
_BOOT_TIME = re.compile(rb"^btime (\d+)$", re.MULTILINE)


class ProcessUse(NamedTuple):
    """What a process uses. Times in seconds, `started` since 1970; None is what may not be read."""

    cpu_seconds: Real
    resident_bytes: Count
    virtual_bytes: Count
    started: Real
    open_descriptors: Count | None
    most_descriptors: Count | None


def read_process(pid: int) -> ProcessUse | None:
    """Return what the process uses; None when it is gone or hidden from us."""
    home = Path("/proc") / str(pid)
    try:
        stat = (home / "stat").read_bytes()
        boot = _BOOT_TIME.search(Path("/proc/stat").read_bytes())
    except OSError:
        return None
    # The command's name stands in parentheses and may hold any byte, parentheses too.
    fields = stat.rpartition(b")")[2].split()

    def field(number: int) -> int:
        return int(fields[number - _AFTER_COMMAND])

    ticks = os.sysconf("SC_CLK_TCK")
    return ProcessUse(
        cpu_seconds=(field(_UTIME) + field(_STIME)) / ticks,
        resident_bytes=field(_RSS) * resource.getpagesize(),
        virtual_bytes=field(_VSIZE),
        started=(int(boot[1]) if boot else 0) + field(_STARTTIME) / ticks,
        open_descriptors=_open_descriptors(home),
        most_descriptors=_most_descriptors(home),
    )


def _open_descriptors(home: Path) -> int | None:
    try:
        return len(os.listdir(home / "fd"))
    except OSError:
        return None


def _most_descriptors(home: Path) -> int | None:
    try:
        found = _OPEN_FILES.search((home / "limits").read_bytes())
    except OSError:
        return None
    return int(found[1]) if found else None
