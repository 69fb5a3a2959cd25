"""Journal of a run: chained, signed and sealed for every user, and repaired after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import harness

RULES = "version: 1\nname: nothing\nrules: []\n"
EXEAT = Path(sys.executable).with_name("exeat")


@pytest.fixture
def rules(someone):
    return someone.write(someone.home / "rules.yaml", RULES)


def _verified(someone):
    done = someone.exeat("log", "verify", "--format", "json")
    return done.returncode, json.loads(done.stdout)


def test_run_leaves_an_intact_journal_and_no_key(someone, rules):
    look = "cat ~/.local/state/exeat/keeper/keys/* 2>/dev/null; curl -s http://a.example; true"
    done = someone.exeat("run", "--rules", rules, "--", "sh", "-c", look)
    assert done.returncode == 0
    assert b"PRIVATE" not in done.stdout
    status, output = _verified(someone)
    assert (status, output["intact"], output["segments"], output["findings"]) == (0, True, 2, [])
    journal = someone.home / ".local/state/exeat/journal"
    segments = sorted(journal.glob("*/0*.jsonl"))
    assert [b'"kind":"journal.sealed"' in path.read_bytes().splitlines()[-1] for path in segments] == [True, True]
    path = segments[1]
    os.chmod(path, 0o600)
    path.write_bytes(path.read_bytes().replace(b"a.example", b"b.example"))
    status, output = _verified(someone)
    assert (status, output["findings"][0]["gravity"]) == (1, "tampered")


@harness.as_a_user
def test_journal_of_a_killed_run_is_repaired_by_the_next_run(someone, rules):
    """The supervisor dies of SIGKILL while its task runs, and gate and task with it."""
    words = [
        EXEAT,
        "run",
        "--rules",
        rules,
        "--",
        "sh",
        "-c",
        "curl -s http://a.example >/dev/null; echo there; sleep 60",
    ]
    argv = harness.as_user(words, someone.home) if someone.user else list(map(str, words))
    environment = {
        **os.environ,
        "PYTHONPATH": str(harness.PROJECT),
        "HOME": str(someone.home),
        "EXEAT_CONTROL": "/dev/null/none",
    }
    environment.pop("XDG_STATE_HOME", None)
    with subprocess.Popen(argv, cwd=someone.work, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"there\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.stdout.read() == b""  # until no writer is left
    segments = sorted((someone.home / ".local/state/exeat/journal").glob("*/0*.jsonl"))
    with segments[-1].open("ab") as file:
        file.write(b'{"time":"2026')
    for path in segments:  # some time ago
        os.utime(path, (time.time() - 60,) * 2)
    assert someone.exeat("run", "--rules", rules, "--", "true").returncode == 0
    status, output = _verified(someone)
    assert (status, output["findings"]) == (0, [])
    repaired = [event["detail"] for event in _told(someone) if event["kind"] == "journal.repaired"]
    assert repaired == [
        "its writer ended without closing it",
        "its writer ended without closing it; 13 bytes of an unfinished line were cut off",
    ]
    assert [event["dns"]["question"] for event in _told(someone) if event["kind"] == "dns.decided"][:1] == ["a.example"]


def _told(someone):
    done = someone.exeat("log", "--format", "jsonl")
    return [json.loads(line) for line in done.stdout.splitlines()]
