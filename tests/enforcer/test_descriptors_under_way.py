"""Descriptors that are under way: the kernel counts them for each user, so a task can have all that its user may."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import harness

EXEAT = Path(sys.executable).with_name("exeat")
RULES = "version: 1\nname: web\nrules:\n  - {id: first, to: first.example, action: allow}\n"
WAIT = 30  # seconds for what must happen
MOST = 1024  # that may be under way for our processes here; those of other tests may have more
# Sends descriptors that nobody takes, until the kernel passes no more.
FLOOD = """
import array, errno, socket, sys
kept, many = [], array.array("i", [0] * 253)
try:
    while True:
        kept.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        kept[-1][0].setblocking(False)
        try:
            while True:
                kept[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
        except BlockingIOError:
            pass
except OSError as error:
    assert error.errno == errno.ETOOMANYREFS
print("none passes", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def begun(someone, control, *words):
    """Run the command with few descriptors, until what is done with it is done."""
    argv = ["sh", "-c", f'ulimit -n {MOST}; exec "$@"', "sh", EXEAT, *words]
    environment = {**os.environ, "PYTHONPATH": str(harness.PROJECT), "EXEAT_CONTROL": str(control)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        harness.as_user(argv, someone.home), stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=someone.work
    ) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            process.terminate()
            process.wait(WAIT)


def until_loaded(someone, count):
    """Return what was told of rules that came into force, once it was so often."""
    deadline = time.monotonic() + WAIT
    while len(found := [each for each in someone.events() if each["kind"] == "rules.loaded"]) < count:
        assert time.monotonic() < deadline, someone.events()
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("service", [False, True], ids=["alone", "service"])
@harness.as_a_user
def test_a_task_that_has_them_all_keeps_no_new_rules_out(someone, service):
    rules = someone.write(someone.home / "rules" / "web.yaml", RULES)
    control = someone.home / "control" if service else "/dev/null/none"
    with contextlib.ExitStack() as stack:
        if service:
            up = stack.enter_context(begun(someone, control, "up"))
            assert b"serving" in up.stderr.readline()
        task = stack.enter_context(
            begun(someone, control, "run", "--quiet", "--rules", rules, "--", "python3", "-c", FLOOD)
        )
        assert task.stdout.readline() == b"none passes\n", task.stderr.read()
        (first,) = until_loaded(someone, 1)
        someone.write(rules, RULES.replace("first", "second"))
        _, second = until_loaded(someone, 2)
        assert second["previous"] == first["revision"] != second["revision"]
