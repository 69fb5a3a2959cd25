"""Locks on bytes of files: a sandbox has no more than it may, wherever its processes keep them, and has them back."""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import tempfile
import threading
import time

import pytest

from enforcer.seccomp_supervisor import performed_calls
from tests.support import harness

from .watched import Watched

MOST = 200
CLONE_FILES = 0x400
ONE = struct.Struct("hhqqi4x")


def taken(file, begin=0, command=fcntl.F_SETLK, most=3 * MOST):
    """How many bytes can be locked, each by itself, and what is said then."""
    for number in range(most):
        try:
            fcntl.fcntl(file, command, ONE.pack(fcntl.F_WRLCK, os.SEEK_SET, begin + 2 * number, 1, 0))
        except OSError as error:
            return number, error.errno
    return most, 0


def alone():
    """One process, which can't have more until it has fewer."""
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as other:
        found = [*taken(file), *taken(file, 10**6)]
        file.close()
        time.sleep(2 * performed_calls._RECOUNT_PAUSE)
        return [*found, *taken(other, most=MOST // 4)]


def by_a_child():
    """A child has most of them."""
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as other:
        ready, done = os.pipe()
        pid = os.fork()
        if not pid:
            taken(file, most=MOST // 2)
            os.write(done, b"x")
            time.sleep(60)
        os.read(ready, 1)
        found = taken(other)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return found


def by_a_thread():
    """A thread that has its own table of descriptors has most of them."""
    found, ready, over = [], threading.Event(), threading.Event()

    def run():
        ctypes.CDLL(None).unshare(CLONE_FILES)
        with tempfile.TemporaryFile() as file:
            taken(file, most=MOST // 2)
            ready.set()
            over.wait()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    with tempfile.TemporaryFile() as file:
        found = taken(file)
    over.set()
    thread.join()
    return found


def on_their_way():
    """Locks of open files that are in a socket, where nobody counts them, are not had again."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    every = 0
    with ours, theirs:
        for _ in range(5):
            with tempfile.TemporaryFile() as file:
                number, error = taken(file, command=fcntl.F_OFD_SETLK, most=MOST // 8)
                socket.send_fds(ours, [b"x"], [file.fileno()])
            every += number
        return [every, error]


WAYS = {
    alone: lambda found: found[0] <= MOST and found[1:] == [errno.ENOLCK, 0, errno.ENOLCK, MOST // 4, 0],
    by_a_child: lambda found: found[0] <= MOST - MOST // 2 and found[1] == errno.ENOLCK,
    by_a_thread: lambda found: found[0] <= MOST - MOST // 2 and found[1] == errno.ENOLCK,
    on_their_way: lambda found: found == [MOST // 2, errno.ENOLCK],
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_file_locks_of_a_sandbox_are_bounded(way):
    with Watched(way, most_locks=MOST) as watched:
        found = watched.result()
    assert WAYS[way](found), found


def test_released_locks_do_not_count():
    """A database locks and unlocks without end."""

    def attempt():
        with tempfile.TemporaryFile() as file:
            for _ in range(5 * MOST):
                fcntl.lockf(file, fcntl.LOCK_EX, 1)
                fcntl.lockf(file, fcntl.LOCK_UN, 1)
        return "done"

    with Watched(attempt, most_locks=MOST) as watched:
        watched.hear()
        assert watched.result() == "done"


IN_A_SANDBOX = """
import errno, fcntl
files, found = [open(f"/tmp/{number}", "w") for number in range(60)], 0
try:
    for file in files:
        for begin in range(1000):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * begin)
            found += 1
except OSError as error:
    print(found, errno.errorcode[error.errno])
"""


@harness.as_a_user
def test_locks_are_counted_from_outside(someone):
    """Where it can't be looked at, each count finds none, and there may be any number."""
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\nrules: []\n")
    words = ["run", "--quiet", "--rules", rules, "--read", sys.base_prefix, "--", f"{sys.base_prefix}/bin/python3"]
    done = someone.exeat(*words, "-c", IN_A_SANDBOX)
    found, error = done.stdout.decode().split()
    assert (performed_calls.MAX_LOCKS // 2 < int(found) <= performed_calls.MAX_LOCKS, error) == (True, "ENOLCK")
