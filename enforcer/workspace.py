"""The directory a task works in: written directly, with what is protected in it covered, or through a review."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.errors import HostError
from rules.sandbox import WorkspaceMode

if TYPE_CHECKING:
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
            if not (paths := self._guard.changed()):
                return ()
            protected(paths)
            return tuple(self._protected(self._guard, paths, kept))
        return () if self._review is None else self._reviewed(self._review, kept)

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self.layer is not None:
            self.layer.close()
        if self._review is not None:
            self._review.close()
        if self._guard is not None:
            self._guard.close()

    def _protected(self, guard: "Guard", paths: list[str], kept: Callable[[Sequence[str], str], None]) -> Iterator[str]:
        """Put aside those protected files that weren't there before, and say what is to be known of all."""
        made = guard.made(paths)
        gone = set[str]()
        if made:
            from enforcer.changes.aside import put_aside
            from enforcer.changes.change import described
            from enforcer.changes.review import meta_of

            meta = meta_of(*self._whose, os.fstat(guard.tree.descriptor))
            try:
                aside = put_aside(meta, guard.tree, made)
                gone = {*made} - {*aside.left}
                if aside.changes:
                    kept([change.path for change in aside.changes], described(aside.changes))
                    yield (
                        f"protected files that weren't there are put aside ({_some(sorted(gone))}): see them with "
                        f"`exeat changes {meta.id}`, then accept or discard them"
                    )
            except HostError as error:
                yield str(error)
        left = [path for path in paths if not any(path == one or path.startswith(f"{one}/") for one in gone)]
        if left:
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


def _some(paths: Sequence[str]) -> str:
    from proxy.telemetry.visible import visible

    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(visible, paths[:_SHOWN])) + more
