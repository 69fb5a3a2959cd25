"""What is tried with a service, as whoever runs this: `python -m tests.enforcer.service.scenarios NAME`, in a directory.

A service and those who ask it are in one mount namespace, so both are started from here. What was seen is printed as JSON.
"""

import atexit
import contextlib
import fcntl
import json
import os
import pty
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

from enforcer.system import linux
from tests.enforcer.service.attach_scenarios import handed  # noqa: F401 - so
from tests.enforcer.service.foreign_clients import strangers  # noqa: F401 - so
from tests.enforcer.service.full_workers import full  # noqa: F401 - so
from tests.enforcer.service.own_worker import alone  # noqa: F401 - a scenario, found by its name
from tests.enforcer.service.service_lab import (
    EXEAT,
    FILE,
    HOG,
    IMPATIENT,
    KNOCK,
    LOG,
    NEAR,
    REFUSED,
    REFUSED_OVER_TCP,
    RULES,
    Up,
    begin,
    descendants,
    journal,
    parent,
    run,
    scraped,
    shown,
)
from tests.enforcer.service.unreadable_policy import unreadable  # noqa: F401 - so
from tests.enforcer.service.worker_deaths import backlog, blamed, crash, faults, killed  # noqa: F401 - scenarios, found by their names
from tests.support import confined
from tests.support.waiting import PATIENCE, readable, wait_until


def _as_who_has_logged_in():
    os.nice(3)
    if os.getuid() == 0:  # after su(1): whoever has logged in is another
        Path("/proc/self/loginuid").write_text("4242", encoding="ascii")


def alike():
    """The same words with the service, asked by either client, and without it."""
    up = Up("--metrics", "127.0.0.1:0")
    cases = {
        "status": ["--", "sh", "-c", "echo out; echo err >&2; exit 3"],
        "signal": ["--", "sh", "-c", "kill -KILL $$"],
        "unknown": ["--", "no-such-program"],
        "blocked": ["--task", "one", "--", "python3", "-c", KNOCK.replace("while True", "for _ in range(2)")],
        "words": ["--label", "x"],
        "here": ["--workspace", "sub", "--", "sh", "-c", "pwd; umask; ulimit -n; nice; echo $MINE $LC_CTYPE; cat"],
    }
    os.umask(0o027)
    Path("sub").mkdir()
    seen = {"up": up.said}
    plain = {name: value for name, value in os.environ.items() if name != "LANG" and not name.startswith("LC_")}
    more = {"input": "typed\n", "env": plain, "preexec_fn": _as_who_has_logged_in}
    for way, option in (("with", []), ("without", ["--no-service"])):
        seen[way] = {
            name: run(*option, "--quiet", "--env", "MINE=yes", *words, **more) for name, words in cases.items()
        }
    started = [event for event in journal() if event["kind"] == "task.started"]
    seen["same_file"] = len({event["task"]["id"] for event in started})
    seen["started_by"] = sorted({event["started_by"]["uid"] for event in started})
    seen["second"] = subprocess.run([EXEAT, "up"], capture_output=True, text=True, check=False).stderr
    seen["pid"] = up.process.pid
    told = up.status()
    workers = [worker["pid"] for worker in told["workers"]]
    seen["workers"] = list(map(confined.found, workers))
    seen["keyholder"] = confined.found(told["keyholder"])
    seen["scraped"] = _with_a_filter(up, {*workers, told["keyholder"]})
    seen["mode"] = oct(os.stat(os.environ["EXEAT_CONTROL"]).st_mode & 0o777)
    seen["ended"] = up.end()
    seen["left"] = os.path.exists(os.environ["EXEAT_CONTROL"])
    seen["alone"] = run("--", "true")["status"]
    return seen


def _with_a_filter(up, known):
    """What is found of the service's other processes that a filter is loaded in: a user's can't be told apart by their files."""
    found = []
    for pid, _ in descendants(up.process.pid):
        if pid not in known and parent(pid) == up.process.pid:
            with contextlib.suppress(OSError):  # it may be one that ends
                found.append(confined.found(pid))
    return [each for each in found if each["Seccomp"] != ["0"]]


def ends():
    """Signals, stops, callers that go away, rules that change."""
    up = Up()
    seen = {}
    trap = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    task = begin("--", "sh", "-c", trap)
    task.stdout.readline()
    task.send_signal(signal.SIGTERM)
    seen["signal"] = (task.stdout.read(), task.wait(PATIENCE))
    task = begin("--task", "named", "--", "sh", "-c", trap)
    task.stdout.readline()
    seen["ps"] = [(each["name"], each["workspace"]) for each in shown("ps")]
    seen["stopped"] = subprocess.run([EXEAT, "stop", "named"], check=False).returncode, task.wait(PATIENCE)
    seen["nobody"] = subprocess.run([EXEAT, "stop", "named"], capture_output=True, check=False).returncode
    deaf = "trap '' TERM; echo x > made; echo ready; while :; do sleep 0.1; done"
    task = begin("--task", "deaf", "--review", "--", "sh", "-c", deaf, stderr=subprocess.PIPE)
    task.stdout.readline()
    subprocess.run([EXEAT, "stop", "deaf"], check=True)
    wait_until(lambda: [each["ending"] for each in shown("ps")] == [True], "that it is to end")
    subprocess.run([EXEAT, "stop", "--kill", "deaf"], check=True)
    seen["killed"] = task.wait(PATIENCE), "its changes are kept (1 added)" in task.stderr.read()
    told = [event for event in journal() if event["kind"] == "task.ended" and event["task"]["name"] == "deaf"]
    seen["told"] = [(event["outcome"], event["ending"]) for event in told]
    plan = ("run", "--rules", str(FILE), "--dry-run", "--", "true")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([EXEAT, *plan], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    seen["unread"] = done.stderr, done.returncode
    if os.access("/dev/full", os.W_OK):
        with open("/dev/full", "w") as full:
            done = subprocess.run([EXEAT, *plan], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        seen["full"] = done.stderr, done.returncode
    task = begin("--", "sh", "-c", trap)
    task.stdout.readline()
    task.kill()
    task.wait()
    wait_until(lambda: not up.listed(), "the end of a task without a caller")
    seen["terminal"] = _on_a_terminal()
    wait_until(lambda: not up.listed(), "the end of a task without a terminal")
    task = begin("--", "python3", "-c", KNOCK)
    assert task.stdout.readline() == "403\n"
    FILE.write_text(RULES.replace("web", "other"))
    wait_until(lambda: sum(event["kind"] == "rules.loaded" and "previous" in event for event in journal()))
    task.kill()
    task.wait()
    seen["reviewed"] = run("--quiet", "--review", "--", "true")  # in a sandbox that was there already
    fills = "trap 'exit 3' TERM; while :; do head -c 1000000 /dev/zero >> x; done"
    seen["beyond"] = run("--quiet", "--review", "--disk", "4MB", "--", "sh", "-c", fills)
    FILE.write_text("version: 1\nrules: nonsense\n")
    seen["broken"] = run("--", "true")
    wait_until(lambda: not up.listed())
    seen["ended"] = up.end()
    seen["verified"] = subprocess.run([EXEAT, "log", "verify"], capture_output=True, text=True, check=False).stdout
    return seen


def _on_a_terminal():
    """A task at a terminal: whose it is, its size and another one, ^C, its end; one whose terminal hangs up; a pipe."""
    script = """
        trap 'echo caught; exit 7' INT; trap 'stty size' WINCH; test -t 0 && echo ready
        while :; do sleep 0.05; done
    """

    def start(*words, given=None):
        pid, terminal = pty.fork()
        if pid == 0:
            if given is not None:
                os.dup2(given, 0)
            os.execv(EXEAT, [EXEAT, "run", "--rules", str(FILE), "--quiet", "--", *words])
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
        return pid, terminal

    def shown(terminal, word):
        said = b""
        while word not in said:
            assert readable(terminal, PATIENCE), f"{word!r} never came, only {said!r}"
            said += os.read(terminal, 1000)

    pid, terminal = start("sh", "-c", script)
    shown(terminal, b"ready")
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 19, 53, 0, 0))
    shown(terminal, b"19 53")
    os.write(terminal, b"\x03")
    shown(terminal, b"caught")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    pid, terminal = start("sh", "-c", "echo ready; sleep 300")
    shown(terminal, b"ready")
    os.close(terminal)
    hung_up = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    given, giving = os.pipe()
    os.write(giving, b"data\n")
    os.close(giving)
    read = "stty -echo </dev/tty; echo ready; read key </dev/tty; read line; test $key = word && test $line = data"
    pid, terminal = start("sh", "-c", read, given=given)
    os.close(given)
    shown(terminal, b"ready")
    os.write(terminal, b"word\n")
    piped = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return status, hung_up, piped


def neighbours():
    """Two tasks in one worker, one of them hostile."""
    FILE.write_text(
        RULES.replace("allowed.example", "'*.allowed.example', 'allowed.example'")
        .replace("to: ", "to: [")
        .replace(", action", "], action")
    )
    up = Up("--workers", "1")
    hog = begin("--task", "hog", "--", "python3", "-c", HOG)
    assert hog.stdout.readline() == "flooding\n"
    mine = begin("--task", "mine", "--", "python3", "-c", KNOCK.replace("while True", "for _ in range(10)"))
    answers = mine.stdout.read().split()
    near = run("--task", "near", "--quiet", "--", "python3", "-c", NEAR)
    restarts = up.status()["restarts"]
    hog.kill()
    hog.wait()
    wait_until(lambda: not up.listed())
    ended = up.end()
    told = {}
    for event in journal():
        if event["kind"] == "connection.decided" and "task" in event:
            told.setdefault(event["task"]["name"], set()).add((event["destination"].get("port"), event["reason"]))
    return {
        "answers": sorted(set(answers)),
        "count": len(answers),
        "near": near["out"].split(),
        "restarts": restarts,
        "told": {name: sorted(each) for name, each in told.items()},
        "ended": ended,
    }


def foreign():
    """A namespace that somebody else made has the gate, loses it, and gets it again."""
    if os.geteuid() == 0:  # a user is in one of its own already, and what is bound there nobody else sees
        os.unshare(os.CLONE_NEWNS)
        linux.mount("", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    up = Up("--metrics", "127.0.0.1:0", program=IMPATIENT)
    scrape = f"http://127.0.0.1:{up.said.rstrip().rpartition(':')[2]}/metrics"
    own = [] if os.geteuid() == 0 else ["-r"]
    box = subprocess.Popen(["unshare", *own, "-n", "sleep", "300"])
    other = subprocess.Popen(["unshare", *own, "-n", "sh", "-c", "ip link add x0 type veth && exec sleep 300"])
    once = KNOCK.replace("while True", "for _ in range(1)").replace("timeout=30", "timeout=5")

    def apart(process):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n"
        return False

    wait_until(lambda: apart(box) and apart(other))

    def inside(*words):
        enter = ["nsenter", "-t", str(box.pid), *(["-U", "--preserve-credentials"] if own else []), "-n", *words]
        return subprocess.run(enter, capture_output=True, text=True, check=False).stdout.strip()

    def attach(process, named=""):
        words = [EXEAT, "attach", named or str(process.pid), "--rules", str(FILE), "--task", "box"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    knock, asked = ("python3", "-c", once), ("python3", "-c", REFUSED)
    seen = {"before": inside(*knock), "attached": attach(box)[0], "in": inside(*knock), "twice": attach(box)}
    seen["asked"] = [inside(*asked), inside("python3", "-c", REFUSED_OVER_TCP)]
    seen["still"] = inside(*knock)
    stopped = subprocess.run([EXEAT, "stop", "box"], capture_output=True, text=True, check=False)
    seen["stopped"] = stopped.returncode, "exeat detach box" in stopped.stderr
    seen["listed"] = [(each["name"], each["attached"] == str(box.pid)) for each in up.listed()]
    pid = next(worker["pid"] for worker in up.status()["workers"] if worker["sandboxes"])
    os.kill(pid, signal.SIGKILL)
    seen["crash"] = inside(*knock)
    seen["asked"].append(inside(*asked))
    seen["detached"] = subprocess.run([EXEAT, "detach", "box"], check=False).returncode
    wait_until(lambda: not up.listed())
    seen["out"] = inside(*knock)
    path = f"/proc/{box.pid}/ns/net"
    if os.geteuid() == 0:  # as `ip netns add` does it
        bound, path = path, f"{os.getcwd()}/bound"
        Path(path).touch()
        linux.mount(bound, path, flags=linux.MS_BIND)
    seen["by_path"] = attach(box, path)[0], inside(*knock), up.listed()[0]["attached"] == path
    seen["by_path"] += subprocess.run([EXEAT, "detach", path], check=False).returncode, inside(*knock)
    wait_until(lambda: not up.listed())
    seen["no_path"] = attach(box, str(FILE))
    seen["again"] = attach(box)[0]
    seen["in_again"] = inside(*knock)
    seen["other"] = attach(other)
    own_network = subprocess.run(
        [EXEAT, "attach", str(os.getpid()), "--rules", str(FILE)], capture_output=True, text=True, check=False
    )
    seen["own"] = own_network.returncode, own_network.stderr
    box.kill()
    box.wait()
    wait_until(lambda: not up.listed(), "the end of what was attached by a process")
    other.kill()
    other.wait()
    last = subprocess.Popen(["unshare", *own, "-n", "sleep", "300"])
    wait_until(lambda: apart(last))
    seen["last"] = attach(last)[0]  # it is there when the service ends
    wait_until(lambda: "exeat_sandboxes 1.0" in scraped(scrape).splitlines(), "what is attached, counted")
    seen["ended"] = up.end()
    last.kill()
    last.wait()
    for kind in ("task.started", "task.ended"):
        seen[kind] = [event for event in journal() if event["kind"] == kind]
    return seen


def systemd():
    """What a service manager does: it listens first, is told how things are, and asks whether the service lives."""
    path = os.environ["EXEAT_CONTROL"]
    os.mkdir(os.path.dirname(path), 0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(f"{path}.notify")
    manager.settimeout(PATIENCE)
    early = begin("--", "sh", "-c", "env; exit 5")  # asks before there is anybody
    words = ["sh", "-c", f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" up --workers 1 3<&{listener.fileno()}', EXEAT]
    variables = {**os.environ, "NOTIFY_SOCKET": f"{path}.notify", "WATCHDOG_USEC": "200000"}
    up = subprocess.Popen(words, env=variables, pass_fds=(listener.fileno(),), stderr=subprocess.DEVNULL)
    atexit.register(up.kill)
    said = [manager.recv(999).decode().splitlines()[0]]
    given = early.stdout.read()
    status = early.wait(PATIENCE)
    while len(set(said)) < 2:
        said.append(manager.recv(999).decode())
    up.terminate()
    ended = up.wait(PATIENCE)
    while said[-1] != "STOPPING=1":
        said.append(manager.recv(999).decode())
    leaked = [line for line in given.splitlines() if line.startswith(("NOTIFY_", "LISTEN_", "WATCHDOG_"))]
    return {
        "said": list(dict.fromkeys(said)),
        "status": status,
        "ended": ended,
        "leaked": leaked,
        "left": os.path.exists(path),
    }


def ahead():
    """Two tasks at once in sandboxes that were made before they were asked for, and one in one that was made for it."""
    up = Up()
    look = (
        "umask; ulimit -n; nice; hostname; id -u; ls -A /tmp ~; "
        "readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/user /proc/self/ns/uts /proc/self/ns/ipc; "
        "touch /tmp/left ~/left; echo end; read -r word"
    )

    def set_apart():
        os.umask(0o027)
        os.nice(3)
        resource.setrlimit(resource.RLIMIT_NOFILE, (777, 777))

    def empty():
        """Those that wait for a run: each has made a sandbox, which has a first process."""
        below = {pid: {each for each, _ in descendants(pid)} for pid, _ in descendants(up.process.pid)}
        return {pid for pid, found in below.items() if len(found) >= 2 and parent(pid) == up.process.pid}

    def look_around(*words):
        task = begin(*words, "--task", "t", "--", "sh", "-c", look, stdin=subprocess.PIPE, preexec_fn=set_apart)
        return task, list(iter(lambda: task.stdout.readline().strip(), "end"))

    def in_one_that_is_there():
        """One that is there when it is asked for may be gone when it is wanted: somebody mounted something, say."""
        used = {each["pid"] for each in up.listed()}
        there = wait_until(lambda: empty() - used, "an empty sandbox")
        task, lines = look_around()
        if there & ({each["pid"] for each in up.listed()} - used):
            return task, lines
        task.communicate("x\n")
        return None

    found = [wait_until(in_one_that_is_there), wait_until(in_one_that_is_there), look_around("--no-service")]
    for task, _ in found:
        task.communicate("x\n")
    return {
        "alike": [[line for line in lines if not line.endswith("]")] for _, lines in found],
        "apart": [line for _, lines in found for line in lines if line.endswith("]")],
        "ends": [task.returncode for task, _ in found],
        "ended": up.end(),
    }


if __name__ == "__main__":
    os.environ["EXEAT_CONTROL"] = f"{os.getcwd()}/run/control"
    FILE.write_text(RULES)
    os.mkdir("work")
    os.chdir("work")
    try:
        print(json.dumps(globals()[sys.argv[1]]()))
    except BaseException:
        sys.stderr.write(f"the service said: {LOG.read_text()}")
        raise
