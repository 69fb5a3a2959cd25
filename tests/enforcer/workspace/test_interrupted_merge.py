"""A merge that is killed, and one that somebody else is quicker than, at every point of it: nothing is lost."""

import os
import random
import shutil
import signal

import pytest

from enforcer.system.errors import HostError
from enforcer.workspace import atomic_replace
from tests.enforcer.workspace.stepping import at_line, killed_at

STRIDE = 7  # every so many lines of it


def begin(world):
    world.write("edited", "old\n")
    world.write("deleted", "gone\n")
    world.write("tree/inner", "tree\n")
    world.write("dir/kept", "k")
    world.begin()
    world.task_writes("edited", "new, and longer\n")
    world.task_deletes("deleted")
    world.task_deletes("tree")
    world.task_writes("dir/added", "added\n")
    (world.upper / "link").symlink_to("edited")
    world.changes()


AFTER = {"dir": None, "dir/added": "added\n", "dir/kept": "k", "edited": "new, and longer\n", "link": "-> edited"}
EITHER = {"edited": {"old\n", "new, and longer\n"}, "deleted": {"gone\n", None}, "tree/inner": {"tree\n", None}}


def again(world, number):
    """Put everything back as it was at the start, for the next point."""
    shutil.rmtree(world.kept.place)
    for path in world.work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    begin(world)
    return number


def test_merge_killed_at_any_point_can_be_repeated(world):
    begin(world)
    number = random.randint(1, STRIDE * 4)  # over runs, every line; what is asserted says which it was
    while killed_at(number, world.accept):
        found = world.files()
        spare = [content for name, content in found.items() if os.path.basename(name).startswith(".exeat-")]
        assert len(spare) <= 1, found
        for name, versions in EITHER.items():  # whole, as it was or as it is to be, or set aside for a moment
            assert found.get(name) in versions or (found.get(name) is None and spare), (number, found)
        assert found["dir/kept"] == "k"
        said = world.accept()
        assert all(how in ("taken", "already in") for how in said.values()), (number, said)
        assert world.files() == AFTER, number
        number = again(world, number + STRIDE * 4)
    assert number > STRIDE * 4
    assert world.files() == AFTER


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_file_planted_after_a_killed_merge_is_ignored(world, monkeypatch, done):
    world.write(".envrc", "old")
    world.begin(protected=[".envrc"])
    world.task_writes(".envrc", "said yes to")
    world.task_writes("plain", "p")
    world.changes()
    exchange = atomic_replace.linux.renameat2

    def killed(*words):
        if done:
            exchange(*words)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(atomic_replace.linux, "renameat2", killed)
        world.accept(protected=[".envrc"])
        os._exit(0)
    os.waitpid(pid, 0)
    (spare,) = (each for each in world.work.iterdir() if each.name.startswith(".exeat-"))
    (world.work / "evil").write_text("evil")  # by another task, that works there directly: to it .envrc is read-only
    (world.work / "evil").rename(spare)
    with pytest.raises(HostError, match="it is not the replaced file"):
        world.accept("plain")
    assert world.files()[".envrc"] == ("said yes to" if done else "old")
    spare.unlink()
    assert world.accept("plain") == {"plain": "taken"}
    assert world.accept(protected=[".envrc"])[".envrc"] == ("already in" if done else "taken")


def replaced(world):
    """The host saves the file as editors do."""
    (world.work / "edited~").write_text("the host's\n")
    (world.work / "edited~").rename(world.work / "edited")


def written(world):
    (world.work / "edited").write_text("the host's\n")


def dropped(world):
    (world.work / "edited").unlink()
    (world.work / "edited").symlink_to("dir/kept")


@pytest.mark.parametrize("act", [replaced, written])
def test_write_that_races_a_merge_is_kept(world, act):
    begin(world)
    number = 1
    while at_line(number, lambda: act(world), lambda: world.accept("edited")):
        assert world.files()["edited"] == "the host's\n", number
        assert not any(name.startswith(".exeat-") for name in os.listdir(world.work)), number
        number = again(world, number + STRIDE)
    assert number > STRIDE


def swapped(world):
    """Somebody who may write the workspace puts a link out of it in the place of a directory."""
    (world.work / "dir").rename(world.work / "away")
    (world.work / "dir").symlink_to("../outside")


@pytest.mark.parametrize("act", [swapped, dropped])
def test_planted_link_leads_no_merge_outside(world, act):
    outside = world.work.parent / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    (outside / "kept").write_text("precious")
    begin(world)
    number = 1
    while at_line(number, lambda: act(world), world.accept):
        assert {path.name: path.read_text() for path in outside.iterdir()} == {"kept": "precious"}, number
        files = world.files()
        if act is dropped:
            assert files["dir/kept"] == "k", number
        number = again(world, number + STRIDE * 4)
    assert number > STRIDE
