"""What a task came up against, in words: from counts of the kernel's to what is told of them."""

from typing import NamedTuple

from enforcer.limits.group import Counts
from enforcer.limits.wanted import Limits, in_bytes
from rules.verdicts import Outcome, Reason

_NOTICED = 1.0  # seconds that a task has waited for its share of the processors, before it is worth a word


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


def _some(count: int, what: str, plural: str) -> str:
    return f"{count} {what}{plural if count != 1 else ''} {'were' if count != 1 else 'was'}"
