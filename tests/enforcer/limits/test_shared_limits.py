"""What the kernel counts for each user: a task that takes all it can get leaves its user the rest."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from enforcer.limits import shared
from tests import harness

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


def _number(path):
    return int(Path("/proc/sys", path).read_text(encoding="ascii"))


def test_a_task_that_takes_all_it_can_leaves_its_user_the_rest(someone):
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


@pytest.mark.parametrize(("own", "machine", "may"), [(128, 128, 32), (2147483647, 128, 32), (128, 1024, 32), (2, 2, 1)])
def test_it_is_a_quarter_of_what_is_least(monkeypatch, own, machine, may):
    monkeypatch.setattr(shared, "_read", lambda name: own if name.startswith("user/") else machine)
    found = shared.of_namespace.__wrapped__()
    assert found == (("user/max_inotify_instances", may), ("user/max_inotify_watches", may))


def test_what_cannot_be_read_is_not_set(monkeypatch):
    monkeypatch.setattr(shared, "_INOTIFY", (("user/none", "user/none"),))
    assert shared.of_namespace.__wrapped__() == ()


def _limits_are(monkeypatch, **limits):
    monkeypatch.setattr(
        resource, "getrlimit", {getattr(resource, f"RLIMIT_{name}"): limits[name] for name in limits}.get
    )


@pytest.mark.parametrize(
    ("signals", "bounds"), [(100, ((resource.RLIMIT_SIGPENDING, 25, 25),)), (resource.RLIM_INFINITY, ())]
)
def test_what_is_not_bounded_stays_so(monkeypatch, signals, bounds):
    _limits_are(monkeypatch, SIGPENDING=(1, signals), NOFILE=(10, 20))
    assert shared.of_processes(among_others=False) == ((resource.RLIMIT_NOFILE, 10, 20), *bounds)


@pytest.mark.parametrize(
    ("files", "bound"),
    [((1024, 4096), (1024, 3072)), ((4096, 4096), (3072, 3072)), ((256, 1024), (256, 518)), ((20, 22), (11, 11))],
)
def test_of_open_files_a_quarter_is_left_to_its_users_others(monkeypatch, files, bound):
    _limits_are(monkeypatch, SIGPENDING=(1, resource.RLIM_INFINITY), NOFILE=files)
    assert shared.of_processes(among_others=True) == ((resource.RLIMIT_NOFILE, *bound),)
