"""Waiters of one registry: the socket pairs of gates, and their requests that have no answer yet.

Also the clock of a registry, and the news that it gives to those who watch.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from proxy.approvals.approval_request import ApprovalRequest
    from proxy.approvals.model import Task


@dataclass(slots=True, eq=False)
class Waiter:
    """Waiting request of a worker. `busy`: it is being processed, and does not time out meanwhile."""

    link: "SandboxChannel"
    number: int
    question: "ApprovalRequest"
    deadline: float
    approval: str = ""
    busy: bool = False
    done: bool = False


@dataclass(slots=True, eq=False)
class SandboxChannel:
    """Socket pair of one sandbox: its task, its waiters, and its grants."""

    connection: Hashable
    task: "Task"
    uid: int  # of who started the task
    waiters: dict[int, Waiter] = field(default_factory=dict)
    grants: set[str] = field(default_factory=set)  # that its worker was told of


class Waiters:
    """All channels and waiters of a registry."""

    def __init__(self) -> None:
        self.links: dict[Hashable, SandboxChannel] = {}
        self._of: dict[str, list[Waiter]] = {}  # by approval request, in the order in which they asked

    def link_of(self, task: str) -> SandboxChannel | None:
        """Return a task's link, if it is one of ours."""
        return next((link for link in self.links.values() if link.task.id == task), None)

    def add(self, waiter: Waiter) -> None:
        """Have an ask wait, for an approval request that `put` names."""
        if (other := waiter.link.waiters.get(waiter.number)) is not None:
            self.remove(other)  # no number is used twice: nobody waits for the other
        waiter.link.waiters[waiter.number] = waiter

    def put(self, waiter: Waiter, approval: str) -> None:
        """Have it wait for an approval request."""
        self._leave(waiter)
        waiter.approval = approval
        self._of.setdefault(approval, []).append(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Have it wait no more. Idempotent."""
        waiter.done = True
        waiter.link.waiters.pop(waiter.number, None)
        self._leave(waiter)

    def forget(self, link: SandboxChannel) -> None:
        """Remove a link with all that waits there."""
        for waiter in list(link.waiters.values()):
            self.remove(waiter)
        self.links.pop(link.connection, None)

    def of(self, approval: str) -> list[Waiter]:
        """List what waits for an approval request, the first first."""
        return list(self._of.get(approval, ()))

    def approvals(self) -> list[str]:
        """List the approval requests that something waits for."""
        return list(self._of)

    def late(self, now: float) -> list[Waiter]:
        """List what has waited long enough."""
        return [waiter for waiter in self._all() if waiter.deadline <= now and not waiter.busy]

    def next_deadline(self) -> float | None:
        """Return when the next has."""
        return min((waiter.deadline for waiter in self._all()), default=None)

    def _all(self) -> list[Waiter]:
        return [waiter for link in self.links.values() for waiter in link.waiters.values()]

    def _leave(self, waiter: Waiter) -> None:
        waiters = self._of.get(waiter.approval)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._of[waiter.approval]


def since_boot() -> float:
    """Return seconds since the host's start, those that it slept included (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Seconds since 1970, never less than what was seen before."""

    __slots__ = ("_at", "_latest", "_steady", "_wall")

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot) -> None:
        self._wall, self._steady = wall, steady
        self._at = steady()
        self._latest = wall()

    def now(self, seen: float = 0.0) -> float:
        """Return the time; `seen` is what somebody else knows to have been already."""
        at = self._steady()
        self._latest = max(self._wall(), self._latest + max(at - self._at, 0.0), seen)
        self._at = at
        return self._latest


class ApprovalUpdate(NamedTuple):
    """Change that the registry reports to watchers, notifiers and reviewers."""

    kind: str  # asked, joined, answered, expired, superseded, over (its task is), revoked, flood, tainted
    task: str  # id; empty where only the approval request is known
    approval: str = ""
    text: str = ""  # as the sandbox has it: escape it
    here: bool = True  # no: another host's registry did it, and has told its receivers
