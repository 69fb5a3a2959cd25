"""Merges a task's changes into its workspace, all or some. Each is decided on and put in place by itself.

What is accepted twice is accepted once: a change that is in already is left as it is. So whoever is stopped half-way
accepts again.
"""

import contextlib
import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.system.errors import HostError, UsageError
from enforcer.workspace import merge_decision
from enforcer.workspace.atomic_replace import MeanwhileError, New, Place
from enforcer.workspace.change_events import Teller
from enforcer.workspace.change_store import ACCEPTED, DISCARDED, Change, ChangeKind, Kept, mode
from enforcer.workspace.merge_approval import sought
from enforcer.workspace.merge_decision import Settled, Sides, Way, decide, opened
from enforcer.workspace.overlay_changes import gather
from enforcer.workspace.protection import Protection
from enforcer.workspace.safe_path import Entry, What
from proxy.approvals.protocol import Answer, Result
from proxy.telemetry.events import Kind
from proxy.telemetry.visible import visible

if TYPE_CHECKING:
    from enforcer.workspace.merge_approval import Ask
    from enforcer.workspace.merge_decision import Print
    from proxy.approvals.approval_request import ApprovalRequest


_MOST_SAID: Final = 5  # paths of one change


class Outcome(NamedTuple):
    """What became of one change; `why` says why it was left."""

    change: Change
    accepted: bool
    why: str = ""
    way: Way = Way.CONFLICT


class Selection(NamedTuple):
    """Which changes are meant: at these paths and below them (none: all), and of the protected ones exactly these."""

    paths: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()

    def has(self, path: str) -> bool:
        """Whether a change at a path is meant."""
        if not self.paths or path in self.protected:
            return True
        return any(path == one or path.startswith(one + "/") for one in self.paths)


def gathered(kept: Kept) -> list[Change]:
    """Return every change; gathers them where the run was killed before it could. Raises BusyError, HostError."""
    try:
        if kept.is_gathered:
            return kept.changes()
        kept.lock()
        try:
            with opened(kept) as workspace:
                return gather(kept, workspace)
        finally:
            kept.unlock()
    except (OSError, ValueError) as error:
        raise HostError(f"the changes in `{kept.place}` cannot be read: {visible(str(error))}") from error


def pending(kept: Kept) -> list[Change]:
    """Return every change that was neither accepted nor discarded."""
    everything = gathered(kept)
    settled = kept.settled()
    return [change for change in everything if change.path not in settled]


def chosen(changes: Collection[Change], selection: Selection, brought: Collection[str] = ()) -> list[Change]:
    """Return the changes that are meant, with the new directories that they lie in. Raises UsageError for none.

    `brought`: paths of protected files that others of them bring.
    """
    for path in (*selection.paths, *selection.protected):
        if path in brought and path in selection.protected:
            continue
        inside = any(change.path == path or change.path.startswith(path + "/") for change in changes)
        if not inside or (path in selection.protected and path not in {change.path for change in changes}):
            raise UsageError(f"`{path}` is not among the changes; paths are relative to the workspace")
    meant = {change.path for change in changes if selection.has(change.path)}
    above = {parent for path in meant for parent in _above(path)}
    return [
        change
        for change in changes
        if change.path in meant
        or (change.path in above and change.theirs is not None and change.theirs.what is What.DIRECTORY)
    ]


def _above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def accept(kept: Kept, selection: Selection, protection: Protection, ask: "Ask | None" = None) -> list[Outcome]:
    """Merge what is meant. The caller has locked `kept`. Raises HostError, UsageError.

    `ask` asks people, where the rules that the task ran under want their approval for what is protected.
    """
    everything = pending(kept)
    with contextlib.closing(Teller(kept.meta)) as teller, Sides.opened(kept) as sides:
        protection.look(sides, kept.changes())
        brought = {path for change in everything for path in protection.needs(change)}
        changes = chosen(everything, selection, brought)
        needs = {change.path: protection.needs(change) for change in changes if protection.covers(change)}
        held = {change.path: "" for change in changes if not protection.lets(change, selection.protected)}
        with contextlib.closing(_Merging(sides)) as merging:
            merging.recover()
            asked = [change for change in changes if change.path in needs and change.path not in held]
            inside = [
                each for change in asked if change.path in protection.git for each in protection.git[change.path].files
            ]
            leave = sought(sides, asked, _told(teller, ask), inside)
            held.update((path, leave.refused) for path in leave.prints if leave.holds(path))
            meant = [change.path for change in changes if change.path not in held]
            cause = teller.tell(Kind.CHANGES_ACCEPTED, meant, approval=leave.approval)
            outcomes = [
                Outcome(change, accepted=False, why=held[change.path] or _unsaid(change, protection))
                if change.path in held
                else merging.one(change, leave.prints)
                for change in _in_order(changes)
            ]
            merging.set_modes()
        done = [outcome.change.path for outcome in outcomes if outcome.accepted]
        left = len(outcomes) - len(done)
        try:
            kept.settle(done, ACCEPTED)
            kept.done()
        except OSError as error:
            raise HostError(f"`{kept.place}` cannot be written: {error.strerror}; accept again") from error
        said = f"{left} left" if left else ""
        teller.tell(Kind.CHANGES_MERGED, done, detail=said, cause=cause, approval=leave.approval)
    return outcomes


def _unsaid(change: Change, protection: Protection) -> str:
    needs = protection.needs(change)
    if needs == (change.path,):
        found = protection.git.get(change.path)
        why = f", as {found.why}" if found is not None and found.why else ""
        return f"it is protected{why}: say so with `--protected {change.path}`"
    shown = " ".join(f"--protected {path}" for path in needs[:_MOST_SAID])
    more = "" if len(needs) <= _MOST_SAID else f", and {len(needs) - _MOST_SAID} more, or `--protected {change.path}`"
    return f"it brings protected files along: say so with `{shown}`{more}"


def _told(teller: Teller, ask: "Ask | None") -> "Ask":
    """Ask so that the journal has it too where there was nobody to ask."""

    def asked(question: "ApprovalRequest") -> Answer:
        answer = Answer(0, Result.UNAVAILABLE, why="nobody is there to be asked") if ask is None else ask(question)
        if answer.result is Result.UNAVAILABLE:
            teller.unasked(question, answer.why)
        return answer

    return asked


def discard(kept: Kept, selection: Selection) -> list[Change]:
    """Give up what is meant. The caller has locked `kept`. Raises HostError, UsageError."""
    changes = [change for change in pending(kept) if selection.has(change.path)]
    chosen(changes, selection)
    with contextlib.closing(Teller(kept.meta)) as teller:
        teller.tell(Kind.CHANGES_DISCARDED, [change.path for change in changes])
    try:
        kept.settle((change.path for change in changes), DISCARDED)
    except OSError as error:
        raise HostError(f"`{kept.place}` cannot be written: {error.strerror}") from error
    return changes


def tidy(kept: Kept) -> bool:
    """Remove all that is kept when nothing of it can be accepted any more. The caller has locked `kept`."""
    if any(change.kind is not ChangeKind.LEFT_OUT for change in pending(kept)):
        return False
    try:
        kept.remove()
    except OSError as error:
        raise HostError(f"`{kept.place}` cannot be removed: {error.strerror or error}") from error
    return True


def _in_order(changes: Iterable[Change]) -> list[Change]:
    """Put what is deleted first, from the inside out; then the rest, from the outside in."""
    gone = [change for change in changes if change.theirs is None]
    return [*reversed(gone), *(change for change in changes if change.theirs is not None)]


class _Merging:
    """One go at a workspace."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._place = Place(sides.workspace, sides.kept)
        self._modes: list[tuple[str, int]] = []  # of new directories, once they are full

    def recover(self) -> None:
        """Finish what was stopped half-way last time. Raises HostError."""
        with self._sides.acting():
            problems = self._place.recover()
        if problems:
            raise HostError(f"what was stopped half-way last time could not be finished: {visible(problems[0])}")

    def close(self) -> None:
        """Write no more."""
        self._place.close()

    def one(self, change: Change, approved: Mapping[str, "Print | None"]) -> Outcome:
        """Decide on one change, and do it; what had to be `approved` only as it was."""
        source = -1
        try:
            ours = self._sides.ours(change)
            settled = decide(change, ours, self._sides)
            if settled.way in (Way.TAKE, Way.MERGE):
                theirs = ""
                if settled.way is Way.TAKE and change.theirs is not None and change.theirs.what is What.FILE:
                    asked = change.path in approved
                    source, theirs = self._sides.staged(change) if asked else (self._sides.their_file(change), "")
                if change.path in approved:
                    is_it = merge_decision.print_of(self._sides, change, ours, settled, theirs) == approved[change.path]
                    if not is_it:
                        return Outcome(change, accepted=False, why="it is not what was approved any more")
                self._do(change, ours, settled, source)
        except MeanwhileError as error:
            return Outcome(change, accepted=False, why=error.strerror or "")
        except OSError as error:
            return Outcome(change, accepted=False, why=_said(error))
        finally:
            if source >= 0:
                os.close(source)
        accepted = settled.way not in (Way.CONFLICT, Way.LEFT_OUT)
        return Outcome(change, accepted, settled.why, settled.way)

    def set_modes(self) -> None:
        """Give new directories the modes that they are to have."""
        for path, wanted in reversed(self._modes):
            with self._sides.acting(), contextlib.suppress(OSError):
                ours = self._sides.workspace.look(path)
                if ours is not None:
                    self._place.change_mode(path, ours, wanted)

    def _do(self, change: Change, ours: Entry | None, settled: Settled, source: int) -> None:
        theirs = change.theirs
        if theirs is None:
            if ours is not None:
                with self._sides.acting():
                    self._place.remove(change.path, ours)
        elif theirs.what is What.DIRECTORY and ours is not None and ours.what is What.DIRECTORY:
            with self._sides.acting():
                self._place.change_mode(change.path, ours, mode(theirs))
        elif settled.way is Way.MERGE:
            self._put(change, ours, New(What.FILE, settled.mode, settled.content))
        elif theirs.what is What.FILE:
            self._put(change, ours, New(What.FILE, mode(theirs), source=source))
        else:
            if theirs.what is What.DIRECTORY:
                self._modes.append((change.path, mode(theirs)))
            self._put(change, ours, New(theirs.what, mode(theirs), target=theirs.target))

    def _put(self, change: Change, ours: Entry | None, new: New) -> None:
        with self._sides.acting():
            self._place.put(change.path, ours, new)


def _said(error: OSError) -> str:
    if error.errno == errno.ENOTEMPTY:
        return "there is something in it by now that the task did not delete"
    if error.errno in (errno.ELOOP, errno.EXDEV):
        return "it is reached through a symbolic link or a mount by now"
    return error.strerror or str(error)
