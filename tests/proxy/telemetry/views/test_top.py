"""`exeat top`: its counts, escaping of hostile text, and the restored terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from enforcer.cli import main
from proxy.telemetry.events import Answer, Approval, Kind, Task, Transferred
from proxy.telemetry.views.top import MOST_REFUSALS, MOST_TASKS, RATE_OVER, Rate, Screen, TopState
from proxy.telemetry.visible import width
from rules.verdicts import Mode, Outcome
from tests.support.telemetry_lab import ALLOWED, DENIED, HOSTILE, close, connect, full_event, recorder_lab

NS = 1_000_000_000
NOW = 1_795_000_000 * NS
STYLE = re.compile(r"\x1b\[\d+m")


def event(kind, at=NOW, task="t-1", **more):
    made = full_event(kind, "text", at)._replace(task=Task(task, f"name-{task}"), mode=Mode.ENFORCE)
    return made._replace(**{"outcome": Outcome.PASSED, **more})


def fed(*events):
    state = TopState()
    for each in events:
        state.take(each)
    return state


def test_each_attempt_is_counted_once_for_its_task():
    state = fed(
        event(Kind.TASK_STARTED),
        event(Kind.CONNECTION_DECIDED),
        event(Kind.CONNECTION_CLOSED, bytes=Transferred(5, 7)),
        event(Kind.REQUEST_DECIDED, outcome=Outcome.BLOCKED),
        event(Kind.DNS_DECIDED, task="t-2", outcome=Outcome.FAILED),
        event(Kind.TAMPERING_DETECTED, task="t-2", outcome=None),
    )
    first, second = state.tasks["t-1"], state.tasks["t-2"]
    assert (first.attempts, second.attempts) == ({Outcome.PASSED: 1, Outcome.BLOCKED: 1}, {Outcome.FAILED: 1})
    assert (first.up, first.down, second.warnings, state.warnings) == (5, 7, 1, 1)
    assert state.attempts == {Outcome.PASSED: 1, Outcome.BLOCKED: 1, Outcome.FAILED: 1}
    assert [each.kind for each in state.refusals] == [Kind.REQUEST_DECIDED, Kind.DNS_DECIDED, Kind.TAMPERING_DETECTED]


def test_pending_approvals_and_anomalies_are_shown_until_answered():
    def step(kind, number, **more):
        return event(kind, approval=Approval(str(number), **more))

    state = fed(*(step(Kind.APPROVAL_ASKED, number) for number in range(4)))
    for each in (
        step(Kind.APPROVAL_ANSWERED, 0, answer=Answer.APPROVED),  # one of two
        step(Kind.APPROVAL_ANSWERED, 1, answer=Answer.REJECTED, final=True),
        step(Kind.APPROVAL_STALE, 2),
        step(Kind.APPROVAL_REFUSED, 3),  # a vote of somebody who has none
        event(Kind.ANOMALY_DETECTED),
        event(Kind.TASK_TAINTED),
    ):
        state.take(each)
    assert list(state.pending_approvals) == ["0", "3"]
    assert list(state.refusals) == []
    shown = "\n".join(Screen(100, 40).show(state, NOW, "now"))
    assert "2 WAIT FOR A PERSON" in shown
    assert "2 UNUSUAL OR TAINTED" in shown


def test_failed_start_is_no_task():
    assert fed(event(Kind.RULES_LOADED)).tasks == {}


def test_rate_covers_the_last_seconds():
    rate = Rate()
    for second in range(100):
        rate.add(NOW + second * NS, 4)
    assert rate.at(NOW + 99 * NS) == 4
    assert rate.at(NOW + (99 + RATE_OVER) * NS) == 0
    rate.add(NOW)  # late
    assert rate.at(NOW + 99 * NS) == 4.1


def test_ended_task_is_shown_briefly_and_then_dropped():
    state = fed(event(Kind.TASK_STARTED), event(Kind.TASK_ENDED, NOW + NS), event(Kind.TASK_STARTED, task="t-2"))
    assert [each.id for each in state.shown(NOW + 2 * NS)] == ["t-2", "t-1"]
    assert [each.id for each in state.shown(NOW + 20 * NS)] == ["t-2"]
    assert "t-1" not in state.tasks


def test_flood_of_tasks_and_refusals_is_bounded():
    state = TopState()
    for number in range(2 * MOST_TASKS):
        state.take(event(Kind.CONNECTION_DECIDED, NOW + number, f"t-{number}", outcome=Outcome.BLOCKED))
    assert len(state.tasks) == MOST_TASKS
    assert f"t-{2 * MOST_TASKS - 1}" in state.tasks
    assert len(state.refusals) == MOST_REFUSALS


def test_screen_shows_the_state():
    state = fed(
        event(Kind.TASK_STARTED),
        event(Kind.CONNECTION_DECIDED, NOW + 60 * NS, mode=Mode.AUDIT),
        event(Kind.CONNECTION_CLOSED, NOW + 60 * NS, bytes=Transferred(1_500_000, 7), mode=None),
        event(Kind.SECRET_DETECTED, NOW + 60 * NS, mode=None),
    )
    lines = Screen(200, 40).show(state, NOW + 61 * NS, "10:00")
    assert lines[0].startswith("exeat top  ")
    assert lines[0].endswith("  1 task  0.1 attempts/s  150 kB/s out  1 B/s in")
    assert lines[1] == "since 10:00: 1 allowed"
    assert lines[2].startswith("1 LEAKS OR TAMPERING")
    assert lines[3] == "IN AUDIT MODE, NOT ENFORCED: name-t-1"
    [row] = [line for line in lines if line.startswith("name-t-1")]
    assert row.split() == [
        "name-t-1", "t-1", "1m01s", "1", "0", "0", "1.5", "MB", "7", "B", "0.1", "audit,", "1", "leaks", "or", "tampering",
    ]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(("columns", "lines"), [(20, 5), (80, 24), (300, 100)], ids=str)
def test_hostile_text_stays_in_its_line(text, columns, lines):
    state = TopState()
    for kind in Kind:
        state.take(full_event(kind, text, NOW)._replace(outcome=Outcome.BLOCKED))
    for coloured in (True, False):
        for line in Screen(columns, lines, coloured).show(state, NOW, "x"):
            plain = STYLE.sub("", line)
            assert all(character.isprintable() for character in plain)
            assert columns < 60 or width(plain) <= columns
            assert coloured or plain == line


# --- the command ---


def test_top_without_terminal_prints_once(tmp_path, capsys):
    here = recorder_lab(tmp_path)
    connect(here.recorder, DENIED)
    assert main(["top", "--journal", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "1 blocked" in said
    assert "www.example.com" in said
    assert main(["top", "--journal", str(tmp_path / "none")]) == 2


class Terminal:
    """A terminal with `exeat top` on it."""

    def __init__(self, journal, term="xterm"):
        self.ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(theirs)
        words = [Path(sys.executable).with_name("exeat"), "top", "--journal", journal]
        environment = {**os.environ, "TERM": term, "COLUMNS": "120", "LINES": "30"}
        self.process = subprocess.Popen([*map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        self.theirs, self.said = theirs, ""

    def until(self, text):
        deadline = time.monotonic() + 60
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self.ours], [], [], 1)[0]:
                self.said += os.read(self.ours, 65536).decode("utf-8", "replace")

    def end(self):
        assert self.process.wait(60) == 0
        after = termios.tcgetattr(self.theirs)
        for descriptor in (self.ours, self.theirs):
            os.close(descriptor)
        assert after == self.before


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "an interrupt"])
def test_top_on_a_terminal_follows_and_restores_the_screen(tmp_path, key):
    here = recorder_lab(tmp_path)
    connect(here.recorder)
    terminal = Terminal(tmp_path)
    try:
        terminal.until("1 allowed")
        assert terminal.said.startswith("\x1b[?1049h\x1b[?25l")
        close(here.recorder, connect(here.recorder, ALLOWED))
        connect(here.recorder, DENIED)
        terminal.until("2 allowed, 1 blocked")
        if key == b"q":
            os.write(terminal.ours, key)
        else:
            os.kill(terminal.process.pid, 2)
        terminal.until("\x1b[?25h\x1b[?1049l")
        terminal.end()
    finally:
        terminal.process.kill()
        terminal.process.wait()


def test_top_on_a_dumb_terminal_sends_no_control_sequence(tmp_path):
    connect(recorder_lab(tmp_path).recorder)
    terminal = Terminal(tmp_path, "dumb")
    try:
        terminal.until("none")
        terminal.end()
        assert "\x1b" not in terminal.said
    finally:
        terminal.process.kill()
        terminal.process.wait()
