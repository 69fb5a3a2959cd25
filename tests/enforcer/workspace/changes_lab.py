"""A workspace, and what a task left of it in an upper layer: written as an overlay writes it."""

import os
from pathlib import Path

from enforcer.workspace import accept, overlay_changes
from enforcer.workspace.change_store import Meta, StoredChanges
from enforcer.workspace.protected_changes import Protection
from enforcer.workspace.safe_path import Tree

OWNER = 54321


class ChangesLab:
    """One workspace and one task. `begin` is called once the workspace is as it was at the start."""

    def __init__(self, base: Path, monkeypatch, owner=None):
        monkeypatch.setenv("XDG_STATE_HOME", str(base / "state"))
        self.work = base / "work"
        self.work.mkdir()
        self.owner = owner
        self.kept: StoredChanges

    def write(self, path, content="", mode=0o644):
        target = self.work / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.chmod(mode)
        return target

    def begin(self, protected=()):
        if self.owner is not None:
            for path in (self.work, *self.work.rglob("*")):
                os.chown(path, self.owner, self.owner, follow_symlinks=False)
        status = self.work.stat()
        meta = Meta(
            id="1-2",
            name="agent",
            labels={},
            sandbox="sandbox-1-2",
            workspace=str(self.work),
            device=status.st_dev,
            inode=status.st_ino,
            uid=status.st_uid,
            gid=status.st_gid,
            began=1,
            start=0,
            protected=tuple(protected),
            journal=str(self.work.parent / "journal"),
        )
        # The kernel's clock of files ticks every few milliseconds: what was written before is to be older than the start
        self.settle_clock()
        self.kept = StoredChanges.create(meta)
        self.kept.unlock()
        tree = Tree.open(str(self.work))
        overlay_changes.write_snapshot(tree, self.kept.meta.start, self.kept.place / "base.jsonl")
        tree.close()
        self.upper = self.kept.upper
        self.settle_clock()

    def settle_clock(self):
        """Wait until a file written now is newer than every one before."""
        probe = self.work.parent / "probe"
        probe.touch()
        before = probe.stat().st_ctime_ns
        while probe.stat().st_ctime_ns == before:
            probe.chmod(0o600)

    def task_writes(self, path, content="", mode=0o644):
        target = self.upper / path
        for above in reversed(target.relative_to(self.upper).parents[:-1]):
            if not (self.upper / above).exists():
                (self.upper / above).mkdir()
        target.unlink(missing_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.chmod(mode)
        return target

    def task_deletes(self, path):
        target = self.upper / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        os.mknod(target, 0o020000, 0)

    def task_replaces(self, path):
        """The task deletes a directory and makes a new one."""
        target = self.upper / path
        target.mkdir(parents=True)
        os.setxattr(target, "user.overlay.opaque", b"y")
        return target

    def changes(self):
        return {change.path: change for change in accept.load_pending(self.kept)}

    def accept(self, *paths, protected=()):
        selection = accept.Selection(tuple(paths), tuple(protected))
        accept.load_changes(self.kept)
        self.kept.lock()
        try:
            outcomes = accept.accept(self.kept, selection, Protection(self.kept.meta.protected))
        finally:
            self.kept.unlock()
        return {o.change.path: str(o.method) if o.accepted else f"left: {o.reason}" for o in outcomes}

    def files(self):
        """Everything in the workspace: content of files, targets of links, None for directories."""
        found = {}
        for path in sorted(self.work.rglob("*")):
            name = str(path.relative_to(self.work))
            if path.is_symlink():
                found[name] = f"-> {os.readlink(path)}"
            elif path.is_dir():
                found[name] = None
            else:
                found[name] = path.read_bytes().decode("utf-8", "surrogateescape")
        return found
