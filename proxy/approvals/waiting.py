"""Who waits for which answer, in the memory of the registry that they asked: nothing here is worth keeping."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from proxy.approvals.questions import Question
    from proxy.approvals.records import Task


class Waiter:
    """One ask that has no answer yet. `busy`: it is being seen to, and its time doesn't run out meanwhile."""

    __slots__ = ("approval", "busy", "deadline", "done", "link", "number", "question")

    def __init__(self, link: "Link", number: int, question: "Question", deadline: float) -> None:
        self.link = link
        self.number = number
        self.question = question
        self.deadline = deadline
        self.approval = ""
        self.busy = False
        self.done = False


class Link:
    """One sandbox's pair of sockets, as the registry knows it."""

    __slots__ = ("connection", "grants", "task", "uid", "waiters")

    def __init__(self, connection: "Hashable", task: "Task", uid: int) -> None:
        self.connection = connection
        self.uid = uid  # of who started the task
        self.task = task
        self.waiters: dict[int, Waiter] = {}
        self.grants: set[str] = set()  # that its worker was told of


class Waiting:
    """All links and all waiters."""

    def __init__(self) -> None:
        self.links: dict[Hashable, Link] = {}
        self._of: dict[str, list[Waiter]] = {}  # by question, in the order in which they asked

    def link_of(self, task: str) -> Link | None:
        """Return a task's link, if it is one of ours."""
        return next((link for link in self.links.values() if link.task.id == task), None)

    def add(self, waiter: Waiter) -> None:
        """Have an ask wait; for which question is said by `put`."""
        if (other := waiter.link.waiters.get(waiter.number)) is not None:
            self.remove(other)  # no number is used twice: nobody waits for the other
        waiter.link.waiters[waiter.number] = waiter

    def put(self, waiter: Waiter, approval: str) -> None:
        """Have it wait for a question."""
        self._leave(waiter)
        waiter.approval = approval
        self._of.setdefault(approval, []).append(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Have it wait no more. Idempotent."""
        waiter.done = True
        waiter.link.waiters.pop(waiter.number, None)
        self._leave(waiter)

    def of(self, approval: str) -> list[Waiter]:
        """List who waits for a question, the first first."""
        return list(self._of.get(approval, ()))

    def questions(self) -> list[str]:
        """List the questions that somebody waits for."""
        return list(self._of)

    def late(self, now: float) -> list[Waiter]:
        """List who has waited long enough."""
        return [
            waiter
            for link in self.links.values()
            for waiter in link.waiters.values()
            if waiter.deadline <= now and not waiter.busy
        ]

    def next_deadline(self) -> float | None:
        """Return when the next has."""
        return min((waiter.deadline for link in self.links.values() for waiter in link.waiters.values()), default=None)

    def _leave(self, waiter: Waiter) -> None:
        waiters = self._of.get(waiter.approval)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._of[waiter.approval]
