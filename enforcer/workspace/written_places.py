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

_SHOWN = 5  # paths in one notice
_BY_REVIEW: Final = ", or let the task do it under `--review`"


class PathReport(NamedTuple):
    """What a task did to the protected files of one path: paths relative to a workspace, otherwise absolute."""

    differing: tuple[str, ...] = ()
    quarantined: "tuple[Change, ...]" = ()
    notices: tuple[str, ...] = ()


class GuardedPath:
    """One path that a task may write, with its protected files. Close it."""

    def __init__(
        self, path: str, guard: Guard, *, globs: Sequence[str] = (), number: int = 0, is_covered: bool = True
    ) -> None:
        """Take the path's guard. `number`: 0 is the workspace. `globs`: protected here, but not in a workspace."""
        self._guard = guard
        self._path = path
        self._globs = tuple(globs)
        self._number = number
        self._covered = is_covered
        self._denied_config_write = _DeniedConfigWrite(path, guard) if is_covered else None
        self._new_names: dict[str, str] | None = None  # new names of new files; None: not searched yet

    def paths(self) -> tuple[str, ...]:
        """Return the absolute paths that the task must not write."""
        return self._guard.paths() if self._covered else ()

    def hide(self) -> dict[str, str]:
        """Rename the new protected files that can be found quickly. Return the new names by the old ones."""
        if self._new_names is None:
            self._new_names = self._rename(self._guard.find_new_quickly()) if self._covered else {}
        return {self._display_path(path): self._display_path(name) for path, name in self._new_names.items()}

    def finish(self, meta: "Callable[[], Meta]") -> PathReport:
        """Quarantine new protected files, and report which others differ. `meta` describes the task."""
        self.hide()
        new_names = self._new_names or {}
        changed = self._guard.find_changed()
        if not self._covered:
            paths = tuple(map(self._display_path, changed))
            intro = "files changed that this host executes or reads settings from; check them first"
            line = f"{intro}: {name_first_paths(paths)}"
            return PathReport(paths, notices=(line,) if paths else ())
        new_files = sorted({*new_names, *self._guard.find_new(changed)})
        quarantined, not_quarantined, notices = (
            self._quarantine(meta(), new_files, new_names) if new_files else ((), [], [])
        )
        moved = [path for path in new_files if path not in not_quarantined]
        new_names |= self._rename([path for path in not_quarantined if path not in new_names])
        if names := [
            f"{self._display_path(path)} is {self._display_path(new_names[path])}"
            for path in not_quarantined
            if path in new_names
        ]:
            intro = "new protected files that can't be quarantined were renamed"
            notices.append(f"{intro}: {name_first_paths(names)}")
        while self._guard.is_cut and self._rename(self._guard.find_new(self._guard.find_changed())):
            pass  # a task may have made any number: only some are in memory at a time
        moved_or_renamed = {*moved, *new_names}
        differing = sorted({*changed, *new_files, *(change.path for change in quarantined)})
        remaining = [
            path
            for path in differing
            if not any(path == moved_path or path.startswith(f"{moved_path}/") for moved_path in moved_or_renamed)
        ]
        if (
            self._denied_config_write is not None
            and self._denied_config_write.has_happened()
            and self._denied_config_write.path not in differing
        ):
            path, or_reviewed = (
                visible(self._display_path(self._denied_config_write.path)),
                "" if self._number else _BY_REVIEW,
            )
            notices.append(
                f"git could not change `{path}`, which is protected (it says `Device or resource busy`): change it "
                f"yourself{or_reviewed}; what it needs for itself, `git config --global` takes as long as it runs"
            )
        if self._guard.unguarded:
            notices.append(f"{self._guard.unguarded} repositories in `{visible(self._path)}` were too many to guard")
        if not self._guard.is_searched:
            intro = "has more directories than are looked through for repositories"
            notices.append(
                f"`{visible(self._path)}` {intro}: name those far below with `--write`, or they aren't guarded"
            )
        if remaining:
            intro = "protected files changed; check them before any program runs them"
            notices.append(f"{intro}: {name_first_paths([*map(self._display_path, remaining)])}")
        return PathReport(tuple(map(self._display_path, differing)), quarantined, tuple(notices))

    def close(self) -> None:
        """Release it."""
        self._guard.close()
        if self._denied_config_write is not None:
            self._denied_config_write.close()

    def _quarantine(
        self, meta: "Meta", new_files: Sequence[str], new_names: dict[str, str]
    ) -> "tuple[tuple[Change, ...], list[str], list[str]]":
        from enforcer.workspace.quarantine import quarantine_files

        # Of a repository its configuration and hooks are protected anyway
        new_globs = [path for path in new_files if os.path.basename(path) != ".git"]
        meta = replace(meta, protected=(*meta.protected, *self._globs, *new_globs))
        if self._number:
            status = os.fstat(self._guard.tree.descriptor)
            meta = replace(meta, id=f"{meta.id}-{self._number}", workspace=self._path)
            meta = replace(meta, device=status.st_dev, inode=status.st_ino, uid=status.st_uid, gid=status.st_gid)
        try:
            changes, not_quarantined = quarantine_files(meta, self._guard.tree, new_files, new_names)
        except HostError as error:
            return (), list(new_files), [str(error)]
        moved = [self._display_path(path) for path in new_files if path not in not_quarantined]
        notices = (
            f"new protected files are quarantined ({name_first_paths(moved)}): see them with "
            f"`exeat changes {meta.id}`, then accept or discard them"
        )
        return tuple(changes), not_quarantined, [notices] if changes else []

    def _rename(self, paths: Sequence[str]) -> dict[str, str]:
        if not paths:
            return {}
        from enforcer.workspace.quarantine import rename_aside

        return rename_aside(self._guard.tree, paths, os.fstat(self._guard.tree.descriptor).st_uid)

    def _display_path(self, path: str) -> str:
        return f"{self._path.rstrip('/')}/{path}" if self._number else path


class _DeniedConfigWrite:
    """Detects that Git could not replace a repository's configuration: it makes `config.lock` first. Close it."""

    def __init__(self, path: str, guard: Guard) -> None:
        self._events: Inotify | None = None
        top = path.rstrip("/")
        # If the path is a repository itself, as that of a linked worktree, the configuration is at its top.
        self.path = next((path for path in (".git/config", "config") if f"{top}/{path}" in guard.paths()), "")
        if not self.path:
            return
        with contextlib.suppress(OSError):  # the user's limit is reached: there is no notice then
            self._events = Inotify()
            self._events.add(os.path.dirname(f"{top}/{self.path}"), IN_CREATE | IN_ONLYDIR | IN_DONT_FOLLOW)

    def has_happened(self) -> bool:
        """Whether Git tried it. Call this after the task has ended."""
        is_unread, has_made_lock = self._events is not None, False
        while is_unread and self._events is not None:
            events, is_unread = self._events.read()
            has_made_lock = has_made_lock or any(event.name == "config.lock" for event in events)
        return has_made_lock

    def close(self) -> None:
        """Release it."""
        if self._events is not None:
            self._events.close()


def open_guarded_paths(request: "RunRequest") -> Iterator[GuardedPath]:
    """Open each path that a task will write directly. Raises OSError, UsageError."""
    is_direct = request.settings.workspace is not WorkspaceMode.REVIEW
    if is_direct:
        yield GuardedPath(request.workspace, Guard(request.workspace, globs_when_direct(request.settings.protected)))
    homes = () if not request.write else home_directories() if request.homes is None else request.homes
    git_files = list_user_git_files() if request.write else frozenset()
    for number, path in enumerate(request.write, 1):
        if is_direct and contains(request.workspace, path):
            continue
        if os.path.isdir(path):
            protection = protect_outside(path, homes)
            if any(contains(git_file, path) for git_file in git_files):
                protection = OutsideProtection(("*",), is_covered=False)
            protection = protection._replace(globs=(*protection.globs, *list_other_worktrees(request.workspace, path)))
            guard = Guard(path, protection.globs)
            yield GuardedPath(path, guard, globs=protection.globs, number=number, is_covered=protection.is_covered)
        elif path in git_files or is_obeyed(path, homes):
            parent, name = os.path.split(path)
            yield GuardedPath(parent, Guard(parent, (name,)), number=number, is_covered=False)


def name_first_paths(paths: Sequence[str]) -> str:
    """Name the first paths of several."""
    suffix = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(visible, paths[:_SHOWN])) + suffix


class Workspace:
    """Workspace of one task, from before its start to after its end. Close it."""

    def __init__(
        self, request: "RunRequest", sandbox_state: "SandboxState", journal: Path, identity: "Identity"
    ) -> None:
        """Prepare it by the sandbox settings in force. Raises HostError, UsageError."""
        self._review: Review | None = None
        self._guarded_paths: list[GuardedPath] = []
        self._run_context = request, sandbox_state, journal
        self._is_reported = False  # changes of protected files are reported
        self.review = ""  # the directory that changes go to; empty: the workspace itself
        self.guarded: tuple[str, ...] = ()  # absolute paths that the task must not write
        self.trees: Mapping[str, int] = {}  # detached mounts, by path
        self.disk_quota: DiskQuota | None = None  # of a reviewed workspace
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            self._guard(request)
            if request.settings.workspace is WorkspaceMode.REVIEW:
                from enforcer.workspace import review

                if line := explain_read_only(request.workspace, request.shown, request.write):
                    print_notice(line)
                self._review = review.Review(request, sandbox_state, journal, identity)
                self.review = self._review.layers.path
                if self._review.layers.tree is not None:
                    self.trees = {self.review: self._review.layers.tree}
            failed.pop_all()

    def _guard(self, request: "RunRequest") -> None:
        if request.settings.workspace is WorkspaceMode.REVIEW and not request.write:
            return
        try:
            self._guarded_paths.extend(open_guarded_paths(request))
            self.guarded = tuple(path for guarded in self._guarded_paths for path in guarded.paths())
        except OSError as error:
            path_or_workspace = error.filename or request.workspace
            raise HostError(
                f"what the task may write, `{path_or_workspace}`, cannot be read: {error.strerror}"
            ) from error

    def set_limits(self, limits: "Limits") -> None:
        """Limit the size of a reviewed task's changes. Raises HostError."""
        if self._review is not None:
            from enforcer.limits.disk_quota import DiskQuota

            self.disk_quota = DiskQuota(str(self._review.stored.upper), limits)

    def finish(
        self, quarantined: Callable[[Sequence[str], str], None], protected: Callable[[Sequence[str]], None]
    ) -> tuple[str, ...]:
        """Report what the task, which has ended, changed: records it with the two functions, and returns notices."""
        notices = self._report_guarded_paths(quarantined, protected) if self._guarded_paths else []
        request = self._run_context[0]
        notices += [visible(line)] if (line := explain_hidden(request.workspace, request.shown)) else []
        return (*notices, *(() if self._review is None else self._finish_review(self._review, quarantined)))

    def close(self) -> None:
        """Release it. Idempotent.

        If an error prevented the report, new protected files are renamed here, so that no program runs them.
        """
        if not self._is_reported:
            self._is_reported = True
            if new_names := {path: name for guarded in self._guarded_paths for path, name in guarded.hide().items()}:
                names = name_first_paths([f"{path} is {name}" for path, name in new_names.items()])
                print_notice(f"new protected files were renamed: {names}")
        if self.disk_quota is not None:
            self.disk_quota.close()
        if self._review is not None:
            self._review.close()
        while self._guarded_paths:
            self._guarded_paths.pop().close()

    def _report_guarded_paths(
        self, quarantined: Callable[[Sequence[str], str], None], protected: Callable[[Sequence[str]], None]
    ) -> list[str]:
        """Quarantine new protected files, report them, and return the notices for the user.

        They are renamed first: the task controls how long the other steps take, and the user may interrupt those.
        """
        from enforcer.workspace.change_store import describe
        from enforcer.workspace.review import meta_of

        self._is_reported = True
        for guarded in self._guarded_paths:
            guarded.hide()
        request, sandbox_state, journal = self._run_context
        reports = [
            guarded.finish(lambda: meta_of(request, sandbox_state, journal, os.stat(request.workspace)))
            for guarded in self._guarded_paths
        ]
        if paths := [path for report in reports for path in report.differing]:
            protected(paths)
        if changes := [change for report in reports for change in report.quarantined]:
            quarantined([change.path for change in changes], describe(changes))
        return [line for report in reports for line in report.notices]

    def _finish_review(self, review: "Review", record: Callable[[Sequence[str], str], None]) -> tuple[str, ...]:
        from enforcer.workspace.change_store import describe

        try:
            changes = review.finish()
        except HostError as error:
            return (str(error),)
        if not changes:
            return ()
        summary = describe(changes)
        record([change.path for change in changes], summary)
        task = review.stored.meta.id
        return (f"its changes are kept ({summary}): see them with `exeat changes {task}`, then accept or discard them",)
