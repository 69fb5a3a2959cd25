"""What processes cost: CPU time and memory, from /proc.

CPU time is schedstat's, in nanoseconds (Documentation/scheduler/sched-stats.rst), over every thread: /proc/PID/stat
counts in ticks of 10 ms, which is more than a short run takes.
"""

import contextlib
import re
from pathlib import Path

_PROC = Path("/proc")


def spent(pid: int) -> int:
    """Nanoseconds of CPU time that a process's threads have used."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that has ended since costs nothing more
        for thread in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int((thread / "schedstat").read_text().split()[0])
    return total


def family(pid: int) -> tuple[int, ...]:
    """A process and all that come from it within its own pid namespace: of a sandbox, all but the sandbox itself."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int(_status(int(entry.name), "PPid"))
    depth = len(_status(pid, "NSpid").split())
    found = [pid]
    for one in found:
        found += [
            child
            for child, parent in parents.items()
            if parent == one and len(_status(child, "NSpid").split()) == depth
        ]
    return tuple(found)


def resident(pid: int) -> int:
    """Bytes of memory that a process has resident."""
    return _kilobytes(pid, "VmRSS")


def peak(pid: int) -> int:
    """Bytes of memory that a process had resident at most since `forget_peak`."""
    return _kilobytes(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Let `peak` begin anew (proc_pid_clear_refs(5))."""
    (_PROC / str(pid) / "clear_refs").write_text("5")


def _kilobytes(pid: int, field: str) -> int:
    return int(_status(pid, field).removesuffix(" kB")) * 1024


def _status(pid: int, field: str) -> str:
    text = (_PROC / str(pid) / "status").read_text(errors="replace")
    found = re.search(rf"^{field}:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else ""
