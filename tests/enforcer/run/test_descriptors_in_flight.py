"""Descriptors that are under way: the kernel counts them for each user, so a task can have all that its user may."""

import contextlib
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support import harness

EXEAT = Path(sys.executable).with_name("exeat")
RULES = "version: 1\nname: web\nrules:\n  - {id: first, to: first.example, action: allow}\n"
WAIT = 30  # seconds for what must happen
SOFT = 256  # of those, the soft limit of who starts another
LEFT = 518  # that a task may have open
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
def begun(someone, control, *words, soft=MOST, beside=None):
    """Run the command with few descriptors, until what is done with it is done; in the view of another, if there is."""
    shell = f'ulimit -Sn {soft}; ulimit -Hn {MOST}; cd "$1"; shift; exec "$@"'
    argv = list(map(str, ["sh", "-c", shell, "sh", someone.work, EXEAT, *words]))
    environment = {**os.environ, "PYTHONPATH": str(harness.PROJECT), "EXEAT_CONTROL": str(control)}
    if beside is None:
        argv = harness.as_user(argv, someone.home)
    else:
        environment["HOME"] = str(someone.home)
        ids = [f"--reuid={harness.UID}", f"--regid={harness.UID}", "--clear-groups"]
        argv = ["nsenter", f"--mount=/proc/{beside.pid}/ns/mnt", "--", "setpriv", *ids, "--", *argv]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            process.terminate()
            process.wait(WAIT)


@contextlib.contextmanager
def flooded(someone, rules, service):
    """Have a task that has all descriptors under way, under a service or alone; gives how others are begun."""
    control = someone.home / "control" if service else "/dev/null/none"
    with contextlib.ExitStack() as stack:
        up = None
        if service:
            up = stack.enter_context(begun(someone, control, "up"))
            assert b"serving" in up.stderr.readline()
        words = ("run", "--quiet", "--rules", rules, "--", "python3", "-c", FLOOD)
        task = stack.enter_context(begun(someone, control, *words, beside=up))
        assert task.stdout.readline() == b"none passes\n", task.stderr.read()
        yield partial(begun, someone, control, beside=up)


def until_loaded(someone, count):
    """Return what was told of rules that came into force, once it was so often."""
    deadline = time.monotonic() + WAIT
    while len(found := [each for each in someone.events() if each["kind"] == "rules.loaded"]) < count:
        assert time.monotonic() < deadline, someone.events()
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("service", [False, True], ids=["alone", "service"])
@harness.as_a_user
def test_descriptors_in_flight_do_not_block_a_reload(someone, service):
    rules = someone.write(someone.home / "rules" / "web.yaml", RULES)
    with flooded(someone, rules, service):
        (first,) = until_loaded(someone, 1)
        someone.write(rules, RULES.replace("first", "second"))
        _, second = until_loaded(someone, 2)
        assert second["previous"] == first["revision"] != second["revision"]


@pytest.mark.parametrize("service", [False, True], ids=["alone", "service"])
@harness.as_a_user
def test_descriptors_in_flight_do_not_block_other_starts(someone, service):
    """Not one with commands that are watched, either, nor who may have fewer open than the task had under way."""
    rules = someone.write(someone.home / "rules" / "web.yaml", RULES)
    commands = 'commands:\n  - {id: told, run: "true", action: flag}\n'
    watched = someone.write(someone.home / "rules" / "watched.yaml", RULES + commands)
    with flooded(someone, rules, service) as others:
        for file in (rules, watched):
            words = ("run", "--quiet", "--rules", file, "--", "sh", "-c", "ulimit -Sn; ulimit -Hn; true")
            with others(*words, soft=SOFT) as other:
                said, error = other.communicate(timeout=WAIT)
            assert (other.returncode, said.split(), error) == (0, [b"%d" % SOFT, b"%d" % LEFT], b"")
