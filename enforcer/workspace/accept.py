"""Merge a task's changes into its workspace: all of them, or some. Each is decided on and put in place by itself.

What is accepted twice is accepted once: a change that is in already is left as it is. So whoever is stopped half-way
accepts again.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.system.errors import HostError, UsageError
from enforcer.workspace import prints
from enforcer.workspace.approving import sought
from enforcer.workspace.beneath import Entry, What
from enforcer.workspace.change import Change, ChangeKind, mode
from enforcer.workspace.decide import Settled, Way, decide
from enforcer.workspace.gather import gather
from enforcer.workspace.globs import Globs
from enforcer.workspace.kept import ACCEPTED, DISCARDED, Kept
from enforcer.workspace.lookalikes import plain
from enforcer.workspace.place import MeanwhileError, New, Place
from enforcer.workspace.sides import Sides, Versions, opened
from enforcer.workspace.telling import Teller
from proxy.approvals.protocol import Answer, Result
from proxy.telemetry.events import Kind
from proxy.telemetry.visible import visible

if TYPE_CHECKING:
    from enforcer.workspace.approving import Ask
    from enforcer.workspace.commits import Found
    from enforcer.workspace.prints import Print
    from proxy.approvals.approval_request import Question


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


class Protection:
    """Which changes need their path said.

    What the globs match, and what could stand in for it: a file or link where they mean a directory (`.git`,
    `.vscode`), also one that goes, links where they mean any directories (below `.git/modules`), links that may lead
    out of the workspace, and directories in and above what they mean that anybody may write from then on.
    """

    def __init__(self, globs: Iterable[str], groups: Collection[str | None] = ()) -> None:
        """Take the globs that were in force when the task ran, or are now, and whose approval merges take besides."""
        self._globs = Globs(globs)
        self.git: Mapping[str, Found] = {}  # what is to be known of changes to Git data, once somebody has looked
        named = " and ".join(sorted({group for group in groups if group is not None}))
        self.also = "" if not groups else f", and an approval{' of ' if named else ''}{named}"

    def look(self, sides: Sides, changes: Collection[Change]) -> None:
        """See which of all changes bring protected files along in a commit or an index: those are protected, too."""
        from enforcer.workspace import commits  # most tasks' changes aren't of Git data

        self.git = commits.look(sides, changes, self)

    def needs(self, change: Change) -> tuple[str, ...]:
        """Return the paths that have to be said before a change is accepted: its own, or those of what it brings."""
        found = self.git.get(change.path)
        if found is not None and not found.why and not self._covers(change):
            return tuple(dict.fromkeys(each.path for each in found.files))
        return (change.path,) if self.covers(change) else ()

    def lets(self, change: Change, said: Collection[str]) -> bool:
        """Whether all that has to be said was; who names the change itself has said it."""
        return change.path in said or {*self.needs(change)} <= {*said}

    def covers(self, change: Change) -> bool:
        """Whether a change is protected."""
        return change.path in self.git or self._covers(change)

    def _covers(self, change: Change) -> bool:
        theirs, stood = change.theirs, change.base
        if theirs is not None and theirs.what in (What.FILE, What.LINK) and _is_head(change.path):
            return True
        if _is_anybodys(theirs) and not _is_anybodys(stood):
            return self._globs.match(change.path) or self._globs.above(change.path)
        if theirs is not None and theirs.what is What.DIRECTORY and change.kind is ChangeKind.ADDED:
            return False  # does nothing by itself
        if change.leads_out or self._globs.match(change.path):
            return True
        if theirs is not None and theirs.what is What.LINK and self._globs.reach(change.path):
            return True
        either = any(side is not None and side.what is not What.DIRECTORY for side in (stood, theirs))
        return either and self._globs.above(change.path)


def _is_head(path: str) -> bool:
    *above, name = plain(path).split("/")
    return name == "head" and ".git" not in above


def _is_anybodys(entry: Entry | None) -> bool:
    return entry is not None and entry.what is What.DIRECTORY and bool(entry.mode & stat.S_IWOTH)


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

    def asked(question: "Question") -> Answer:
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
            settled = decide(change, ours, Versions(self._sides, change))
            if settled.way in (Way.TAKE, Way.MERGE):
                theirs = ""
                if settled.way is Way.TAKE and change.theirs is not None and change.theirs.what is What.FILE:
                    asked = change.path in approved
                    source, theirs = self._sides.staged(change) if asked else (self._sides.their_file(change), "")
                if change.path in approved:
                    is_it = prints.of(self._sides, change, ours, settled, theirs) == approved[change.path]
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
