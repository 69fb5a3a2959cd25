"""A task that knows where the registry's socket is, or has got hold of a connection to it, can neither see nor answer."""

import json
import shutil
import sys

import pytest

from .world import HERE, as_user

pytestmark = pytest.mark.timeout(300)


def test_neither_by_its_path_nor_by_what_was_left_open(here):
    waiting = here.start("waiting", "once", "/ask/waiting")
    named = here.waits("/ask/waiting")
    work = here.workspace("reaching")
    script = shutil.copy(HERE / "holding.py", here.home)
    socket = here.state / "approvals/socket"
    task = here.start("reaching", "reach", socket, named["id"], options=["--user", "root"], by=[sys.executable, script])
    task.communicate(timeout=100)
    seen = json.loads((work / "reached.json").read_text())
    assert {seen.pop(way) for way in ("path", "by another name", "abstract")} <= {"ENOENT", "EACCES", "ECONNREFUSED"}
    assert seen == {"listed": "ENOENT", "sockets": []}
    assert [each["id"] for each in here.pending()] == [named["id"]]  # nobody has answered it
    assert "rejected" in here.answer(named, "reject")
    here.done(waiting)


@as_user
def test_not_where_the_state_lies_in_what_the_task_may_write(here):
    """It is hidden there; the registry in it serves this run as any."""
    work = here.workspace("within")
    state = work / "state/exeat/approvals/socket"
    task = here.start("within", "reach", state, "x", env={"XDG_STATE_HOME": str(work / "state")})
    _, err = task.communicate(timeout=100)
    assert task.returncode == 0, err
    assert state.exists()
    seen = json.loads((work / "reached.json").read_text())
    assert {seen[way] for way in ("path", "by another name", "abstract")} <= {"ENOENT", "EACCES", "ECONNREFUSED"}
    assert not isinstance(seen["listed"], list) or seen["listed"] == []
    shutil.rmtree(work / "state")
