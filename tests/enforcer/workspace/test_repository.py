"""Submodules, into which Git goes by itself: which there are by the index, and what a task that makes one gets by it."""

import errno
import os
import shutil
import subprocess
import time

import pytest

from enforcer.workspace.protected_files import Guard, globs_when_direct
from enforcer.workspace.repository import HiddenRepositoryError, RepositoryReader
from enforcer.workspace.repository_scan import RepositoryScan
from enforcer.workspace.safe_path import Tree
from tests.support import harness

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


def after(work):
    """How the workspace is looked at after a task."""
    return RepositoryReader(Tree.open(str(work)), str(work))


def link(above, path):
    """What a task does: no `.gitmodules`, and nothing in the repository but its index."""
    git(above, "update-index", "--add", "--cacheinfo", f"160000,{git(above / path, 'rev-parse', 'HEAD')},{path}")


@pytest.mark.parametrize("form", ["sha1", "sha256"])
def test_every_gitlink_of_an_index_is_found(work, form):
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
        for seen in (RepositoryReader(), after(work)):
            assert sorted(seen.submodules(str(work), str(work / ".git"))) == expected, how


@pytest.mark.parametrize("data", [b"", b"DIRC", b"DIRC\0\0\0\5\0\0\0\0", b"DIRC\0\0\0\2\0\0\0\1" + b"\0" * 40])
def test_malformed_index_hides_its_submodules(work, data):
    repository(work)
    (work / ".git/index").write_bytes(data)
    with pytest.raises(HiddenRepositoryError):
        after(work).submodules(str(work), str(work / ".git"))


def version_4(*names):
    """Return an index, in which each name is `cut` bytes less of the one before, and what is put behind that."""
    entries = (b"\0" * 26 + b"\x81\xa4" + b"\0" * 34 + cut + name + b"\0" for cut, name in names)
    return b"DIRC\0\0\0\4" + len(names).to_bytes(4) + b"".join(entries)


@pytest.mark.parametrize(
    "data",
    [version_4((b"\0", b"x" * 1_000_000), *[(b"\1", b"y")] * 60_000), version_4((b"\xff" * 600_000, b""))],
    ids=["a long name", "a large number"],
)
def test_index_is_read_in_bounded_time(work, data):
    repository(work)
    (work / ".git/index").write_bytes(data)
    began = time.process_time()
    with pytest.raises(HiddenRepositoryError):
        after(work).submodules(str(work), str(work / ".git"))
    assert time.process_time() - began < 1


# What leads there: a path in the workspace, by a link (None) or a file that says so
SAID = [("sub/.git", "gitdir: {}\n"), ("sub/.git", None), ("sub", None), ("sub/.git/index", None),
        ("sub/.git/config", None), ("sub/.git/commondir", "{}\n"), (".git/commondir", "{}\n"),
        (".git", "gitdir: {}\n"), (".git", None), (".git/index", None)]  # fmt: skip


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize(("path", "text"), SAID)
def test_gitlinks_are_followed_only_inside_the_workspace(work, path, text, part, monkeypatch):
    elsewhere = str(work.parent / "elsewhere")
    top = work.parent if part else work
    repository(work)
    if part:
        shutil.rmtree(work / ".git")
        git(top, "init", "-q")
        repository(work / "sub")
        link(top, "work/sub")
    found = Guard(str(work), globs_when_direct(()))
    if not part:
        repository(work / "sub")
        link(work, "sub")
    at = work / path
    at.parent.mkdir(exist_ok=True)
    if at.is_dir():
        shutil.rmtree(at)
    at.unlink(missing_ok=True)
    at.symlink_to(elsewhere) if text is None else at.write_text(text.format(elsewhere))
    seen = []
    for name in ("open", "listdir", "readlink", "stat", "lstat"):
        does = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, *rest, does=does, **how: seen.append(str(path)) or does(path, *rest, **how)
        )
    found.find_changed()
    monkeypatch.undo()
    found.close()
    allowed = ("/proc/self/fd/", *([f"{top}/.git"] if part else []))  # the latter no task can write
    assert not [path for path in seen if path.startswith("/") and not path.startswith(allowed)]


def test_submodule_closed_to_its_owner_is_hidden(work):
    def deny_access(_path):
        raise PermissionError(errno.EACCES, "closed")

    repository(work)
    repository(work / "sub")
    link(work, "sub")
    seen = after(work)
    assert seen.submodules(str(work), str(work / ".git")) == ["sub"]
    seen._tree.stat = deny_access
    with pytest.raises(HiddenRepositoryError):
        seen.submodules(str(work), str(work / ".git"))


@pytest.mark.parametrize("hidden", [False, True])
def test_repository_planted_as_a_submodule_is_quarantined(work, hidden, monkeypatch):
    repository(work)
    for name in ("was", "told"):
        repository(work / name)
    (work / "kept").mkdir()
    (work / "kept/file").write_text("kept")
    git(work, "add", "was", "kept")
    git(work, "commit", "-q", "-m", "second")
    found = Guard(str(work), globs_when_direct(()))
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
        # bytes: the index is larger than what is looked at
        monkeypatch.setattr("enforcer.workspace.repository._LARGEST_INDEXES", 10)
    made = found.find_new(found.find_changed())
    expected = ["sub/.git", "told/.git", "was/inner/.git"]
    assert [path for path in made if path.endswith("/.git")] == (expected if not hidden else ["apart/.git", *expected])
    assert hidden or found.find_new_quickly() == expected
    found.close()
    git(work, "status")
    assert (work / "sub/ran").exists(), "git does what the configuration says that the task has made"
    (work / "sub/ran").unlink()
    shutil.rmtree(work / "sub/.git")
    git(work, "status")
    assert not (work / "sub/ran").exists()


def test_workspace_below_a_worktree_is_scanned_as_git_does(work):
    repository(work)
    repository(work / "part/sub")
    repository(work / "other")
    (work / "part/hooks").mkdir()
    (work / "part/check.sh").touch()
    git(work, "add", "part/sub", "other")
    git(work, "config", "core.hooksPath", "part/hooks")
    git(work, "config", "filter.x.clean", "sh part/check.sh")
    found = Guard(str(work / "part"), globs_when_direct(()))
    covered = {os.path.relpath(path, work) for path in found.paths()}
    assert covered >= {"part/check.sh", "part/hooks", "part/sub/.git/config", "part/sub/.git/hooks"}
    assert all(path.startswith("part/") for path in covered)
    repository(work / "part/sub/inner")
    link(work / "part/sub", "inner")
    assert found.find_new_quickly() == ["sub/inner/.git"]
    found.close()


NEW = [
    # what an earlier task may have left in a repository that is all its own: a file of it, and what it says
    (".git/config", "[include]\npath = {}\n"),
    (".git/config", '[includeIf "gitdir:**"]\npath = {}\n'),
    (".git/config", "[include]\npath = link\n"),
    (".git/config", "[core]\nhooksPath = {}\nworktree = {}\nattributesFile = {}\nexcludesFile = {}\n"),
    (".git/config", '[core]\nfsmonitor = {}/x\nhooksPath = link/x\n[filter "x"]\nclean = {}/y\n'),
    (".git/config", None),
    (".git/config.worktree", "[include]\npath = {}\n"),
    (".git/index", None),
    (".git/sharedindex.1", None),
    (".git/commondir", "{}\n"),
    (".git/commondir", None),
    (".git/objects/info/alternates", "{}\n"),
    (".git/packed-refs", None),
    ("sub/.git", "gitdir: {}\n"),
    ("sub/.git", None),
    ("sub/.git/commondir", "{}\n"),
    ("sub/.git/config", "[include]\npath = {}\n"),
    ("sub/.git/index", None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "text"), NEW)
def test_start_opens_no_path_outside_the_workspace(work, path, text, monkeypatch):
    """Its owner opens it, whatever it is: a FIFO, a device, what an automounter asks a server for."""
    elsewhere = work.parent / "elsewhere"
    os.mkfifo(elsewhere)
    repository(work)
    repository(work / "sub")
    link(work, "sub")
    (work / ".git/link").symlink_to(elsewhere)
    (work / "link").symlink_to(elsewhere)
    at = work / path
    if at.is_dir():
        shutil.rmtree(at)
    at.unlink(missing_ok=True)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(elsewhere) if text is None else at.write_text(text.replace("{}", str(elsewhere)))
    seen = []
    for name in ("open", "listdir", "readlink", "stat", "lstat", "scandir"):
        does = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path=".", *rest, does=does, **how: seen.append(str(path)) or does(path, *rest, **how)
        )
    found = Guard(str(work), globs_when_direct(()))
    found.paths()
    monkeypatch.undo()
    found.close()
    assert not [path for path in seen if path.startswith(str(elsewhere))]


@pytest.mark.parametrize("path", [".git/config", ".git/index", "sub/.git/config", ".git/HEAD", ".gitconfig"])
def test_start_opens_only_regular_files(work, path):
    """Whoever waits to write a FIFO goes on waiting."""
    repository(work)
    repository(work / "sub")
    link(work, "sub")
    (work / ".git/config").write_text("[include]\npath = ../.gitconfig\n")
    (work / path).unlink(missing_ok=True)
    os.mkfifo(work / path)
    with subprocess.Popen(["sh", "-c", f"echo said > {work / path}; echo written"], stdout=subprocess.PIPE) as writer:
        Guard(str(work), globs_when_direct(())).close()
        review_globs(work)
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.1)
        writer.kill()


def review_globs(work):
    tree = Tree.open(str(work))
    RepositoryScan(tree, str(work)).protected_globs()
    tree.close()


def test_repository_files_are_read_over_inner_links(work):
    repository(work)
    (work / "tools/hooks").mkdir(parents=True)
    (work / "hooks").symlink_to("tools/hooks")
    git(work, "config", "core.hooksPath", "hooks")
    found = Guard(str(work), globs_when_direct(()))
    assert f"{work}/tools/hooks" in found.paths()
    found.close()
