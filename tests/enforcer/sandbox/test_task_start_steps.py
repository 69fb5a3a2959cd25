"""Each step of a beginning fails once, in both ways: what is said is the same, and nothing of the task runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from enforcer.sandbox import landlock, task_start
from enforcer.sandbox.init import StepRecorder
from enforcer.sandbox.task_start import Program
from tests.enforcer.sandbox import hindered
from tests.support import harness

SCRIPT = Path(hindered.__file__)


@pytest.fixture(scope="module")
def begun():
    if not hindered.COMPILED:
        harness.missing("the program that `python -m enforcer.sandbox.compiled.build` makes")
    if landlock.version() < landlock.MIN_VERSION:
        harness.missing("landlock")
    env = {**os.environ, "PYTHONPATH": str(harness.PROJECT)}
    done = subprocess.run([sys.executable, SCRIPT], env=env, stdout=subprocess.PIPE, timeout=60, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", hindered.WAYS)
@pytest.mark.parametrize("name", hindered.CASES)
def test_failed_step_is_named_and_nothing_runs(begun, name, way):
    case = hindered.CASES[name]
    if case.says is None:
        assert begun[name][way] == [*case.comes]
        return
    error = case.refused[0].error
    why = "" if error == hindered.KILLS else f": {os.strerror(error)}"
    assert begun[name][way] == [f"could not give up its privileges: {case.says}{why}", ""]


def test_every_step_is_tried_to_fail():
    recorder, case = StepRecorder(), hindered.Case((), None, terminal=True)
    program = hindered.program_of(case)
    task_start.drop_rights(recorder, hindered._identity(), program, (0, 0, 0))
    recorder.submit()
    named = {name for packet in recorder.packets for name in packet.purposes}
    os.close(program.terminal)
    assert len(named) > 20
    assert named - {"", "close", "dup", "seccomp"} <= {each.says for each in hindered.CASES.values()}


@pytest.mark.parametrize(
    ("words", "variables"),
    [(("ls", "a\0b"), {}), (("ls",), {"A=B": ""}), (("ls",), {"": "x"}), (("ls",), {"A": "b\0C=d"})],
    ids=["a word", "a name", "no name", "a value"],
)
def test_ambiguous_arguments_are_refused(words, variables):
    program = Program(words, variables, "/", frozenset(), b"")
    with pytest.raises(ValueError, match="contains a zero byte"):
        task_start.start_task(None, None, program, (-1, -1, -1), None)
