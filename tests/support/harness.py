"""What tests of the whole command share: running it as root and as an ordinary user."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import event_schema

PROJECT = Path(__file__).resolve().parents[2]
UID = 54321  # of nobody in particular


# For what can't depend on who runs it, being decided in the gate or before there is a sandbox: tried as a user alone.
as_a_user = pytest.mark.parametrize("someone", ["user"], indirect=True)
in_the_lab_as_a_user = pytest.mark.parametrize("who", ["user"], indirect=True)


def needs_root():
    """Skip, or with CI=true fail, a test that only root can run."""
    if os.geteuid() != 0:
        missing("root")


def give_away(path, uid=UID):
    """Make a file somebody else's, which only root can (chown(2)); else it is told as what is missing."""
    needs_root()
    os.chown(path, uid, uid)


def full_disk(directory):
    """Open a device that has no room. As root it is a node of the test's own: a journal marks its segments by their mode.

    On the host's /dev/full that mark would stay, and close it to everybody else.
    """
    if os.geteuid() != 0:
        return os.open("/dev/full", os.O_WRONLY)
    node = Path(directory) / "full"
    if not node.exists():
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 7))
    return os.open(node, os.O_WRONLY)


def missing(what):
    """Say that a test can't run for want of something: a skip here, a failure where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and with CI=true nothing is skipped")
    pytest.skip(f"{what} is missing")


def as_user(argv, home):
    """The words that run `argv` as an ordinary user whose home is `home`."""
    os.chown(home, UID, UID)
    return [sys.executable, str(PROJECT / "tests/support/as_user.py"), str(UID), str(home), *map(str, argv)]


def run(argv, *, user=False, home=None, **more):
    """Run a program to its end, as root or as a user, with what it prints captured."""
    words = as_user(argv, home) if user else [str(word) for word in argv]
    nowhere = {"EXEAT_CONTROL": "/dev/null/none"}  # whatever service there is on this host has no part in tests
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "HOME": str(home), **nowhere, **more.pop("env", {})}
    environment.pop("XDG_STATE_HOME", None)
    options = {"capture_output": True, "timeout": 60, "stdin": subprocess.DEVNULL, **more}
    return subprocess.run(words, env=environment, **options)


def exeat(*words, **more):
    """Run the `exeat` command."""
    return run([Path(sys.executable).with_name("exeat"), *words], **more)


def whole_lines(path):
    """The lines of a file that somebody may be writing just now."""
    return path.read_bytes().rpartition(b"\n")[0].splitlines()


def journal(home):
    """Every event that a run under `home` wrote, in the order of the files."""
    lines = []
    for segment in sorted((Path(home) / ".local/state/exeat/journal").glob("*/*.jsonl")):
        lines += [json.loads(line) for line in whole_lines(segment)]
    return [event for event in event_schema.hold(lines) if not event["kind"].startswith("journal.")]
