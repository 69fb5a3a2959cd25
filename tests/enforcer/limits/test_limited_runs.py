"""Tasks that take all they can get: bombs of memory and processes, run as root and as an ordinary user.

Every machine bounds them; whether it can also tell depends on the cgroups that it lets whoever runs this have.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.enforcer.limits.limits_harness import IMPATIENT, PYTHON, told
from tests.support import harness
from tests.support.terminals import Terminal

EXEAT = Path(sys.executable).with_name("exeat")
MEMORY_BOMB = """
import os
held, children = [], 0
try:
    for _ in range(64):
        held.append(bytearray(os.urandom(1 << 12) * (1 << 11)))
    print("had it all")
except MemoryError:
    print("refused")
"""
FORK_BOMB = """
import os, resource, threading, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
except BlockingIOError:
    print(made)
try:
    threading.Thread(target=print, args=("had a thread",)).start()
except RuntimeError:
    print("no thread")
for which in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
    try:
        resource.setrlimit(which, (4096, 1 << 20))
        print("raised")
    except ValueError:
        print("refused")
held = []
try:
    while len(held) < 100:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(error.strerror)
"""
THREADS = """
import os, threading
threading.stack_size(1 << 16)
made, wait = 0, threading.Event().wait
try:
    while made < 5000:
        threading.Thread(target=wait, daemon=True).start()
        made += 1
except RuntimeError:
    print(made, len(os.listdir("/proc/self/task")), flush=True)
os._exit(0)
"""


def test_memory_bomb_ends_only_itself(someone, limited, means):
    done = limited({"limits": {"memory": "96MB"}}, "sh", "-c", f"{PYTHON} -c '{MEMORY_BOMB}'; echo after")
    assert b"had it all" not in done.stdout
    assert done.stdout.endswith(b"after\n"), done
    if means["memory"].startswith("cgroup"):
        [event] = told(someone, "memory_limit")
        assert event["detail"] == "memory: 1 process was killed, it may have 96 MiB"
        assert event["outcome"] == "blocked"
        assert event["cause"] == next(each["id"] for each in someone.events() if each["kind"] == "task.started")
        assert f"exeat: the task reached a limit: {event['detail']}\n".encode() in done.stderr
    else:
        assert done.stdout == b"refused\nafter\n"


ABORTS = "import os\ntry:\n bytearray(1 << 30)\nexcept MemoryError:\n os.abort()"


def test_task_that_aborts_for_memory_is_recorded(someone, limited, means):
    """By the kernel's count, or where an rlimit keeps it by how the task ends: runtimes of agents abort."""
    done = limited({"limits": {"memory": "96MB"}}, PYTHON, "-c", ABORTS)
    assert done.returncode == (-signal.SIGKILL if means["memory"].startswith("cgroup") else -signal.SIGABRT)
    [event] = told(someone, "memory_limit")
    assert f"exeat: the task reached a limit: {event['detail']}\n".encode() in done.stderr


RUNTIMES = """
import json, os, subprocess, sys
heap = subprocess.run(["java", "-XX:+PrintFlagsFinal", "-version"], capture_output=True, text=True).stdout
flags = {line.split()[1]: line.split()[3] for line in heap.splitlines() if line.count(" = ") == 1}
processors = subprocess.run(["nproc"], capture_output=True, text=True).stdout.strip()
names = ("GOMEMLIMIT", "GOMAXPROCS", "DOTNET_GCHeapHardLimit", "RAYON_NUM_THREADS", "PYTHON_CPU_COUNT", "NODE_OPTIONS", "CARGO_BUILD_JOBS")
print(json.dumps([flags["MaxHeapSize"], flags["ActiveProcessorCount"], processors, {name: os.environ.get(name) for name in names}]))
"""


def test_runtimes_get_the_limits_as_variables(someone):
    """Only root has a cgroup for `cpu` everywhere; without one said, processors are counted as on the host."""
    words = ["--memory", "512MB", *([] if someone.user else ["--cpu", "1.5"])]
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\n")
    done = someone.exeat("run", "--quiet", "--rules", rules, *words, "--", PYTHON, "-c", RUNTIMES)
    heap, processors, counted, variables = json.loads(done.stdout)
    assert int(heap) <= 1 << 27, "a quarter of it, in whole regions"
    assert (processors, counted) == (("-1", str(len(os.sched_getaffinity(0)))) if someone.user else ("2", "2"))
    assert variables == {
        "GOMEMLIMIT": "483183820",
        "DOTNET_GCHeapHardLimit": "18000000",
        "NODE_OPTIONS": "--max-old-space-size=384",
        **dict.fromkeys(
            ("GOMAXPROCS", "RAYON_NUM_THREADS", "PYTHON_CPU_COUNT", "CARGO_BUILD_JOBS"), None if someone.user else "2"
        ),
    }


FILLS = """
dd if=/dev/zero of=/dev/shm/x bs=1M count=200 2>/dev/null || echo "filled $?"
: > /dev/shm/x
echo after
"""


def test_tmpfs_memory_ends_its_writer_not_the_sandbox(limited, means):
    """Its init is the largest process by far then; with it, everything would end."""
    if means["memory"].startswith("cgroup"):
        done = limited({"limits": {"memory": "64MB"}}, "sh", "-c", FILLS)
        assert done.stdout == b"filled 137\nafter\n", done
    done = limited({"limits": {"memory": "64MB", "disk": "16MB"}}, "sh", "-c", FILLS)
    assert done.stdout == b"filled 1\nafter\n", done


def test_fork_bomb_stays_inside(someone, limited, means):
    done = limited({"limits": {"processes": 40, "files": 64}}, PYTHON, "-c", FORK_BOMB)
    made, *others = done.stdout.decode().splitlines()
    assert int(made) == 39, done
    assert others == ["no thread", "refused", "refused", "Too many open files"]
    started = next(each for each in someone.events() if each["kind"] == "task.started")
    assert started["detail"].startswith(f"processes 40 by {means['processes']}, ")
    assert "files 64 by rlimit, disk " in started["detail"]
    if means["processes"].startswith("cgroup"):
        [event] = told(someone, "process_limit")
        assert event["detail"] == "processes: it could not start another 2 times, it may have 40 at most"
        assert b"exeat: the task reached a limit: processes: " in done.stderr


def test_threads_are_bounded_by_default(limited):
    done = limited({"user": "task"}, PYTHON, "-c", THREADS)
    assert done.stdout == b"4095 4096\n", done


def test_cpu_throttling_is_recorded_at_the_end(someone, limited, means):
    count = "import time\nwhile time.process_time() < 0.3: pass\nprint('counted')"
    done = limited({"limits": {"cpu": 0.1}}, PYTHON, "-c", count)
    if not means["cpu"].startswith("cgroup"):
        assert done.returncode == 125
        assert b"`cpu` cannot be limited on this machine: no cgroup" in done.stderr
        assert done.stdout == b""
        return
    assert done.stdout == b"counted\n"
    [event] = told(someone, "cpu_limit")
    assert event["detail"].endswith("it may use 0.1 processors")
    assert event["outcome"] == "passed"


# How a task can try to stay, and what it prints meanwhile.
STAYERS = {
    "ends when it is asked": (b"asked\n", "trap 'echo asked; exit 0' TERM; while :; do sleep 0.1; done"),
    "is stopped": (b"", "kill -STOP $$"),
}


@pytest.mark.parametrize(("said", "script"), STAYERS.values(), ids=STAYERS)
def test_time_limit_ends_every_process(someone, limited, said, script):
    done = limited({"timeout": "1s"}, "sh", "-c", script)
    assert done.returncode == 124
    assert done.stdout == said
    assert b"exeat: the task reached a limit: timeout: it has run for 1 s\n" in done.stderr
    assert b"exeat: it attempted nothing on the network\nexeat: see what it came up against" in done.stderr
    [event] = told(someone, "time_limit")
    assert event["outcome"] == "blocked"
    assert [each["kind"] for each in someone.events()][-1] == "task.ended"


HOLDS = """
trap '' TERM HUP INT QUIT
setsid sh -c 'trap "" TERM HUP; sleep {0} & sleep {0}' &
sh -c 'while :; do echo flood; sleep 0.01; done' &
sh -c 'kill -STOP $$; sleep {0}' &
echo ready
while :; do sleep 1; done
"""


def test_time_limit_ends_a_task_on_a_blocked_terminal(someone):
    seconds = f"6{os.getpid()}"  # to know the task's processes by
    box = json.dumps({"timeout": "1s"})
    rules = someone.write(someone.home / "rules.yaml", f"version: 1\nname: x\nsandbox: {box}\nrules: []\n")
    terminal = Terminal(someone, rules, HOLDS.format(seconds), program=IMPATIENT)
    terminal.until(b"flood")
    terminal.until(b"exeat: the task reached a limit: timeout: it has run for 1 s")
    assert os.waitstatus_to_exitcode(terminal.ended()) == 124
    terminal.hang_up()
    deadline = time.monotonic() + 30
    while (left := _running(seconds)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def _running(argument):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
    return found


ATTEMPTS = r"""
cat /proc/self/cgroup | cut -d: -f3 | sort -u
cat /proc/self/oom_score_adj
find / -xdev -name 'cgroup.procs' 2>/dev/null
find /sys -mindepth 1 -not -path '/sys/devices*' 2>/dev/null
find /sys/devices -type f -not -path '/sys/devices/system/cpu/*' 2>/dev/null
mkdir -p /tmp/c
for kind in cgroup cgroup2; do mount -t $kind $kind /tmp/c 2>/dev/null && echo mounted; done
mount -t cgroup -o memory c /tmp/c 2>/dev/null && echo mounted
unshare -C true 2>/dev/null && echo unshared
unshare -UrmC sh -c 'mount -t cgroup -o memory c /tmp/c && echo 1 > /tmp/c/notify_on_release' 2>/dev/null && echo nested
grep -c -e '- cgroup' /proc/self/mountinfo
"""


def test_cgroups_are_unreachable_from_inside(limited):
    """Among them the old way out: a `release_agent`, which the host runs as root when a group is empty."""
    done = limited({"user": "task"}, "sh", "-c", ATTEMPTS)
    assert done.stdout.decode().split() == ["/", "1000", "0"], done


def test_worker_and_runner_are_outside_the_tasks_group(someone, limited):
    """What the task takes must not be the gate's to lack."""
    script = "echo ready; read x"
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: x\nrules: []\n")
    argv = [EXEAT, "run", "--quiet", "--rules", rules, "--", "sh", "-c", script]
    words = harness.as_user(argv, someone.home) if someone.user else list(map(str, argv))
    environment = {**os.environ, "HOME": str(someone.home)}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=someone.work
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        own = _groups(process.pid)
        others = list(filter(None, map(_groups, _children(process.pid))))
        inside = [each for each in others if each != own]
        assert others.count(own) >= 2  # its worker, and who carries what the task says
        assert len(inside) <= 1  # the sandbox's outermost process, where there is a group at all
        assert all("exeat-task-" in each for each in inside)
        process.send_signal(signal.SIGKILL)
        process.stdin.close()
    left = inside[0] if inside else ""
    rerun = limited({"user": "task"}, "true")
    assert rerun.returncode == 0
    assert not [path for path in _paths(left) if Path(path).exists()]


def _groups(pid):
    """What groups a process is in; nothing of one that has ended, which version 1 shows at the root."""
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/cgroup").read_text()
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            return found
    return ""


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _paths(groups):
    """Where the groups of a task were, on this machine."""
    lines = [line for line in groups.splitlines() if "exeat-task-" in line]
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup" in line]
    return [f"{fields[4]}{line.split(':', 2)[2]}" for line in lines for fields in mounts]
