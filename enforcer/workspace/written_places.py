"""Places that a task writes: its workspace, directly or through a review, and those of `write`.

Files that a host executes or reads settings from are protected in all of them: a hook in `.git` of another project, the
settings of an agent in a home. In a place that is written directly they are masked, and differences at the end are
recorded. Where a place is such a file itself, the task was given it by name: it isn't masked, and changes are recorded.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.sandbox.system_paths import contains, home_directories
from enforcer.system.errors import HostError
from enforcer.system.inotify import IN_CREATE, IN_DONT_FOLLOW, IN_ONLYDIR, Inotify
from enforcer.system.notices import print_notice
from enforcer.workspace.protected_files import Guard, OutsideProtection, globs_when_direct, is_obeyed, protect_outside
from enforcer.workspace.repository import explain_hidden, explain_read_only, list_other_worktrees
from enforcer.workspace.repository_scan import list_user_git_files
from proxy.telemetry.visible import visible
from rules.sandbox import WorkspaceMode

if TYPE_CHECKING:
    from enforcer.limits.disk_quota import DiskQuota
    from enforcer.limits.resource_limits import Limits
    from enforcer.policy.run_request import RunRequest
    from enforcer.sandbox.identity import Identity
    from enforcer.workspace.change_store import Change, Meta
    from enforcer.workspace.review import Review
    from proxy.sandbox.sandbox_state import SandboxState

_SHOWN = 5  # paths that are said
_BY_REVIEW: Final = ", or let the task do it under `--review`"


class PlaceReport(NamedTuple):
    """What a task has done to what is protected in one place: paths, relative to a workspace and else whole."""

    differing: tuple[str, ...] = ()
    kept: "tuple[Change, ...]" = ()  # quarantined
    said: tuple[str, ...] = ()


class GuardedPlace:
    """One path that a task may write, with its protected files. Close it."""

    def __init__(
        self, place: str, guard: Guard, *, globs: Sequence[str] = (), number: int = 0, covered: bool = True
    ) -> None:
        """Take a guard of it. `number`: 0 is the workspace. `globs`: what is protected there and in no workspace."""
        self._guard = guard
        self._place = place
        self._globs = tuple(globs)
        self._number = number
        self._covered = covered
        self._refused = _DeniedConfigWrite(place, guard) if covered else None
        self._renamed: dict[str, str] | None = None  # what was made, by another name; None: nobody has looked

    def paths(self) -> tuple[str, ...]:
        """Return the whole paths that the task must not write."""
        return self._guard.paths() if self._covered else ()

    def hide(self) -> dict[str, str]:
        """Rename the new protected files that can be found quickly. Return the new names by the old ones."""
        if self._renamed is None:
            self._renamed = self._rename(self._guard.find_new_quickly()) if self._covered else {}
        return {self._named(path): self._named(name) for path, name in self._renamed.items()}

    def finish(self, meta: "Callable[[], Meta]") -> PlaceReport:
        """Quarantine new protected files, and report which others differ. `meta` describes the task."""
        self.hide()
        called = self._renamed or {}
        changed = self._guard.find_changed()
        if not self._covered:
            paths = tuple(map(self._named, changed))
            line = f"files changed that this host executes or reads settings from; check them first: {name_some(paths)}"
            return PlaceReport(paths, said=(line,) if paths else ())
        made = sorted({*called, *self._guard.find_new(changed)})
        kept, left, said = self._quarantine(meta(), made, called) if made else ((), [], [])
        aside = [path for path in made if path not in left]
        called |= self._rename([path for path in left if path not in called])
        if names := [f"{self._named(path)} is {self._named(called[path])}" for path in left if path in called]:
            told = "new protected files that can't be quarantined were renamed"
            said.append(f"{told}: {name_some(names)}")
        while self._guard.is_cut and self._rename(self._guard.find_new(self._guard.find_changed())):
            pass  # of those that a task made without number, no more than some are in memory at a time
        gone = {*aside, *called}
        differing = sorted({*changed, *made, *(change.path for change in kept)})
        stay = [path for path in differing if not any(path == one or path.startswith(f"{one}/") for one in gone)]
        if self._refused is not None and self._refused.happened() and self._refused.path not in differing:
            path, or_reviewed = visible(self._named(self._refused.path)), "" if self._number else _BY_REVIEW
            said.append(
                f"git could not change `{path}`, which is protected (it says `Device or resource busy`): change it "
                f"yourself{or_reviewed}; what it needs for itself, `git config --global` takes as long as it runs"
            )
        if self._guard.unguarded:
            said.append(f"{self._guard.unguarded} repositories in `{visible(self._place)}` were too many to guard")
        if not self._guard.is_searched:
            told = "has more directories than are looked through for repositories"
            said.append(f"`{visible(self._place)}` {told}: name those far below with `--write`, or they aren't guarded")
        if stay:
            told = "protected files changed; check them before any program runs them"
            said.append(f"{told}: {name_some([*map(self._named, stay)])}")
        return PlaceReport(tuple(map(self._named, differing)), kept, tuple(said))

    def close(self) -> None:
        """Release it."""
        self._guard.close()
        if self._refused is not None:
            self._refused.close()

    def _quarantine(
        self, meta: "Meta", made: Sequence[str], called: dict[str, str]
    ) -> "tuple[tuple[Change, ...], list[str], list[str]]":
        from enforcer.workspace.quarantine import quarantine_files

        # Of a repository its configuration and hooks are protected anyway
        also = [path for path in made if os.path.basename(path) != ".git"]
        meta = replace(meta, protected=(*meta.protected, *self._globs, *also))
        if self._number:
            status = os.fstat(self._guard.tree.descriptor)
            meta = replace(meta, id=f"{meta.id}-{self._number}", workspace=self._place)
            meta = replace(meta, device=status.st_dev, inode=status.st_ino, uid=status.st_uid, gid=status.st_gid)
        try:
            changes, left = quarantine_files(meta, self._guard.tree, made, called)
        except HostError as error:
            return (), list(made), [str(error)]
        aside = [self._named(path) for path in made if path not in left]
        said = (
            f"new protected files are quarantined ({name_some(aside)}): see them with "
            f"`exeat changes {meta.id}`, then accept or discard them"
        )
        return tuple(changes), left, [said] if changes else []

    def _rename(self, paths: Sequence[str]) -> dict[str, str]:
        if not paths:
            return {}
        from enforcer.workspace.quarantine import rename_aside

        return rename_aside(self._guard.tree, paths, os.fstat(self._guard.tree.descriptor).st_uid)

    def _named(self, path: str) -> str:
        return f"{self._place.rstrip('/')}/{path}" if self._number else path


class _DeniedConfigWrite:
    """Whether Git was refused to write a repository's configuration anew: it makes `config.lock` first. Close it."""

    def __init__(self, place: str, guard: Guard) -> None:
        self._events: Inotify | None = None
        top = place.rstrip("/")
        # Of a place that is a repository itself, as that of a linked worktree, the configuration is at its top
        self.path = next((path for path in (".git/config", "config") if f"{top}/{path}" in guard.paths()), "")
        if not self.path:
            return
        with contextlib.suppress(OSError):  # a user may have no more: nothing is said then
            self._events = Inotify()
            self._events.add(os.path.dirname(f"{top}/{self.path}"), IN_CREATE | IN_ONLYDIR | IN_DONT_FOLLOW)

    def happened(self) -> bool:
        """Say so once the task has ended."""
        more, found = self._events is not None, False
        while more and self._events is not None:
            events, more = self._events.read()
            found = found or any(event.name == "config.lock" for event in events)
        return found

    def close(self) -> None:
        """Release it."""
        if self._events is not None:
            self._events.close()


def open_guarded_places(wanted: "RunRequest") -> Iterator[GuardedPlace]:
    """Look at each place that a task will write itself. Raises OSError, UsageError."""
    is_direct = wanted.settings.workspace is not WorkspaceMode.REVIEW
    if is_direct:
        yield GuardedPlace(wanted.workspace, Guard(wanted.workspace, globs_when_direct(wanted.settings.protected)))
    of_host = () if not wanted.write else home_directories() if wanted.homes is None else wanted.homes
    of_git = list_user_git_files() if wanted.write else frozenset()
    for number, place in enumerate(wanted.write, 1):
        if is_direct and contains(wanted.workspace, place):
            continue
        if os.path.isdir(place):
            found = protect_outside(place, of_host)
            if any(contains(path, place) for path in of_git):
                found = OutsideProtection(("*",), is_covered=False)
            found = found._replace(globs=(*found.globs, *list_other_worktrees(wanted.workspace, place)))
            guard = Guard(place, found.globs)
            yield GuardedPlace(place, guard, globs=found.globs, number=number, covered=found.is_covered)
        elif place in of_git or is_obeyed(place, of_host):
            above, name = os.path.split(place)
            yield GuardedPlace(above, Guard(above, (name,)), number=number, covered=False)


def name_some(paths: Sequence[str]) -> str:
    """Name the first of several paths."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(visible, paths[:_SHOWN])) + more


class Workspace:
    """One task's, from before its start to after its end. Close it."""

    def __init__(self, wanted: "RunRequest", sandbox_state: "SandboxState", journal: Path, who: "Identity") -> None:
        """Prepare it, as the box in force says. Raises HostError, UsageError."""
        self._review: Review | None = None
        self._places: list[GuardedPlace] = []
        self._whose = wanted, sandbox_state, journal
        self._seen = False  # whether what was done to protected files was
        self.review = ""  # the directory that changes go to; empty: the workspace itself
        self.guarded: tuple[str, ...] = ()  # whole paths that the task must not write
        self.trees: Mapping[str, int] = {}  # detached mounts, by path
        self.layer: DiskQuota | None = None  # what bounds the changes
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            self._guard(wanted)
            if wanted.settings.workspace is WorkspaceMode.REVIEW:
                from enforcer.workspace import review

                if line := explain_read_only(wanted.workspace, wanted.shown, wanted.write):
                    print_notice(line)
                self._review = review.Review(wanted, sandbox_state, journal, who)
                self.review = self._review.layers.path
                if self._review.layers.tree is not None:
                    self.trees = {self.review: self._review.layers.tree}
            failed.pop_all()

    def _guard(self, wanted: "RunRequest") -> None:
        if wanted.settings.workspace is WorkspaceMode.REVIEW and not wanted.write:
            return
        try:
            self._places.extend(open_guarded_places(wanted))
            self.guarded = tuple(path for place in self._places for path in place.paths())
        except OSError as error:
            where = error.filename or wanted.workspace
            raise HostError(f"what the task may write, `{where}`, cannot be read: {error.strerror}") from error

    def bound(self, limits: "Limits") -> None:
        """Have what a reviewed task changes kept within limits. Raises HostError."""
        if self._review is not None:
            from enforcer.limits.disk_quota import DiskQuota

            self.layer = DiskQuota(str(self._review.stored.upper), limits)

    def finish(
        self, kept: Callable[[Sequence[str], str], None], protected: Callable[[Sequence[str]], None]
    ) -> tuple[str, ...]:
        """See what the task, which has ended, has done there; tell it by one of the two, and say it in words."""
        said = self._guarded(kept, protected) if self._places else []
        wanted = self._whose[0]
        said += [visible(line)] if (line := explain_hidden(wanted.workspace, wanted.shown)) else []
        return (*said, *(() if self._review is None else self._reviewed(self._review, kept)))

    def close(self) -> None:
        """Let go of it. Idempotent.

        Where nobody has seen what the task has done, as something went wrong, nothing runs what it has made.
        """
        if not self._seen:
            self._seen = True
            if called := {path: name for place in self._places for path, name in place.hide().items()}:
                names = name_some([f"{path} is {name}" for path, name in called.items()])
                print_notice(f"new protected files were renamed: {names}")
        if self.layer is not None:
            self.layer.close()
        if self._review is not None:
            self._review.close()
        while self._places:
            self._places.pop().close()

    def _guarded(
        self, kept: Callable[[Sequence[str], str], None], protected: Callable[[Sequence[str]], None]
    ) -> list[str]:
        """Quarantine new protected files, report them, and return the notices for the user.

        They are renamed first: the task controls how long the other steps take, and the user may interrupt those.
        """
        from enforcer.workspace.change_store import describe
        from enforcer.workspace.review import meta_of

        self._seen = True
        for place in self._places:
            place.hide()
        wanted, sandbox_state, journal = self._whose
        reports = [
            place.finish(lambda: meta_of(wanted, sandbox_state, journal, os.stat(wanted.workspace)))
            for place in self._places
        ]
        if paths := [path for report in reports for path in report.differing]:
            protected(paths)
        if changes := [change for report in reports for change in report.kept]:
            kept([change.path for change in changes], describe(changes))
        return [line for report in reports for line in report.said]

    def _reviewed(self, review: "Review", tell: Callable[[Sequence[str], str], None]) -> tuple[str, ...]:
        from enforcer.workspace.change_store import describe

        try:
            changes = review.finish()
        except HostError as error:
            return (str(error),)
        if not changes:
            return ()
        said = describe(changes)
        tell([change.path for change in changes], said)
        task = review.stored.meta.id
        return (f"its changes are kept ({said}): see them with `exeat changes {task}`, then accept or discard them",)
