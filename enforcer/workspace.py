"""The directory a task works in: written directly, with what is protected in it covered, or through a review."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.errors import HostError
from rules.sandbox import WorkspaceMode

if TYPE_CHECKING:
    from enforcer.changes.change import Change
    from enforcer.changes.guard import Guard
    from enforcer.changes.review import Review
    from enforcer.limits.layer import Layer
    from enforcer.limits.wanted import Limits
    from enforcer.sandbox.identity import Identity
    from enforcer.wanted import Wanted
    from proxy.tenant import Tenant

_SHOWN = 5  # paths that are said


class Workspace:
    """One task's, from before its start to after its end. Close it."""

    def __init__(self, wanted: "Wanted", tenant: "Tenant", journal: Path, who: "Identity") -> None:
        """Prepare it, as the box in force says. Raises HostError, UsageError."""
        self._review: Review | None = None
        self._guard: Guard | None = None
        self._whose = wanted, tenant, journal
        self._seen = False  # whether what was done to protected files was
        self.review = ""  # the directory that changes go to; empty: the workspace itself
        self.guarded: tuple[str, ...] = ()  # whole paths that the task must not write
        self.trees: Mapping[str, int] = {}  # detached mounts, by path
        self.layer: Layer | None = None  # what bounds the changes
        if wanted.box.workspace is WorkspaceMode.REVIEW:
            from enforcer.changes import review

            self._review = review.Review(wanted, tenant, journal, who)
            self.review = self._review.layers.path
            if self._review.layers.tree is not None:
                self.trees = {self.review: self._review.layers.tree}
        else:
            from enforcer.changes import guard
            from enforcer.changes.protected import directly

            try:
                self._guard = guard.Guard(wanted.workspace, directly(wanted.box.protected))
                self.guarded = self._guard.paths()
            except OSError as error:
                raise HostError(f"the workspace `{wanted.workspace}` cannot be read: {error.strerror}") from error

    def bound(self, limits: "Limits") -> None:
        """Have what a reviewed task changes kept within limits. Raises HostError."""
        if self._review is not None:
            from enforcer.limits.layer import Layer

            self.layer = Layer(str(self._review.kept.upper), limits)

    def finish(
        self, kept: Callable[[Sequence[str], str], None], protected: Callable[[Sequence[str]], None]
    ) -> tuple[str, ...]:
        """See what the task, which has ended, has done there; tell it by one of the two, and say it in words."""
        if self._guard is not None:
            self._seen = True
            return tuple(self._guarded(self._guard, kept, protected))
        return () if self._review is None else self._reviewed(self._review, kept)

    def close(self) -> None:
        """Let go of it. Idempotent.

        Where nobody has seen what the task has done, as something went wrong, nothing runs what it has made.
        """
        if self._guard is not None and not self._seen:
            self._seen = True
            if called := _called_otherwise(self._guard, self._guard.made_at_once()):
                from enforcer.saying import say

                names = _some([f"{path} is {name}" for path, name in called.items()])
                say(f"protected files that weren't there have other names now: {names}")
        if self.layer is not None:
            self.layer.close()
        if self._review is not None:
            self._review.close()
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def _guarded(
        self,
        guard: "Guard",
        kept: Callable[[Sequence[str], str], None],
        protected: Callable[[Sequence[str]], None],
    ) -> Iterator[str]:
        """Put aside those protected files that weren't there before, tell, and say what is to be known of all.

        At first they get other names: all that comes then may take as long as a task likes, and be ended by anybody.
        """
        called = _called_otherwise(guard, guard.made_at_once())
        changed = guard.changed()
        made = sorted({*called, *guard.made(changed)})
        changes: list[Change] = []
        said: list[str] = []
        gone = {*called}
        if made:
            from enforcer.changes.aside import put_aside
            from enforcer.changes.change import described
            from enforcer.changes.review import meta_of

            # Of a repository its configuration and hooks are protected anyway
            also = [path for path in made if os.path.basename(path) != ".git"]
            meta = meta_of(*self._whose, os.fstat(guard.tree.descriptor), also)
            left = made
            try:
                changes, left = put_aside(meta, guard.tree, made, called)
            except HostError as error:
                said.append(str(error))
            aside = [path for path in made if path not in left]
            called |= _called_otherwise(guard, [path for path in left if path not in called])
            gone = {*aside, *called}
            if changes:
                said.append(
                    f"protected files that weren't there are put aside ({_some(aside)}): see them with "
                    f"`exeat changes {meta.id}`, then accept or discard them"
                )
            if names := [f"{path} is {called[path]}" for path in left if path in called]:
                said.append(
                    f"protected files that weren't there and can't be put aside have other names now: {_some(names)}"
                )
        while guard.is_cut and _called_otherwise(guard, guard.made(guard.changed())):
            pass  # of those that a task made without number, no more than some are in memory at a time
        if paths := sorted({*changed, *made, *(change.path for change in changes)}):
            protected(paths)
        if changes:
            kept([change.path for change in changes], described(changes))
        yield from said
        if left := [path for path in paths if not any(path == one or path.startswith(f"{one}/") for one in gone)]:
            yield f"protected files are not what they were; look at them before anything runs them: {_some(left)}"

    def _reviewed(self, review: "Review", tell: Callable[[Sequence[str], str], None]) -> tuple[str, ...]:
        from enforcer.changes.change import described

        try:
            changes = review.finish()
        except HostError as error:
            return (str(error),)
        if not changes:
            return ()
        said = described(changes)
        tell([change.path for change in changes], said)
        task = review.kept.meta.id
        return (f"its changes are kept ({said}): see them with `exeat changes {task}`, then accept or discard them",)


def _called_otherwise(guard: "Guard", paths: Sequence[str]) -> dict[str, str]:
    if not paths:
        return {}
    from enforcer.changes.away import renamed

    return renamed(guard.tree, paths, os.fstat(guard.tree.descriptor).st_uid)


def _some(paths: Sequence[str]) -> str:
    from proxy.telemetry.visible import visible

    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(visible, paths[:_SHOWN])) + more
