"""The end of a task that writes its workspace itself: nothing it has made there waits for anybody, or is left by a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from enforcer.workspace import written_places
from enforcer.workspace.guard import Guard
from rules.sandbox import WorkspaceMode
from tests.support import harness

RULES = "version: 1\nrules: [{id: none, to: nothing.example, action: allow}]\n"
# More than one pipe takes, and no more than the task's own and the reader's do together: pipe(7)
WRITES = "echo evil > .envrc; head -c 120000 /dev/zero"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_protected_files_are_quarantined_before_the_last_output(someone, number):
    rules = someone.write(someone.home / "rules.yaml", RULES)
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


class Whole:
    """A workspace that a task has written to, of which nobody has seen what."""

    def __init__(self, work):
        box = SimpleNamespace(workspace=WorkspaceMode.DIRECT, protected=("deploy/**/*.yaml", "*/x.conf"))
        self.work = work
        (work / "there").mkdir()
        self.it = written_places.Workspace(
            SimpleNamespace(box=box, workspace=str(work), write=(), homes=None, shown=()), None, None, None
        )
        for name in (".envrc", ".vscode/tasks.json", "there/x.conf", "deploy/a.yaml"):
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text("evil")

    def names(self):
        return sorted(os.path.relpath(path, self.work) for path in self.work.rglob("*") if path.is_file())


@pytest.fixture
def whole(tmp_path):
    return Whole(tmp_path)


def test_failed_run_leaves_no_file_that_the_host_executes(whole, capfd):
    whole.it.close()
    whole.it.close()
    assert len(whole.names()) == 4
    assert [name for name in whole.names() if ".exeat-aside-" not in name] == ["deploy/a.yaml"]
    assert "protected files that weren't there have other names now" in capfd.readouterr().err


def test_slow_searches_come_last(whole, monkeypatch):
    found = []

    def changed(_guard):
        found.extend(whole.names())
        raise KeyboardInterrupt

    monkeypatch.setattr(Guard, "changed", changed)
    with pytest.raises(KeyboardInterrupt):
        whole.it.finish(lambda *_: None, lambda *_: None)
    whole.it.close()
    assert len(found) == 4
    assert [name for name in found if ".exeat-aside-" not in name] == ["deploy/a.yaml"]
