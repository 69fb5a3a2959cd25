"""`exeat run` as a command: statuses, signals, descriptors, faults, and nothing left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminals import Terminal

from tests import harness

RULES = "version: 1\nname: nothing\nrules: []\n"
EXEAT = Path(sys.executable).with_name("exeat")


@pytest.fixture
def rules(someone):
    return someone.write(someone.home / "rules.yaml", RULES)


def _run(someone, rules, *command, options=(), **more):
    return someone.exeat("run", "--rules", rules, *options, "--", *command, **more)


@pytest.mark.parametrize("status", [0, 255])
def test_the_exit_status_is_the_task_s(someone, rules, status):
    assert _run(someone, rules, "sh", "-c", f"exit {status}").returncode == status


def test_a_task_that_dies_of_a_signal_takes_its_runner_along(someone, rules):
    assert _run(someone, rules, "sh", "-c", "kill -SEGV $$").returncode == -signal.SIGSEGV
    assert _run(someone, rules, "sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL


@harness.as_a_user
def test_statuses_of_commands_that_cannot_be_run(someone, rules):
    missing = _run(someone, rules, "no-such-program")
    assert missing.returncode == 127
    assert b"`no-such-program`: not found" in missing.stderr
    plain = someone.write(someone.work / "plain", "x")
    refused = _run(someone, rules, plain)
    assert refused.returncode == 126
    assert b"cannot be executed: Permission denied" in refused.stderr


@harness.as_a_user
def test_a_command_that_is_hidden_is_said_to_be(someone, rules):
    tools = someone.home / "tools" / "bin"
    tool = someone.write(tools / "tool", "#!/bin/sh\necho ran\n")
    tool.chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}"}
    hidden = _run(someone, rules, "tool", env=environment)
    assert hidden.returncode == 127
    assert f"show it with `--read {someone.home / 'tools'}`".encode() in hidden.stderr
    shown = _run(someone, rules, "tool", options=["--read", someone.home / "tools"], env=environment)
    assert shown.stdout == b"ran\n"


def test_input_output_and_files_are_the_task_s_own(someone, rules):
    done = _run(someone, rules, "sh", "-c", "cat; echo err >&2; echo made > made", stdin=None, input=b"given")
    assert done.stdout == b"given"
    assert b"err\n" in done.stderr
    made = someone.work / "made"
    assert made.read_text() == "made\n"
    assert made.stat().st_uid == someone.work.stat().st_uid


@harness.as_a_user
def test_the_summary_says_where_to_see_what_was_tried_and_quiet_has_none(someone, rules):
    counted, where = _run(someone, rules, "getent", "hosts", "nobody.example").stderr.splitlines()
    assert b"blocked" in counted
    assert b"`exeat log " in where
    assert _run(someone, rules, "true").stderr == b"exeat: nothing was attempted\n"
    assert _run(someone, rules, "true", options=["--quiet"]).stderr == b""


@pytest.mark.first_run
@harness.as_a_user
def test_a_task_s_start_and_end_are_told_once_each(someone, rules):
    _run(someone, rules, "sh", "-c", "exit 3")
    told = [event for event in someone.events() if event["kind"].startswith("task.")]
    assert [event["kind"] for event in told] == ["task.started", "task.ended"]
    assert told[1]["ending"]["status"] == 3


def test_signals_reach_the_task(someone, rules):
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    argv = [EXEAT, "run", "--quiet", "--rules", rules, "--", "sh", "-c", script]
    words = harness.as_user(argv, someone.home) if someone.user else list(map(str, argv))
    environment = {**os.environ, "HOME": str(someone.home)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, cwd=someone.work) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == b"caught\n"
        assert process.returncode == 5


def test_a_terminal_is_the_task_s_and_its_interrupt_reaches_the_task_once(someone, rules):
    script = "trap 'n=x$n; echo caught $n' INT; test -t 0 && echo ready; while :; do sleep 0.05; done"
    terminal = Terminal(someone, rules, script)
    terminal.until(b"ready")
    terminal.type(b"\x03")
    terminal.until(b"caught x\r\n")
    assert b"caught xx" not in terminal.shown
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.ended()
    terminal.hang_up()


def test_a_broken_rule_file_starts_nothing(someone):
    broken = someone.write(
        someone.home / "broken.yaml", "version: 1\nname: x\nrules:\n  - {id: a, to: x.example, actoin: allow}\n"
    )
    done = _run(someone, broken, "touch", "started")
    assert done.returncode == 2
    assert f"{broken}:4:".encode() in done.stderr
    assert b"did you mean `action`?" in done.stderr
    assert not (someone.work / "started").exists()


def test_a_metrics_port_that_is_taken_starts_nothing(someone, rules):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = _run(someone, rules, "touch", "started", options=["--metrics", address])
    assert done.returncode == 125
    assert f"the metrics port `{address}` cannot be opened: Address already in use".encode() in done.stderr
    assert not (someone.work / "started").exists()


def test_a_ca_that_others_can_read_starts_nothing(someone, rules):
    assert _run(someone, rules, "true").returncode == 0
    folder = someone.home / ".local/state/exeat/ca"
    for file in folder.iterdir():
        file.chmod(0o644)
    done = _run(someone, rules, "touch", "started")
    assert done.returncode == 125
    assert b"exeat: " in done.stderr
    assert str(folder).encode() in done.stderr
    assert not (someone.work / "started").exists()


def test_a_journal_that_can_t_be_written_starts_nothing(someone, rules):
    place = someone.write(someone.home / "file", "")
    done = _run(someone, rules, "touch", "started", options=["--journal", place])
    assert done.returncode == 125
    assert f"`{place}`".encode() in done.stderr
    assert not (someone.work / "started").exists()


def _status(pid):
    """(parent, start time) of a process, by proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), int(fields[19])


def _processes():
    """Every process there is: pid -> (parent, start time)."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry)] = _status(entry)
    return found


def _mounts():
    """What is mounted on this side that is ours; what else is mounted meanwhile is others' business."""
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if "exeat" in line]


def _family(pid):
    """The processes below `pid` that are still the ones they were, and the namespaces that only they are in."""
    processes = _processes()
    members = {pid}
    while more := {child for child, (parent, _) in processes.items() if parent in members} - members:
        members |= more
    return {(member, processes[member][1]) for member in members}, _namespaces(members) - _namespaces({os.getpid()})


def _namespaces(pids):
    found = set()
    for pid in pids:
        for kind in ("net", "mnt", "user", "pid", "ipc", "uts", "cgroup"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return found


def _left(family, namespaces, then):
    """What is left of them, after giving the kernel time to let go.

    `then` are the processes of that time: the number of a namespace that is gone may be another's now.
    """
    deadline = time.monotonic() + 60
    while True:
        processes = _processes()
        left = {member for member in family if processes.get(member[0], (0, 0))[1] == member[1]}
        left |= namespaces & _namespaces(pid for pid, known in processes.items() if then.get(pid) == known)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


@pytest.mark.first_run
@pytest.mark.parametrize("end", ["by itself", "its parent killed", "its init killed"])
def test_nothing_is_left_behind(someone, rules, end):
    argv = [
        EXEAT,
        "run",
        "--quiet",
        "--rules",
        rules,
        "--",
        "sh",
        "-c",
        "sleep 60 & echo x > /tmp/x; echo ready; read x; exit 0",
    ]
    words = harness.as_user(argv, someone.home) if someone.user else list(map(str, argv))
    environment = {**os.environ, "HOME": str(someone.home)}
    mounts = _mounts()
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=someone.work
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        family, namespaces = _family(process.pid)
        then = _processes()
        assert len(family) >= 6  # the runner, the worker, outer, init, sh, sleep
        assert len(namespaces) >= 7
        if end == "its parent killed":
            process.kill()
        elif end == "its init killed":
            inside = [
                pid for pid, _ in family if any(name.startswith("pid:") for name in _namespaces({pid}) & namespaces)
            ]
            os.kill(min(inside), signal.SIGKILL)
        process.stdin.close()
    assert _left(family, namespaces, then) == set()
    assert set(_mounts()) <= set(mounts)
    assert process.returncode == {"by itself": 0, "its parent killed": -signal.SIGKILL}.get(end, 125)


def test_a_machine_without_user_namespaces_is_told_what_to_do(someone, rules):
    # In a user namespace of its own, so that the limit is that namespace's and not the machine's.
    done = someone.run(
        ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c",
         'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh",
         EXEAT, "run", "--rules", rules, "--", "touch", "started"]
    )  # fmt: skip
    assert done.returncode == 125, done.stderr
    said = done.stderr.decode()
    expected = "no user namespace can be made here" if someone.user else "never runs under kernel uid 0"
    assert expected in said
    assert len(said.splitlines()) == 1
    assert not (someone.work / "started").exists()


def test_root_without_its_capabilities_runs_nothing_as_root(someone, rules):
    if someone.user:
        return
    argv = [EXEAT, "run", "--rules", rules, "--", "touch", "started"]
    done = someone.run(["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", *argv])
    assert done.returncode == 125
    assert b"a task never runs under kernel uid 0" in done.stderr
    assert not (someone.work / "started").exists()
