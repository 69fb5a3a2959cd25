"""What a task causes where rule files are watched costs it more than the runner: a chmod(2) of its workspace, without end.

A directory above the workspace is watched if a rule file lies there, and says what happens to the workspace itself.
"""

import errno
import os
import selectors
import time
from pathlib import Path

import pytest

from enforcer.policy import reload as watching
from enforcer.policy.reload import Reloader
from enforcer.policy.rule_files import fingerprint, make_absolute
from enforcer.policy.run_request import RunRequest
from enforcer.system import inotify
from rules.loading.load import read


class Gate:
    def __init__(self):
        self.told = []

    def send(self, what, _=()):
        self.told.append(next(iter(what)))
        self.problems = what.get("rules_rejected")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "web.yaml").write_text("version: 1\nname: web\nrules: []\n")
    return tmp_path


@pytest.fixture
def watch(place):
    watch = watching.Watch([str(place / "work")])
    watch.follow([str(place / "web.yaml")])
    yield watch
    watch.close()


@pytest.fixture
def reloader(place):
    asked, system = make_absolute([place / "web.yaml"]), place / "etc"
    wanted = RunRequest(
        ("true",), "task", read([place / "web.yaml"]).policy, asked, str(place / "work"),
        system=system, searched_paths=asked, fingerprint=fingerprint(asked, system),
    )  # fmt: skip
    with selectors.DefaultSelector() as selector:
        reloader = Reloader(wanted, Gate(), lambda _: None, selector)
        reloader._begin_watching()
        yield reloader
        reloader.close()
        assert not selector.get_map()


def test_flood_of_events_is_read_to_a_bound(place, watch):
    (place / "other").mkdir()
    for number in range(2 * inotify.MOST // 32):  # as a task that is quicker than its runner
        os.utime(place / ("other", "work")[number % 2])  # what happens twice in a row is told once
    watch.read()
    assert watch.wait() <= watching.QUIET  # what wasn't read may be about a rule file: they are looked at


def test_workspace_changes_reload_nothing(place, watch):
    for _ in range(100):
        os.utime(place / "work")
    watch.read()
    assert watch.wait() > watching.LONGEST_WAIT


def test_flood_is_handled_a_few_times_a_second(place, reloader):
    heard, until = 0, time.monotonic() + 1
    while time.monotonic() < until:
        os.utime(place / "work")
        for key, _ in reloader._selector.select(0):
            heard += 1
            key.data()
        reloader.turn()
    assert 0 < heard <= 1 / watching.EVENTS_PAUSE + 1
    os.utime(place / "work")
    for key, _ in reloader._selector.select(0):  # nothing, where the flood was heard just now
        key.data()
    assert reloader.wait() <= watching.EVENTS_PAUSE
    assert reloader._gate.told == []


def test_rules_saved_during_a_flood_are_reloaded(place, reloader):
    (place / "web.yaml").write_text("version: 1\nname: other\nrules: []\n")
    until = time.monotonic() + 20
    while not reloader._gate.told and time.monotonic() < until:
        os.utime(place / "work")
        for key, _ in reloader._selector.select(0):
            key.data()
        reloader.turn()
    assert reloader._gate.told == ["rules"]


def test_rules_are_reloaded_once_a_process_can_start(place, reloader, monkeypatch):
    """A task of the same user that forks without end must not keep the rules in force for ever."""
    before = sorted(os.listdir("/proc/self/fd"))
    fork = os.fork

    def none_left():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", none_left)
    (place / "web.yaml").write_text("version: 1\nname: other\nrules: []\n")
    for count in (1, 2):
        reloader._check_files()
        assert reloader._gate.told == ["rules_rejected"] * count
        assert reloader._gate.problems == [
            "no process can be started to read the rule files (Resource temporarily unavailable); Exeat retries soon"
        ]
        assert sorted(os.listdir("/proc/self/fd")) == before
    monkeypatch.setattr(os, "fork", fork)
    reloader._check_files()
    until = time.monotonic() + 20
    while reloader._reader is not None and time.monotonic() < until:
        for key, _ in reloader._selector.select(1):
            key.data()
    assert reloader._gate.told == ["rules_rejected", "rules_rejected", "rules"]


def test_end_during_a_pause_leaves_nothing_open(place, reloader):
    os.utime(place / "work")
    [(key, _)] = reloader._selector.select(5)
    key.data()
    assert Path(f"/proc/self/fd/{key.fd}").exists()
    reloader.close()
    assert not Path(f"/proc/self/fd/{key.fd}").exists()
