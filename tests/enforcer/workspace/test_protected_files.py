"""Protected files of a workspace that a task writes directly: which are found, which are covered, what is noticed."""

import contextlib
import json
import os
import re
import stat
from pathlib import Path

import pytest

from enforcer.system.errors import UsageError
from enforcer.workspace import protected_files
from enforcer.workspace.change_store import Change
from enforcer.workspace.protected_changes import Globs, Protection
from enforcer.workspace.protected_files import Guard, globs_when_direct, globs_when_reviewed
from enforcer.workspace.safe_path import Entry, EntryType
from tests.support import harness

MATCHES = [
    # glob, path, whether it is meant
    (".envrc", ".envrc", True),
    (".envrc", "sub/.envrc", False),
    (".envrc", ".envrc2", False),
    ("**/.envrc", ".envrc", True),
    ("**/.envrc", "a/b/.envrc", True),
    ("**/.envrc", "a.envrc", False),
    (".git/hooks", ".git/hooks/pre-commit", True),
    (".git/hooks", ".GIT/Hooks/x", True),
    (".git/hooks", ".git/hooks2", False),
    ("ci/*.yml", "ci/a.yml", True),
    ("ci/*.yml", "ci/deep/a.yml", False),
    ("ci/**", "ci/deep/a.yml", True),
    ("a/**/b", "a/b", True),
    ("a/**/b", "a/x/y/b/below", True),
    ("*.lock", "new\nline.lock", True),
    ("a.c", "abc", False),
    ("[x]", "[x]", True),
    ("[x]", "x", False),
    ("a./b ", "a./b", True),
]

# What git takes for `.git` in a tree (`is_hfs_dotgit`, `is_ntfs_dotgit`), and the like of other names
SAME = [
    (".git", ".g\u200cit"), (".git", ".git\ufeff"), (".git", ".\u206aGIT"), (".git", ".git "), (".git", ".git. ."),
    (".git", ".git::$INDEX_ALLOCATION"), (".git", "git~1"), (".git", "GIT~1"), (".git", "git~1 ."), (".git", "GI7EBA~1"),
    (".git/hooks", ".git\\hooks"), (".gitmodules", "gitmod~1"), (".gitmodules", "GITMO~10"), (".gitmodules", "gi7eba~1"),
    (".gitlab-ci.yml", "GITLAB~1.YML"), ("package-lock.json", "packag~2.jso"), (".vscode", "VSCODE~1"), ("a b.c", "AB~1.C"),
    ("deploy-all/*.yaml", "deploy~1/x~1.yam"), (".husky", ".hu\u017fky"), (".git/config", ".git/con\ufb01g"),
    ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "cafe\u0301"), (".envrc", ".envrc:x"), (".env\u00adrc", ".envrc"),
]  # fmt: skip
OTHER = [
    (".git", "git"), (".git", ".gitx"), (".git", "git~1x"), (".git", "git.~1"), (".git", "x~1"),
    ("config", "config~1"), ("package-lock.json", "packag~1.js"), ("package-lock.json", "pack~1.jso"), ("a", " "),
    ("a", "..."), ("*.lock", "x.loc"),
]  # fmt: skip


@pytest.mark.parametrize("ending", ["", "/below"])
def test_spellings_equal_on_some_file_system_are_one_name(ending):
    assert [pair for pair in SAME if not Globs([pair[0]]).match(pair[1] + ending)] == []
    assert [pair for pair in SAME if not Globs([pair[0] + "/x"]).above(pair[1])] == []
    assert [pair for pair in OTHER if Globs([pair[0]]).match(pair[1] + ending)] == []


@pytest.mark.parametrize(("glob", "path", "meant"), MATCHES, ids=[f"{number}" for number in range(len(MATCHES))])
def test_globs_match_paths(glob, path, meant):
    assert Globs([glob]).match(path) is meant


FILE, LINK, DIRECTORY = (
    Entry(EntryType.FILE, 0o644, 1),
    Entry(EntryType.LINK, 0o777, 1),
    Entry(EntryType.DIRECTORY, 0o755, 1),
)
COVERED = [
    # path, what the task left there, whether its path has to be said
    (".git/hooks/pre-commit", FILE, True),
    ("sub/CLAUDE.md", FILE, True),
    (".claude/commands/deploy.md", FILE, True),
    ("sub/.git/config", FILE, True),
    (".git/modules/lib/config", FILE, True),
    (".git", FILE, True),  # says where the repository is
    ("sub/.GIT\u200c", FILE, True),
    ("git~1/hooks/pre-commit", FILE, True),
    (".git", None, True),  # as another one's config would be read then
    (".git", DIRECTORY, False),
    (".git/modules/a/config.worktree", FILE, True),
    (".git/modules/a/worktrees/b/config.worktree", FILE, True),
    (".git/modules/a/info/attributes", FILE, True),
    (".git/modules/a/objects/x", FILE, False),
    (".git/modules/a", LINK._replace(target="../../evil"), True),  # git takes evil/hooks for the submodule's
    (".git/modules/a/b", LINK._replace(target="../../../evil"), True),
    (".git/rebase-merge/git-rebase-todo", FILE, True),  # with `exec` in it, for `git rebase --continue`
    (".git/remotes/origin", FILE, True),  # a repository in the workspace, whose hooks a push to it runs
    (".git/branches/origin", FILE, True),
    (".git/modules/lib/remotes/origin", FILE, True),
    (".git/modules/lib/refs/remotes/origin/main", FILE, False),
    ("any/HEAD", FILE, True),  # with `any/config`, `any/objects` and `any/refs`: a repository without `.git`
    ("HEAD", LINK._replace(target="x"), True),
    ("head/HEAD", DIRECTORY, False),
    ("src/head/index.js", FILE, False),
    (".git/HEAD", FILE, False),
    (".git/worktrees/b/HEAD", FILE, False),
    (".hg/hgrc", FILE, True),
    (".jj/repo/config.toml", FILE, True),
    (".git/objects/ab/cdef", FILE, False),
    (".git/index", FILE, False),
    (".git/refs/heads/main", FILE, False),
    ("web/package-lock.json", FILE, True),
    (".github/workflows/ci.yml", None, True),
    (".github/workflows", DIRECTORY, False),
    (".github", LINK, True),  # would lead to workflows of the task's
    (".github", FILE, True),
    (".vscode", LINK, True),
    ("Makefile", FILE, False),
    ("src/main.py", FILE, False),
    ("src", LINK._replace(target="lib"), False),
    ("up", LINK._replace(target="../x"), True),
    ("a/b", LINK._replace(target="../x"), False),
    ("a/b", LINK._replace(target="../../x"), True),
    ("a/b", LINK._replace(target="c/../../../x"), True),
    ("whole", LINK._replace(target="/etc/passwd"), True),
]


@pytest.mark.parametrize(("path", "theirs", "covered"), COVERED, ids=[f"{number}" for number in range(len(COVERED))])
def test_protected_files_in_review(path, theirs, covered):
    base = None if theirs is not None else FILE
    change = Change(path, known=True, base=base, theirs=theirs)
    assert Protection(globs_when_reviewed(())).covers(change) is covered


def test_world_writable_directory_is_guarded():
    protection = Protection(globs_when_reviewed(()))
    opened = DIRECTORY._replace(mode=0o777)
    for path in (".git", ".git/hooks", ".github", "sub/.vscode"):
        assert protection.covers(Change(path, known=True, base=DIRECTORY, theirs=opened))
        assert protection.covers(Change(path, known=True, base=None, theirs=opened))
    assert not protection.covers(Change("src", known=True, base=DIRECTORY, theirs=opened))
    assert not protection.covers(Change(".git", known=True, base=opened, theirs=DIRECTORY))
    assert not protection.covers(Change(".git", known=True, base=DIRECTORY, theirs=DIRECTORY._replace(mode=0o775)))


def test_link_matches_any_directories_of_a_glob():
    protection = Protection(("deploy/**/prod.yaml", "**/x/y"))
    link = Change("deploy/eu", known=True, base=None, theirs=LINK._replace(target="../eu"))
    assert protection.covers(link)
    assert protection.covers(link._replace(path="deploy/eu/west"))
    assert not protection.covers(link._replace(path="eu", theirs=LINK._replace(target="us"))), (
        "what it leads to is meant by itself"
    )
    assert not protection.covers(link._replace(path="deploy/eu", theirs=FILE))


@pytest.mark.parametrize("path", [".git", ".github"])
def test_directory_cannot_replace_a_git_pointer_file(path):
    stood = FILE if path == ".git" else LINK._replace(target="ci")
    assert Protection(globs_when_reviewed(())).covers(Change(path, known=True, base=stood, theirs=DIRECTORY))
    assert not Protection(globs_when_reviewed(())).covers(Change(path, known=True, base=DIRECTORY, theirs=None))


def guard(path, *globs):
    return Guard(str(path), globs)


def test_existing_files_are_found_and_every_change_is_noticed(tmp_path):
    work, outside = tmp_path / "work", tmp_path / "outside"
    for path in (work / ".git/hooks", work / ".git/modules/lib/hooks", work / "a/b", outside):
        path.mkdir(parents=True)
    for name in (".git/config", ".git/hooks/pre-commit", ".git/modules/lib/config", "a/b/x.lock", "a/y.lock"):
        (work / name).write_text("old")
    (outside / "settings.json").write_text("outside")
    (work / ".vscode").symlink_to(outside)
    found = guard(work, *globs_when_direct(("**/*.lock", ".vscode/settings.json")))
    assert [os.path.relpath(path, work) for path in found.paths()] == [
        ".git/config",
        ".git/hooks",
        ".git/modules/lib/config",
        ".git/modules/lib/hooks",
        "a/b/x.lock",
        "a/y.lock",
    ]
    assert found.find_changed() == []
    (work / "linked").write_text("written under another name")
    (work / "a/b/x.lock").write_text("new")
    (work / "a/y.lock").unlink()
    (work / ".envrc").write_text("made")
    (work / ".git/hooks/post-merge").write_text("the host's: the task could not")
    (work / ".git/modules/lib/hooks").rename(work / "away")
    (work / ".git/modules/lib/hooks").mkdir()
    (work / ".git/modules/lib/hooks/evil").write_text("made")
    os.link(work / "linked", work / ".git/hooks/linked")
    (work / ".vscode").unlink()
    os.utime(work / ".git/config", (0, 0))
    assert found.find_changed() == [
        ".envrc",
        ".git/config",
        ".git/hooks/linked",
        ".git/modules/lib/hooks/evil",
        ".vscode",
        "a/b/x.lock",
        "a/y.lock",
    ]
    found.close()


def test_path_unreachable_for_its_owner_is_not_covered(tmp_path):
    harness.needs_root()  # only root may make what others can't reach
    tmp_path.chmod(0o755)
    (tmp_path / "work").mkdir()
    for name in (".git", ".husky"):
        (tmp_path / "work" / name).mkdir()
        (tmp_path / "work" / name / "config").touch()
    (tmp_path / "work" / ".git").chmod(0o700)
    os.chown(tmp_path / "work", 54321, 54321)
    found = guard(tmp_path / "work", *globs_when_direct(()))
    assert found.paths() == (f"{tmp_path}/work/.husky",)
    found.close()


def test_too_many_protected_files_refuse_the_start(tmp_path):
    for number in range(1001):
        (tmp_path / f"{number}.lock").touch()
    found = guard(tmp_path, "*.lock")
    with pytest.raises(UsageError, match="more than 1000 files"):
        found.paths()
    found.close()


def test_file_without_owner_permission_is_covered(tmp_path):
    (tmp_path / ".claude/hooks").mkdir(parents=True)
    (tmp_path / ".claude/settings.json").touch()
    for path in (tmp_path, tmp_path / ".claude"):
        os.chown(path, *(2 * (54321 if os.geteuid() == 0 else -1,)))
    (tmp_path / ".claude").chmod(0)
    tmp_path.parent.chmod(0o755)
    found = guard(tmp_path, *globs_when_direct(()))
    assert [os.path.relpath(path, tmp_path) for path in found.paths()] == [".claude/hooks", ".claude/settings.json"]
    assert stat.S_IMODE((tmp_path / ".claude").stat().st_mode) == 0
    found.close()
    (tmp_path / ".claude").chmod(0o755)


RULES = "version: 1\nsandbox: {protected: ['made/*.conf']}\nrules: [{id: none, to: nothing.example, action: allow}]\n"
TASK = """
for command in 'echo evil >> .git/config' 'echo evil > .git/hooks/pre-commit' 'rm .git/config' 'rm -r .git/hooks' \
    'mv .git .git2' 'mv .git/hooks .git/hooks2' 'mv .git/index .git/config' 'echo evil >> made/a.conf' \
    'ln -f note made/a.conf' 'chmod 777 .git/hooks'; do
  if sh -c "$command" 2>/dev/null; then echo "did it: $command"; fi
done
echo works > .git/index.lock && mv .git/index.lock .git/index && echo fine > note && echo done
"""

MAKES = """
echo evil > .envrc
echo evil > made/new.conf
mkdir .vscode
echo evil > .vscode/tasks.json
chmod 555 .vscode made .
"""


def test_protected_files_are_read_only_and_new_ones_quarantined(someone):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    for name in (".git/config", ".git/hooks/pre-commit", ".git/index", "made/a.conf", "note"):
        someone.write(someone.work / name, "old\n")
    if someone.user:
        for name in (".git", ".git/hooks", "made"):
            os.chown(someone.work / name, 54321, 54321)
    words = ["--no-service", "--rules", rules, "--task", "agent", "--", "sh", "-c"]
    ended = someone.exeat("run", *words, TASK)
    assert ended.stdout == b"done\n", ended.stderr.decode()
    assert b"protected" not in ended.stderr
    for name in (".git/config", ".git/hooks/pre-commit", "made/a.conf"):
        assert (someone.work / name).read_text() == "old\n"
    ended = someone.exeat("run", *words, MAKES)
    found = re.search(
        rb"new protected files are quarantined \((.*)\): see them with `exeat changes (\S+)`, then accept", ended.stderr
    )
    assert found, ended.stderr.decode()
    assert found[1] == b".envrc, .vscode, made/new.conf"
    assert sorted(path.name for path in someone.work.iterdir()) == [".git", "made", "note"]
    assert sorted(path.name for path in (someone.work / "made").iterdir()) == ["a.conf"]
    assert stat.S_IMODE(someone.work.stat().st_mode) == 0o555
    told = [event for event in someone.events() if event["kind"] in ("tampering.detected", "changes.kept")]
    made = [".envrc", ".vscode", ".vscode/tasks.json", "made/new.conf"]
    assert [(event.get("reason"), event["paths"]) for event in told] == [("protected_path", made), (None, made)]
    someone.work.chmod(0o755)
    (someone.work / "made").chmod(0o755)
    accepted = someone.exeat("changes", "accept", found[2].decode(), ".envrc", "--protected", ".envrc")
    assert accepted.returncode == 0, accepted.stderr
    assert (someone.work / ".envrc").read_text() == "evil\n"
    assert (someone.work / ".envrc").stat().st_uid == someone.work.stat().st_uid


CLOSES = """
mkdir -p .claude .git/hooks .vscode .github
echo evil | tee .claude/settings.json .vscode/tasks.json .git/hooks/pre-commit > .github/FUNDING.yml
mkfifo .exrc .vscode/fifo
chmod 311 .claude
chmod 300 .git
chmod 0 .github .
"""


def test_closed_directories_are_searched_and_their_files_renamed(someone):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    someone.write(someone.work / ".git/config", "old\n")
    if someone.user:
        os.chown(someone.work / ".git", 54321, 54321)
    ended = someone.exeat("run", "--no-service", "--rules", rules, "--", "sh", "-c", CLOSES)
    assert [stat.S_IMODE((someone.work / name).stat().st_mode) for name in (".claude", ".git", ".")] == [
        0o311,
        0o300,
        0,
    ]
    for name in ("", ".claude", ".git", ".github"):
        (someone.work / name).chmod(0o755)
    found = re.search(rb"are quarantined \((.*)\): see them", ended.stderr)
    assert found, ended.stderr.decode()
    called = re.search(rb"can't be quarantined were renamed: (.*)\n", ended.stderr)
    assert called, ended.stderr.decode()
    names = dict(re.findall(r"(\S+) is (\.exeat-aside-[0-9a-f]{16})", called[1].decode()))
    assert {*found[1].decode().split(", "), *names} == {".claude/settings.json", ".exrc", ".git/hooks", ".vscode"}
    assert ".exrc" in names
    assert {path.name for path in someone.work.iterdir()} == {".claude", ".git", ".github", *names.values()}
    assert [path.name for path in (someone.work / ".git").iterdir()] == ["config"]
    assert not any((someone.work / ".claude").iterdir())


OBEYED = [
    # what a program of the host runs or obeys of a project that somebody opens, enters or pushes
    ".vimrc", "proj.code-workspace", "opencode.json", ".opencode/plugins/x.ts", ".kiro/hooks/x.kiro.hook",
    ".amazonq/cli-agents/x.json", ".roo/mcp.json", "buildspec.yml", "buildspec-test.yaml", ".semaphore/semaphore.yml",
    ".zuul.yaml", ".zuul.d/x.yaml", ".teamcity/settings.kts", ".clinerules/hooks/x", ".windsurf/hooks.json",
    ".continue/config.yaml", ".junie/mcp/mcp.json", ".aider.conf.yml", ".factory/mcp.json", ".qwen/settings.json",
    ".gdbinit", ".Rprofile", ".pdbrc", ".dir-locals.el", ".idx/dev.nix", ".gitpod.yml", ".replit", ".fleet/run.json",
    "lefthook.toml", ".lefthook-local.yml", "prek.toml", ".overcommit.yml", ".lintstagedrc.json", "mise.local.toml",
    "Jenkinsfile.deploy", ".drone.jsonnet", "azure-pipelines-release.yml", ".appveyor.yml", "codefresh.yml",
    ".builds/x.yml", "bamboo-specs/bamboo.yml", ".github/settings.yml", ".readthedocs.yaml", "netlify.toml",
    ".bsp/sbt.json", "hie.yaml", ".luarc.json", ".lazy.lua", ".vimspector.json", ".classpath", ".latexmkrc", ".erlang",
    "jupyter_server_config.py", ".devfile.yaml", "conductor.json", ".mux/mcp.jsonc", ".serena/project.yml", ".grok/settings.json",
    ".coderabbit.yaml", ".github/labeler.yml", ".gitlab/agents/x/config.yaml", ".ci/build.sh", "atlantis.yaml", "garnix.yaml",
    "railway.toml", "hk.pkl", ".cargo-husky/hooks/pre-commit", ".arcconfig", "CMakeUserPresets.json",
]  # fmt: skip
BUILD = [
    "gradlew",
    ".bazelrc",
    "pnpm-workspace.yaml",
    "NuGet.Config",
    "Directory.Build.props",
    ".lfsconfig",
    ".gitmodules",
    "ansible.cfg",
    "poetry.toml",
    "JULES.md",
    ".git/sl/config",
    ".aiassistant/rules/x.md",
]


def test_files_that_hosts_execute_are_protected(tmp_path):
    whole = Protection(globs_when_reviewed(()))
    entry = Entry(EntryType.FILE, 0o644, 1)
    missed = [path for path in [*OBEYED, *BUILD] if not whole.covers(Change(f"sub/{path}", True, None, entry))]
    assert missed == []
    guard = Guard(str(tmp_path), globs_when_direct(()))
    for path in OBEYED:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    made = guard.find_new(guard.find_changed())
    guard.close()
    assert [path for path in OBEYED if not any(f"{path}/".startswith(f"{one}/") for one in made)] == []


def test_lists_of_protected_files_are_sorted():
    lists = json.loads(Path(protected_files.__file__).with_name("protected_files.json").read_text())
    assert list(lists) == ["project", "installed", "told", "home"]
    for category in (category for categories in lists.values() for category in categories):
        assert category["sources"], category["name"]
        assert [glob for glob in category["globs"] if glob != os.path.normpath(glob) or glob[0] in "/~"] == []
        assert len({*category["globs"]}) == len(category["globs"]), category["name"]


def test_protected_file_that_is_not_listed_is_found(tmp_path, monkeypatch):
    """As one of FUSE may: a program says what is in a directory."""
    for name in (".envrc", "a.txt"):
        (tmp_path / name).touch()
    (tmp_path / "other").mkdir()
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda _directory: scandir(tmp_path / "other"))  # nothing is listed
    with contextlib.closing(Guard(str(tmp_path), globs_when_direct(()))) as guard:
        assert guard.paths() == (str(tmp_path / ".envrc"),)


@pytest.mark.parametrize("beside", ["a.txt", "\u00e9", "*"])  # plain names, one that isn't ASCII, very many
def test_both_ways_to_search_find_a_protected_file(tmp_path, beside):
    for number in range(1200 if beside == "*" else 1):
        (tmp_path / f"{beside.strip('*')}{number}").touch()
    (tmp_path / ".envrc").touch()
    with contextlib.closing(Guard(str(tmp_path), (*globs_when_direct(()), "Deploy.", "mine"))) as guard:
        assert guard.paths() == (str(tmp_path / ".envrc"),)
        (tmp_path / ".envrc").write_text("echo a")
        for name in (".vscode", "mine", "Deploy.", "HEAD"):
            (tmp_path / name).touch()
        assert guard.find_changed() == sorted([".envrc", ".vscode", "mine", "Deploy.", "HEAD"])
