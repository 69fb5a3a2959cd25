"""What a task may write outside of its workspace: whatever the host runs or obeys in there is protected as well."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from enforcer.workspace import written_places
from enforcer.workspace.protected_files import Guard, is_obeyed, protect_outside
from rules.sandbox import WorkspaceMode
from tests.support import harness

RULES = "version: 1\nname: nothing\nrules: []\n"
HOOK = "#!/bin/sh\ntouch /tmp/owned\n"

PLACES = [
    # what is written, and what of it is protected
    ("{home}/.codex", ["config.toml", "hooks.json", "AGENTS.md", "prompts"]),
    ("{home}/.claude", ["settings.json", "hooks", "CLAUDE.md", "agents", "plugins"]),
    ("{home}/.config", ["git", "systemd", "autostart", "fish", "opencode", "environment.d"]),
    ("{home}/.local", ["bin", "share/applications", "lib"]),
    ("{home}/.cargo", ["bin", "config.toml"]),
    ("{home}/src/main/.git", ["config", "hooks", "objects/info/alternates", "modules/**/config"]),
    ("{home}/src/main/.git/worktrees/w", ["commondir", "config.worktree"]),
    ("{home}/src/main/.git/modules/x", ["**/config", "**/hooks"]),
    ("{home}/src/main/.git/objects", ["info/alternates"]),
    ("{home}/src/main/.github", ["workflows", "actions", "CODEOWNERS"]),
    ("{home}/src/main", [".git/hooks", ".vscode", ".github/workflows"]),
]
ALL_OF_IT = [
    "{home}/src/main/.git/hooks",
    "{home}/src/main/.vscode/x",
    "{home}/.config/systemd/user",
    "{home}/.local/bin",
]
FILES = [
    ("{home}/.codex/config.toml", True), ("{home}/.claude.json", True), ("{home}/.bashrc", True),
    ("{home}/src/main/.git/config", True), ("{home}/src/main/.envrc", True), ("{home}/.codex/history.jsonl", False),
    ("{home}/src/main/README.md", False), ("/srv/.bashrc", False),
    ("{home}/.aws/config", True), ("{home}/.subversion/config", True), ("{home}/.config/kitty/kitty.conf", True),
    ("{home}/.config/chromium/NativeMessagingHosts/x.json", True), ("{home}/.cache/pre-commit/x/hook", True),
    ("{home}/.config/user-dirs.dirs", True), ("{home}/.config/pipewire/pipewire.conf", True), ("{home}/.m2/wrapper/dists/x", True),
    ("{home}/.aws/sso/cache/x", False), ("{home}/.cache/pip/x", False), ("{home}/src/main/.git/arc/config", True),
]  # fmt: skip


def test_other_writable_paths_protect_what_the_host_executes(tmp_path):
    home = str(tmp_path / "u")
    for place, expected in PLACES:
        found = protect_outside(place.format(home=home), [home])
        assert found.is_covered, place
        assert [glob for glob in expected if glob not in found.globs] == [], place
    for place in ALL_OF_IT:
        assert protect_outside(place.format(home=home), [home]) == (("*",), False), place
    assert [file for file, is_it in FILES if is_obeyed(file.format(home=home), [home]) is not is_it] == []


def test_bare_repository_of_any_name_is_found(tmp_path):
    for name in ("HEAD", "objects", "refs"):
        (tmp_path / "main.git" / name).mkdir(parents=True)
    assert "config" in protect_outside(str(tmp_path / "main.git"), []).globs
    assert "info/alternates" in protect_outside(str(tmp_path / "main.git/objects"), []).globs


def run(someone, script, *options):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    return someone.exeat("run", "--no-service", "--rules", rules, *options, "--", "sh", "-c", script)


@pytest.mark.parametrize("mode", ["--direct", "--review"])
def test_repository_in_another_writable_path_is_guarded(someone, mode):
    main = someone.home / "main"
    someone.run(["git", "init", "-q", str(main)])
    someone.run(["rm", "-r", str(main / ".git/hooks")])
    before = (main / ".git/config").read_text()
    script = (
        f"cd {main}/.git; git config core.pager evil; echo '[core] pager = evil' >> config; mkdir hooks;"
        f" printf '{HOOK}' > hooks/pre-commit; mkdir -p objects/info; echo /srv > objects/info/alternates;"
        " echo x > description; true"
    )
    done = run(someone, script, "--write", main / ".git", mode)
    assert done.returncode == 0, done.stderr.decode()
    assert (main / ".git/config").read_text() == before
    assert not (main / ".git/hooks").exists()
    assert not (main / ".git/objects/info/alternates").exists()
    assert (main / ".git/description").read_text() == "x\n"
    said = done.stderr.decode()
    assert f"new protected files are quarantined ({main}/.git/hooks" in said
    [event] = [event for event in someone.events() if event["kind"] == "tampering.detected"]
    assert event["reason"] == "protected_path"
    assert f"{main}/.git/hooks" in event["paths"]
    task = event["task"]["id"]
    shown = someone.exeat("changes", f"{task}-1", "--stat").stdout.decode()
    assert "hooks/pre-commit" in shown
    assert someone.exeat("changes", "accept", f"{task}-1").returncode == 1  # each takes its path


@harness.as_a_user
def test_agent_settings_in_a_home_are_guarded(someone):
    config = someone.write(someone.home / ".codex/config.toml", "model = 'x'\n")
    os.chown(config.parent, harness.UID, harness.UID)
    script = "cd ~/.codex; echo 'notify=[\"evil\"]' >> config.toml; echo do evil > AGENTS.md; echo x > history.jsonl"
    done = run(someone, script.replace("~", str(someone.home)), "--write", config.parent)
    assert config.read_text() == "model = 'x'\n"
    assert sorted(path.name for path in config.parent.iterdir()) == ["config.toml", "history.jsonl"]
    assert "config.toml: Read-only file system" in done.stderr.decode()
    assert f"quarantined ({config.parent}/AGENTS.md)" in done.stderr.decode()


@harness.as_a_user
def test_writable_file_that_the_host_executes_gives_a_notice(someone):
    file = someone.write(someone.home / ".bashrc", "true\n")
    autostart = someone.home / ".config/autostart"
    autostart.mkdir(parents=True)
    for path in (autostart.parent, autostart):
        os.chown(path, harness.UID, harness.UID)
    script = f"echo evil >> {file}; echo evil > {autostart}/x.desktop"
    done = run(someone, script, "--write", file, "--write", autostart)
    said = done.stderr.decode()
    assert f"files changed that this host executes or reads settings from; check them first: {file}" in said
    assert f"check them first: {autostart}/x.desktop" in said
    paths = {path for event in someone.events() if event["kind"] == "tampering.detected" for path in event["paths"]}
    assert paths == {str(file), f"{autostart}/x.desktop"}


@harness.as_a_user
def test_files_of_the_users_git_configuration_are_guarded(someone):
    extra = someone.write(someone.home / "dot/git/extra", "[user]\nname = x\n")
    hook = someone.write(someone.home / "hooks/pre-commit", "#!/bin/sh\n")
    single = someone.write(someone.home / "single/file", "")
    someone.write(
        someone.home / ".gitconfig",
        f"[include]\npath = ~/dot/git/extra\n[core]\nhooksPath = {hook.parent}\n[include]\npath = {single}\n",
    )
    for path in (extra.parents[1], extra.parent, hook.parent):
        os.chown(path, harness.UID, harness.UID)
    script = (
        f"echo '[core] pager = evil' | tee -a {extra} >> {single}; echo evil >> {hook}; echo x > {extra.parent}/more"
    )
    written = [extra.parents[1], hook.parent, single]
    done = run(someone, script, *(word for path in written for word in ("--write", path)))
    assert extra.read_text() == "[user]\nname = x\n"
    assert (extra.parent / "more").exists()
    said = done.stderr.decode()
    for path in (hook, single):
        assert f"files changed that this host executes or reads settings from; check them first: {path}" in said


@harness.as_a_user
def test_start_steps_name_protected_paths_elsewhere(someone):
    config = someone.write(someone.home / ".codex/config.toml", "")
    rules = someone.write(someone.home / "rules.yaml", RULES)
    words = ["run", "--rules", rules, "--dry-run", "--write", config.parent, "--", "true"]
    assert str(config) in someone.exeat(*words).stdout.decode()


@harness.as_a_user
@pytest.mark.parametrize("options", [("--write",), ("--direct",)], ids=["written elsewhere", "a workspace"])
def test_directory_of_projects_keeps_its_hooks(someone, options):
    source = someone.home / "src"
    someone.run(["git", "init", "-q", "--template=", str(source / "p")])
    for path in (source, source / "p", *(source / "p").rglob("*")):
        os.chown(path, harness.UID, harness.UID)
    before = (source / "p/.git/config").read_text()
    script = (
        f"cd {source}; mkdir p/.git/hooks; printf '{HOOK}' > p/.git/hooks/pre-commit; git init -q new;"
        " echo '[core] pager = evil' >> p/.git/config; true"
    )
    where = ("--write", source) if options == ("--write",) else ("--direct", "--workspace", source)
    done = run(someone, script, *where)
    said = done.stderr.decode()
    assert (source / "p/.git/config").read_text() == before, said
    assert not (source / "p/.git/hooks").exists()
    assert "p/.git/hooks" in said
    [event] = [event for event in someone.events() if event["kind"] == "tampering.detected"]
    assert [path.removeprefix(f"{source}/") for path in event["paths"]] == ["p/.git/hooks", "p/.git/hooks/pre-commit"]
    assert (source / "new/.git/config").exists()


ALLOW_RULES = "version: 1\nrules: [{id: none, to: nothing.example, action: allow}]\n"
# More than one pipe takes, and no more than the task's own and the reader's do together: pipe(7)
WRITES = "echo evil > .envrc; head -c 120000 /dev/zero"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_protected_files_are_quarantined_before_the_last_output(someone, number):
    rules = someone.write(someone.home / "rules.yaml", ALLOW_RULES)
    words = [Path(sys.executable).with_name("exeat"), "run", "--no-service", "--rules", rules, "--", "sh", "-c", WRITES]
    environment = {**os.environ, "PYTHONPATH": str(harness.PROJECT), "HOME": str(someone.home)}
    environment.pop("XDG_STATE_HOME", None)
    argv = harness.as_user(words, someone.home) if someone.user else words
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=someone.work
    ) as run:
        kinds = []
        deadline = time.monotonic() + 30
        while "changes.kept" not in kinds and time.monotonic() < deadline:
            time.sleep(0.05)
            kinds = [event["kind"] for event in someone.events()]
        assert "changes.kept" in kinds
        assert run.poll() is None
        assert [*someone.work.iterdir()] == []
        run.send_signal(number)
        run.communicate(timeout=30)
    assert [*someone.work.iterdir()] == []


class FinishedWorkspace:
    """A workspace that a task has written to, of which nobody has seen what."""

    def __init__(self, work):
        box = SimpleNamespace(workspace=WorkspaceMode.DIRECT, protected=("deploy/**/*.yaml", "*/x.conf"))
        self.work = work
        (work / "there").mkdir()
        self.it = written_places.Workspace(
            SimpleNamespace(settings=box, workspace=str(work), write=(), homes=None, shown=()), None, None, None
        )
        for name in (".envrc", ".vscode/tasks.json", "there/x.conf", "deploy/a.yaml"):
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text("evil")

    def names(self):
        return sorted(os.path.relpath(path, self.work) for path in self.work.rglob("*") if path.is_file())


@pytest.fixture
def finished(tmp_path):
    return FinishedWorkspace(tmp_path)


def test_failed_run_leaves_no_file_that_the_host_executes(finished, capfd):
    finished.it.close()
    finished.it.close()
    assert len(finished.names()) == 4
    assert [name for name in finished.names() if ".exeat-aside-" not in name] == ["deploy/a.yaml"]
    assert "new protected files were renamed" in capfd.readouterr().err


def test_slow_searches_come_last(finished, monkeypatch):
    found = []

    def changed(_guard):
        found.extend(finished.names())
        raise KeyboardInterrupt

    monkeypatch.setattr(Guard, "find_changed", changed)
    with pytest.raises(KeyboardInterrupt):
        finished.it.finish(lambda *_: None, lambda *_: None)
    finished.it.close()
    assert len(found) == 4
    assert [name for name in found if ".exeat-aside-" not in name] == ["deploy/a.yaml"]
