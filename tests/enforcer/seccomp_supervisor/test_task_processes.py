"""ProcessInfo has a socket open, looked for in a real /proc among the descendants of one process."""

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from enforcer.seccomp_supervisor import task_processes
from enforcer.seccomp_supervisor.task_processes import SocketOwnerLookup, find_socket_owner
from proxy.supervisor_channel.messages import Ancestor

from .watched import Watched, call

HOLDS = "import socket, sys; s = socket.socket(); import os; print(os.fstat(s.fileno()).st_ino, flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def proc():
    handle = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    yield handle
    os.close(handle)


@contextlib.contextmanager
def running(*argv):
    """A program that prints the inode of a socket which it holds; and that inode."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.stdin.close()


def test_socket_owner_is_named_with_its_ancestors(proc):
    with running("sh", "-c", '"$0" -c "$1"; true', sys.executable, HOLDS) as (shell, inode):
        found = find_socket_owner(proc, os.getpid(), inode)
        [child] = os.listdir(f"/proc/{shell.pid}/task")
        with open(f"/proc/{shell.pid}/task/{child}/children") as file:
            assert found.info.pid == int(file.read())
        assert found.info.exe == os.fsencode(os.readlink(f"/proc/{found.info.pid}/exe"))
        assert found.info.argv == (sys.executable.encode(), b"-c", HOLDS.encode())
        assert found.info.uid == os.getuid()
        assert found.ancestors == (Ancestor(shell.pid, os.fsencode(os.readlink(f"/proc/{shell.pid}/exe"))),)
        assert find_socket_owner(proc, shell.pid, inode).ancestors == ()  # nothing above where it was looked from


def test_process_outside_the_sandbox_is_unknown(proc):
    with running(sys.executable, "-c", HOLDS) as (process, inode):
        assert find_socket_owner(proc, process.pid, inode) is None
        assert find_socket_owner(proc, 2**22 + 1, inode) is None


def test_shared_socket_has_no_owner(proc):
    with running(sys.executable, "-c", HOLDS.replace("sys.stdin", "os.fork(); sys.stdin")) as (_, inode):
        while sum(f"socket:[{inode}]" in _links(pid) for pid in _below(os.getpid())) < 2:
            pass
        assert find_socket_owner(proc, os.getpid(), inode) is None


def _below(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        for child in map(int, file.read().split()):
            yield child
            yield from _below(child)


def _links(pid):
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # it went while it was looked at
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def test_closed_socket_has_no_owner(proc):
    with running(sys.executable, "-c", HOLDS):
        assert find_socket_owner(proc, os.getpid(), 2**31) is None


def test_child_of_any_thread_is_found(proc):
    found = []

    def work():
        with running(sys.executable, "-c", HOLDS) as (process, inode):
            found.append((find_socket_owner(proc, os.getpid(), inode).info.pid, process.pid))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0][0] == found[0][1]


def test_search_is_bounded(proc, monkeypatch):
    many = HOLDS.replace("s = socket", "import os; more = [os.dup(0) for _ in range(100)]; s = socket")
    with running(sys.executable, "-c", many) as (process, inode):
        assert find_socket_owner(proc, os.getpid(), inode).info.pid == process.pid
        monkeypatch.setattr(task_processes, "MAX_LOOKS", 50)
        assert find_socket_owner(proc, os.getpid(), inode) is None


MANY_THREADS = (
    "import threading, socket, os, sys; s = socket.socket(); wait = threading.Event();"
    "[threading.Thread(target=wait.wait, daemon=True).start() for _ in range(100)];"
    "print(os.fstat(s.fileno()).st_ino, flush=True); sys.stdin.read()"
)


@pytest.mark.parametrize(
    "many",
    [HOLDS.replace("s = socket", "import os; more = [os.dup(0) for _ in range(100)]; s = socket"), MANY_THREADS],
    ids=["descriptors", "threads"],
)
def test_directory_reads_stop_at_the_time_limit(proc, monkeypatch, many):
    looked = []
    readlink, read = os.readlink, task_processes.read_file
    with running(sys.executable, "-c", many) as (_, inode):
        monkeypatch.setattr(task_processes, "MAX_LOOKS", 50)
        monkeypatch.setattr(os, "readlink", lambda *of, **more: looked.append(of) or readlink(*of, **more))
        monkeypatch.setattr(task_processes, "read_file", lambda *of: looked.append(of) or read(*of))
        assert find_socket_owner(proc, os.getpid(), inode) is None
    assert 0 < len(looked) <= 50


def test_flood_of_queries_costs_little_processor_time(proc, monkeypatch):
    now, used = [100.0], [0.0]
    monkeypatch.setattr(
        task_processes, "find_socket_owner", lambda *_: used.__setitem__(0, used[0] + 0.02) or "found"
    )  # 20 ms each
    looking = SocketOwnerLookup(lambda: now[0], lambda: used[0])
    assert [looking.find(proc, 1, 1) for _ in range(5)] == ["found"] * 2 + [None] * 3  # the second is more than is left
    now[0] += 9.9
    assert looking.find(proc, 1, 1) is None  # ... and is made up for
    now[0] += 0.2
    assert looking.find(proc, 1, 1) == "found"
    now[0] += 3600
    assert [looking.find(proc, 1, 1) for _ in range(3)] == ["found"] * 2 + [None]


def test_wrong_proc_mount_finds_no_process(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        assert find_socket_owner(handle, 1, 1) is None
    finally:
        os.close(handle)
    assert find_socket_owner(handle, 1, 1) is None


def test_supervisor_answers_queries_while_it_supervises():
    """Whoever asks for nobody's socket is told so, and calls are refused as ever."""
    from proxy.supervisor_channel import messages

    ready, go = os.pipe()

    def attempt():
        os.read(ready, 1)
        return [call("mount", 0, 0, 0, 0, 0) for _ in range(3)]

    with Watched(attempt) as watched:
        for number in range(100):
            watched.worker.send(messages.pack(messages.ProcessLookup(number, 1)))
        answers = []
        while len(answers) < 100:
            answers.append(watched.hear())
        assert answers == [messages.ProcessFound(number, None) for number in range(100)]
        watched.worker.send(b"nonsense")
        os.write(go, b"x")
        while watched.hear() is not None:
            pass
        assert watched.counted == {b"mount": 3}
    for end in (ready, go):
        os.close(end)
