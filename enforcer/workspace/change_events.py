"""Records what becomes of a task's changes: who decides, before anything is done, and the result after it."""

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


class Teller:
    """Writes events of one task's changes. Close it."""

    def __init__(self, meta: Meta) -> None:
        """Open the journal that the task's run wrote to. Raises HostError: what can't be told isn't done."""
        self._where = meta.journal
        self._origin = Origin.of(meta.id, meta.name, dict(meta.labels), meta.sandbox, os.uname().nodename)
        self._ids = IdMaker()
        try:
            self._journal = Journal(Path(meta.journal))
        except JournalWriteError as error:
            raise self._failed(error) from error

    def tell(
        self,
        kind: Kind,
        paths: Sequence[str],
        *,
        detail: str = "",
        cause: str | None = None,
        approval: Approval | None = None,
    ) -> str:
        """Tell what somebody does, or what came of it (`cause`), and return the event's id. Raises HostError.

        `approval`: by whose leave.
        """
        return self._write(
            kind, outcome=Outcome.PASSED, cause=cause, detail=detail, paths=tuple(paths), approval=approval
        )

    def unasked(self, question: "ApprovalRequest", why: str) -> None:
        """Tell that nobody could be asked for an approval. Raises HostError."""
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
        event = Event(Instant(now), self._ids.make(now), kind, **self._origin._asdict(), by=somebody(), **fields)
        try:
            self._journal.append(encode(event), event.time)
        except JournalWriteError as error:
            raise self._failed(error) from error
        return event.id

    def close(self) -> None:
        """Write no more."""
        self._journal.close()

    def _failed(self, error: JournalWriteError) -> HostError:
        return HostError(
            f"the journal `{self._where}` cannot be written, so nothing is done: {error.strerror or error}"
        )


def somebody() -> str:
    """Say who this is: the user, and who logged in where that is another, which no sudo changes."""
    user, login = os.getuid(), login_uid()
    return _named(user) if login in (None, user) else f"{_named(user)}, logged in as {_named(login)}"


def _named(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
