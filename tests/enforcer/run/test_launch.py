"""What becomes of a task's terminal before the task is begun."""

import errno
import os
from types import SimpleNamespace

import pytest

from enforcer.run import launch
from enforcer.sandbox.stdio import OWN


@pytest.fixture
def halves(monkeypatch):
    """Stands for a terminal that a sandbox has made: our half, and the task's."""
    made = os.pipe()
    monkeypatch.setattr(launch, "make_terminal", lambda *_: made)
    return made


RECIPE = SimpleNamespace(terminal=object(), identity=SimpleNamespace(kernel_uid=0), stdio=(OWN, 1, OWN))


def test_a_task_s_streams_are_its_half_where_they_were_a_terminal(halves):
    assert launch._own_terminal(RECIPE, None, os.close) == ((halves[1], 1, halves[1]), halves[1])
    os.close(halves[1])


def test_a_task_whose_terminal_nobody_can_carry_is_not_begun(halves):
    """No descriptor may be left, or no process."""

    def carry(primary):
        os.close(primary)
        raise BlockingIOError(errno.EAGAIN, "no process")

    with pytest.raises(OSError, match="nobody can carry what passes through its terminal: no process"):
        launch._own_terminal(RECIPE, None, carry)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(halves[1])
