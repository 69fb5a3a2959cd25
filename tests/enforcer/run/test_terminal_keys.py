"""Keys that are typed reach whom they are meant for, in whatever pipeline a run stands; and a terminal that goes away ends it."""

import os
import signal
import time

import pytest

from tests.support import harness
from tests.support.terminals import WAIT, Terminal

ASKS = """sh -c 'stty -echo </dev/tty; printf "PASS""WORD: " >/dev/tty; read key </dev/tty; read line; echo got $key-$line'"""
TYPED = [(b"PASSWORD: ", b"secret\n")]
LINES = {
    "its standard input is a pipe": (f"echo data | $EXEAT {ASKS}", TYPED, b"got secret-data"),
    "its standard input is empty": (f"$EXEAT {ASKS} </dev/null", TYPED, b"got secret-"),
    "only its errors are shown": (f'said=$(echo data | $EXEAT {ASKS}); echo "it $said"', TYPED, b"it got secret-data"),
    "the terminal controls another session, and is its input": ("setsid -w $EXEAT sh -c 'stty -echo; echo ready; read key; echo got $key'", [(b"ready", b"secret\n")], b"got secret"),
    "the terminal controls another session, and only shows": ("setsid -w sh -c 'echo | $EXEAT sh -c \"true </dev/tty || echo no keys\"'", [], b"no keys"),
    "the next of its pipeline reads keys": (
        "$EXEAT sh -c 'echo up; until test -e over; do sleep 0.05; done' | sh -c 'stty -icanon -echo </dev/tty; read up; printf \"KE\"\"Y? \"; key=$(head -c 3 </dev/tty); echo \"mine $key\"; stty sane </dev/tty; touch over'",
        [(b"KEY? ", b"abc")], b"mine abc",
    ),
    "the next of its pipeline prints": ("$EXEAT sh -c 'printf \"one\\ntwo\\n\"; sleep 0.5' | cat", [], b"one\r\ntwo\r\n"),
}  # fmt: skip


@pytest.fixture
def rules(someone):
    return someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\n")


@pytest.mark.parametrize(("line", "typed", "shown"), LINES.values(), ids=LINES)
def test_terminal_keys_reach_the_right_process(someone, rules, line, typed, shown):
    terminal = Terminal.of_line(someone, rules, line)
    for word, keys in typed:
        terminal.until(word)
        assert keys.strip() not in terminal.shown
        terminal.type(keys)
    before = terminal.until(shown).partition(shown)[0]
    assert not typed or typed[0][1].strip() not in before, "it was echoed"
    terminal.ended()
    terminal.hang_up()


@pytest.mark.parametrize(
    ("number", "key"),
    [(signal.SIGTERM, b""), (signal.SIGINT, b""), (signal.SIGINT, b"\x03"), (signal.SIGQUIT, b"\x1c")],
)
def test_stopped_task_ends_with_its_run(someone, rules, number, key):
    """A program may stop itself (^Z in some agents), and no shell in there has it go on. `key` is typed, or else a signal sent."""
    terminal = Terminal.of_line(someone, rules, "exec $EXEAT sh -c 'echo u''p; kill -STOP $$; exec sleep 300'")
    terminal.until(b"up")
    _until_stopped(terminal.pid)
    if key:
        terminal.type(key)
    else:
        os.kill(terminal.pid, number)
    assert os.waitstatus_to_exitcode(terminal.ended()) == -number
    terminal.hang_up()


@harness.as_a_user
def test_stopped_task_continues_with_its_run(someone, rules):
    terminal = Terminal.of_line(someone, rules, "exec $EXEAT sh -c 'echo u''p; kill -STOP $$; exit 7'")
    terminal.until(b"up")
    _until_stopped(terminal.pid)
    os.kill(terminal.pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(terminal.ended()) == 7
    terminal.hang_up()


@pytest.mark.parametrize("line", ["exec $EXEAT", "setsid -w $EXEAT", "set -m; trap true HUP; $EXEAT"])
def test_run_ends_when_its_terminal_closes(someone, rules, line):
    """The kernel signals who leads the terminal's session alone: under su(1) that is another user's process."""
    terminal = Terminal.of_line(someone, rules, f"{line} sh -c 'trap - HUP; echo u''p; exec sleep 300'")
    terminal.until(b"up")
    runs = _below(terminal.pid)
    terminal.hang_up()
    deadline = time.monotonic() + WAIT
    while left := [pid for pid in runs if _is_there(pid)]:
        assert time.monotonic() < deadline, f"{left} never ended"
        time.sleep(0.02)


def _is_there(pid):
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def _stat(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def _below(pid):
    """The processes below one."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    return [pid, *(each for child in children for each in _below(child))]


def _until_stopped(pid):
    deadline = time.monotonic() + WAIT
    while not any(_stat(each)[0] == "T" for each in _below(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
