"""What a task came up against, in words: from counts of the kernel's to what is told of them."""

import os
import signal
from typing import Final, NamedTuple

from enforcer.limits.group import Counts
from enforcer.limits.wanted import Limits, files_in, in_bytes
from rules.verdicts import Outcome, Reason

_NOTICED = 1.0  # seconds that a task has waited for its share of the processors, before it is worth a word
_ABORTS: Final = frozenset({signal.SIGABRT, signal.SIGTRAP, signal.SIGILL, signal.SIGSEGV, signal.SIGBUS})
_SHELLS: Final = 128  # and the number of a signal: the exit status of a shell whose program ended by that
_NAME = 64  # characters of a program's name


class Reached(NamedTuple):
    """A limit that was reached, and what that did to the task."""

    reason: Reason
    detail: str
    outcome: Outcome = Outcome.BLOCKED


def reached(before: Counts, now: Counts, limits: Limits) -> list[Reached]:
    """Say what has happened between two counts."""
    found = []
    if killed := now.killed - before.killed:
        whose = f"it may have {in_bytes(limits.memory or 0)}" if now.full else "the host had none left for it"
        found.append(Reached(Reason.MEMORY_LIMIT, f"memory: {_some(killed, 'process', 'es')} killed, {whose}"))
    if refused := now.refused - before.refused:
        times = "once" if refused == 1 else f"{refused} times"
        said = f"processes: it could not start another {times}, it may have {limits.processes} at most"
        found.append(Reached(Reason.PROCESS_LIMIT, said))
    if limits.cpu is not None and (held := now.held_back - before.held_back) >= _NOTICED:
        said = f"cpu: its threads were held back for {held:.1f} s, it may use {limits.cpu:g} processors"
        found.append(Reached(Reason.CPU_LIMIT, said, Outcome.PASSED))
    return found


def refused_memory(status: int, limits: Limits) -> Reached | None:
    """Say that memory may be why the task ended like this, a wait status; None: it ended otherwise.

    For memory that an rlimit keeps: the kernel counts no refusal, and a runtime that is refused memory aborts.
    """
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else code - _SHELLS
    if number not in _ABORTS:
        return None
    name, most = signal.Signals(number).name, in_bytes(limits.memory or 0)
    said = f"memory: the task ended by {name}, as programs do that are refused memory; each process may have {most}"
    return Reached(Reason.MEMORY_LIMIT, said)


def at(limit: str, found: object, limits: Limits) -> Reached:
    """Say that a task is at a limit, from what was found in its sandbox (`inside`, `room.full`)."""
    if limit == "files":
        from proxy.telemetry.visible import visible  # what a program calls itself is the task's to say

        name, count = found if isinstance(found, list) and len(found) == 2 else ("", 0)
        said = f"files: `{visible(str(name)[:_NAME])}` had {count} open, as many as it may at a time"
        return Reached(Reason.FILE_LIMIT, said)
    if limit == "processes":
        return Reached(Reason.PROCESS_LIMIT, f"processes: it had as many as it may, {limits.processes}")
    if found == "files":
        said = f"disk: no more files could be made in home, /tmp and the like, there may be {files_in(limits.disk)}"
    else:
        said = f"disk: no more could be written to home, /tmp and the like, it may be {in_bytes(limits.disk)}"
    return Reached(Reason.DISK_LIMIT, said)


def _some(count: int, what: str, plural: str) -> str:
    return f"{count} {what}{plural if count != 1 else ''} {'were' if count != 1 else 'was'}"
