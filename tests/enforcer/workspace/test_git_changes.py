"""What a task's commits, references and index bring along is protected as the files themselves are."""

import hashlib
import math
import os
import shutil
import subprocess
import tempfile
import zlib
from dataclasses import replace

import pytest

from enforcer.cli import main
from enforcer.workspace import accept, git_changes, git_objects
from enforcer.workspace.merge_decision import MergeInputs
from enforcer.workspace.protected_changes import Protection
from enforcer.workspace.protected_files import globs_when_reviewed
from tests.enforcer.workspace.changes_lab import OWNER
from tests.support import harness

WORKFLOW = ".github/workflows/ci.yml"
WHO = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null"}
WHO |= {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def sh(place, script):
    done = subprocess.run(["sh", "-ec", script], cwd=place, env=WHO, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


class Repository:
    """A workspace that is one, and a task that works in a copy of it."""

    def __init__(self, lab, first):
        self.lab = lab
        shutil.copytree(first, lab.work, dirs_exist_ok=True)

    def task(self, script):
        """Run a script where the task would, and have the upper layer say what it changed."""
        work, copy = self.lab.work, self.lab.work.parent / "copy"
        self.lab.begin(protected=globs_when_reviewed(()))
        shutil.copytree(work, copy, symlinks=True)
        said = sh(copy, script)
        there, now = ({path.relative_to(top) for path in top.rglob("*")} for top in (work, copy))
        for path in sorted(now):
            ours, theirs = work / path, copy / path
            if theirs.is_symlink():
                (self.lab.upper / path).parent.mkdir(parents=True, exist_ok=True)
                (self.lab.upper / path).symlink_to(os.readlink(theirs))
            elif theirs.is_file() and (not ours.is_file() or ours.read_bytes() != theirs.read_bytes()):
                self.lab.task_writes(path, theirs.read_bytes())
        for path in sorted(there - now):
            if path.parent not in there - now:
                self.lab.task_deletes(path)
        return said

    def found(self):
        accept.load_changes(self.lab.kept)
        protection = Protection(self.lab.kept.meta.protected)
        with MergeInputs.open(self.lab.kept) as sides:
            protection.inspect_git(sides, self.lab.kept.changes())
        return protection.git

    def files(self):
        return {each.path for found in self.found().values() for each in found.files}

    def ref(self, name="main"):
        return sh(self.lab.work, f"git -c safe.directory='*' rev-parse {name}")


def commit_first(place):
    """Make a repository with one commit and two branches."""
    place.chmod(0o755)
    sh(place, "git init -q -b main; rm .git/hooks/*; echo one > a.txt; git add .; git commit -qm one; git branch other")
    return place


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A repository that each test has a copy of."""
    return commit_first(tmp_path_factory.mktemp("first"))


@pytest.fixture
def repository(lab, first):
    return Repository(lab, first)


REMEMBER = """python3 -c '
import hashlib, sys
old, new = map(bytes.fromhex, sys.argv[1:])
said = open(".git/index", "rb").read()[:-20]
assert said.count(old) == 1
said = said.replace(old, new)
open(".git/index", "wb").write(said + hashlib.sha1(said).digest())'"""
EVIL = """evil=$(printf "100644 blob $(git hash-object -w a.txt)\\tCLAUDE.md\\n" | git mktree);"""
CONFLICT = (
    "git checkout -q other; echo 2 > a.txt; git commit -qam 2; git checkout -q main; echo 3 > a.txt; git commit -qam 3;"
    ' git merge -q other > said || rm said; test -n "$(git ls-files -u)"; '
)
ADD = f"mkdir -p .github/workflows; echo evil > {WORKFLOW}; git add .; git commit -qm ci"


def test_workflow_in_a_commit_is_shown_and_needs_its_path_to_accept(repository, capsys):
    """The file is deleted and hidden from `git status`: the next push would have shipped it."""
    repository.task(f"{ADD}; git update-index --skip-worktree {WORKFLOW}; rm {WORKFLOW}; echo two > a.txt")
    before = repository.ref()
    capsys.readouterr()
    assert main(["changes", "agent"]) == 0
    shown = capsys.readouterr().out
    assert f"diff --exeat a/{WORKFLOW} b/{WORKFLOW}\n" in shown
    assert f"# protected: accepted only with `--protected {WORKFLOW}`\n" in shown
    assert "+evil\n" in shown
    assert "skip-worktree" in shown
    assert main(["changes", "agent", "--stat"]) == 0
    assert f"added    {WORKFLOW}  (in " in capsys.readouterr().out
    assert main(["changes", "accept", "agent"]) == 1
    said = capsys.readouterr().err
    assert f"left: .git/refs/heads/main: it brings protected files: accept them with `--protected {WORKFLOW}`" in said
    assert "left: .git/index: it is protected, as it makes Git ignore changes of" in said
    assert repository.ref() == before
    assert (repository.lab.work / "a.txt").read_text() == "two\n"  # the rest is merged
    words = ["--protected", WORKFLOW, "--protected", ".git/index"]
    assert main(["changes", "accept", "agent", *words]) == 0
    assert repository.ref() != before


def test_commits_without_protected_files_are_accepted(repository):
    repository.task(
        "echo two > a.txt; git commit -qam two; git tag -am t v1; git checkout -q other; git gc -q --prune=now"
    )
    assert {path for path in repository.found() if not path.startswith(".git/objects/")} == set()


@pytest.mark.parametrize("lab", ["own"], indirect=True)
def test_index_written_by_git_is_accepted(repository):
    """With deep directories, one that is new, a conflict, and a file that is only meant to be added."""
    repository.task(
        f"mkdir -p d/e g; echo 1 > d/e/f; git add .; git commit -qm d; {CONFLICT}"
        "echo 1 > g/h; echo 2 > d/n; git add g; git add -N d/n"
    )
    assert ".git/index" not in repository.found()


CAPITALS = "x=$(git rev-parse HEAD | tr a-f A-F); git reset -q --hard HEAD~; rm -r .git/logs .git/*_HEAD;"
BRINGS = {
    "a commit": (ADD, {WORKFLOW}),
    "a commit that another takes back": (f"{ADD}; git rm -q {WORKFLOW}; git commit -qm back", {WORKFLOW}),
    "another branch": (f"git checkout -q -b x; {ADD}; git checkout -q main", {WORKFLOW}),
    "a detached HEAD": (f"git checkout -q --detach; {ADD}", {WORKFLOW}),
    "a tag": (f"git checkout -q --detach; {ADD}; git tag -am t v1; git checkout -q main; rm -r .git/logs", {WORKFLOW}),
    "a tag of a tree": (f"{ADD}; git tag t HEAD^{{tree}}; git reset -q --hard HEAD~; rm -r .git/logs .git/*_HEAD", {WORKFLOW}),
    "a tag for a tree": (f"{ADD}; git tag -am t t HEAD^{{tree}}; git reset -q --hard HEAD~; rm -r .git/logs .git/*_HEAD", {WORKFLOW}),
    "the stash": (f"mkdir -p .github/workflows; echo evil > {WORKFLOW}; git add .; git stash -q", {WORKFLOW}),
    "a reflog": (f"{ADD}; git reset -q --hard HEAD~; rm .git/ORIG_HEAD", {WORKFLOW}),
    "the head before a reset": (f"{ADD}; git reset -q --hard HEAD~; rm -r .git/logs", {WORKFLOW}),
    "packed references": (f"{ADD}; git pack-refs --all; rm -r .git/logs", {WORKFLOW}),
    "a reference in capitals": (
        f"{ADD}; {CAPITALS} echo $x > .git/refs/heads/x", {WORKFLOW}
    ),
    "packed references in capitals": (
        f"{ADD}; {CAPITALS} echo $x refs/heads/x > .git/packed-refs", {WORKFLOW}
    ),
    "a pack": (f"{ADD}; git repack -qad", {WORKFLOW}),
    "a note": (f"{ADD}; git update-ref refs/notes/x HEAD; git reset -q --hard HEAD~; rm -r .git/logs .git/*_HEAD", {WORKFLOW}),
    "a merge": (f"git checkout -q other; {ADD}; git checkout -q main; git merge -q --no-ff -m m other", {WORKFLOW}),
    "the index": (f"mkdir -p .github/workflows; echo evil > {WORKFLOW}; git add .; rm {WORKFLOW}", {WORKFLOW}),
    "an index that is split": (
        f"git update-index --split-index; mkdir -p .github/workflows; echo evil > {WORKFLOW}; git add .", {WORKFLOW}
    ),
    "an index of version 4": (
        f"git update-index --index-version 4; mkdir -p .github/workflows; echo evil > {WORKFLOW}; git add .", {WORKFLOW}
    ),
    "a link where a directory of protected files would be": (
        "ln -s elsewhere .vscode; git add .; git commit -qm x; git rm -q .vscode; git commit -qm y", {".vscode"}
    ),
    "a link that leads out": ("ln -s /etc out; git add .; git commit -qm x; git rm -q out; git commit -qm y", {"out"}),
    "another name for the same": (
        "mkdir .GITHUB .GITHUB/workflows; echo evil > .GITHUB/workflows/ci.yml; git add .; git commit -qm x",
        {".GITHUB/workflows/ci.yml"},
    ),
    "a submodule's commit": (
        "git update-index --add --cacheinfo 160000,1234567890123456789012345678901234567890,sub; git commit -qm x", {"sub"}
    ),
    "a repository in the workspace": (f"git init -q sub; cd sub; {ADD}", {f"sub/{WORKFLOW}"}),
}  # fmt: skip


@pytest.mark.parametrize("lab", ["own"], indirect=True)
@pytest.mark.parametrize("what", BRINGS)
def test_git_data_that_brings_a_protected_file_is_protected(repository, what):
    script, expected = BRINGS[what]
    repository.task(script)
    found = repository.found()
    assert {each.path for one in found.values() for each in one.files} == expected, found
    before = repository.ref("--all --branches --tags")
    outcomes = repository.lab.accept()
    for path, one in found.items():
        if one.files:
            assert outcomes[path].startswith("left: it brings protected files"), path
    assert repository.ref("--all --branches --tags") == before


REPLACE = "git replace main $(git commit-tree -m r main^{tree})"
ODD = {
    "a reference to nothing": (f"echo {'1' * 40} > .git/refs/heads/x", ".git/refs/heads/x", "there is no such object"),
    "a reflog of nothing": (f"echo {'0' * 40} {'1' * 40} >> .git/logs/HEAD", ".git/logs/HEAD", "there is no such object"),
    "a branch that follows another": (
        "git symbolic-ref refs/heads/x refs/heads/other", ".git/refs/heads/x", "a symbolic reference to another one"
    ),
    "a reference that is packed twice": (
        "git pack-refs --all; sed -i '/heads.main/{p;s/^[^ ]*/'$(git rev-parse other)'/}' .git/packed-refs",
        ".git/packed-refs", "lists a reference twice",
    ),
    "a reference that is a link": ("ln -s main .git/refs/heads/x", ".git/refs/heads/x", "a symbolic link"),
    "an object that is another": (
        "x=$(echo evil | git hash-object -w --stdin | sed s,..,\\&/,); cd .git/objects; rm -f $x; cp $(ls ??/* | head -1) $x",
        None, "not match its object name",
    ),
    "a pack without an index": (
        "git repack -qad; rm .git/objects/pack/*.idx", None, "not match its object name"
    ),
    "a pack that is damaged": (
        "git repack -qad; cd .git/objects/pack; chmod u+w *; printf x | dd of=$(ls *.pack) bs=1 seek=40 conv=notrunc status=none",
        None, "not match its object name",
    ),
    "a graph of commits": ("git commit-graph write --reachable", ".git/objects/info/commit-graph", "Git trusts it"),
    "an index of packs": (
        "git repack -qad; git multi-pack-index write", ".git/objects/pack/multi-pack-index", "Git trusts it"
    ),
    "other places of objects": ("echo /srv > .git/objects/info/alternates", ".git/objects/info/alternates", "Git trusts"),
    "replaced objects": (f"{REPLACE}; git pack-refs --all", ".git/packed-refs", "refs/replace"),
    "a file assumed unchanged": ("git update-index --assume-unchanged a.txt", ".git/index", "ignore changes of a.txt"),
    "a file left out": ("git update-index --skip-worktree a.txt", ".git/index", "ignore changes of a.txt"),
    **{
        f"an index that remembers another tree {where}": (
            f"mkdir -p d/e; echo 1 > d/e/f; git add .; git commit -qm d; {conflict}{EVIL} {REMEMBER} $(git rev-parse {tree}) $evil",
            ".git/index", "cached trees differ",
        )
        for where, conflict, tree in (
            ("at the top", "", "HEAD^{tree}"), ("of a directory", "", "HEAD:d"), ("further down", "", "HEAD:d/e"),
            ("beside a conflict", CONFLICT, "HEAD:d/e"),
        )
    },
    "an index that is none": ("echo DIRC > .git/index", ".git/index", "`git ls-files` can't read it"),
}  # fmt: skip


@pytest.mark.parametrize("lab", ["own"], indirect=True)
@pytest.mark.parametrize("what", ODD)
def test_unreadable_git_data_is_protected(repository, what):
    script, path, why = ODD[what]
    repository.task(script)
    found = repository.found()
    path = path or next(each for each, one in found.items() if why in one.why)
    assert why in found[path].why, found
    assert repository.lab.accept()[path].startswith("left: it is protected, as ")
    assert sh(repository.lab.work, "git fsck --full && git rev-parse main")  # nothing that is packed anew is lost


GLOBS = {  # what Git obeys, or goes on with, by itself
    ".git/objects/info/alternates", ".git/objects/info/http-alternates", ".git/info/grafts", ".git/shallow",
    ".git/sequencer/todo", ".git/rebase-apply/0001", ".git/rr-cache/x/postimage", ".git/refs/replace/x",
    ".git/modules/m/sequencer/todo", ".git/worktrees/w/rebase-apply/0001", ".gitmodules",
    ".git/info/exclude", ".git/info/sparse-checkout", ".git/modules/m/info/exclude",
    ".git/modules/m/info/sparse-checkout", ".git/worktrees/w/info/sparse-checkout",
}  # fmt: skip


def test_state_of_unfinished_git_commands_is_protected():
    protection = Protection(globs_when_reviewed(()))
    entry = accept.Entry(accept.EntryType.FILE, 0o644, 1)
    assert {path for path in GLOBS if not protection.covers(accept.Change(path, True, None, entry))} == set()


@pytest.mark.parametrize("lab", ["own"], indirect=True)
def test_protected_file_is_accepted_by_its_path_or_its_ref(repository):
    repository.task(f"{ADD}; git branch x; rm -r .git/logs")
    accept_these = repository.lab.accept
    assert accept_these(".git/refs/heads/main")[".git/refs/heads/main"].startswith("left: ")
    taken = accept_these(".git/objects", ".git/refs/heads/main", protected=[".git/refs/heads/main"])
    assert {*taken.values()} == {"taken"}
    assert accept_these(".git/refs/heads/x") == {".git/refs/heads/x": "taken"}  # nothing that isn't reached by now
    assert accept_these(".git/index", protected=[WORKFLOW])[".git/index"] == "taken"


@pytest.mark.parametrize("lab", ["own"], indirect=True)
def test_ref_moved_back_is_inspected(repository):
    """Every commit was reachable before; the branch has the older workflow all the same."""
    sh(repository.lab.work, f"{ADD}; rm -r .git/logs")
    repository.task("git update-ref refs/heads/main HEAD~; rm -rf .git/logs")
    assert {path for path, found in repository.found().items() if found.files} == {".git/refs/heads/main"}


@pytest.mark.parametrize("lab", ["own"], indirect=True)
def test_ref_that_uncovers_a_packed_one_is_inspected(repository):
    sh(repository.lab.work, f"git pack-refs --all; {ADD}; rm -r .git/logs")
    repository.task("rm .git/refs/heads/main")
    assert {path for path, found in repository.found().items() if found.files} == {".git/refs/heads/main"}
    assert repository.lab.accept()[".git/refs/heads/main"].startswith("left: it brings")


@pytest.mark.parametrize("lab", ["own"], indirect=True)
@pytest.mark.parametrize("what", ["sha256", "bare", "module", "worktree"])
def test_other_repositories_are_inspected(repository, what):
    lab = repository.lab
    shutil.rmtree(lab.work / ".git")
    match what:
        case "sha256":
            sh(lab.work, "git init -q -b main --object-format=sha256; git add .; git commit -qm one")
            script, expected = ADD, {WORKFLOW}
        case "bare":
            sh(lab.work, "rm a.txt; git init -q --bare -b main .")
            script = f"git clone -q . ../clone 2>/dev/null; cd ../clone; {ADD}; git push -q origin main"
            expected = {WORKFLOW}
        case "module":
            sh(
                lab.work,
                "git init -q -b main; git init -q .git/modules/m/sub; mv .git/modules/m/sub/.git .git/modules/m/n",
            )
            script = f"export GIT_DIR=$PWD/.git/modules/m/n GIT_WORK_TREE=$PWD; {ADD}; rm -r .github"
            expected = {f"m/n/{WORKFLOW}"}
        case _:
            sh(lab.work, "git init -q -b main; git add .; git commit -qm one; git worktree add -q w")
            script = f"cd w; mkdir -p .github/workflows; echo evil > {WORKFLOW}; git add .; rm {WORKFLOW}"
            expected = {WORKFLOW}
    repository.task(script)
    if what == "bare":
        lab.kept.meta = replace(lab.kept.meta, repositories=(".",))  # as a review notes it
    assert repository.files() == expected, repository.found()


@pytest.mark.parametrize("lab", ["own", "somebody's"], indirect=True)
def test_configuration_of_the_repository_is_ignored(repository, monkeypatch):
    """Configuration, hooks, attributes and promises of the task's, and of an earlier task's that made it all."""
    lab = repository.lab
    marker = lab.work.parent / "ran"
    run = f"touch {marker}; false"
    hostile = f"""
for name in core.fsmonitor core.sshCommand core.alternateRefsCommand diff.external filter.x.smudge diff.x.textconv; do
  git config $name '{run}'
done
git config core.repositoryFormatVersion 1; git config extensions.partialClone far
git config remote.far.url 'ext::sh -c "{run}"'; git config remote.far.promisor true; git config protocol.allow always
echo '* filter=x diff=x' > .git/info/attributes
printf '#!/bin/sh\\n{run}\\n' > .git/hooks/post-index-change; chmod 755 .git/hooks/*
echo '[include] path = {lab.work.parent}/fifo' >> .git/config
"""
    os.mkfifo(lab.work.parent / "fifo")
    sh(lab.work, hostile)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {marker}")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"touch {marker}")
    repository.task(
        f"rm -r .git/config .git/hooks; git init -q; {ADD}; t=$(git rev-parse HEAD^{{tree}});"
        " rm .git/objects/$(echo $t | cut -c-2)/$(echo $t | cut -c3-)"
    )
    marker.unlink(missing_ok=True)  # where the task ran it
    found = repository.found()
    assert "can't read it" in found[".git/refs/heads/main"].why
    assert not marker.exists()


@pytest.mark.parametrize("lab", ["own"], indirect=True)
def test_git_data_beyond_the_limit_is_protected(repository, monkeypatch):
    repository.task(ADD)
    for name, most in (("_MOST_COMMITS", 0), ("_MOST_FILES", 0), ("_LARGEST", 1), ("_MOST_LOOKS", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(git_changes, name, most)
            assert repository.found()[".git/refs/heads/main"].why, name
    for name, most in (("_MAX_BYTES", 1), ("_MAX_OUTPUT", 1), ("_SECONDS", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(git_objects, name, most)
            assert repository.found()[".git/refs/heads/main"].why, name
    monkeypatch.setattr(git_objects, "_ENVIRONMENT", {"PATH": "/nonexistent"})
    assert "git can't be run on this host" in repository.found()[".git/refs/heads/main"].why


@pytest.mark.parametrize("lab", ["own"], indirect=True)
def test_many_repositories_share_one_time_limit(repository, monkeypatch):
    repository.task("for x in a b c; do git init -q $x; cd $x; echo x > y; git add .; git commit -qm x; cd ..; done")
    ends = []
    opened = git_objects.ScratchRepository.opened
    monkeypatch.setattr(git_objects.ScratchRepository, "opened", lambda owner, at: ends.append(at) or opened(owner, at))
    repository.found()
    assert (len(ends), len({*ends})) == (3, 1)


def test_loose_object_must_match_its_name(tmp_path):
    said = b"blob 4\0evil"
    name = hashlib.sha1(said).hexdigest()
    bomb = b"blob 9\0" + bytes(1 << 20)
    cases = {
        "the object": (zlib.compress(said), True),
        "another": (zlib.compress(b"blob 4\0good"), False),
        "half of it": (zlib.compress(said)[:-6], False),
        "nothing": (b"", False),
        "no zlib": (said, False),
        "much": (zlib.compress(bomb), False),
    }
    for what, (content, is_it) in cases.items():
        (tmp_path / "object").write_bytes(content)
        file = os.open(tmp_path / "object", os.O_RDONLY)
        assert git_objects.has_hash(file, name, math.inf) is is_it, what
        os.close(file)
    (tmp_path / "object").write_bytes(zlib.compress(bomb))
    file = os.open(tmp_path / "object", os.O_RDONLY)
    assert git_objects.has_hash(file, hashlib.sha1(bomb).hexdigest(), math.inf)
    os.lseek(file, 0, os.SEEK_SET)
    with pytest.raises(git_objects.UnreadableError, match="too long"):
        git_objects.has_hash(file, hashlib.sha1(bomb).hexdigest(), 0.0)
    os.close(file)


def test_inspection_copy_is_private_to_the_owner(tmp_path, monkeypatch):
    """Root writes nothing where that owner could have put a link."""
    harness.needs_root()
    for path in list(tmp_path.parents)[:3]:
        path.chmod(path.stat().st_mode | 0o111)
    tmp_path.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with git_objects.ScratchRepository.opened((OWNER, OWNER), math.inf) as scratch:
        scratch.initialise("", sha256=False, shallow=b"")
        scratch.add_file("index", b"x")
        [place] = tmp_path.iterdir()
        assert {(path.stat().st_uid, path.stat().st_mode & 0o077) for path in [place]} == {(OWNER, 0)}
        assert {path.stat().st_uid for path in place.rglob("*")} == {OWNER}
        (place / "shallow").symlink_to(tmp_path / "root's")
        (tmp_path / "root's").touch(0o600)
        with pytest.raises(PermissionError):
            scratch.add_file("shallow", b"evil")
    assert [path.name for path in tmp_path.iterdir()] == ["root's"]
