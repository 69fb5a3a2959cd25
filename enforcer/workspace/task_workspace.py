"""What a task writes of the host: directly, with what is protected in it covered, or its workspace through a review."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.system.errors import HostError
from proxy.telemetry.visible import visible
from rules.sandbox import WorkspaceMode

if TYPE_CHECKING:
    from enforcer.limits.disk_quota import Layer
    from enforcer.limits.resource_limits import Limits
    from enforcer.policy.run_request import Wanted
    from enforcer.sandbox.identity import Identity
    from enforcer.workspace.guarded import Guarded
    from enforcer.workspace.review import Review
    from proxy.sandbox.tenant import Tenant


class Workspace:
    """One task's, from before its start to after its end. Close it."""

    def __init__(self, wanted: "Wanted", tenant: "Tenant", journal: Path, who: "Identity") -> None:
        """Prepare it, as the box in force says. Raises HostError, UsageError."""
        self._review: Review | None = None
        self._places: list[Guarded] = []
        self._whose = wanted, tenant, journal
        self._seen = False  # whether what was done to protected files was
        self.review = ""  # the directory that changes go to; empty: the workspace itself
        self.guarded: tuple[str, ...] = ()  # whole paths that the task must not write
        self.trees: Mapping[str, int] = {}  # detached mounts, by path
        self.layer: Layer | None = None  # what bounds the changes
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            self._guard(wanted)
            if wanted.box.workspace is WorkspaceMode.REVIEW:
                from enforcer.workspace import review

                self._say_what_fails(wanted)
                self._review = review.Review(wanted, tenant, journal, who)
                self.review = self._review.layers.path
                if self._review.layers.tree is not None:
                    self.trees = {self.review: self._review.layers.tree}
            failed.pop_all()

    @staticmethod
    def _say_what_fails(wanted: "Wanted") -> None:
        if not _may_lead_elsewhere(f"{wanted.workspace}/.git"):
            return
        from enforcer.system.notices import say
        from enforcer.workspace.linked_worktree import read_only

        if line := read_only(wanted.workspace, wanted.shown, wanted.write):
            say(line)

    def _guard(self, wanted: "Wanted") -> None:
        if wanted.box.workspace is WorkspaceMode.REVIEW and not wanted.write:
            return
        from enforcer.workspace import guarded

        try:
            self._places.extend(guarded.places(wanted))
            self.guarded = tuple(path for place in self._places for path in place.paths())
        except OSError as error:
            where = error.filename or wanted.workspace
            raise HostError(f"what the task may write, `{where}`, cannot be read: {error.strerror}") from error

    def bound(self, limits: "Limits") -> None:
        """Have what a reviewed task changes kept within limits. Raises HostError."""
        if self._review is not None:
            from enforcer.limits.disk_quota import Layer

            self.layer = Layer(str(self._review.kept.upper), limits)

    def finish(
        self, kept: Callable[[Sequence[str], str], None], protected: Callable[[Sequence[str]], None]
    ) -> tuple[str, ...]:
        """See what the task, which has ended, has done there; tell it by one of the two, and say it in words."""
        said = self._guarded(kept, protected) if self._places else []
        wanted = self._whose[0]
        if _may_lead_elsewhere(f"{wanted.workspace}/.git"):
            from enforcer.workspace.linked_worktree import unseen

            said += [visible(line)] if (line := unseen(wanted.workspace, wanted.shown)) else []
        return (*said, *(() if self._review is None else self._reviewed(self._review, kept)))

    def close(self) -> None:
        """Let go of it. Idempotent.

        Where nobody has seen what the task has done, as something went wrong, nothing runs what it has made.
        """
        if not self._seen:
            self._seen = True
            if called := {path: name for place in self._places for path, name in place.hide().items()}:
                from enforcer.system.notices import say
                from enforcer.workspace.guarded import some

                names = some([f"{path} is {name}" for path, name in called.items()])
                say(f"protected files that weren't there have other names now: {names}")
        if self.layer is not None:
            self.layer.close()
        if self._review is not None:
            self._review.close()
        while self._places:
            self._places.pop().close()

    def _guarded(
        self, kept: Callable[[Sequence[str], str], None], protected: Callable[[Sequence[str]], None]
    ) -> list[str]:
        """Put aside those protected files that weren't there before, tell, and return what is to be known of all.

        At first they get other names: all that comes then may take as long as a task likes, and be ended by anybody.
        """
        from enforcer.workspace.change_store import described
        from enforcer.workspace.review import meta_of

        self._seen = True
        for place in self._places:
            place.hide()
        wanted, tenant, journal = self._whose
        reports = [
            place.finish(lambda: meta_of(wanted, tenant, journal, os.stat(wanted.workspace))) for place in self._places
        ]
        if paths := [path for report in reports for path in report.differing]:
            protected(paths)
        if changes := [change for report in reports for change in report.kept]:
            kept([change.path for change in changes], described(changes))
        return [line for report in reports for line in report.said]

    def _reviewed(self, review: "Review", tell: Callable[[Sequence[str], str], None]) -> tuple[str, ...]:
        from enforcer.workspace.change_store import described

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


def _may_lead_elsewhere(dot: str) -> bool:
    return os.path.isfile(dot) or os.path.islink(dot)
