"""What comes of a change when it is accepted: what stood there at the start, what stands there now, what the task left."""

import os
import shutil
import signal
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.workspace import overlay_changes
from enforcer.workspace.safe_path import Tree
from tests.enforcer.workspace.changes_lab import ChangesLab
from tests.support.waiting import wait_until

LINES = "".join(f"{number}\n" for number in range(1, 21))


def changed(number, to):
    return LINES.replace(f"{number}\n", f"{to}\n", 1) if number > 9 else LINES.replace(f"\n{number}\n", f"\n{to}\n", 1)


def test_accept_applies_every_kind_of_change_once(lab):
    lab.write("edited", LINES)
    lab.write("touched", "same")
    lab.write("deleted", "x")
    lab.write("script", "#!", 0o644)
    lab.write("tree/a/b", "b")
    lab.write("tree/c", "c")
    lab.write("emptied/old", "old")
    lab.write("was-file", "f")
    lab.write("was-dir/in", "in")
    lab.write("untouched", "u")
    (lab.work / "link").symlink_to("edited")
    lab.begin()
    lab.task_writes("edited", changed(3, "three"))
    lab.task_writes("touched", "same")
    lab.task_deletes("deleted")
    lab.task_writes("script", "#!", 0o755)
    lab.task_deletes("tree")
    lab.task_replaces("emptied")
    lab.task_writes("emptied/new", "new")
    lab.task_replaces("was-file")
    lab.task_writes("was-file/in", "in")
    lab.task_writes("was-dir", "f")
    lab.task_writes("new/deep/file\n\udcff", "odd name")
    lab.task_writes("set-id", "s", 0o6755)
    (lab.upper / "link").symlink_to("untouched")
    (lab.upper / "closed").mkdir(0o500)

    assert "touched" not in lab.changes()
    assert set(lab.accept().values()) == {"taken"}
    after = {
        "closed": None,
        "edited": changed(3, "three"),
        "emptied": None,
        "emptied/new": "new",
        "link": "-> untouched",
        "new": None,
        "new/deep": None,
        "new/deep/file\n\udcff": "odd name",
        "script": "#!",
        "set-id": "s",
        "touched": "same",
        "untouched": "u",
        "was-dir": "f",
        "was-file": None,
        "was-file/in": "in",
    }
    assert lab.files() == after
    assert stat.S_IMODE((lab.work / "script").stat().st_mode) == 0o755
    assert stat.S_IMODE((lab.work / "set-id").stat().st_mode) == 0o755
    assert stat.S_IMODE((lab.work / "closed").stat().st_mode) == 0o500
    owners = {os.lstat(path).st_uid for path in lab.work.rglob("*")}
    assert owners == {os.geteuid() if lab.owner is None else lab.owner}
    assert lab.changes() == {}
    assert lab.accept() == {}
    # A crash between the workspace and the record: what is in already is found to be
    (lab.kept.place / "settled.jsonl").unlink()
    assert set(lab.accept().values()) <= {"already in"}
    assert lab.files() == after


HOST, TASK, BOTH = changed(2, "host"), changed(18, "task"), changed(2, "host").replace("18\n", "task\n")
MEANWHILE = [
    # at the start, on the host now, left by the task -> on the host in the end, and what was said
    ("host edited elsewhere in it", LINES, HOST, TASK, BOTH, "merged"),
    ("both did the same", LINES, TASK, TASK, TASK, "already in"),
    ("host only touched it", LINES, LINES, TASK, TASK, "taken"),
    ("same lines", LINES, HOST, changed(2, "task"), HOST, "left: both sides changed the same lines"),
    ("binary", "a\0", "b\0", "c\0", "b\0", "left: both sides changed it, and it can't be merged line by line"),
    ("both made it", None, "host", "task", "host", "left: the workspace and the task both created it"),
    ("both made the same", None, "same", "same", "same", "already in"),
    ("host deleted it", LINES, None, TASK, None, "left: it was deleted from the workspace, and the task changed it"),
    ("task deleted it", LINES, HOST, None, HOST, "left: it was changed in the workspace, and the task deleted it"),
    ("both deleted it", LINES, None, None, None, "already in"),
]


@pytest.mark.parametrize("row", MEANWHILE, ids=[row[0] for row in MEANWHILE])
def test_changes_of_the_host_after_the_task_conflict(lab, row):
    _, base, ours, theirs, after, said = row
    if base is not None:
        lab.write("file", base)
    lab.begin()
    if theirs is None:
        lab.task_deletes("file")
    else:
        lab.task_writes("file", theirs)
    lab.changes()  # the task has ended: what it started from is kept
    if ours is None:
        (lab.work / "file").unlink(missing_ok=True)
    else:
        lab.write("file", ours)
        if lab.owner is not None:
            os.chown(lab.work / "file", lab.owner, lab.owner)
    assert lab.accept() == {"file": said}
    assert lab.files().get("file") == after
    left = {} if after is None else {"file": after}
    assert lab.files() == left  # nothing is left beside it


def test_changes_of_the_host_during_the_task_are_not_the_base(lab):
    lab.write("edited", LINES)
    lab.write("moved/file", "one")
    lab.write("other/file", "two")
    lab.write("kept/file", "x")
    lab.begin()
    lab.write("edited", HOST)  # before the task wrote it: what it was is gone
    (lab.work / "moved").rename(lab.work / "away")
    (lab.work / "other").rename(lab.work / "moved")
    lab.write("kept/new", "the host's")
    lab.task_writes("edited", TASK)
    lab.task_writes("moved/file", "task's")
    lab.task_deletes("kept")
    said = lab.accept()
    assert said.pop("kept/file") == "taken"
    assert said.pop("kept") == "left: it now contains something that the task did not delete"
    assert all(how.startswith("left: ") for how in said.values()), said
    files = lab.files()
    assert (files["edited"], files["moved/file"], files["kept/new"]) == (HOST, "two", "the host's")


def test_host_edits_during_the_task_are_merged(lab):
    lab.write("early", LINES)
    lab.write("late", LINES)
    lab.write("same", LINES)
    lab.begin()
    lab.task_writes("early", TASK)
    lab.task_writes("same", LINES)
    pid = os.fork()
    if pid == 0:
        try:
            tree = Tree.open(str(lab.work))
            overlay_changes.keep(lab.kept, tree, Tree.open(str(lab.upper)))
        finally:
            os._exit(1)
    try:
        wait_until(lambda: set(overlay_changes.copies(lab.kept)) == {"early", "same"})
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for name in ("early", "late", "same"):
        lab.write(name, HOST)
    lab.task_writes("late", TASK)
    assert "same" not in lab.changes()
    assert lab.accept() == {
        "early": "merged",
        "late": "left: both sides changed it, and there is no copy of what it was at the start",
    }
    assert lab.files() == {"early": BOTH, "late": HOST, "same": HOST}


def test_partial_snapshot_accepts_only_certain_changes(lab):
    """The run was killed before the snapshot was complete: then ctimes say what stood there at the start."""
    lab.write("old/file", LINES)
    lab.write("busy/file", LINES)
    lab.begin()
    (lab.kept.place / "base.jsonl").unlink()
    lab.write("busy/newer", "n")  # so this may not be the directory that it was
    lab.task_writes("old/file", TASK)
    lab.task_writes("busy/file", TASK)
    assert lab.accept() == {
        "busy/file": "left: its content at the start of the task is unknown",
        "old/file": "taken",
    }


def test_only_named_paths_and_their_directories_are_accepted(lab):
    lab.begin()
    lab.task_writes("a/b/one", "1")
    lab.task_writes("a/b/two", "2")
    lab.task_writes("a/c/three", "3")
    lab.task_writes("ab", "4")
    assert set(lab.accept("a/b/one")) == {"a", "a/b", "a/b/one"}
    assert set(lab.files()) == {"a", "a/b", "a/b/one"}
    assert set(lab.changes()) == {"a/b/two", "a/c", "a/c/three", "ab"}
    assert set(lab.accept("a")) == {"a/b/two", "a/c", "a/c/three"}


def test_hard_links_are_split_before_writing(lab):
    outside = lab.work.parent / "outside"
    outside.write_text("precious")
    os.link(outside, lab.work / "inside")
    lab.begin()
    lab.task_writes("inside", "task's")
    assert lab.accept() == {"inside": "taken"}
    assert outside.read_text() == "precious"
    assert lab.files()["inside"] == "task's"


def test_accepted_file_keeps_the_attributes_of_the_replaced_one(lab):
    os.setxattr(lab.write("file", "a"), "user.host", b"h")
    lab.begin()
    os.setxattr(lab.task_writes("file", "b"), "user.task", b"t")
    os.setxattr(lab.task_writes("new", "b"), "user.overlay.overlay.opaque", b"y")
    lab.accept()
    assert os.listxattr(lab.work / "file") == ["user.host"]
    assert os.listxattr(lab.work / "new") == []


def test_sockets_fifos_and_devices_are_not_accepted(lab):
    lab.write("was", "file")
    lab.begin()
    os.mkfifo(lab.upper / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(lab.upper / "was"))
    if os.geteuid() == 0:
        os.mknod(lab.upper / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        os.mknod(lab.upper / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 99))
    said = lab.accept()
    assert len(said) == (4 if os.geteuid() == 0 else 2)
    assert set(said.values()) == {"left: devices, sockets and FIFOs are not carried over"}
    assert lab.files() == {"was": "file"}


PATHS = st.sampled_from(["a", "b", "d/a", "d/e/b"])
NINE_LINES = [f"{number}\n" for number in range(9)]
WRITE, DELETE = st.tuples(st.just("writes"), PATHS, st.integers(0, 8)), st.tuples(st.just("deletes"), PATHS)
ACCEPT = st.tuples(st.just("accept"), PATHS | st.none())


def by(side, *operations):
    return st.one_of([operation.map(lambda said: (f"{side}_{said[0]}", *said[1:])) for operation in operations])


class TwoSides:
    """A workspace that the host goes on with, the task's changes to it, and acceptance of some of them, repeatedly.

    What each side means is kept as a model: the texts that each wrote last, by path.
    """

    def __init__(self, there):
        self.patch = pytest.MonkeyPatch()
        self.base = Path(tempfile.mkdtemp(prefix="exeat-test-"))
        self.lab = ChangesLab(self.base, self.patch)
        for path in sorted(there):
            self.lab.write(path, "".join(NINE_LINES))
        self.start = dict.fromkeys(there, "".join(NINE_LINES))
        self.host, self.task = dict(self.start), dict(self.start)
        self.count = 0
        self.lab.begin()

    def close(self):
        self.patch.undo()
        shutil.rmtree(self.base)

    def text(self, old, line):
        """An edit of one line, as nobody else would make it; or a text of its own."""
        self.count += 1
        if old is None:
            return f"made {self.count}\n"
        lines = old.splitlines(keepends=True)
        lines[line % len(lines)] = f"written {self.count}\n"
        return "".join(lines)

    def task_writes(self, path, line):
        self.task[path] = self.text(self.task.get(path), line)
        self.lab.task_writes(path, self.task[path])

    def task_deletes(self, path):
        if path in self.task:
            del self.task[path]
            if path in self.start:
                self.lab.task_deletes(path)
            else:
                (self.lab.upper / path).unlink()

    def host_writes(self, path, line):
        self.host[path] = self.text(self.host.get(path), line)
        self.lab.write(path, self.host[path])

    def host_deletes(self, path):
        if self.host.pop(path, None) is not None:
            (self.lab.work / path).unlink()

    def accept(self, path):
        pending = self.lab.changes()
        if path is not None and path not in pending:
            return
        before = dict(self.host)
        said = self.lab.accept(*([] if path is None else [path]))
        for name, how in said.items():
            if (self.lab.work / name).is_dir() or name in ("d", "d/e"):
                continue
            now = self.read(name)
            ours, theirs, base = before.get(name), self.task.get(name), self.start.get(name)
            if how.startswith("left"):
                assert now == ours, (name, how)
                assert name in self.lab.changes()
            elif how == "merged":
                for side in (ours, theirs):  # every line that one of them wrote
                    assert set(side.splitlines()) - set(base.splitlines()) <= set(now.splitlines())
            else:
                assert now == theirs, (name, how)
                assert ours in (base, theirs), (name, how)  # nothing of the host's was in the way
            if now is None:
                self.host.pop(name, None)
            else:
                self.host[name] = now

    def read(self, name):
        path = self.lab.work / name
        return path.read_text() if os.path.lexists(path) else None

    def check(self):
        """The host has what it wrote, or accepted."""
        found = {name: content for name, content in self.lab.files().items() if content is not None}
        assert found == self.host


@settings(max_examples=25, deadline=None)
@given(
    there=st.sets(PATHS),
    during=st.lists(by("task", WRITE, WRITE, DELETE) | by("host", WRITE, DELETE), min_size=3, max_size=8),
    after=st.lists(by("host", WRITE, DELETE) | ACCEPT, min_size=1, max_size=6),
)
def test_merge_loses_no_side(there, during, after):
    sides = TwoSides(there)
    try:
        for operation, *words in during:
            getattr(sides, operation)(*words)
        sides.lab.changes()  # the task has ended
        for operation, *words in (*after, ("accept", None), ("accept", None)):
            getattr(sides, operation)(*words)
            sides.check()
    finally:
        sides.close()
