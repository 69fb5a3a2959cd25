"""Merges a task's changes into its workspace, all or some; each change is decided and written by itself.

A change that is already in the workspace stays as it is. So after an interruption, the user accepts again.
The journal records the decision and who made it before the first change, and the result after the last.
"""

import contextlib
import errno
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from enforcer.system.errors import HostError, UsageError
from enforcer.system.started_by import login_uid
from enforcer.workspace import merge_decision
from enforcer.workspace.atomic_replace import AtomicReplacer, ConcurrentChangeError, NewEntry
from enforcer.workspace.change_store import ACCEPTED, DISCARDED, Change, ChangeKind, Meta, StoredChanges, mode
from enforcer.workspace.merge_approval import request_approval
from enforcer.workspace.merge_decision import MergeInputs, MergeMethod, MergeResult, decide, open_workspace
from enforcer.workspace.overlay_changes import gather
from enforcer.workspace.protected_changes import Protection
from enforcer.workspace.safe_path import Entry, EntryType
from proxy.approvals.protocol import Answer, Result
from proxy.telemetry import events
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Approval, Event, IdMaker, Instant, Kind, Origin
from proxy.telemetry.journal.writer import Journal, JournalWriteError
from proxy.telemetry.visible import visible
from rules import verdicts
from rules.verdicts import Reason

if TYPE_CHECKING:
    from enforcer.workspace.merge_approval import Ask
    from enforcer.workspace.merge_decision import ChangeDigest
    from proxy.approvals.approval_request import ApprovalRequest


_MAX_NAMED: Final = 5  # paths of one change


class Outcome(NamedTuple):
    """Result of one change. `reason`: why it was not merged."""

    change: Change
    accepted: bool
    reason: str = ""
    method: MergeMethod = MergeMethod.CONFLICT


class Selection(NamedTuple):
    """Selected changes: those at and below these paths (none: all), and exactly these protected paths."""

    paths: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()

    def has(self, path: str) -> bool:
        """Whether the change at a path is selected."""
        if not self.paths or path in self.protected:
            return True
        return any(path == selected or path.startswith(selected + "/") for selected in self.paths)


def load_changes(stored: StoredChanges) -> list[Change]:
    """Return every change; gathers them if the run was killed before that. Raises BusyError, HostError."""
    try:
        if stored.is_gathered:
            return stored.changes()
        stored.lock()
        try:
            with open_workspace(stored) as workspace:
                return gather(stored, workspace)
        finally:
            stored.unlock()
    except (OSError, ValueError) as error:
        raise HostError(f"cannot read the changes in `{stored.place}`: {visible(str(error))}") from error


def load_pending(stored: StoredChanges) -> list[Change]:
    """Return every change that was neither accepted nor discarded."""
    everything = load_changes(stored)
    settled_paths = stored.settled()
    return [change for change in everything if change.path not in settled_paths]


def select_changes(changes: Collection[Change], selection: Selection, brought: Collection[str] = ()) -> list[Change]:
    """Return the selected changes, with the new directories above them. Raises UsageError for none.

    `brought`: paths of protected files that other changes bring.
    """
    for path in (*selection.paths, *selection.protected):
        if path in brought and path in selection.protected:
            continue
        is_change = any(change.path == path or change.path.startswith(path + "/") for change in changes)
        if not is_change or (path in selection.protected and path not in {change.path for change in changes}):
            raise UsageError(f"`{path}` is not among the changes; paths are relative to the workspace")
    selected = {change.path for change in changes if selection.has(change.path)}
    parents = {parent for path in selected for parent in _parents(path)}
    return [
        change
        for change in changes
        if change.path in selected
        or (change.path in parents and change.theirs is not None and change.theirs.what is EntryType.DIRECTORY)
    ]


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def accept(
    stored: StoredChanges, selection: Selection, protection: Protection, ask: "Ask | None" = None
) -> list[Outcome]:
    """Merge the selected changes. The caller has locked `stored`. Raises HostError, UsageError.

    `ask` submits an approval request, if the rules of the task require an approval for protected paths.
    """
    everything = load_pending(stored)
    with contextlib.closing(ChangeRecorder(stored.meta)) as recorder, MergeInputs.open(stored) as inputs:
        protection.inspect_git(inputs, stored.changes())
        brought = {path for change in everything for path in protection.needs(change)}
        changes = select_changes(everything, selection, brought)
        needs = {change.path: protection.needs(change) for change in changes if protection.covers(change)}
        left_reasons = {change.path: "" for change in changes if not protection.lets(change, selection.protected)}
        with contextlib.closing(_WorkspaceMerge(inputs)) as merging:
            merging.recover()
            covered_changes = [change for change in changes if change.path in needs and change.path not in left_reasons]
            brought_files = [
                file
                for change in covered_changes
                if change.path in protection.git
                for file in protection.git[change.path].files
            ]
            approval_result = request_approval(
                inputs, covered_changes, _record_unanswered(recorder, ask), brought_files
            )
            left_reasons.update(
                (path, approval_result.refused) for path in approval_result.prints if approval_result.holds(path)
            )
            accepted_paths = [change.path for change in changes if change.path not in left_reasons]
            cause = recorder.record(Kind.CHANGES_ACCEPTED, accepted_paths, approval=approval_result.approval)
            outcomes = [
                Outcome(
                    change,
                    accepted=False,
                    reason=left_reasons[change.path] or _explain_missing_option(change, protection),
                )
                if change.path in left_reasons
                else merging.merge_change(change, approval_result.prints)
                for change in _sort_for_merge(changes)
            ]
            merging.set_modes()
        merged = [outcome.change.path for outcome in outcomes if outcome.accepted]
        left_count = len(outcomes) - len(merged)
        try:
            stored.settle(merged, ACCEPTED)
            stored.clear_intents()
        except OSError as error:
            raise HostError(f"cannot write `{stored.place}`: {error.strerror}; accept again") from error
        detail = f"{left_count} left" if left_count else ""
        recorder.record(Kind.CHANGES_MERGED, merged, detail=detail, cause=cause, approval=approval_result.approval)
    return outcomes


def _explain_missing_option(change: Change, protection: Protection) -> str:
    needs = protection.needs(change)
    if needs == (change.path,):
        inspected = protection.git.get(change.path)
        suffix = f", as {inspected.why}" if inspected is not None and inspected.why else ""
        return f"it is protected{suffix}: accept it with `--protected {change.path}`"
    shown = " ".join(f"--protected {path}" for path in needs[:_MAX_NAMED])
    rest = "" if len(needs) <= _MAX_NAMED else f", and {len(needs) - _MAX_NAMED} more, or `--protected {change.path}`"
    return f"it brings protected files: accept them with `{shown}`{rest}"


def _record_unanswered(recorder: "ChangeRecorder", ask: "Ask | None") -> "Ask":
    """Wrap `ask` so that the journal also records requests that nobody could answer."""

    def ask_and_record(request: "ApprovalRequest") -> Answer:
        answer = Answer(0, Result.UNAVAILABLE, why="no approvals server is reachable") if ask is None else ask(request)
        if answer.result is Result.UNAVAILABLE:
            recorder.record_unavailable(request, answer.why)
        return answer

    return ask_and_record


def discard(stored: StoredChanges, selection: Selection) -> list[Change]:
    """Discard the selected changes. The caller has locked `stored`. Raises HostError, UsageError."""
    changes = [change for change in load_pending(stored) if selection.has(change.path)]
    select_changes(changes, selection)
    with contextlib.closing(ChangeRecorder(stored.meta)) as recorder:
        recorder.record(Kind.CHANGES_DISCARDED, [change.path for change in changes])
    try:
        stored.settle((change.path for change in changes), DISCARDED)
    except OSError as error:
        raise HostError(f"cannot write `{stored.place}`: {error.strerror}") from error
    return changes


def remove_if_settled(stored: StoredChanges) -> bool:
    """Remove the stored changes once none is pending; return whether. The caller has locked `stored`."""
    if any(change.kind is not ChangeKind.LEFT_OUT for change in load_pending(stored)):
        return False
    try:
        stored.remove()
    except OSError as error:
        raise HostError(f"cannot remove `{stored.place}`: {error.strerror or error}") from error
    return True


def _sort_for_merge(changes: Iterable[Change]) -> list[Change]:
    """Sort deletions first, from the inside out; then the rest, from the outside in."""
    deletions = [change for change in changes if change.theirs is None]
    return [*reversed(deletions), *(change for change in changes if change.theirs is not None)]


class _WorkspaceMerge:
    """Merge of changes into a workspace. Close it."""

    def __init__(self, inputs: MergeInputs) -> None:
        self._inputs = inputs
        self._replacer = AtomicReplacer(inputs.workspace, inputs.stored)
        self._modes: list[tuple[str, int]] = []  # of new directories, once they are full

    def recover(self) -> None:
        """Finish an earlier merge that was interrupted. Raises HostError."""
        with self._inputs.acting():
            problems = self._replacer.recover()
        if problems:
            raise HostError(f"cannot finish an earlier merge that was interrupted: {visible(problems[0])}")

    def close(self) -> None:
        """Release the workspace."""
        self._replacer.close()

    def merge_change(self, change: Change, approved: Mapping[str, "ChangeDigest | None"]) -> Outcome:
        """Decide on one change, and merge it. A change in `approved` is merged only if its digest is unchanged."""
        source = -1
        try:
            ours = self._inputs.current(change)
            decision = decide(change, ours, self._inputs)
            if decision.method in (MergeMethod.TAKE, MergeMethod.MERGE):
                theirs = ""
                if (
                    decision.method is MergeMethod.TAKE
                    and change.theirs is not None
                    and change.theirs.what is EntryType.FILE
                ):
                    asked = change.path in approved
                    source, theirs = self._inputs.staged_copy(change) if asked else (self._inputs.open_new(change), "")
                if change.path in approved:
                    is_it = (
                        merge_decision.compute_change_digest(self._inputs, change, ours, decision, theirs)
                        == approved[change.path]
                    )
                    if not is_it:
                        return Outcome(
                            change,
                            accepted=False,
                            reason="it changed after the approval: accept again to ask for a new one",
                        )
                self._apply(change, ours, decision, source)
        except ConcurrentChangeError as error:
            return Outcome(change, accepted=False, reason=error.strerror or "")
        except OSError as error:
            return Outcome(change, accepted=False, reason=_describe_error(error))
        finally:
            if source >= 0:
                os.close(source)
        accepted = decision.method not in (MergeMethod.CONFLICT, MergeMethod.LEFT_OUT)
        return Outcome(change, accepted, decision.reason, decision.method)

    def set_modes(self) -> None:
        """Set the modes of new directories."""
        for path, new_mode in reversed(self._modes):
            with self._inputs.acting(), contextlib.suppress(OSError):
                ours = self._inputs.workspace.stat(path)
                if ours is not None:
                    self._replacer.change_mode(path, ours, new_mode)

    def _apply(self, change: Change, ours: Entry | None, decision: MergeResult, source: int) -> None:
        theirs = change.theirs
        if theirs is None:
            if ours is not None:
                with self._inputs.acting():
                    self._replacer.remove(change.path, ours)
        elif theirs.what is EntryType.DIRECTORY and ours is not None and ours.what is EntryType.DIRECTORY:
            with self._inputs.acting():
                self._replacer.change_mode(change.path, ours, mode(theirs))
        elif decision.method is MergeMethod.MERGE:
            self._replace(change, ours, NewEntry(EntryType.FILE, decision.mode, decision.content))
        elif theirs.what is EntryType.FILE:
            self._replace(change, ours, NewEntry(EntryType.FILE, mode(theirs), source=source))
        else:
            if theirs.what is EntryType.DIRECTORY:
                self._modes.append((change.path, mode(theirs)))
            self._replace(change, ours, NewEntry(theirs.what, mode(theirs), target=theirs.target))

    def _replace(self, change: Change, ours: Entry | None, new: NewEntry) -> None:
        with self._inputs.acting():
            self._replacer.put(change.path, ours, new)


def _describe_error(error: OSError) -> str:
    if error.errno == errno.ENOTEMPTY:
        return "it now contains something that the task did not delete"
    if error.errno in (errno.ELOOP, errno.EXDEV):
        return "its path now leads through a symbolic link or a mount"
    return error.strerror or str(error)


class ChangeRecorder:
    """Recorder of events about one task's changes. Close it."""

    def __init__(self, meta: Meta) -> None:
        """Open the journal of the task's run. Raises HostError: without a journal nothing is changed."""
        self._journal_path = meta.journal
        self._origin = Origin.of(meta.id, meta.name, dict(meta.labels), meta.sandbox, os.uname().nodename)
        self._ids = IdMaker()
        try:
            self._journal = Journal(Path(meta.journal))
        except JournalWriteError as error:
            raise self._journal_error(error) from error

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
            kind, outcome=verdicts.Outcome.PASSED, cause=cause, detail=detail, paths=tuple(paths), approval=approval
        )

    def record_unavailable(self, question: "ApprovalRequest", reason: str) -> None:
        """Record that an approval request could not be submitted. Raises HostError."""
        self._write(
            Kind.APPROVAL_REFUSED,
            rules=tuple(asks.rule for asks in question.rules),
            revision=question.revision,
            outcome=verdicts.Outcome.BLOCKED,
            reason=Reason.APPROVAL_UNAVAILABLE,
            detail=reason,
            paths=tuple(file.path for file in question.files),
            approval=Approval("", question.kind, answer=events.Answer.UNAVAILABLE),
        )

    def _write(self, kind: Kind, **fields: Any) -> str:
        now = time.time_ns()
        event = Event(Instant(now), self._ids.make(now), kind, **self._origin._asdict(), by=describe_user(), **fields)
        try:
            self._journal.append(encode(event), event.time)
        except JournalWriteError as error:
            raise self._journal_error(error) from error
        return event.id

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _journal_error(self, error: JournalWriteError) -> HostError:
        return HostError(
            f"cannot write the journal `{self._journal_path}`, so nothing is changed: {error.strerror or error}"
        )


def describe_user() -> str:
    """Return the user of this process, and the login user (`loginuid`, which sudo keeps) if that is another."""
    user, login = os.getuid(), login_uid()
    return _user_name(user) if login in (None, user) else f"{_user_name(user)}, logged in as {_user_name(login)}"


def _user_name(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
