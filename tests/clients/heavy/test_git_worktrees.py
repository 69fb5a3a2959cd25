"""git where a repository is not all in the workspace, or is shared: worktrees, submodules, groups, borrowed objects."""

import os
import stat
import subprocess

import pytest

from tests.support import harness

RULES = "version: 1\nname: nothing\nrules: []\n"
WHO = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
ENV = {**WHO, "GIT_CONFIG_GLOBAL": "/dev/null", "PATH": os.environ["PATH"], "HOME": "/nonexistent"}


def host(place, script):
    script = f"git() {{ command git -c safe.directory='*' -c protocol.file.allow=always \"$@\"; }}; {script}"
    done = subprocess.run(["sh", "-ec", script], cwd=place, env=ENV, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def own(someone, *tops):
    if someone.user:
        for top in tops:
            for path in (top, *top.rglob("*")):
                mode = path.lstat().st_mode
                os.chown(path, harness.UID, harness.UID, follow_symlinks=False)
                if not stat.S_ISLNK(mode):
                    path.chmod(stat.S_IMODE(mode))  # chown takes set-gid away


def run(someone, work, script, *options):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    known = [word for name, value in WHO.items() for word in ("--env", f"{name}={value}")]
    words = ["run", "--no-service", "--rules", rules, "--workspace", work, *known, *options, "--", "sh", "-ec", script]
    return someone.exeat(*words)


@pytest.fixture
def main(someone):
    top = someone.home / "src"
    top.mkdir()
    host(top, "git init -q -b main main; cd main; echo a > a; git add a; git commit -qm one; git branch other")
    return top / "main"


DAY = """
git status; git switch -q -c topic; echo b > b; git add b; git commit -qm two; git commit -q --amend -m 'two again'
git tag v1; git tag -a -m t v2; echo c >> a; git stash -q; git stash pop -q; git restore a
git switch -q --detach; git cherry-pick --allow-empty topic || git cherry-pick --abort || true; git switch -q topic
echo d > d; git add d; git commit -qm three; git rebase -q -f HEAD~1; git notes add -m n; git reflog; git log --oneline --all
git reset -q --hard HEAD~1; git merge -q --no-edit ORIG_HEAD; git bisect start HEAD HEAD~1; git bisect reset; git fsck
"""


def test_worktree_supports_everyday_git_commands(someone, main):
    host(main, "git worktree add -q ../w other")
    own(someone, main.parent)
    config = (main / ".git/config").read_bytes()
    done = run(someone, main.parent / "w", DAY)
    assert done.returncode == 0, done.stderr.decode()
    assert b"protected" not in done.stderr
    assert host(main, "git log --format=%s -n 2 topic").startswith("three")
    assert host(main, "git status --porcelain; git rev-parse --abbrev-ref HEAD") == "main"
    assert (main / ".git/config").read_bytes() == config


def test_task_makes_moves_and_removes_worktrees(someone, main):
    own(someone, main.parent)
    script = (
        "git worktree add -q in; cd in; echo b > b; git add b; git commit -qm two; cd ..; git worktree move in there"
    )
    done = run(someone, main, f"{script}; git worktree list; git worktree add -q gone; git worktree remove gone")
    assert done.returncode == 0, done.stderr.decode()
    assert b"protected" not in done.stderr
    assert host(main, "git -C there log --format=%s -n 1") == "two"


def test_worktree_of_a_bare_repository_works(someone, main):
    host(main.parent, "git clone -q --bare main bare; git -C bare worktree add -q ../w other")
    own(someone, main.parent)
    done = run(someone, main.parent / "w", DAY)
    assert done.returncode == 0, done.stderr.decode()
    assert host(main.parent / "bare", "git log --format=%s -n 1 topic") == "three"


def test_submodules_work_as_and_in_the_workspace(someone, main):
    host(main.parent, "git clone -q main lib; cd main; git submodule --quiet add ../lib lib; git commit -qm sub")
    own(someone, main.parent)
    done = run(someone, main / "lib", "git status; echo b > b; git add b; git commit -qm two")
    assert done.returncode == 0, done.stderr.decode()
    assert host(main / "lib", "git log --format=%s -n 1") == "two"
    done = run(
        someone, main, "git status; git -C lib log -n 1; git submodule status; git add lib; git commit -qm moved"
    )
    assert done.returncode == 0, done.stderr.decode()
    assert host(main, "git log --format=%s -n 1") == "moved"


def test_borrowed_objects_are_readable_with_read(someone, main):
    host(main.parent, "git clone -q --shared main borrowed")
    own(someone, main.parent)
    work = main.parent / "borrowed"
    assert run(someone, work, "git log").returncode != 0
    done = run(someone, work, "git log; echo b > b; git add b; git commit -qm two", "--read", main / ".git/objects")
    assert done.returncode == 0, done.stderr.decode()
    assert host(work, "git log --format=%s -n 1") == "two"


def test_repository_shared_by_a_group_works(someone, main):
    host(main.parent, "git init -q -b main --shared=group shared; cd shared; echo a > a; git add a; git commit -qm one")
    own(someone, main.parent)
    work = main.parent / "shared"
    done = run(
        someone, work, "mkdir new; echo b > new/b; git add new; git commit -qm two; git gc -q; git switch -q -c x/y"
    )
    assert done.returncode == 0, done.stderr.decode()
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o2070 for path in (work / ".git/refs").rglob("*") if path.is_dir()}
    assert modes == {0o2070}  # made by git, for the group, and with its group
    assert host(work, "git fsck; git log --format=%s -n 1") == "two"
