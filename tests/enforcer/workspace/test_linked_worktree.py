"""A workspace whose repository lies elsewhere: found, shown and protected, and only where that says so itself."""

import os
import shutil
import subprocess

import pytest

from enforcer.workspace import repository
from enforcer.workspace.repository import NO_REPOSITORY, find_linked_repository, list_other_worktrees
from tests.support import harness

RULES = "version: 1\nname: nothing\nrules: []\n"
WHO = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
WHO |= {"GIT_CONFIG_GLOBAL": "/dev/null", "PATH": os.environ["PATH"], "HOME": "/nonexistent"}


def sh(place, script):
    done = subprocess.run(["sh", "-ec", script], cwd=place, env=WHO, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def everything(_what, _path):
    return True


@pytest.fixture
def main(tmp_path):
    """A repository with a linked worktree, `w`, and a submodule, `main/sub`."""
    sh(tmp_path, "git init -q -b main main; git init -q -b main other; cd other; git commit -q --allow-empty -m x")
    sh(tmp_path / "main", "git commit -q --allow-empty -m x; git worktree add -q ../w; git worktree add -q ../v")
    sh(tmp_path / "main", "git -c protocol.file.allow=always submodule add -q ../other sub; git commit -qm sub")
    return tmp_path / "main"


def test_git_directories_of_worktrees_and_submodules_are_found(main):
    git = str(main / ".git")
    found = find_linked_repository(str(main.parent / "w"), everything)
    assert found == ((git,), (git,))
    assert {"HEAD", "index", "worktrees/v"} < {*list_other_worktrees(str(main.parent / "w"), git)}
    assert list_other_worktrees(str(main), git) == list_other_worktrees(str(main / "sub"), git) == ()
    assert find_linked_repository(str(main / "sub"), everything) == ((f"{git}/modules/sub",), (f"{git}/modules/sub",))
    bare = main.parent / "bare.git"
    sh(main.parent, "git clone -q --bare main bare.git; cd bare.git; git worktree add -q ../x")
    assert find_linked_repository(str(main.parent / "x"), everything).shown == (str(bare),)


def test_layers_can_forbid_the_repository(main):
    work, git = str(main.parent / "w"), str(main / ".git")
    assert find_linked_repository(work, lambda what, _path: what == "read") == ((git,), ())
    assert find_linked_repository(work, lambda what, _path: what == "write") == NO_REPOSITORY


LIES = {
    # what a task could leave in a workspace, or what isn't a repository's own word
    "a repository that has no such worktree": "rm -r .git; echo gitdir: {main}/.git > .git",
    "another worktree's": "echo gitdir: {main}/.git/worktrees/v > .git",
    "a directory with a common one": "rm .git; mkdir .git; echo {main}/.git > .git/commondir",
    "a link": "rm .git; ln -s {main}/.git .git",
    "a repository that names another": "echo {main}/.git > {main}/.git/worktrees/w/gitdir",
    "one of the workspace's own": "cp -r {main}/.git there; echo gitdir: there/worktrees/w > .git",
    "nothing": "echo gitdir: > .git",
    "a FIFO": "rm .git; mkfifo .git",
    "what isn't there": "echo gitdir: /nonexistent/worktrees/w > .git",
}


@pytest.mark.parametrize("what", LIES)
def test_repository_without_this_worktree_is_not_shown(main, what):
    work = main.parent / "w"
    sh(work, LIES[what].replace("{main}", str(main)))
    assert find_linked_repository(str(work), everything) == NO_REPOSITORY


def test_repository_of_another_user_is_not_shown(main):
    harness.give_away(main / ".git")
    assert find_linked_repository(str(main.parent / "w"), everything) == NO_REPOSITORY


def run(someone, work, script, *options):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    known = [
        word
        for name, value in WHO.items()
        if "_NAME" in name or "_EMAIL" in name
        for word in ("--env", f"{name}={value}")
    ]
    words = ["run", "--no-service", "--rules", rules, "--workspace", work, *known, *options, "--", "sh", "-c", script]
    return someone.exeat(*words)


def lab(someone):
    """A repository with one commit and the worktree `w`, of whoever this is."""
    main = someone.home / "src/main"
    main.mkdir(parents=True)
    sh(
        main,
        "git init -q -b main; echo a > a; git add a; git commit -qm one; git worktree add -q ../w; git worktree add -q ../v; rm -r .git/hooks",
    )
    if someone.user:
        for path in (main.parent, *main.parent.rglob("*")):
            os.chown(path, harness.UID, harness.UID, follow_symlinks=False)
    return main


HOSTILE = """
git config core.pager evil; echo '[core] pager = evil' >> {main}/.git/config; mkdir {main}/.git/hooks
echo ref: refs/heads/evil > {main}/.git/HEAD; rm -f {main}/.git/index
echo /srv > {main}/.git/objects/info/alternates; echo ../../../other > {main}/.git/worktrees/w/commondir
echo {main}/.git > {main}/.git/worktrees/w/gitdir; echo '[core] fsmonitor = evil' > {main}/.git/worktrees/w/config.worktree
echo ref: refs/heads/evil > {main}/.git/worktrees/v/HEAD; mv {main}/.git/worktrees {main}/.git/away; true
"""


def names(top):
    return {str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in top.rglob("*")}


def test_task_in_a_worktree_commits_but_cannot_change_hooks(someone):
    main = lab(someone)
    work = main.parent / "w"
    before = names(main / ".git")
    done = run(
        someone,
        work,
        "git status && echo b > b && git add b && git commit -qm two && git log --oneline && git branch x",
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"protected" not in done.stderr
    assert sh(main, "git -c safe.directory='*' log --format=%s w") == "two\none"
    done = run(someone, work, HOSTILE.format(main=main))
    after = names(main / ".git")
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    assert {
        path for path in changed if not path.startswith(("objects/", "refs/heads", "logs/", "worktrees/w/"))
    } == set()
    for path in ("worktrees/w/commondir", "worktrees/w/gitdir"):
        assert after[path] == before[path]
    assert not {"objects/info/alternates", "worktrees/w/config.worktree", "hooks"} & {*after}
    assert b"new protected files are quarantined" in done.stderr


@harness.as_a_user
def test_reviewed_worktree_reads_but_never_writes_its_repository(someone):
    main = lab(someone)
    before = names(main / ".git")
    script = f"git log --format=%s; git commit -qm two --allow-empty; echo x > {main}/.git/refs/heads/x; echo b > b"
    done = run(someone, main.parent / "w", script, "--review")
    assert done.stdout == b"one\n"
    assert names(main / ".git") == before
    assert b"its changes are kept (1 added)" in done.stderr


@harness.as_a_user
def test_worktree_made_by_the_task_gives_no_notice(someone):
    main = lab(someone)
    done = run(someone, main, "git worktree add -q inside && git -C inside status")
    assert done.returncode == 0, done.stderr.decode()
    assert b"protected" not in done.stderr
    assert [event for event in someone.events() if event["kind"] == "tampering.detected"] == []
    shutil.rmtree(main / "inside")
    done = run(someone, main, "git worktree add -q other && echo ../../../evil > .git/worktrees/other/commondir")
    assert b"protected files changed; check them" in done.stderr


CONFIGURES = {
    "git remote add x https://x.example/": True,
    "git branch --track x main": True,
    "git config user.name x": True,
    "git status; git commit -qm x --allow-empty": False,
    "git config --global remote.x.url https://x.example/; git remote get-url x": False,
}


@harness.as_a_user
def test_refused_git_configuration_is_reported_with_a_remedy(someone):
    main = lab(someone)
    for script, is_said in CONFIGURES.items():
        done = run(someone, main, f"{script}; true")
        assert (b"exeat: git could not change `.git/config`" in done.stderr) is is_said, script
    assert "x.example" not in (main / ".git/config").read_text()
    done = run(someone, main, "git remote add x https://x.example/", "--review", "--task", "adds")
    assert done.returncode == 0
    assert someone.exeat("changes", "accept", "adds", "--protected", ".git/config").returncode == 0
    assert "x.example" in (main / ".git/config").read_text()


@harness.as_a_user
def test_refused_configuration_elsewhere_suggests_no_review(someone):
    main = lab(someone)
    config = f"exeat: git could not change `{main}/.git/config`".encode()
    script = "git remote add x https://x.example/; true"
    for work, at, options in (
        (main.parent / "w", main.parent / "w", ()),
        (someone.home / "notes", main, ("--write", main)),
        (someone.home / "notes", main, ("--write", main / ".git")),
    ):
        work.mkdir(exist_ok=True)
        os.chown(work, harness.UID, harness.UID)
        done = run(someone, work, f"cd {at}; {script}", *options, *(("--read", main) if options else ()))
        assert (config in done.stderr, b"--review" in done.stderr) == (True, False), done.stderr


@harness.as_a_user
def test_hidden_repository_is_reported_with_a_remedy(someone):
    apart, work = someone.home / "apart.git", someone.home / "src"
    sh(someone.home, "git init -q -b main --separate-git-dir apart.git src; git -C src commit -q --allow-empty -m one")
    for path in (someone.home / "src", *work.rglob("*"), apart, *apart.rglob("*")):
        os.chown(path, harness.UID, harness.UID)
    done = run(someone, work, "git log")
    assert f"`--read {apart}` shows it" in done.stderr.decode()
    assert run(someone, work, "git log --format=%s", "--read", apart).stdout == b"one\n"
    done = run(
        someone, work, "git commit -qm two --allow-empty; echo '[core] pager = x' >> .git/config", "--write", apart
    )
    assert b"isn't shown" not in done.stderr
    assert sh(work, "git -c safe.directory='*' log --format=%s") == "two\none"
    sh(work, f"rm .git; ln -s {apart} .git")
    os.chown(work / ".git", harness.UID, harness.UID, follow_symlinks=False)
    assert f"`--read {apart}` shows it" in run(someone, work, "git log").stderr.decode()
    assert run(someone, work, "git log --format=%s", "--read", apart).stdout == b"two\none\n"


def test_copied_worktree_suggests_the_whole_repository(main):
    work, git = main.parent / "w", main.parent / "a b"
    shutil.copytree(work, main.parent / "copy")
    assert f"`--read {main}/.git` shows it" in repository.explain_hidden(str(main.parent / "copy"), [])
    git.symlink_to(main / ".git")
    (work / ".git").write_text(f"gitdir: {git}\n")
    assert f"`--read '{git}'` shows it" in repository.explain_hidden(str(work), [])


def test_plain_directory_is_never_suggested(tmp_path):
    """A checkout that somebody unpacked names whatever its writer likes."""
    work, keys = tmp_path / "work", tmp_path / "keys"
    work.mkdir()
    keys.mkdir()
    (work / ".git").write_text(f"gitdir: {keys}\n")
    assert repository.explain_hidden(str(work), [str(work)]) == ""
    (keys / "HEAD").touch()
    assert f"`--read {keys}` shows it" in repository.explain_hidden(str(work), [str(work)])
    assert repository.explain_hidden(str(work), [str(work), str(keys)]) == ""


@harness.as_a_user
def test_review_in_a_worktree_warns_that_commits_fail(someone):
    main = lab(someone)
    script = "echo begun >&2; echo b > b; git add b"
    done = run(someone, main.parent / "w", script, "--review")
    said = done.stderr.decode().partition("begun")[0]
    assert "the task can't commit" in said, done.stderr
    assert f"`{main}/.git/worktrees/w`, read-only" in said
    assert b"Read-only file system" in done.stderr
    for where, options in ((main.parent / "w", ()), (main, ("--review",))):
        assert b"can't commit" not in run(someone, where, "true", *options).stderr, where


def test_repository_inside_the_review_accepts_commits(main):
    work, git = str(main.parent / "w"), str(main / ".git")
    assert f"`{git}/worktrees/w`, read-only" in repository.explain_read_only(work, [work, git], [])
    assert repository.explain_read_only(work, [work, git], [git]) == ""
    assert repository.explain_read_only(work, [work], []) == ""  # isn't shown
    (main / ".git").rename(main / ".bare")
    (main / ".git").write_text("gitdir: .bare\n")
    assert repository.explain_read_only(str(main), [str(main)], []) == ""
