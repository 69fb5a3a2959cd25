"""A merge that is killed, and one that somebody else is quicker than, at every point of it: nothing is lost."""

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

from enforcer.system.errors import HostError
from enforcer.workspace import atomic_replace

STRIDE = 7  # every so many lines of it


def begin(lab):
    lab.write("edited", "old\n")
    lab.write("deleted", "gone\n")
    lab.write("tree/inner", "tree\n")
    lab.write("dir/kept", "k")
    lab.begin()
    lab.task_writes("edited", "new, and longer\n")
    lab.task_deletes("deleted")
    lab.task_deletes("tree")
    lab.task_writes("dir/added", "added\n")
    (lab.upper / "link").symlink_to("edited")
    lab.changes()


AFTER = {"dir": None, "dir/added": "added\n", "dir/kept": "k", "edited": "new, and longer\n", "link": "-> edited"}
EITHER = {"edited": {"old\n", "new, and longer\n"}, "deleted": {"gone\n", None}, "tree/inner": {"tree\n", None}}


def again(lab, number):
    """Put everything back as it was at the start, for the next point."""
    shutil.rmtree(lab.kept.place)
    for path in lab.work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    begin(lab)
    return number


def test_merge_killed_at_any_point_can_be_repeated(lab):
    begin(lab)
    number = random.randint(1, STRIDE * 4)  # over runs, every line; what is asserted says which it was
    while killed_at(number, lab.accept):
        found = lab.files()
        spare = [content for name, content in found.items() if os.path.basename(name).startswith(".exeat-")]
        assert len(spare) <= 1, found
        for name, versions in EITHER.items():  # whole, as it was or as it is to be, or set aside for a moment
            assert found.get(name) in versions or (found.get(name) is None and spare), (number, found)
        assert found["dir/kept"] == "k"
        said = lab.accept()
        assert all(how in ("taken", "already in") for how in said.values()), (number, said)
        assert lab.files() == AFTER, number
        number = again(lab, number + STRIDE * 4)
    assert number > STRIDE * 4
    assert lab.files() == AFTER


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_file_planted_after_a_killed_merge_is_ignored(lab, monkeypatch, done):
    lab.write(".envrc", "old")
    lab.begin(protected=[".envrc"])
    lab.task_writes(".envrc", "said yes to")
    lab.task_writes("plain", "p")
    lab.changes()
    exchange = atomic_replace.linux.renameat2

    def killed(*words):
        if done:
            exchange(*words)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(atomic_replace.linux, "renameat2", killed)
        lab.accept(protected=[".envrc"])
        os._exit(0)
    os.waitpid(pid, 0)
    (spare,) = (each for each in lab.work.iterdir() if each.name.startswith(".exeat-"))
    (lab.work / "evil").write_text("evil")  # by another task, that works there directly: to it .envrc is read-only
    (lab.work / "evil").rename(spare)
    with pytest.raises(HostError, match="it is not the replaced file"):
        lab.accept("plain")
    assert lab.files()[".envrc"] == ("said yes to" if done else "old")
    spare.unlink()
    assert lab.accept("plain") == {"plain": "taken"}
    assert lab.accept(protected=[".envrc"])[".envrc"] == ("already in" if done else "taken")


def replaced(lab):
    """The host saves the file as editors do."""
    (lab.work / "edited~").write_text("the host's\n")
    (lab.work / "edited~").rename(lab.work / "edited")


def written(lab):
    (lab.work / "edited").write_text("the host's\n")


def dropped(lab):
    (lab.work / "edited").unlink()
    (lab.work / "edited").symlink_to("dir/kept")


@pytest.mark.parametrize("act", [replaced, written])
def test_write_that_races_a_merge_is_kept(lab, act):
    begin(lab)
    number = 1
    while at_line(number, lambda: act(lab), lambda: lab.accept("edited")):
        assert lab.files()["edited"] == "the host's\n", number
        assert not any(name.startswith(".exeat-") for name in os.listdir(lab.work)), number
        number = again(lab, number + STRIDE)
    assert number > STRIDE


def swapped(lab):
    """Somebody who may write the workspace puts a link out of it in the place of a directory."""
    (lab.work / "dir").rename(lab.work / "away")
    (lab.work / "dir").symlink_to("../outside")


@pytest.mark.parametrize("act", [swapped, dropped])
def test_planted_link_leads_no_merge_outside(lab, act):
    outside = lab.work.parent / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    (outside / "kept").write_text("precious")
    begin(lab)
    number = 1
    while at_line(number, lambda: act(lab), lab.accept):
        assert {path.name: path.read_text() for path in outside.iterdir()} == {"kept": "precious"}, number
        files = lab.files()
        if act is dropped:
            assert files["dir/kept"] == "k", number
        number = again(lab, number + STRIDE * 4)
    assert number > STRIDE


_PLACES = tuple(
    str(Path(__file__).parents[3] / "enforcer" / "workspace" / name)
    for name in ("atomic_replace.py", "accept.py", "safe_path.py")
)


def at_line(number, action, run):
    """Call `run`, and `action` before its line of this number. Whether there was one; `run`'s own errors pass."""
    count = 0
    fired = False

    def trace(frame, event, _argument):
        nonlocal count, fired
        if not frame.f_code.co_filename.startswith(_PLACES):
            return None
        if event == "line":
            count += 1
            if count == number:
                fired = True
                sys.settrace(None)
                action()
        return None if fired else trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return fired


def killed_at(number, run):
    """Call `run` in a process of its own that kills itself before its line of this number. Whether there was one."""
    pid = os.fork()
    if pid == 0:
        try:
            at_line(number, lambda: os.kill(os.getpid(), signal.SIGKILL), run)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)
