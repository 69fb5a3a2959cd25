"""Review of a workspace: where its task's changes go while it runs, and what is kept of them afterwards."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from enforcer.sandbox import identity
from enforcer.sandbox.identity import IdMap
from enforcer.system import linux, state
from enforcer.system.errors import HostError, UsageError
from enforcer.workspace import overlay_changes, protected_files
from enforcer.workspace.change_store import Meta, StoredChanges
from enforcer.workspace.overlay_changes import gather
from enforcer.workspace.repository_scan import RepositoryScan
from enforcer.workspace.safe_path import MODE, Tree, acting_as
from proxy.telemetry.visible import visible
from rules.decision import RequiredApproval

if TYPE_CHECKING:
    from pathlib import Path

    from enforcer.policy.run_request import RunRequest
    from enforcer.sandbox.identity import Identity
    from enforcer.workspace.change_store import Change
    from proxy.sandbox.sandbox_state import SandboxState
    from rules.sandbox import MergeTerms

_NICE = 10  # nobody waits for a snapshot
_MOST = 400_000  # changes that are gathered at a task's end: a few more than one may make before it is ended for it


@dataclass(frozen=True, slots=True)
class Layers:
    """What the overlay is made of beside the workspace: a directory with `upper` and `work` in it."""

    path: str
    tree: int | None  # a detached mount of it, id-mapped, where this process can't reach it as the sandbox's init


class Review:
    """One task's changes, from before its start to after its end. Close it."""

    def __init__(self, wanted: "RunRequest", sandbox_state: "SandboxState", journal: "Path", who: "Identity") -> None:
        """Make the place, and begin to note what the workspace is like. Raises HostError, UsageError."""
        place = os.path.realpath(state.state_directory())
        if f"{place}/".startswith(f"{wanted.workspace.rstrip('/')}/"):
            raise UsageError(
                f"changes to `{wanted.workspace}` can't be kept in `{place}`, which lies inside it; "
                "set XDG_STATE_HOME to another place"
            )
        try:
            self._workspace = Tree.open(wanted.workspace)
        except OSError as error:
            raise HostError(f"the workspace `{wanted.workspace}` cannot be opened: {error.strerror}") from error
        status = os.fstat(self._workspace.descriptor)
        with acting_as(status.st_uid, status.st_gid):
            scan = RepositoryScan(self._workspace, wanted.workspace)
            also = scan.protected_globs()
        meta = meta_of(wanted, sandbox_state, journal, status, also)
        self.stored = StoredChanges.create(replace(meta, repositories=scan.other_names))
        self._snapshot = -1  # the process that notes what is there
        self._noted = -1  # from which nothing more can be read once it has
        try:
            self.layers = Layers(str(self.stored.upper.parent), self._give(who, status))
            self._snapshot = self._fork()
        except OSError as error:
            self.stored.remove()
            raise HostError(f"the task's changes cannot be kept in `{self.stored.place}`: {error.strerror}") from error

    def finish(self) -> "list[Change]":
        """Gather what the task, which has ended, has changed; keep nothing where that is nothing. Raises HostError."""
        try:
            changes = gather(self.stored, self._workspace, self._wait, _MOST)
            if not changes:
                self._stop()
                self.stored.remove()
        except (OSError, ValueError) as error:
            why = visible(str(error))
            raise HostError(
                f"the task's changes are kept in `{self.stored.place}`, and could not be gathered: {why}; "
                f"`exeat changes {self.stored.meta.id}` tries again"
            ) from error
        return changes

    def close(self) -> None:
        """Let go of everything; what the task changed stays, if it is anything. Idempotent."""
        self._stop()
        with contextlib.suppress(OSError):
            if self.stored.place.exists() and not any(self.stored.upper.iterdir()):
                self.stored.remove()
        self.stored.unlock()
        if self.layers.tree is not None:
            os.close(self.layers.tree)
            self.layers = Layers(self.layers.path, None)
        if self._workspace.descriptor >= 0:
            self._workspace.close()
            self._workspace.descriptor = -1

    def _give(self, who: "Identity", status: os.stat_result) -> int | None:
        """Make the layers such that the task owns in them what it owns in the workspace, and init the rest."""
        upper, layers = self.stored.upper, self.stored.upper.parent
        upper.chmod(status.st_mode & MODE)  # a merged directory is what it is in the upper layer
        if not who.privileged:
            return None
        init = who.outer_uids.lines[0][1]
        for path in (layers, layers / "work"):
            os.chown(path, init, init)
        os.chown(upper, status.st_uid, status.st_gid)
        return identity.idmapped_shared(
            str(layers),
            IdMap(((status.st_uid, who.kernel_uid, 1), (init, init, 1))),
            IdMap(((status.st_gid, who.kernel_gid, 1), (init, init, 1))),
        )

    def _fork(self) -> int:
        parent = os.getpid()
        self._noted, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                linux.die_with_parent(signal.SIGKILL, parent)
                linux.keep_only({0, 1, 2, self._workspace.descriptor, tell})
                os.nice(_NICE)
                overlay_changes.write_snapshot(
                    self._workspace, self.stored.meta.start, self.stored.place / "base.jsonl"
                )
                os.close(tell)
                overlay_changes.keep(self.stored, self._workspace, Tree.open(os.path.realpath(self.stored.upper)))
            finally:
                os._exit(0)  # without it, what is certain is found out at the end
        os.close(tell)
        return pid

    def _wait(self) -> None:
        """Wait until what was there is noted, or nobody does."""
        if self._noted >= 0:
            os.read(self._noted, 1)
        self._stop()

    def _stop(self) -> None:
        if self._noted >= 0:
            os.close(self._noted)
            self._noted = -1
        if self._snapshot >= 0:
            os.kill(self._snapshot, signal.SIGKILL)
            os.waitpid(self._snapshot, 0)
        self._snapshot = -1


def meta_of(
    wanted: "RunRequest",
    sandbox_state: "SandboxState",
    journal: "Path",
    status: os.stat_result,
    also: Sequence[str] = (),
) -> Meta:
    """Return whose changes a task's are, and where they belong: `status` is the workspace's.

    `also`: what is protected in it besides what is in every one.
    """
    import time

    return Meta(
        id=sandbox_state.task.id,
        name=sandbox_state.task.name,
        labels=dict(sandbox_state.task.labels),
        sandbox=sandbox_state.id,
        workspace=wanted.workspace,
        device=status.st_dev,
        inode=status.st_ino,
        uid=status.st_uid,
        gid=status.st_gid,
        began=time.time_ns(),
        start=0,
        protected=(*protected_files.globs_when_reviewed(wanted.settings.protected), *also),
        journal=os.path.abspath(journal),
        **(_terms(wanted) if wanted.settings.approval else {}),
    )


def _terms(wanted: "RunRequest") -> dict[str, Any]:
    """Return what people are to know who are asked whether what is protected may be merged, and whose word counts."""
    from enforcer.approvals import registration
    from enforcer.system.started_by import starter_uid
    from proxy.approvals.approval_request import Rule

    return {
        "approval": tuple(Rule.of(_asks(terms)).packed() for terms in wanted.settings.approval),
        "revision": wanted.policy.revision,
        "started_by": starter_uid(),
        "rule_files": registration.rule_files(wanted),
    }


def _asks(terms: "MergeTerms") -> RequiredApproval:
    """Return what one file wants as what people are asked about: a grant names it by all that it says."""
    said = hashlib.sha256(repr(("merge", *terms)).encode()).hexdigest()
    return RequiredApproval(
        terms.cite, said, terms.terms, "changes of protected files are merged when they are approved"
    )
