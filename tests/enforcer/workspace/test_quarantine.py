"""What a task made at protected paths where nothing stood: taken out, kept, accepted again; and what can't be."""

import contextlib
import os
import socket
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from enforcer.system.errors import HostError
from enforcer.workspace import accept, change_store, quarantine, safe_path
from enforcer.workspace.protected_files import Guard, globs_when_direct, globs_when_reviewed
from enforcer.workspace.safe_path import Tree
from tests.enforcer.workspace.changes_lab import OWNER, ChangesLab
from tests.support import harness

NAMES = (".envrc", ".vscode/tasks.json", ".github/workflows/new\nline.yml", ".github/workflows/\udcff")


@pytest.fixture(params=["beside", "elsewhere", "somebody's", "somebody's elsewhere"])
def lab(request, monkeypatch):
    """A workspace, whose changes are kept on the same file system or on another one; as root also one of somebody's."""
    base = Path(tempfile.mkdtemp(prefix="exeat-test-"))
    base.chmod(0o755)
    if "somebody's" in request.param:
        harness.needs_root()  # to act as somebody else
    made = ChangesLab(base, monkeypatch, OWNER if "somebody's" in request.param else None)
    made.base = base
    if "elsewhere" in request.param:
        other = Path(tempfile.mkdtemp(prefix="exeat-test-", dir="/dev/shm"))
        assert other.stat().st_dev != base.stat().st_dev
        monkeypatch.setenv("XDG_STATE_HOME", str(other))
        made.base = other
    made.elsewhere = "elsewhere" in request.param
    yield made
    for each in {base, made.base}:
        change_store.remove(each)


class Task:
    """What a task does in a workspace, between a look at it and another."""

    def __init__(self, lab, globs=()):
        if lab.owner is not None:
            os.chown(lab.work, lab.owner, lab.owner)
        self.lab = lab
        self.guard = Guard(str(lab.work), globs_when_direct(tuple(globs)))
        self.guard.paths()

    def write(self, path, text="made", mode=0o644):
        place = Path(self.lab.work, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)
        return place

    def end(self, last=lambda: None):
        """Have what was made put aside; returns what is kept and what was left, and the paths that were meant."""
        lab = self.lab
        if lab.owner is not None:
            for path in (lab.work, *lab.work.rglob("*")):
                os.chown(path, lab.owner, lab.owner, follow_symlinks=False)
        last()
        made = self.guard.find_new(self.guard.find_changed())
        status = lab.work.stat()
        meta = change_store.Meta(
            id="1-2", name="agent", labels={}, sandbox="sandbox-1-2", workspace=str(lab.work), device=status.st_dev,
            inode=status.st_ino, uid=status.st_uid, gid=status.st_gid, began=1, start=0, protected=globs_when_reviewed(()),
            journal=str(lab.base / "journal"),
        )  # fmt: skip
        tree = Tree.open(str(lab.work))
        try:
            found = quarantine.quarantine_files(meta, tree, made)
        finally:
            tree.close()
            self.guard.close()
        lab.kept = next(iter(change_store.find()), None)
        return SimpleNamespace(
            changes=[change.path for change in found.changes], not_quarantined=found.not_quarantined, made=made
        )


def test_quarantined_file_is_absent_until_accepted(lab):
    lab.write("src/main.c", "before")
    lab.write(".github/ISSUE.md", "before")
    task = Task(lab)
    for name in NAMES:
        task.write(name, f"made {name!r}")
    task.write(".vscode/run", "#!", 0o755)
    Path(lab.work, ".idea").symlink_to("/etc")
    task.write("src/main.c", "the task's")
    before = lab.files()
    ended = task.end()
    assert ended.not_quarantined == []
    assert ended.made == sorted([".envrc", ".github/workflows", ".idea", ".vscode"])
    assert ended.changes == sorted(
        [".envrc", ".idea", ".vscode", ".vscode/run", ".vscode/tasks.json", ".github/workflows", *NAMES[2:]],
        key=os.fsencode,
    )
    assert lab.files() == {
        ".github": None, ".github/ISSUE.md": "before", "src": None, "src/main.c": "the task's",
    }  # fmt: skip
    assert set(lab.accept().values()) == {"taken"} | {
        f"left: it is protected: accept it with `--protected {name}`" for name in (*NAMES, ".vscode/run", ".idea")
    }
    for name in (*NAMES, ".vscode/run", ".idea"):
        assert lab.accept(protected=[name])[name] == "taken"
    assert lab.files() == before
    assert stat.S_IMODE(Path(lab.work, ".vscode/run").stat().st_mode) == 0o755
    if lab.owner is not None:
        assert {path.lstat().st_uid for path in lab.work.rglob("*")} == {lab.owner}


def test_discarded_file_is_removed(lab):
    task = Task(lab)
    task.write(".envrc")
    task.end()
    lab.kept.lock()
    accept.discard(lab.kept, accept.Selection())
    assert accept.remove_if_settled(lab.kept)
    lab.kept.unlock()
    assert lab.files() == {}
    assert change_store.find() == []


def shut(path, mode):
    Path(path).chmod(mode)


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o333, 0o444, 0o555])
def test_closed_permissions_do_not_prevent_quarantine(lab, mode):
    """Whoever knows a name needs no list of names, and who wonders why there is none opens the directory again."""
    lab.write(".git/config")
    lab.write(".git/info/exclude")
    task = Task(lab)
    task.write(".vscode/tasks.json", mode=0o111)
    task.write(".envrc", mode=mode)
    for name in (".github/workflows/deep/ci.yml", ".git/hooks/pre-commit", ".claude/settings.json"):
        task.write(name)
    closed = (".vscode", ".github/workflows/deep", ".github/workflows", ".github", ".git", ".claude", "")
    ended = task.end(lambda: [shut(lab.work / name, mode) for name in closed])
    assert ended.not_quarantined == []
    assert ended.made == [".claude/settings.json", ".envrc", ".git/hooks", ".github/workflows", ".vscode"]
    assert [stat.S_IMODE((lab.work / name).stat().st_mode) for name in closed[3:]] == [mode] * 4
    for name in reversed(closed[3:]):
        shut(lab.work / name, 0o755)
    assert lab.files() == {".claude": None, ".git": None, ".git/config": "", ".git/info": None, ".git/info/exclude": "",
                             ".github": None}  # fmt: skip
    for path in lab.kept.upper.rglob("*"):
        assert path.exists()


def test_file_that_cannot_be_accepted_stays_in_place(lab):
    task = Task(lab)
    os.mkfifo(lab.work / ".envrc")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(lab.work / ".exrc"))
    task.write(".mise.toml")
    ended = task.end()
    assert (ended.not_quarantined, ended.changes) == ([".envrc", ".exrc"], [".mise.toml"])
    assert {path.name for path in lab.work.iterdir()} == {".envrc", ".exrc"}


def test_file_of_the_hosts_root_stays_in_place(lab):
    harness.needs_root()
    if lab.owner is None:
        return
    task = Task(lab)
    place = task.write(".envrc", "root's own", 0o600)
    made = task.guard.find_changed
    task.guard.find_changed = lambda: (os.chown(place, 0, 0), made())[1]
    ended = task.end()
    assert (ended.not_quarantined, ended.changes) == ([".envrc"], [])
    assert change_store.find() == []


def test_without_a_quarantine_files_are_renamed(lab):
    task = Task(lab)
    os.mkfifo(lab.work / ".envrc")
    assert task.end().not_quarantined == [".envrc"]
    assert change_store.find() == []
    assert list(change_store.directory().iterdir()) == []


def test_sparse_file_stays_sparse(lab):
    task = Task(lab)
    with task.write(".envrc").open("r+b") as file:
        file.truncate(1 << 40)
    assert task.end().not_quarantined == []
    (made,) = change_store.directory().glob("*/layers/upper/.envrc")
    assert (made.stat().st_size, made.stat().st_blocks < 100) == (1 << 40, True)


@pytest.mark.parametrize(("names", "left"), [(2, []), (3, [".vscode"])], ids=["as many as may be", "one more"])
def test_large_directory_is_quarantined_as_one(lab, monkeypatch, names, left):
    """Each is a change in memory, and a task makes a million of them."""
    monkeypatch.setattr(quarantine, "_MAX_FILES", 5)
    task = Task(lab)
    for number in range(names):
        task.write(f".vscode/{number}/file")
    before = lab.files()
    ended = task.end()
    assert ended.not_quarantined == left
    if left:
        assert ended.changes == []
        assert lab.files() == before
        assert list(change_store.directory().iterdir()) == []


def test_files_within_the_limit_are_quarantined_separately(lab, monkeypatch):
    monkeypatch.setattr(quarantine, "_MAX_FILES", 3)
    task = Task(lab)
    for path in (".envrc", *(f".vscode/{number}" for number in range(4))):
        task.write(path)
    ended = task.end()
    assert (ended.not_quarantined, ended.changes) == ([".vscode"], [".envrc"])


def test_quarantine_leaves_disk_space_for_others(lab, monkeypatch):
    monkeypatch.setattr(quarantine, "_MAX_BYTES", 10_000)
    task = Task(lab)
    for path in (".envrc", ".idea/a", ".vscode/a"):
        task.write(path, "x" * 8192)
    ended = task.end()
    assert ended.not_quarantined == ([".idea", ".vscode"] if lab.elsewhere else [])
    assert ended.changes[:1] == [".envrc"]
    assert len(ended.changes) == (1 if lab.elsewhere else 5)


def test_file_edited_during_the_copy_is_kept(lab, monkeypatch):
    if not lab.elsewhere:
        return
    task = Task(lab)
    place = task.write(".envrc", "made")
    poured = safe_path.copy_sparse

    def pour(source, to):
        poured(source, to)
        place.write_text("edited")

    monkeypatch.setattr(safe_path, "copy_sparse", pour)
    ended = task.end()
    assert (ended.not_quarantined, ended.changes) == ([".envrc"], [".envrc"])
    assert place.read_text() == "edited"
    (made,) = change_store.directory().glob("*/layers/upper/.envrc")
    assert made.read_text() == "made"


def test_failed_quarantine_is_reported(lab, monkeypatch):
    task = Task(lab)
    task.write(".envrc", "made")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(change_store.StoredChanges, "record", full)
    with pytest.raises(HostError, match=r"quarantined files, which are in `.*`: No space left on device"):
        task.end()
    monkeypatch.undo()
    assert lab.files() == {}
    monkeypatch.setenv("XDG_STATE_HOME", str(lab.base if lab.elsewhere else lab.base / "state"))
    (one,) = change_store.find()
    assert [change.path for change in accept.load_changes(one)] == [".envrc"]


def test_link_in_place_of_a_directory_is_quarantined(lab):
    """What is behind it would be read as if it were there."""
    lab.write("payload/settings.json")
    lab.write("payload/config")
    task = Task(lab, ["deploy/*.yaml", "*/x.lock"])
    Path(lab.work, ".claude").symlink_to("payload")
    Path(lab.work, "deploy").symlink_to("payload")
    Path(lab.work, "any").symlink_to("payload")
    task.write("plain")
    task.write(".git", "gitdir: payload")
    ended = task.end()
    assert ended.made == [".claude", ".git", "any", "deploy"]
    assert sorted(path.name for path in lab.work.iterdir()) == ["payload", "plain"]


def test_new_repository_is_quarantined_whole(lab):
    """Without its configuration it is none; that there is one is told."""
    task = Task(lab)
    for name in (".git/config", ".git/hooks/pre-commit", ".git/info/attributes"):
        task.write(name)
    changed = task.guard.find_changed()
    assert ".git/config" in changed
    assert task.end().made == []


def test_new_hooks_of_a_repository_are_quarantined(lab):
    for name in (".git/config", ".git/info/exclude"):
        lab.write(name)
    task = Task(lab)
    for name in (".git/hooks/pre-commit", ".git/info/attributes", ".git/commondir", ".git/modules/new/config",
                 ".git/worktrees/new/commondir"):  # fmt: skip
        task.write(name)
    changed = task.guard.find_changed()
    assert {".git/modules/new/config", ".git/worktrees/new/commondir"} <= {*changed}
    assert task.end().made == [".git/commondir", ".git/hooks", ".git/info/attributes"]


def test_new_hooks_of_submodules_are_quarantined(lab):
    for name in (".git/config", ".git/modules/lib/config", ".git/worktrees/w/commondir"):
        lab.write(name)
    task = Task(lab)
    for name in ("modules/lib/hooks/post-checkout", "modules/lib/info/attributes", "modules/lib/commondir",
                 "worktrees/w/config.worktree", "info/attributes"):  # fmt: skip
        task.write(f".git/{name}")
    assert task.end().made == [
        ".git/info/attributes", ".git/modules/lib/commondir", ".git/modules/lib/hooks",
        ".git/modules/lib/info/attributes", ".git/worktrees/w/config.worktree",
    ]  # fmt: skip


def test_file_that_cannot_be_quarantined_is_renamed(lab):
    task = Task(lab)
    task.write(".vscode/tasks.json")
    os.mkfifo(lab.work / ".vscode/fifo")
    os.mkfifo(lab.work / ".envrc")
    task.write(".github/workflows/ci.yml")
    task.write(".exrc", "somebody else's")
    if lab.owner is not None:
        for path in lab.work.rglob("*"):
            os.chown(path, lab.owner, lab.owner)
        os.chown(lab.work / ".exrc", lab.owner + 1, lab.owner)
        os.chown(lab.work, lab.owner, lab.owner)
    owner = lab.work.stat().st_uid
    shut(lab.work / ".github", 0o300)
    with contextlib.closing(Tree.open(str(lab.work))) as tree:
        names = quarantine.rename_aside(tree, (".vscode", ".envrc", ".github/workflows", ".exrc", ".idea"), owner)
    shut(lab.work / ".github", 0o755)
    somebody_s = [".exrc"] if lab.owner is not None else []
    assert [*names] == [".vscode", ".envrc", ".github/workflows", *([] if somebody_s else [".exrc"])]
    assert {path.name for path in lab.work.iterdir()} == {".github", *somebody_s, *names.values()}
    assert not any((lab.work / ".github").iterdir())
    assert (lab.work / names[".vscode"] / "tasks.json").read_text() == "made"


def test_vanished_file_is_skipped(lab):
    task = Task(lab)
    task.write(".envrc")
    task.write(".exrc")
    made = task.guard.find_new

    def gone(changed):
        found = made(changed)
        with contextlib.suppress(FileNotFoundError):
            (lab.work / ".envrc").unlink()
        return found

    task.guard.find_new = gone
    ended = task.end()
    assert (ended.not_quarantined, ended.changes) == ([], [".exrc"])
