"""Records events about a task's changes: the decision and who made it, before the change, and the result after it."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enforcer.system.errors import HostError
from enforcer.system.started_by import login_uid
from enforcer.workspace.change_store import Meta
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Answer, Approval, Event, IdMaker, Instant, Kind, Origin
from proxy.telemetry.journal.writer import Journal, JournalWriteError
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from proxy.approvals.approval_request import ApprovalRequest


class ChangeRecorder:
    """Recorder of events about one task's changes. Close it."""

    def __init__(self, meta: Meta) -> None:
        """Open the journal of the task's run. Raises HostError: nothing is changed that can't be recorded."""
        self._where = meta.journal
        self._origin = Origin.of(meta.id, meta.name, dict(meta.labels), meta.sandbox, os.uname().nodename)
        self._ids = IdMaker()
        try:
            self._journal = Journal(Path(meta.journal))
        except JournalWriteError as error:
            raise self._failed(error) from error

    def record(
        self,
        kind: Kind,
        paths: Sequence[str],
        *,
        detail: str = "",
        cause: str | None = None,
        approval: Approval | None = None,
    ) -> str:
        """Record a decision, or its result (`cause`), and return the event's id. Raises HostError.

        `approval`: the approval that allowed it.
        """
        return self._write(
            kind, outcome=Outcome.PASSED, cause=cause, detail=detail, paths=tuple(paths), approval=approval
        )

    def record_unavailable(self, question: "ApprovalRequest", why: str) -> None:
        """Record that an approval request could not be submitted. Raises HostError."""
        self._write(
            Kind.APPROVAL_REFUSED,
            rules=tuple(asks.rule for asks in question.rules),
            revision=question.revision,
            outcome=Outcome.BLOCKED,
            reason=Reason.APPROVAL_UNAVAILABLE,
            detail=why,
            paths=tuple(file.path for file in question.files),
            approval=Approval("", question.kind, answer=Answer.UNAVAILABLE),
        )

    def _write(self, kind: Kind, **fields: Any) -> str:
        now = time.time_ns()
        event = Event(Instant(now), self._ids.make(now), kind, **self._origin._asdict(), by=describe_user(), **fields)
        try:
            self._journal.append(encode(event), event.time)
        except JournalWriteError as error:
            raise self._failed(error) from error
        return event.id

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _failed(self, error: JournalWriteError) -> HostError:
        return HostError(f"cannot write the journal `{self._where}`, so nothing is changed: {error.strerror or error}")


def describe_user() -> str:
    """Return the user of this process, and the login user (`loginuid`, which sudo keeps) if that is another."""
    user, login = os.getuid(), login_uid()
    return _named(user) if login in (None, user) else f"{_named(user)}, logged in as {_named(login)}"


def _named(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
