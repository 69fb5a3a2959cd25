"""Real attempts to get out of a real sandbox, as root-run and user-run, each with the refusal that is expected."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from enforcer.sandbox.step_lists import NUMBERS
from enforcer.system import linux
from tests.enforcer.escapes.advisories import ADVISORIES
from tests.enforcer.escapes.table import REFUSALS, VARIABLES, astray, put
from tests.support import harness

PYTHON = Path(sys.base_prefix) / "bin" / "python3"
TESTS = Path(__file__).parent.parent
MACHINE = linux.platform_machine()
RULES = "version: 1\nname: nothing\nrules: []\n"


@pytest.fixture
def rules(someone):
    return someone.write(someone.home / "rules.yaml", RULES)


def _inside(someone, rules, *places, trials=(), options=(), within=(), **more):
    """What came of the trials in a sandbox; `within` are words that root runs it with, whose task it ever is."""
    put(someone)
    words = ["run", "--quiet", "--rules", rules, "--read", sys.base_prefix, *options]
    variables = {**VARIABLES, "XDG_STATE_HOME": f"{someone.home}/.local/state"}
    argv = ["env", *(f"{name}={value}" for name, value in variables.items()), Path(sys.executable).with_name("exeat")]
    argv = [*argv, *words, "--", PYTHON, "places.py", json.dumps(trials), *places]
    argv = harness.as_user(argv, someone.home) if someone.user else argv
    done = harness.run([*within, *argv], home=someone.home, cwd=someone.work, **more)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_published_escapes_are_in_the_table():
    for advisory, (_, trials) in ADVISORIES.items():
        for trial in trials.split():
            file, _, name = trial.partition("::")
            there = f"def {name}(" in (TESTS / file).read_text() if name else trial in REFUSALS
            assert there, f"{advisory}: {trial}"


def test_every_escape_attempt_is_refused(someone, rules):
    listener = socket.socket(socket.AF_UNIX)
    name = f"exeat-escape-test-{os.getpid()}"  # tests run side by side
    listener.bind("\0" + name)
    listener.listen()
    options = ["--env", f"EXEAT_ABSTRACT={name}"]
    said = _inside(someone, rules, options=options, env={"EXEAT_TEST_SECRET": "hunter2"})
    listener.close()
    assert astray(said) == {}
    assert REFUSALS.keys() - said.keys() == NUMBERS["x86_64"].keys() & REFUSALS.keys() - NUMBERS[MACHINE].keys()


def test_sockets_and_fifos_of_the_host_are_unreachable(someone, rules):
    """docker.sock, D-Bus and their kind: in the workspace, in something shown, and in the system's own place for them."""
    shown, run = someone.home / "shown", someone.home.parent / "run"
    places = [someone.work / "deep" / "in", shown, run, run / "dbus"]
    servers, pipes = [], []
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        os.chmod(place, 0o755)
        for kind, name in (
            (socket.SOCK_STREAM, "docker.sock"),
            (socket.SOCK_STREAM, "system_bus_socket"),
            (socket.SOCK_DGRAM, "log.sock"),
        ):
            server = socket.socket(socket.AF_UNIX, kind)
            server.bind(str(place / name))
            os.chmod(place / name, 0o777)
            if kind == socket.SOCK_STREAM:
                server.listen()
            servers.append(server)
        os.mkfifo(place / "host.fifo")
        os.chmod(place / "host.fifo", 0o666)
        pipes.append(os.open(place / "host.fifo", os.O_RDONLY | os.O_NONBLOCK))
    # What this host has in /run is not known: one with these stands there, for whoever runs it.
    with_run = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /run && exec "$@"', run]
    options, trials = ["--read", shown], ["host_sockets_and_pipes"]
    said = _inside(someone, rules, *places[:2], "/run", "/var/run", trials=trials, options=options, within=with_run)
    for server in servers:
        server.close()
    for pipe in pipes:
        os.close(pipe)
    assert said == {"host_sockets_and_pipes": "refused: ECONNREFUSED"}


def _tcp():
    with socket.create_server(("127.0.0.1", 0)) as origin:
        given = socket.create_connection(origin.getsockname())
        return given, origin.accept()[0]


def _datagrams():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


@pytest.mark.parametrize("pair", [_tcp, _datagrams], ids=["a TCP connection", "a pair of unix datagram sockets"])
def test_socket_on_standard_input_is_not_passed(someone, rules, pair):
    """An inherited socket could be connected anew, in the host's network or to an abstract socket: the task gets a pipe."""
    given, peer = pair()
    script = (
        "import os, socket, stat\n"
        "assert not any(stat.S_ISSOCK(os.fstat(d).st_mode) for d in (0, 1, 2)), 'a socket'\n"
        "print('read', os.read(0, 100).decode())\n"
    )
    peer.sendall(b"from outside")
    words = ["run", "--quiet", "--rules", rules, "--read", sys.base_prefix, "--", PYTHON, "-c", script]
    done = someone.exeat(*words, stdin=given)
    for sock in (given, peer):
        sock.close()
    assert done.stdout == b"read from outside\n", done.stderr.decode()


def test_rule_files_in_the_workspace_cannot_be_changed(someone):
    rules = someone.write(someone.work / "conf" / "net" / "rules.yaml", RULES)
    if someone.user:
        for path in (someone.work / "conf", someone.work / "conf" / "net"):
            os.chown(path, harness.UID, harness.UID)
    script = (
        "for attempt in 'echo x >> conf/net/rules.yaml' 'rm -f conf/net/rules.yaml' 'mv conf/net/rules.yaml r'"
        " 'mv conf/net other' 'mv conf other' 'ln conf/net/rules.yaml hard && echo x >> hard'"
        " 'chmod 777 conf/net/rules.yaml' 'cp /dev/null conf/net/rules.yaml'; do"
        " (eval $attempt) 2>/dev/null && echo DONE $attempt; done; echo new > conf/net/beside; cat conf/net/beside"
    )
    done = someone.exeat("run", "--quiet", "--rules", "conf/net/rules.yaml", "--", "sh", "-c", script)
    assert done.stdout == b"new\n", done.stdout + done.stderr
    assert rules.read_text() == RULES


def test_rule_file_behind_a_workspace_link_refuses_the_start(someone):
    real = someone.write(someone.home / "rules.yaml", RULES)
    (someone.work / "rules.yaml").symlink_to(real)
    done = someone.exeat("run", "--rules", "rules.yaml", "--", "true")
    assert done.returncode == 2
    assert b"symbolic link" in done.stderr


@pytest.mark.first_run
def test_ca_key_and_journal_are_invisible(someone, rules):
    first = someone.exeat("run", "--quiet", "--rules", rules, "--", "true")
    assert first.returncode == 0, first.stderr.decode()
    state = someone.home / ".local" / "state" / "exeat"
    assert list((state / "ca").iterdir())
    places = [state, state / "ca", *(state / "ca").iterdir(), state / "journal"]
    script = "for p in " + " ".join(map(str, places)) + "; do ls $p 2>/dev/null && echo SEEN $p; done; true"
    for options in ([], ["--read", someone.home]):
        done = someone.exeat("run", "--quiet", "--rules", rules, *options, "--", "sh", "-c", script)
        assert b"SEEN" not in done.stdout.replace(f"SEEN {state}\n".encode(), b""), done.stdout + done.stderr
        assert b"key" not in done.stdout
        assert b".jsonl" not in done.stdout


def test_exeats_code_cannot_be_writable(someone, rules):
    done = someone.exeat("run", "--rules", rules, "--workspace", harness.PROJECT, "--", "true")
    assert done.returncode == 2
    assert b"exeat's own code" in done.stderr


def test_concurrent_tasks_cannot_see_each_other(someone, rules):
    """Names, files, processes and loopback services of one sandbox are not there for the other."""
    words = ["run", "--quiet", "--rules", rules, "--read", sys.base_prefix, "--", PYTHON, "-c"]
    server = (
        "import socket, time, os\n"
        "open('/tmp/mine', 'w').write('secret of the first')\n"
        "s = socket.create_server(('127.0.0.1', 7777)); a = socket.socket(socket.AF_UNIX); a.bind('\\0mine'); a.listen()\n"
        "print('ready', flush=True); input(); s.setblocking(False)\n"
        "try: s.accept(); print('REACHED')\n"
        "except BlockingIOError: print('untouched')\n"
    )
    looker = (
        "import os, socket\n"
        "assert not os.path.exists('/tmp/mine')\n"
        "for family, place in ((socket.AF_INET, ('127.0.0.1', 7777)), (socket.AF_UNIX, '\\0mine')):\n"
        "    try: socket.socket(family).connect(place); print('REACHED')\n"
        "    except ConnectionRefusedError: print('refused')\n"
        "print(len([p for p in os.listdir('/proc') if p.isdigit()]))\n"
    )
    exeat = Path(sys.executable).with_name("exeat")
    argv = [exeat, *words, server]
    environment = {**os.environ, "HOME": str(someone.home)}
    first = subprocess.Popen(
        harness.as_user(argv, someone.home) if someone.user else list(map(str, argv)),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=someone.work, text=True,
    )  # fmt: skip
    assert first.stdout.readline() == "ready\n"
    second = someone.exeat(*words, looker)
    assert second.stdout == b"refused\nrefused\n2\n", second.stdout + second.stderr
    assert first.communicate("go\n", timeout=30)[0] == "untouched\n"


def test_descriptor_above_the_limit_is_closed(someone, rules):
    """RLIMIT_NOFILE says what may be opened, not what is open."""
    script = 'exec 500</; ulimit -n 400; exec "$@"'
    exeat = Path(sys.executable).with_name("exeat")
    argv = [exeat, "run", "--quiet", "--rules", rules, "--", "sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"]
    done = someone.run(["bash", "-c", script, "bash", *argv])
    assert done.stdout == b"0 1 2 3 ", done.stdout + done.stderr


def test_pipe_on_standard_input_cannot_be_written(someone, rules):
    """`cat script | bash` runs what is in the pipe: the task must not add to it."""
    exeat = Path(sys.executable).with_name("exeat")
    lines = (
        f"{exeat} run --quiet --rules {rules} -- sh -c 'echo echo INJECTED > /proc/self/fd/0' < /dev/stdin\necho end\n"
    )
    done = someone.run(["bash", "-s"], stdin=None, input=lines.encode())
    assert b"INJECTED" not in done.stdout, done.stdout + done.stderr


def test_signal_to_the_process_group_stays_inside(someone, rules):
    exeat = Path(sys.executable).with_name("exeat")
    inner = f"{exeat} run --quiet --rules {rules} -- sh -c 'kill -USR1 0; sleep 5'; echo survived"
    done = someone.run(["bash", "-c", inner])
    assert done.stdout == b"survived\n", done.stderr


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_leak_no_descriptor(someone, rules, closed):
    exeat = Path(sys.executable).with_name("exeat")
    script = "for d in 0 1 2; do readlink /proc/self/fd/$d; done > seen; cat > read; echo out; echo err >&2"
    done = someone.run(
        ["bash", "-c", f'"$@" {closed}', "bash", exeat, "run", "--quiet", "--rules", rules, "--", "sh", "-c", script]
    )
    assert done.returncode == 0, done.stderr
    assert (someone.work / "read").read_bytes() == b""
    seen = (someone.work / "seen").read_text().split()
    assert all(place == "/dev/null" or place.startswith("pipe:") or place.endswith("/seen") for place in seen), seen


def test_process_1_hides_exeats_arguments(someone, rules):
    words = [
        "run",
        "--quiet",
        "--rules",
        rules,
        "--task",
        "not-for-tasks",
        "--",
        "cat",
        "/proc/1/cmdline",
        "/proc/1/comm",
    ]
    done = someone.exeat(*words)
    assert done.stdout.replace(b"\0", b"") == b"exeat-initexeat-init\n", done.stderr.decode()


def test_root_inside_is_unprivileged_outside(someone, rules):
    """`user: root` is a number that a task sees: no capability comes back, at no execve, and the kernel's uid 0 is not it."""
    together = ["--review", "--cache", "pip=~/.cache/pip", "--hide", "**/.env", "--memory", "500MB"]
    said = _inside(someone, rules, options=["--user", "root", "--env", "EXEAT_ABSTRACT=nobody-listens", *together])
    assert said.pop("become_root") == "GOT 0"  # it is what it sees itself as
    assert astray(said) == {}
    someone.write(someone.work / "whose", "")
    script = (
        "id -u; id -g; tr -s ' ' </proc/self/uid_map; touch made; "
        "stat -c %u made whose; grep -h Cap /proc/self/status | cut -f2 | sort -u; cat /etc/shadow; "
        "chown 12:12 made || echo no; echo x >/proc/sys/kernel/core_pattern || echo no; getent passwd 0; echo $HOME"
    )
    done = someone.exeat("run", "--quiet", "--rules", rules, "--user", "root", "--", "sh", "-c", script)
    outer = "1000" if not someone.user else "0"
    lines = done.stdout.decode().split("\n")
    assert lines[:3] == ["0", "0", f" 0 {outer} 1"]
    assert lines[3:5] == ["0", "0"], "what it makes and what is there is its own"
    assert lines[5:] == ["0000000000000000", "no", "no", "root:x:0:0::/root:/bin/sh", "/root", ""]
    assert b"/etc/shadow: Permission denied" in done.stderr
    owner = (someone.work / "made").stat()
    assert (owner.st_uid, owner.st_gid) == (someone.work.stat().st_uid, someone.work.stat().st_gid)
