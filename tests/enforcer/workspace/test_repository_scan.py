"""Where a workspace's repository is, and what its configuration has Git run: found, covered, and put aside."""

import os
import subprocess
import sys

import pytest

from enforcer.workspace.protected_files import Guard, globs_when_direct
from enforcer.workspace.repository import parse_settings
from tests.support import harness


def guard(path, *globs):
    return Guard(str(path), globs)


def repository(path):
    for name in ("objects", "refs", "info"):
        (path / name).mkdir(parents=True)
    (path / "HEAD").write_text("ref: refs/heads/main\n")
    (path / "config").touch()


def test_repository_of_another_name_is_found_as_git_does(tmp_path):
    for layout in ("file", "link", "bare", "worktree", "outside"):
        work = tmp_path / layout / "work"
        place = {"bare": "", "worktree": "main/.git", "outside": "../there"}.get(layout, ".bare")
        repository(work / place)
        if layout == "link":
            (work / ".git").symlink_to(".bare")
        elif layout == "worktree":
            (work / place / "worktrees/w").mkdir(parents=True)
            (work / place / "worktrees/w/commondir").write_text("../..\n")
            (work / ".git").write_text(f"gitdir: {work}/{place}/worktrees/w\n")
        elif layout != "bare":
            (work / ".git").write_text(f"gitdir: {place}\n")
        found = guard(work, *globs_when_direct(()))
        covered = [os.path.relpath(path, work) for path in found.paths()]
        prefix = f"{place}/" if place else ""
        expected = {
            "file": [".bare/config", ".git"],
            "link": [".bare/config"],
            "bare": ["HEAD", "config"],
            "worktree": [".git", f"{place}/config", f"{place}/worktrees/w/commondir"],
            "outside": [".git"],
        }
        assert covered == sorted(expected[layout]), layout
        for name in ("hooks", "remotes", "worktrees/new"):
            (work / prefix / name).mkdir(parents=True)
        for name in ("commondir", "hooks/pre-commit", "remotes/origin", "info/attributes", "worktrees/new/commondir"):
            (work / prefix / name).touch()
        (work / ".claude").mkdir()
        (work / ".claude/settings.json").touch()
        made = found.find_new(found.find_changed())
        new = [] if layout == "outside" else ["commondir", "hooks", "info/attributes", "remotes"]
        assert made == sorted([".claude/settings.json", *(prefix + name for name in new)]), layout
        found.close()


def test_configuration_lines_end_as_in_git():
    said = "[core]\r\n\thooksPath = a\x0cb\x85c\u2028d\r\n\tx = 1 \\\r\n2\r\n"
    assert [*parse_settings(said)] == [("core.hookspath", "a\x0cb\x85c\u2028d"), ("core.x", "1 2")]


CONFIGURATION = r"""
[core]
	hooksPath = "tools/git \"hooks\"" ; where they are
	fsmonitor = {work}/scripts/monitor
	editor = vim
[Include]
	path = ../.gitconfig
[includeIf "onbranch:]main"] path=../config/there # for one
[diff "x"]
	textconv = ./scripts/text \
		-q
	# command = scripts/commented
[filter "y"]
	clean = python3 scripts/clean.py %f 'scripts/clean.py
[alias]
	test = !make test
[credential] helper = !scripts/text
"""


def test_programs_and_files_of_git_configuration_are_protected(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    repository(work / ".git")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.gitconfig").write_text("[core]\nhooksPath = .everywhere\n[include]\npath = absent\n")
    (work / ".git/config").write_text(CONFIGURATION.replace("{work}", str(work)))
    (work / ".gitconfig").write_text('[merge "z"]\ndriver = tools/merge %A\n[include]\npath = .gitconfig\n\0[core]\n')
    for name in ("scripts/monitor", "scripts/text", "scripts/clean.py", "scripts/commented", "tools/merge", "vim/vim"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).touch()
    for name in ("test", "make"):
        (work / name).touch()
    found = guard(work, *globs_when_direct(()))
    covered = [os.path.relpath(path, work) for path in found.paths()]
    assert covered == [
        ".git/config", ".gitconfig", "scripts/clean.py", "scripts/monitor", "scripts/text", "tools/merge",
    ]  # fmt: skip
    for name in ("config/there", 'tools/git "hooks"/pre-commit', ".everywhere/pre-commit", "tools/other"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).touch()
    assert found.find_new(found.find_changed()) == [".everywhere", "config/there", 'tools/git "hooks"']
    found.close()


@pytest.mark.parametrize(
    "text", ["", "[", "]", '["', "[a", "=", "[a]=\\", '[core]\nhooksPath="', "[core]hookspath", "gitdir:"]
)
def test_malformed_configuration_is_ignored(tmp_path, monkeypatch, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    repository(tmp_path / ".git")
    (tmp_path / ".git/config").write_text(text)
    (tmp_path / ".git/commondir").write_text(text.replace("gitdir:", "\0"))
    guard(tmp_path, *globs_when_direct(())).close()
    (tmp_path / ".git").rename(tmp_path / "other")
    (tmp_path / ".git").write_text(text)
    guard(tmp_path, *globs_when_direct(())).close()


def test_task_cannot_turn_a_directory_into_a_repository(tmp_path):
    found = guard(tmp_path, *globs_when_direct(()))
    repository(tmp_path)
    assert found.find_new(found.find_changed()) == ["HEAD"]
    found.close()


IMPORTS = """
import os, sys

class Closed:
    def find_spec(self, name, *_):
        if os.geteuid():
            raise ModuleNotFoundError(f"{name}: its owner can't read our code")

from enforcer.workspace.repository import parse_settings
from enforcer.workspace.protected_files import Guard
from enforcer.workspace.protected_files import globs_when_direct

sys.meta_path.insert(0, Closed())
sys.path_importer_cache.clear()
guard = Guard(sys.argv[1], globs_when_direct(("*.conf", "a/*.b/c", "deep/**/*.x")))
open(sys.argv[1] + "/new.conf", "w").close()
os.chown(sys.argv[1] + "/.git", 54321, 54321)
print(guard.find_new_quickly(), guard.find_changed())
"""


def test_code_is_imported_before_the_user_changes(tmp_path):
    """Root's Python often lies in a home that is closed: what a task made would be found by nobody."""
    harness.needs_root()
    for path in ("a/y.b", "deep/er", ".git/worktrees/w", ".git/modules/m", ".claude"):
        (tmp_path / path).mkdir(parents=True)
    repository(tmp_path / ".git")
    (tmp_path / ".git/config").write_text(CONFIGURATION)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 54321, 54321)
    (tmp_path / ".claude").chmod(0)
    for path in list(tmp_path.parents)[:3]:
        path.chmod(path.stat().st_mode | 0o111)
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, tmp_path], cwd=harness.PROJECT, capture_output=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, b"['new.conf'] ['new.conf']\n"), done.stderr.decode()


def test_nested_repositories_are_guarded_but_not_new_ones(tmp_path):
    work = tmp_path / "src"
    for name in ("one/.git", "bare.git", "deep/er/st/.git", "one/inner/.git", "told", "node_modules/x/.git"):
        repository(work / name)
    (work / "two").mkdir()
    (work / "two/.git").write_text("gitdir: ../told\n")
    (work / "notes").mkdir()
    (work / "away").symlink_to("one")
    found = guard(work, *globs_when_direct(()))
    covered = [os.path.relpath(path, work) for path in found.paths()]
    inner = ["deep/er/st/.git/config", "one/.git/config", "one/inner/.git/config"]
    assert covered == ["bare.git/config", *inner, "told/config", "two/.git"]
    for name in ("one/.git/hooks", "bare.git/hooks", "deep/er/st/.git/hooks", "one/.git/worktrees/w"):
        (work / name).mkdir(parents=True)
    (work / "one/.git/worktrees/w/commondir").write_text("../..\n")
    for name in ("notes/.git", "new/.git"):
        repository(work / name)
    with (work / "bare.git/config").open("w") as file:
        file.write("[core]\n")
    changed = found.find_changed()
    assert changed == ["bare.git/config", "bare.git/hooks", "deep/er/st/.git/hooks", "one/.git/hooks"]
    assert found.find_new(changed) == ["bare.git/hooks", "deep/er/st/.git/hooks", "one/.git/hooks"]
    assert found.is_searched
    found.close()


def test_common_directory_at_the_workspace_top_is_protected(tmp_path):
    """Git takes its configuration and hooks from there then."""
    repository(tmp_path / ".git")
    repository(tmp_path)
    (tmp_path / ".git/commondir").write_text("..\n")
    found = guard(tmp_path, *globs_when_direct(()))
    assert f"{tmp_path}/config" in found.paths()
    (tmp_path / "hooks").mkdir()
    assert "hooks" in found.find_new(found.find_changed())
    found.close()


@pytest.mark.parametrize(("bound", "most"), [("_MOST_DIRECTORIES", 3), ("_MOST_NAMES", 5)])
def test_nearest_of_many_directories_are_scanned(tmp_path, monkeypatch, bound, most):
    for name in ("a/b/c/.git", "d/.git"):
        repository(tmp_path / name)
    monkeypatch.setattr(f"enforcer.workspace.repository_scan.{bound}", most)
    found = guard(tmp_path, *globs_when_direct(()))
    assert [os.path.relpath(path, tmp_path) for path in found.paths()] == ["d/.git/config"]
    assert not found.is_searched
    found.close()


def test_repositories_beyond_the_limit_refuse_no_start(tmp_path, monkeypatch):
    monkeypatch.setattr("enforcer.workspace.protected_files._MOST", 3)
    monkeypatch.setattr("enforcer.workspace.protected_files._MOST_NESTED", 4)
    for number in range(5):
        repository(tmp_path / f"{number}/.git")
    (tmp_path / ".envrc").touch()
    found = guard(tmp_path, *globs_when_direct(()))
    assert [os.path.relpath(path, tmp_path) for path in found.paths()] == [".envrc", "0/.git/config", "1/.git/config"]
    assert found.unguarded == 1
    (tmp_path / "3/.git/config").write_text("[core]\n")
    assert found.find_changed() == ["3/.git/config"]
    found.close()
