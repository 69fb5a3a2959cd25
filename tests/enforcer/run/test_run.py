"""`exeat run` as a command: statuses, signals, descriptors, faults, and nothing left behind."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import harness, leftovers
from tests.support.terminals import Terminal

RULES = "version: 1\nname: nothing\nrules: []\n"
KEPT = (
    "rules.yaml", "temporary", ".local", ".local/state", *(f".local/state/exeat{name}" for name in (
        "", "/ca", "/ca/ca.pem", "/cache", "/cache/ca.json", "/cache/java-*.p12", "/cache/network-*",
        "/keeper", "/keeper/keys", "/keeper/keys/current", "/keeper/keys/*.pem",
    )),
)  # fmt: skip
EXEAT = Path(sys.executable).with_name("exeat")


@pytest.fixture
def rules(someone):
    return someone.write(someone.home / "rules.yaml", RULES)


@pytest.fixture
def default_rules(someone):
    (someone.home / ".config" / "exeat").mkdir(parents=True)
    path = someone.write(someone.home / ".config" / "exeat" / "rules.yaml", RULES)
    path.chmod(0o644)
    return path


def test_default_rules_are_the_callers_file(someone, default_rules):
    done = someone.exeat("run", "--quiet", "--", "true")
    assert (done.returncode, done.stderr.decode()) == (0, "")
    done = someone.exeat("explain", "https://x.example/")
    assert (done.returncode, b"no_rule" in done.stdout) == (0, True)
    default_rules.unlink()
    done = someone.exeat("run", "--", "true")
    assert done.returncode == 2
    where = f"put the rules of your tasks into `{default_rules}`"
    assert done.stderr.decode() == f"exeat: no rules: name a rule file with `--rules FILE`; or {where}\n"


def test_default_rules_writable_by_others_are_refused(someone, default_rules):
    default_rules.chmod(0o666)
    done = someone.exeat("run", "--", "true")
    assert (done.returncode, "others can write it" in done.stderr.decode()) == (2, True)


def test_rule_file_in_the_workspace_is_no_default(someone):
    """A checkout must not bring the rules of the task that works in it."""
    for name in ("rules.yaml", "exeat.yaml", ".exeat.yaml"):
        someone.write(someone.work / name, RULES)
    assert someone.exeat("run", "--", "true").returncode == 2


def test_task_cannot_write_the_default_rules(someone, rules, default_rules):
    """They are covered even where this run names other rules; where they are missing, nothing starts."""
    config = someone.home / ".config"
    lock = someone.write(config / "exeat" / "presets.lock", "version: 1\nlocked: {}\n")
    for path in (default_rules, lock):
        command = f"echo evil >> {path} || rm -f {path} || mv {config}/exeat {config}/other"
        assert _run(someone, rules, "sh", "-c", command, options=("--write", config)).returncode != 0
        assert "evil" not in path.read_text()
    lock.unlink()
    done = _run(someone, rules, "true", options=("--write", config))
    assert (done.returncode, f"`{lock}` is not there, and a task" in done.stderr.decode()) == (2, True)


def _run(someone, rules, *command, options=(), **more):
    return someone.exeat("run", "--rules", rules, *options, "--", *command, **more)


@pytest.mark.parametrize("status", [0, 255])
def test_exit_status_is_the_tasks(someone, rules, status):
    assert _run(someone, rules, "sh", "-c", f"exit {status}").returncode == status


def test_run_executes_only_exeat_and_the_task(someone, rules):
    """Neither `ip` nor `nft` nor `mount` has a part in it, so none has to be there, or can be another."""
    trace = someone.work / "trace"
    words = ["--rules", rules, "--quiet", "--no-service", "--", "true"]
    told = ["strace", "-f", "-qq", "-e", "trace=execve,execveat", "-e", "status=successful", "-o", trace]
    done = someone.run([*told, EXEAT, "run", *words])
    assert done.returncode == 0, done.stderr.decode()
    executed = [os.path.basename(path) for path in re.findall(r'execve(?:at)?\("([^"]+)"', trace.read_text())]
    if not someone.user:  # whom the kernel lets follow a task to where it gives everything up
        assert executed.pop() == "true"
    assert executed
    assert {name.rstrip("0123456789.") for name in executed} <= {"exeat", "python", "exeat-init"}


def test_runner_dies_of_the_tasks_signal(someone, rules):
    assert _run(someone, rules, "sh", "-c", "kill -SEGV $$").returncode == -signal.SIGSEGV
    assert _run(someone, rules, "sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL


@harness.as_a_user
def test_exit_statuses_of_commands_that_cannot_start(someone, rules):
    missing = _run(someone, rules, "no-such-program")
    assert missing.returncode == 127
    assert b"`no-such-program`: not found" in missing.stderr
    plain = someone.write(someone.work / "plain", "x")
    refused = _run(someone, rules, plain)
    assert refused.returncode == 126
    assert b"cannot be executed: Permission denied" in refused.stderr


@harness.as_a_user
def test_hidden_command_gives_a_hint(someone, rules):
    tools = someone.home / "tools" / "bin"
    tool = someone.write(tools / "tool", "#!/bin/sh\necho ran\n")
    tool.chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}"}
    hidden = _run(someone, rules, "tool", env=environment)
    assert hidden.returncode == 127
    assert f"show it with `--read {someone.home / 'tools'}`".encode() in hidden.stderr
    shown = _run(someone, rules, "tool", options=["--read", someone.home / "tools"], env=environment)
    assert shown.stdout == b"ran\n"


def test_streams_and_files_belong_to_the_task(someone, rules):
    done = _run(someone, rules, "sh", "-c", "cat; echo err >&2; echo made > made", stdin=None, input=b"given")
    assert done.stdout == b"given"
    assert b"err\n" in done.stderr
    made = someone.work / "made"
    assert made.read_text() == "made\n"
    assert made.stat().st_uid == someone.work.stat().st_uid


@harness.as_a_user
def test_summary_names_the_log_command_unless_quiet(someone, rules):
    counted, why, where = _run(someone, rules, "getent", "hosts", "nobody.example").stderr.splitlines()
    assert b"blocked" in counted
    assert b"nobody.example" in why
    assert b"`exeat log " in where
    assert _run(someone, rules, "true").stderr == b"exeat: it attempted nothing on the network\n"
    assert _run(someone, rules, "true", options=["--quiet"]).stderr == b""


@pytest.mark.first_run
@harness.as_a_user
def test_task_start_and_end_are_recorded_once(someone, rules):
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


def test_terminal_interrupt_reaches_the_task_once(someone, rules):
    script = "trap 'n=x$n; echo caught $n' INT; test -t 0 && echo ready; while :; do sleep 0.05; done"
    terminal = Terminal(someone, rules, script)
    terminal.until(b"ready")
    terminal.type(b"\x03")
    terminal.until(b"caught x\r\n")
    assert b"caught xx" not in terminal.shown
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.ended()
    terminal.hang_up()


@contextlib.contextmanager
def _nothing_started(someone):
    """Nothing is there afterwards that wasn't before: of the run's processes each has a variable of its own."""
    temporary = someone.home / "temporary"
    temporary.mkdir()
    os.chown(temporary, someone.home.stat().st_uid, -1)
    mark = {"EXEAT_TEST_MARK": str(someone.home), "TMPDIR": str(temporary)}
    files, mounts = leftovers.files(someone.home.parent), leftovers.mounts()
    yield mark
    assert leftovers.until_gone(lambda: leftovers.marked(f"EXEAT_TEST_MARK={someone.home}")) == set()
    assert leftovers.files(someone.home.parent) == files
    assert leftovers.mounts() <= mounts
    assert list(temporary.iterdir()) == []


def test_broken_rule_file_refuses_the_start(someone):
    broken = someone.write(
        someone.home / "broken.yaml", "version: 1\nname: x\nrules:\n  - {id: a, to: x.example, actoin: allow}\n"
    )
    with _nothing_started(someone) as mark:
        done = _run(someone, broken, "touch", "started", env=mark)
    said = f"{broken}:4:28: `actoin` is not a key of a rule; did you mean `action`?\n"
    assert (done.returncode, done.stderr.decode()) == (2, said)


@harness.as_a_user
def test_missing_current_directory_is_an_error(someone, rules):
    exeat = Path(sys.executable).with_name("exeat")
    line = f"cd $(mktemp -d); rmdir $PWD; exec {exeat} run --rules {rules} -- true"
    done = subprocess.run(
        harness.as_user(["sh", "-c", line], someone.home), capture_output=True, text=True, check=False
    )
    assert (done.returncode, "the current directory does not exist any more" in done.stderr) == (2, True)


def test_metrics_port_in_use_refuses_the_start(someone, rules):
    with socket.create_server(("127.0.0.1", 0)) as taken, _nothing_started(someone) as mark:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = _run(someone, rules, "touch", "started", options=["--metrics", address], env=mark)
    said = (
        f"exeat: the metrics port `{address}` is in use: name another port with `--metrics HOST:PORT`, "
        "or leave `--metrics` out: `exeat up --metrics` serves the metrics of all tasks that run under it\n"
    )
    assert (done.returncode, done.stderr.decode()) == (125, said)


@pytest.mark.parametrize(
    ("name", "mode", "right"), [("ca.pem", 0o644, 600), (".", 0o777, 700)], ids=["file", "directory"]
)
def test_ca_readable_by_others_refuses_the_start(someone, rules, name, mode, right):
    open_to_others = someone.home / ".local/state/exeat/ca" / name
    open_to_others.chmod(mode)
    with _nothing_started(someone) as mark:
        done = _run(someone, rules, "touch", "started", env=mark)
    advice = f"if nobody else can have read it, run `chmod {right} {open_to_others}`, else remove it"
    said = f"exeat: `{open_to_others}` holds the CA and is open to others (mode {mode:o}); {advice}\n"
    assert (done.returncode, done.stderr.decode()) == (125, said)


def test_unwritable_journal_refuses_the_start(someone, rules):
    place = someone.write(someone.home / "file", "")
    with _nothing_started(someone) as mark:
        done = _run(someone, rules, "touch", "started", options=["--journal", place], env=mark)
    said = (
        f"exeat: cannot make the directory `{place}`: File exists; set XDG_STATE_HOME to another directory; "
        "for a journal, name one with --journal\n"
    )
    assert (done.returncode, done.stderr.decode()) == (125, said)


@pytest.mark.first_run
@pytest.mark.parametrize("end", ["by itself", "its parent killed", "its init killed"])
def test_run_leaves_nothing_behind(someone, rules, end):
    argv = [
        EXEAT,
        "run",
        "--quiet",
        "--memory",
        "500MB",
        "--rules",
        rules,
        "--",
        "sh",
        "-c",
        "sleep 60 & echo x > /tmp/x; echo ready; read x; exit 0",
    ]
    words = harness.as_user(argv, someone.home) if someone.user else list(map(str, argv))
    temporary = someone.home / "temporary"
    temporary.mkdir()
    os.chown(temporary, someone.home.stat().st_uid, -1)
    environment = {**os.environ, "HOME": str(someone.home), "TMPDIR": str(temporary)}
    mounts = leftovers.mounts()
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=someone.work
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        had = leftovers.Leftovers(process.pid)
        assert len(had.family) >= 6  # the runner, the worker, outer, init, sh, sleep
        assert len(had.namespaces) >= 7
        assert len(had.sockets) >= 4  # the runner's to the worker and to the sandbox
        if end == "its parent killed":
            process.kill()
        elif end == "its init killed":
            os.kill(min(pid for pid, _ in had.family if leftovers.lives_in(pid, had.namespaces)), signal.SIGKILL)
        process.stdin.close()
    assert had.left() == set()
    if end == "its parent killed" and had.groups:  # an empty group stays until the next run: docs/explanation/limits.md
        assert _run(someone, rules, "true").returncode == 0
    assert had.groups_left() == set()
    assert leftovers.mounts() <= mounts
    assert list(temporary.iterdir()) == []
    assert leftovers.strange(someone.home, KEPT) == set()
    assert process.returncode == {"by itself": 0, "its parent killed": -signal.SIGKILL}.get(end, 125)


def test_missing_user_namespaces_are_reported_with_a_remedy(someone, rules):
    # In a user namespace of its own, so that the limit is that namespace's and not the machine's.
    with _nothing_started(someone) as mark:
        done = someone.run(
            ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c",
             'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh",
             EXEAT, "run", "--rules", rules, "--", "touch", "started"], env=mark,
        )  # fmt: skip
    said = (
        "the gate could not be started: no user namespace can be made here (No space left on device); run `sysctl "
        "-w user.max_user_namespaces=15000` as root, or in a container allow user namespaces"
        if someone.user
        else "a task never runs under kernel uid 0, and this root is in a user namespace without the ids to give it "
        "another; run exeat as an ordinary user, or outside of that user namespace"
    )
    assert (done.returncode, done.stderr.decode()) == (125, f"exeat: {said}\n")


# Each that a container may have been started without, and all of them.
CAPABILITIES = ("chown", "kill", "setgid", "setuid", "setpcap", "sys_admin")


@pytest.mark.parametrize("someone", ["root"], indirect=True)
@pytest.mark.parametrize("missing", [(one,) for one in CAPABILITIES] + [CAPABILITIES], ids="-".join)
def test_root_without_capabilities_runs_unprivileged(someone, rules, missing):
    argv = [EXEAT, "run", "--rules", rules, "--", "touch", "started"]
    dropped = ",".join(f"-{name}" for name in missing)
    with _nothing_started(someone) as mark:
        done = someone.run(["setpriv", f"--bounding-set={dropped}", "--inh-caps=-all", *argv], env=mark)
    names = ", ".join(f"CAP_{name.upper()}" for name in missing)
    given = " ".join(f"--cap-add {name.upper()}" for name in missing)
    said = (
        "exeat: a task never runs under kernel uid 0, and this root lacks capabilities to run one under another id "
        f"({names}); run exeat as an ordinary user, or as root with them; in a container, `--user 1000`, or `{given}`\n"
    )
    assert (done.returncode, done.stderr.decode()) == (125, said)
