"""A task that knows where the registry's socket is, or has got hold of a connection to it, can neither see nor answer."""

import json
import shutil
import sys

import pytest

from tests.enforcer.approvals.approvals_lab import HERE, as_user

pytestmark = pytest.mark.timeout(300)


def test_task_cannot_reach_the_registry_by_path_or_open_descriptor(approvals_lab):
    waiting = approvals_lab.start("waiting", "once", "/ask/waiting")
    named = approvals_lab.waits("/ask/waiting")
    work = approvals_lab.workspace("reaching")
    script = shutil.copy(HERE / "leak_connection.py", approvals_lab.home)
    socket = approvals_lab.state / "approvals/socket"
    task = approvals_lab.start(
        "reaching", "reach", socket, named["id"], options=["--user", "root"], by=[sys.executable, script]
    )
    task.communicate(timeout=100)
    seen = json.loads((work / "reached.json").read_text())
    assert {seen.pop(way) for way in ("path", "by another name", "abstract")} <= {"ENOENT", "EACCES", "ECONNREFUSED"}
    assert seen == {"listed": "ENOENT", "sockets": []}
    assert [each["id"] for each in approvals_lab.pending()] == [named["id"]]  # nobody has answered it
    assert "rejected" in approvals_lab.answer(named, "reject")
    approvals_lab.done(waiting)


@as_user
def test_task_cannot_reach_the_registry_inside_its_workspace(approvals_lab):
    """It is hidden there; the registry in it serves this run as any."""
    work = approvals_lab.workspace("within")
    state = work / "state/exeat/approvals/socket"
    task = approvals_lab.start("within", "reach", state, "x", env={"XDG_STATE_HOME": str(work / "state")})
    _, err = task.communicate(timeout=100)
    assert task.returncode == 0, err
    assert state.exists()
    seen = json.loads((work / "reached.json").read_text())
    assert {seen[way] for way in ("path", "by another name", "abstract")} <= {"ENOENT", "EACCES", "ECONNREFUSED"}
    assert not isinstance(seen["listed"], list) or seen["listed"] == []
    shutil.rmtree(work / "state")
