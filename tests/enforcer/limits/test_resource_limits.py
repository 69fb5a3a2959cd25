"""What the kernel counts for each user: a task that takes all it can get leaves its user the rest."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from enforcer.limits import resource_limits
from enforcer.limits.cgroup_tree import ParentLimits
from tests.support import harness

# Takes all there is of what is counted so, and keeps it; says how much of each, and how much that may be at most.
TAKES = """
import ctypes, os, resource, signal, sys
libc = ctypes.CDLL(None)
number = int(signal.SIGRTMIN) + 1
signal.pthread_sigmask(signal.SIG_BLOCK, {number})
libc.sigqueue.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_void_p
ways = {
    "instances": lambda: libc.inotify_init1(0),
    "signals": lambda: libc.sigqueue(os.getpid(), number, None),
}
had = []
for way in sys.argv[1].split():
    count = 0
    while ways[way]() >= 0:
        count += 1
        if count == int(sys.argv[2]):
            break
    had.append(str(count))
print(*had, flush=True)
sys.stdin.read()
"""


# Takes all pages of pipes and all processes that its user may have; says so, and what the gate answers before and after.
FILLS = """
import fcntl, os, signal, socket, sys
def knock():
    with socket.create_connection(("refused.example", 80), timeout=30) as sock:
        sock.sendall(b"GET / HTTP/1.0\\r\\nHost: refused.example\\r\\n\\r\\n")
        return sock.recv(64).split()[1].decode()
print(knock(), flush=True)
pipes = []
try:
    while len(pipes) < int(sys.argv[1]):
        pipes.append(os.pipe())
        fcntl.fcntl(pipes[-1][0], fcntl.F_SETPIPE_SZ, int(sys.argv[2]))
except PermissionError:
    print("no more pipes", flush=True)
try:
    for _ in range(int(sys.argv[3])):
        if os.fork() == 0:
            signal.pause()
except BlockingIOError:
    print("no more processes", flush=True)
print(knock(), flush=True)
"""
ANOTHER = harness.UID + 1  # whose pipes and processes no other test needs
PROCESSES = 64


def _number(path):
    return int(Path("/proc/sys", path).read_text(encoding="ascii"))


def test_greedy_task_leaves_resources_to_its_user(someone):
    ways = "instances signals"
    _, signals = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    rules = someone.write(someone.home / "web.yaml", "version: 1\n")
    exeat = Path(sys.executable).with_name("exeat")
    words = [exeat, "run", "--quiet", "--no-service", "--rules", rules, "--", "python3", "-c", TAKES, ways, 1 << 24]
    argv = list(map(str, harness.as_user(words, someone.home) if someone.user else words))
    environment = {"HOME": str(someone.home), "PATH": os.environ["PATH"], "PYTHONPATH": str(harness.PROJECT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, cwd=someone.work, env=environment) as task:
        had = list(map(int, task.stdout.readline().split()))
        assert had[0] <= _number("fs/inotify/max_user_instances") // 4
        assert 0 < had[1] <= signals // 4
        rest = someone.run(["python3", "-c", TAKES, ways, 1], text=True)
        assert rest.stdout == "1 1\n", rest.stderr
        task.stdin.close()
        assert task.wait(30) == 0


@harness.as_a_user
def test_greedy_task_does_not_block_its_gate(someone):
    """Of one that has shown a page before, that is: the first one is made in a thread of its own (pthread_create(3))."""
    rules = someone.write(someone.home / "web.yaml", "version: 1\nname: web\n")
    for path in (someone.work, *someone.home.rglob("*"), someone.home):
        os.chown(path, ANOTHER, ANOTHER, follow_symlinks=False)
    most = _number("fs/pipe-max-size")
    enough = _number("fs/pipe-user-pages-soft") * resource.getpagesize() // most + 2
    exeat = [Path(sys.executable).with_name("exeat"), "run", "--quiet", "--no-service", "--rules", rules, "--"]
    task = [*exeat, "python3", "-c", FILLS, enough, most, PROCESSES]
    who = ["prlimit", f"--nproc={PROCESSES}", sys.executable, harness.PROJECT / "tests/support/as_user.py", ANOTHER]
    done = harness.run([*who, someone.home, *task], home=someone.home, cwd=someone.work, text=True)
    said = ["403", "no more pipes", "no more processes", "403"]
    assert (done.stdout.splitlines(), done.returncode) == (said, 0), done.stderr


@pytest.mark.parametrize(("own", "machine", "may"), [(128, 128, 32), (2147483647, 128, 32), (128, 1024, 32), (2, 2, 1)])
def test_default_limit_is_a_quarter_of_the_least(monkeypatch, own, machine, may):
    monkeypatch.setattr(resource_limits, "read_sysctl", lambda name: own if name.startswith("user/") else machine)
    found = resource_limits.namespace_sysctls.__wrapped__()
    assert found == (("user/max_inotify_instances", may), ("user/max_inotify_watches", may))


def test_unreadable_limit_is_not_set(monkeypatch):
    monkeypatch.setattr(resource_limits, "_INOTIFY", (("user/none", "user/none"),))
    assert resource_limits.namespace_sysctls.__wrapped__() == ()


def _limits_are(monkeypatch, **limits):
    monkeypatch.setattr(
        resource, "getrlimit", {getattr(resource, f"RLIMIT_{name}"): limits[name] for name in limits}.get
    )


@pytest.mark.parametrize(
    ("signals", "bounds"), [(100, ((resource.RLIMIT_SIGPENDING, 25, 25),)), (resource.RLIM_INFINITY, ())]
)
def test_unbounded_resource_stays_unbounded(monkeypatch, signals, bounds):
    _limits_are(monkeypatch, SIGPENDING=(1, signals), NOFILE=(10, 20))
    assert resource_limits.task_rlimits(shares_uid=False) == ((resource.RLIMIT_NOFILE, 10, 20), *bounds)


@pytest.mark.parametrize(
    ("files", "bound"),
    [((1024, 4096), (1024, 3072)), ((4096, 4096), (3072, 3072)), ((256, 1024), (256, 518)), ((20, 22), (11, 11))],
)
def test_quarter_of_open_files_is_left_to_the_user(monkeypatch, files, bound):
    _limits_are(monkeypatch, SIGPENDING=(1, resource.RLIM_INFINITY), NOFILE=files)
    assert resource_limits.task_rlimits(shares_uid=True) == ((resource.RLIMIT_NOFILE, *bound),)


@pytest.mark.parametrize(("ceiling", "may"), [(None, 512), (77, 77), (1024, 512), (0, 0)])
def test_process_limit_respects_parent_groups(ceiling, may):
    limits = resource_limits.Limits(processes=512)
    assert resource_limits._lower_to_parent(limits, ParentLimits(processes=ceiling)).processes == may
