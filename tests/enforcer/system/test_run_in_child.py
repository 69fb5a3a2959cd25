"""What is done in a process of its own is done, or told, and that process never goes on as the one it came from."""

import os
import signal

import pytest

from enforcer.system.errors import HostError
from enforcer.system.processes import run_in_child


def _ask(what):
    """Do it apart; should a child ever come back from there, it ends at once and isn't taken for the test."""
    parent = os.getpid()
    try:
        run_in_child(what)
    finally:
        if os.getpid() != parent:
            os.write(2, b"a child came back\n")
            os.kill(parent, signal.SIGABRT)
            os._exit(1)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse():
    raise HostError("the file is gone")


def _say_nothing():
    raise ValueError


def test_function_runs_in_a_child(tmp_path):
    _ask(lambda: (tmp_path / "pid").write_text(str(os.getpid())))
    assert int((tmp_path / "pid").read_text()) != os.getpid()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (_refuse, "the file is gone"),
        (_say_nothing, "ValueError"),
        (_die, "a helper process of the start ended early"),
        (lambda: os._exit(0), "a helper process of the start ended early"),
        (lambda: os.closerange(3, 4096), "a helper process of the start ended early"),  # it can't even tell
    ],
    ids=["refuses", "fails without a word", "is killed", "ends", "can't tell"],
)
def test_failed_child_is_an_error(what, message):
    with pytest.raises(HostError, match=message):
        _ask(what)
