"""Submodules, into which Git goes by itself: which there are by the index, and what a task that makes one gets by it."""

import os
import shutil
import subprocess

import pytest

from enforcer.changes import gitlinks
from enforcer.changes.guard import Guard
from enforcer.changes.protected import directly
from tests import harness

LONG = "/".join(("d" * 200, "e" * 250, "f" * 250))
MONITOR = "#!/bin/sh\ntouch ran\n"


@pytest.fixture
def work(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        harness.missing("git")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "work"


def git(place, *words):
    done = subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=place, capture_output=True,
                          text=True, timeout=60, check=True)  # fmt: skip
    return done.stdout.strip()


def repository(place, form="sha1"):
    place.mkdir(parents=True)
    git(place, "init", "-q", "-b", "main", f"--object-format={form}")
    git(place, "commit", "-q", "--allow-empty", "-m", "first")


def link(above, path):
    """What a task does: no `.gitmodules`, and nothing in the repository but its index."""
    git(above, "update-index", "--add", "--cacheinfo", f"160000,{git(above / path, 'rev-parse', 'HEAD')},{path}")


@pytest.mark.parametrize("form", ["sha1", "sha256"])
def test_every_link_in_an_index_is_found_however_it_is_written(work, form):
    repository(work, form)
    for number in range(100):
        (work / f"{'x' * (number % 40)}{number}").write_text("a" * number)
    for name in ("sub", "a/b", LONG):
        repository(work / name, form)
    repository(work / "sub/inner", form)
    git(work, "add", "-A")
    git(work / "sub", "add", "inner")
    expected = sorted(["sub", "a/b", LONG, "sub/inner"])
    for how in ("--index-version=2", "--index-version=4", "--split-index", "--no-split-index", "--index-version=3"):
        git(work, "update-index", *how.split("=", 1))
        assert sorted(gitlinks.linked(str(work), str(work / ".git"))) == expected, how
        assert sorted(gitlinks.linked(str(work), str(work / ".git"), trusted=True)) == expected, how


@pytest.mark.parametrize("data", [b"", b"DIRC", b"DIRC\0\0\0\5\0\0\0\0", b"DIRC\0\0\0\2\0\0\0\1" + b"\0" * 40])
def test_an_index_that_makes_no_sense_hides_them(work, data):
    repository(work)
    (work / ".git/index").write_bytes(data)
    with pytest.raises(gitlinks.Hidden):
        gitlinks.linked(str(work), str(work / ".git"))


@pytest.mark.parametrize("hidden", [False, True])
def test_a_repository_that_a_task_has_git_go_into_is_put_aside(work, hidden, monkeypatch):
    repository(work)
    for name in ("was", "told"):
        repository(work / name)
    (work / "kept").mkdir()
    (work / "kept/file").write_text("kept")
    git(work, "add", "was", "kept")
    git(work, "commit", "-q", "-m", "second")
    found = Guard(str(work), directly(()))
    covered = [os.path.relpath(path, work) for path in found.paths()]
    assert {"was/.git/config", "was/.git/hooks"} < {*covered}
    assert not any(path.startswith("told") for path in covered)
    repository(work / "sub")
    (work / "sub/monitor").write_text(MONITOR)
    (work / "sub/monitor").chmod(0o755)
    git(work / "sub", "config", "core.fsmonitor", "./monitor")
    for name in ("sub", "told"):
        link(work, name)
    repository(work / "was/inner")
    link(work / "was", "inner")
    repository(work / "apart")
    if hidden:
        monkeypatch.setattr(gitlinks, "_LARGEST", 10)  # bytes: the index is larger than what is looked at
    made = found.made(found.changed())
    expected = ["sub/.git", "told/.git", "was/inner/.git"]
    assert [path for path in made if path.endswith("/.git")] == (expected if not hidden else ["apart/.git", *expected])
    assert hidden or found.made_at_once() == expected
    found.close()
    git(work, "status")
    assert (work / "sub/ran").exists(), "git does what the configuration says that the task has made"
    (work / "sub/ran").unlink()
    shutil.rmtree(work / "sub/.git")
    git(work, "status")
    assert not (work / "sub/ran").exists()


def test_a_workspace_that_is_a_part_of_a_worktree_is_looked_at_as_git_does(work):
    repository(work)
    repository(work / "part/sub")
    repository(work / "other")
    (work / "part/hooks").mkdir()
    (work / "part/check.sh").touch()
    git(work, "add", "part/sub", "other")
    git(work, "config", "core.hooksPath", "part/hooks")
    git(work, "config", "filter.x.clean", "sh part/check.sh")
    found = Guard(str(work / "part"), directly(()))
    covered = {os.path.relpath(path, work) for path in found.paths()}
    assert covered >= {"part/check.sh", "part/hooks", "part/sub/.git/config", "part/sub/.git/hooks"}
    assert all(path.startswith("part/") for path in covered)
    repository(work / "part/sub/inner")
    link(work / "part/sub", "inner")
    assert found.made_at_once() == ["sub/inner/.git"]
    found.close()
