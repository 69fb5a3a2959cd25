"""Two real sandboxes that try to tell each other something, by every inode and list of the host's that both see."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import harness

PYTHON = Path(sys.base_prefix) / "bin" / "python3"
CHANNELS = ("record_lock", "flock", "watch", "time_stamp", "lease")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "stream")
SYSTEM = ("/dev/tty", "/dev/ptmx", "/usr/bin/env", "/usr/bin", "/etc/passwd", "/etc", "/proc/version", "/proc/sys", "/")
# An ordinary user can't make device nodes: docs/explanation/threat-model.md says so, and what it lets two sandboxes tell each other.
OF_A_USER = {(channel, device) for channel in ("record_lock", "flock", "watch") for device in DEVICES}


class Side:
    """One of the two: its process, and what it answers. Its standard error is the host's /dev/null."""

    def __init__(self, someone, rules, name, shown):
        work = someone.home.parent / name
        work.mkdir()
        if someone.user:
            os.chown(work, harness.UID, harness.UID)
        script = Path(__file__).with_name("meeting.py").read_text()
        words = ["run", "--quiet", "--rules", rules, "--read", sys.base_prefix]
        words += [word for path in shown for word in ("--read", path)]
        argv = [Path(sys.executable).with_name("exeat"), *words, "--", PYTHON, "-c", script]
        self.process = subprocess.Popen(
            harness.as_user(argv, someone.home) if someone.user else list(map(str, argv)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=work, text=True,
            env={**os.environ, "HOME": str(someone.home), "PYTHONPATH": str(harness.PROJECT), "EXEAT_CONTROL": "/nobody"},
        )  # fmt: skip

    def do(self, act, channel, place):
        self.process.stdin.write(f"{act} {channel} {place}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"{act} {channel} {place} has ended it"
        return json.loads(answer)

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0


@pytest.fixture
def pair(someone):
    """Watcher and speaker, and what of the host's both are shown: a file by itself, and a directory."""
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\nrules: []\n")
    file = someone.write(someone.home / "single" / "file", "data")
    inside = someone.write(someone.home / "shown" / "file", "data")
    shown = (file, inside.parent)
    sides = [Side(someone, rules, name, shown) for name in ("watching", "speaking")]
    with contextlib.ExitStack() as ended:
        for side in sides:
            ended.callback(side.process.wait, 30)
            ended.callback(side.process.kill)
        yield *sides, [*map(str, shown), str(inside)]
        for side in sides:
            side.end()


def test_shared_inode_is_no_channel_between_sandboxes(someone, pair):
    watching, speaking, shown = pair
    found = set()
    for place in (*DEVICES, *SYSTEM, *shown):
        for channel in CHANNELS:
            watching.do("before", channel, place)
            speaking.do("speak", channel, place)
            if watching.do("seen", channel, place) is True:
                found.add((channel, place))
            speaking.do("let_go", channel, place)
    assert found == (OF_A_USER if someone.user else set())


def test_lock_list_is_no_channel_between_sandboxes(pair):
    watching, speaking, _ = pair
    assert isinstance(speaking.do("speak", "list_of_locks", "none"), list), "it must hold one, or this shows nothing"
    assert watching.do("seen", "list_of_locks", "none") is False
