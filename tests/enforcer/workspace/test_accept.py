"""What comes of a change when it is accepted: what stood there at the start, what stands there now, what the task left."""

import os
import signal
import socket
import stat
import time

import pytest

from enforcer.workspace import overlay_changes
from enforcer.workspace.safe_path import Tree

LINES = "".join(f"{number}\n" for number in range(1, 21))


def changed(number, to):
    return LINES.replace(f"{number}\n", f"{to}\n", 1) if number > 9 else LINES.replace(f"\n{number}\n", f"\n{to}\n", 1)


def test_accept_applies_every_kind_of_change_once(world):
    world.write("edited", LINES)
    world.write("touched", "same")
    world.write("deleted", "x")
    world.write("script", "#!", 0o644)
    world.write("tree/a/b", "b")
    world.write("tree/c", "c")
    world.write("emptied/old", "old")
    world.write("was-file", "f")
    world.write("was-dir/in", "in")
    world.write("untouched", "u")
    (world.work / "link").symlink_to("edited")
    world.begin()
    world.task_writes("edited", changed(3, "three"))
    world.task_writes("touched", "same")
    world.task_deletes("deleted")
    world.task_writes("script", "#!", 0o755)
    world.task_deletes("tree")
    world.task_replaces("emptied")
    world.task_writes("emptied/new", "new")
    world.task_replaces("was-file")
    world.task_writes("was-file/in", "in")
    world.task_writes("was-dir", "f")
    world.task_writes("new/deep/file\n\udcff", "odd name")
    world.task_writes("set-id", "s", 0o6755)
    (world.upper / "link").symlink_to("untouched")
    (world.upper / "closed").mkdir(0o500)

    assert "touched" not in world.changes()
    assert set(world.accept().values()) == {"taken"}
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
    assert world.files() == after
    assert stat.S_IMODE((world.work / "script").stat().st_mode) == 0o755
    assert stat.S_IMODE((world.work / "set-id").stat().st_mode) == 0o755
    assert stat.S_IMODE((world.work / "closed").stat().st_mode) == 0o500
    owners = {os.lstat(path).st_uid for path in world.work.rglob("*")}
    assert owners == {os.geteuid() if world.owner is None else world.owner}
    assert world.changes() == {}
    assert world.accept() == {}
    # A crash between the workspace and the record: what is in already is found to be
    (world.kept.place / "settled.jsonl").unlink()
    assert set(world.accept().values()) <= {"already in"}
    assert world.files() == after


HOST, TASK, BOTH = changed(2, "host"), changed(18, "task"), changed(2, "host").replace("18\n", "task\n")
MEANWHILE = [
    # at the start, on the host now, left by the task -> on the host in the end, and what was said
    ("host edited elsewhere in it", LINES, HOST, TASK, BOTH, "merged"),
    ("both did the same", LINES, TASK, TASK, TASK, "already in"),
    ("host only touched it", LINES, LINES, TASK, TASK, "taken"),
    ("same lines", LINES, HOST, changed(2, "task"), HOST, "left: both sides changed the same lines"),
    ("binary", "a\0", "b\0", "c\0", "b\0", "left: both sides changed it, and it can't be merged line by line"),
    ("both made it", None, "host", "task", "host", "left: it is in the workspace by now, and the task made another"),
    ("both made the same", None, "same", "same", "same", "already in"),
    ("host deleted it", LINES, None, TASK, None, "left: it is gone from the workspace, and the task changed it"),
    ("task deleted it", LINES, HOST, None, HOST, "left: it was changed in the workspace, and the task deleted it"),
    ("both deleted it", LINES, None, None, None, "already in"),
]


@pytest.mark.parametrize("row", MEANWHILE, ids=[row[0] for row in MEANWHILE])
def test_changes_of_the_host_after_the_task_conflict(world, row):
    _, base, ours, theirs, after, said = row
    if base is not None:
        world.write("file", base)
    world.begin()
    if theirs is None:
        world.task_deletes("file")
    else:
        world.task_writes("file", theirs)
    world.changes()  # the task has ended: what it started from is kept
    if ours is None:
        (world.work / "file").unlink(missing_ok=True)
    else:
        world.write("file", ours)
        if world.owner is not None:
            os.chown(world.work / "file", world.owner, world.owner)
    assert world.accept() == {"file": said}
    assert world.files().get("file") == after
    left = {} if after is None else {"file": after}
    assert world.files() == left  # nothing is left beside it


def test_changes_of_the_host_during_the_task_are_not_the_base(world):
    world.write("edited", LINES)
    world.write("moved/file", "one")
    world.write("other/file", "two")
    world.write("kept/file", "x")
    world.begin()
    world.write("edited", HOST)  # before the task wrote it: what it was is gone
    (world.work / "moved").rename(world.work / "away")
    (world.work / "other").rename(world.work / "moved")
    world.write("kept/new", "the host's")
    world.task_writes("edited", TASK)
    world.task_writes("moved/file", "task's")
    world.task_deletes("kept")
    said = world.accept()
    assert said.pop("kept/file") == "taken"
    assert said.pop("kept") == "left: it now contains something that the task did not delete"
    assert all(how.startswith("left: ") for how in said.values()), said
    files = world.files()
    assert (files["edited"], files["moved/file"], files["kept/new"]) == (HOST, "two", "the host's")


def test_host_edits_during_the_task_are_merged(world):
    world.write("early", LINES)
    world.write("late", LINES)
    world.write("same", LINES)
    world.begin()
    world.task_writes("early", TASK)
    world.task_writes("same", LINES)
    pid = os.fork()
    if pid == 0:
        try:
            tree = Tree.open(str(world.work))
            overlay_changes.keep(world.kept, tree, Tree.open(str(world.upper)))
        finally:
            os._exit(1)
    try:
        until(lambda: set(overlay_changes.copies(world.kept)) == {"early", "same"})
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for name in ("early", "late", "same"):
        world.write(name, HOST)
    world.task_writes("late", TASK)
    assert "same" not in world.changes()
    assert world.accept() == {
        "early": "merged",
        "late": "left: both sides changed it, and there is no copy of what it was at the start",
    }
    assert world.files() == {"early": BOTH, "late": HOST, "same": HOST}


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_partial_snapshot_accepts_only_certain_changes(world):
    """The run was killed before the snapshot was complete: then ctimes say what stood there at the start."""
    world.write("old/file", LINES)
    world.write("busy/file", LINES)
    world.begin()
    (world.kept.place / "base.jsonl").unlink()
    world.write("busy/newer", "n")  # so this may not be the directory that it was
    world.task_writes("old/file", TASK)
    world.task_writes("busy/file", TASK)
    assert world.accept() == {
        "busy/file": "left: it can't be told what stood there when the task started",
        "old/file": "taken",
    }


def test_only_named_paths_and_their_directories_are_accepted(world):
    world.begin()
    world.task_writes("a/b/one", "1")
    world.task_writes("a/b/two", "2")
    world.task_writes("a/c/three", "3")
    world.task_writes("ab", "4")
    assert set(world.accept("a/b/one")) == {"a", "a/b", "a/b/one"}
    assert set(world.files()) == {"a", "a/b", "a/b/one"}
    assert set(world.changes()) == {"a/b/two", "a/c", "a/c/three", "ab"}
    assert set(world.accept("a")) == {"a/b/two", "a/c", "a/c/three"}


def test_hard_links_are_split_before_writing(world):
    outside = world.work.parent / "outside"
    outside.write_text("precious")
    os.link(outside, world.work / "inside")
    world.begin()
    world.task_writes("inside", "task's")
    assert world.accept() == {"inside": "taken"}
    assert outside.read_text() == "precious"
    assert world.files()["inside"] == "task's"


def test_accepted_file_keeps_the_attributes_of_the_replaced_one(world):
    os.setxattr(world.write("file", "a"), "user.host", b"h")
    world.begin()
    os.setxattr(world.task_writes("file", "b"), "user.task", b"t")
    os.setxattr(world.task_writes("new", "b"), "user.overlay.overlay.opaque", b"y")
    world.accept()
    assert os.listxattr(world.work / "file") == ["user.host"]
    assert os.listxattr(world.work / "new") == []


def test_sockets_fifos_and_devices_are_not_accepted(world):
    world.write("was", "file")
    world.begin()
    os.mkfifo(world.upper / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(world.upper / "was"))
    if os.geteuid() == 0:
        os.mknod(world.upper / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        os.mknod(world.upper / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 99))
    said = world.accept()
    assert len(said) == (4 if os.geteuid() == 0 else 2)
    assert set(said.values()) == {"left: devices, sockets and FIFOs are not carried over"}
    assert world.files() == {"was": "file"}
