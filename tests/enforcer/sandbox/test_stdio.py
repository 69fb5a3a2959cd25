"""What a task may have as its standard input, output and error."""

import os
import pty
import socket
import subprocess
import sys
import time

import pytest

from enforcer.sandbox import stdio
from enforcer.system.errors import UsageError

_SHOW = (
    "import os, stat, sys; from enforcer.sandbox import stdio;"
    "io = stdio.arrange(os.geteuid());"
    "sys.stderr.write(repr([stat.S_ISFIFO(os.fstat(d).st_mode) and d > 2 for d in io.descriptors]));"
    "io.start_relays();"
    "data = os.read(io.descriptors[0], 100);"
    "os.write(io.descriptors[1], b'got ' + data);"
    "sys.stderr.write(repr(io.finish()))"
)


def _arranged(**streams):
    """Which of the task's streams are pipes of its own, and what could not be carried."""
    done = subprocess.run([sys.executable, "-c", _SHOW], stderr=subprocess.PIPE, check=True, timeout=20, **streams)
    return done.stderr.decode()


ALL_PIPES = "[True, True, True][]"


@pytest.mark.parametrize(
    "kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=lambda kind: kind.name
)
def test_socket_is_relayed_both_ways(kind):
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.sendall(b"hello")
    assert _arranged(stdin=theirs, stdout=theirs) == ALL_PIPES
    assert ours.recv(100) == b"got hello"


def test_regular_file_is_relayed_and_not_passed(tmp_path):
    given, taken = tmp_path / "in", tmp_path / "out"
    given.write_bytes(b"hello")
    with given.open("rb") as source, taken.open("wb") as sink:
        assert _arranged(stdin=source, stdout=sink) == ALL_PIPES
    assert taken.read_bytes() == b"got hello"


def test_directory_is_refused(tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)  # it would lead a task out of its view, with openat(1, "..")
    script = f"import os; os.dup2({directory}, 1); from enforcer.sandbox import stdio; stdio.arrange(0)"
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, pass_fds=[directory], timeout=20)
    os.close(directory)
    assert done.returncode == 1
    assert f"{UsageError.__name__}: descriptor 1 is a directory" in done.stderr.decode()


def test_pipe_is_relayed_and_not_passed():
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    out_reader, out_writer = os.pipe()
    assert _arranged(stdin=reader, stdout=out_writer) == ALL_PIPES
    assert os.read(out_reader, 100) == b"got hello"
    for descriptor in (reader, writer, out_reader, out_writer):
        os.close(descriptor)


def test_non_blocking_stream_loses_no_data():
    """A caller's socket may be non-blocking; the task must not notice."""
    script = (
        "import os; from enforcer.sandbox import stdio; io = stdio.arrange(0); io.start_relays();"
        "data = bytes(3_000_000); view = memoryview(data)\n"
        "while view: view = view[os.write(io.descriptors[1], view):]\n"
        "io.finish()"
    )
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.DEVNULL, stdout=theirs):
        theirs.close()
        seen = 0
        while data := ours.recv(1 << 16):
            seen += len(data)
    assert seen == 3_000_000


def test_only_memory_devices_are_passed(tmp_path):
    primary, secondary = pty.openpty()
    reader, writer = os.pipe()
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    for descriptor in (primary, secondary, reader, writer, file):
        assert not stdio.can_pass_unchanged(descriptor)
        os.close(descriptor)


def test_master_of_a_pseudo_terminal_is_no_terminal():
    """Writing to it would type at whoever sits at the terminal."""
    primary, secondary = pty.openpty()
    assert stdio.is_terminal(secondary)
    assert not stdio.is_terminal(primary)
    for descriptor in (primary, secondary):
        os.close(descriptor)


def test_early_window_change_is_no_error():
    primary, secondary = os.openpty()
    stdio.Terminal(secondary).resize()
    for descriptor in (primary, secondary):
        os.close(descriptor)


@pytest.mark.parametrize("by_us", [True, False])
def test_unreadable_terminal_of_another_session_is_not_awaited(by_us, monkeypatch):
    monkeypatch.setattr(stdio, "_RAW_TIMEOUT", 0.3)
    primary, secondary = os.openpty()
    began = time.monotonic()
    stdio.Terminal(secondary).wait_until_raw(is_ours=by_us)
    assert (time.monotonic() - began < 0.3) is by_us, "a service's client may be in that session"
    for descriptor in (primary, secondary):
        os.close(descriptor)


def test_process_of_a_vanished_terminal_ends():
    primary, secondary = pty.openpty()
    os.close(primary)
    pid = os.fork()
    if pid == 0:
        try:
            stdio.relay_keys(secondary, secondary)
        finally:
            os._exit(1)
    os.close(secondary)
    assert os.waitpid(pid, 0)[1] == 0


def test_unstarted_relay_leaves_nothing_open():
    """A start may fail between."""
    script = (
        "import os; from enforcer.sandbox import stdio; before = os.listdir('/proc/self/fd');"
        "io = stdio.arrange(0); made = len(os.listdir('/proc/self/fd')) - len(before);"
        "problems = io.finish(); print(made, problems, os.listdir('/proc/self/fd') == before)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=b"", capture_output=True, timeout=20, check=True)
    assert done.stdout.split() == [b"6", b"[]", b"True"]
