"""The journals that the registry writes into: that of each task's gate, and this user's own for whatever has none."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer import keeping, state
from enforcer.errors import HostError
from proxy.approvals.recording import origin
from proxy.telemetry.approving import ApprovalRecorder
from proxy.telemetry.events import Destination, Origin
from proxy.telemetry.journal.keeper import Keeper
from proxy.telemetry.journal.writing import Journal

if TYPE_CHECKING:
    from proxy.approvals.approval_request import Question
    from proxy.approvals.model import Task
    from proxy.telemetry.usual.looking import Before


class Journals:
    """All of them."""

    def __init__(self) -> None:
        self._own = state.make_private(state.journal_directory())
        self._of: dict[str, Path] = {}  # by task
        self._open: dict[Path, Journal] = {}

    def introduced(self, task: str, journal: Path) -> None:
        """Know where a task's gate writes."""
        self._of[task] = journal

    def recorder(self, task: "Task | None") -> ApprovalRecorder:
        """Return what tells of a task; None: of none that anybody knows. Raises JournalFailed."""
        where = self._own if task is None else self._of.get(task.id, self._own)
        journal = self._open.get(where)
        if journal is None:
            journal = self._open[where] = Journal(where)
        return ApprovalRecorder(Origin(host=os.uname().nodename) if task is None else origin(task), journal)

    def before(self, task: "Task", question: "Question") -> "Before | None":
        """Return what is known of a task's name and of where it wants to go. Reads a file; never raises."""
        from proxy.telemetry.usual.looking import before

        if not question.host:
            return None
        try:
            kept = keeping.place(self._of.get(task.id, self._own))
        except HostError:
            return None
        return before(kept, task.name, Destination(question.host, None, question.port))

    def gone(self, task: str) -> None:
        """Forget where a task's gate wrote: there is none any more. What is told of it later is in this user's own."""
        self._of.pop(task, None)

    def close(self, *, sign: bool) -> None:
        """Close all, and have what was written signed, as whoever writes to a journal does; not where that is gone."""
        for where, journal in self._open.items():
            journal.close()
            if sign:
                Keeper(where, keeping.place(where), _say).close((os.getpid(),))
        self._open.clear()


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))
