"""What a task may have as its standard input, output and error."""

import os
import pty
import socket
import subprocess
import sys

from enforcer.errors import UsageError
from enforcer.sandbox import stdio

_SHOW = (
    "import os, sys; from enforcer.sandbox import stdio;"
    "io = stdio.arrange();"
    "sys.stderr.write(repr([stdio.passes_as_it_is(d) for d in io.descriptors]));"
    "data = os.read(io.descriptors[0], 100);"
    "os.write(io.descriptors[1], b'got ' + data);"
    "io.finish()"
)


def _arranged(**streams):
    done = subprocess.run([sys.executable, "-c", _SHOW], stderr=subprocess.PIPE, check=True, timeout=20, **streams)
    return done.stderr.decode()


def test_a_socket_is_relayed_both_ways():
    ours, theirs = socket.socketpair()
    ours.sendall(b"hello")
    assert _arranged(stdin=theirs, stdout=theirs) == "[True, True, True]"
    assert ours.recv(100) == b"got hello"


def test_a_regular_file_is_relayed_so_that_it_can_t_be_opened_again_for_writing(tmp_path):
    given, taken = tmp_path / "in", tmp_path / "out"
    given.write_bytes(b"hello")
    with given.open("rb") as source, taken.open("wb") as sink:
        assert _arranged(stdin=source, stdout=sink) == "[True, True, True]"
    assert taken.read_bytes() == b"got hello"


def test_a_closed_descriptor_becomes_the_null_device():
    script = (
        "import os; os.close(0); from enforcer.sandbox import stdio; print(os.read(stdio.arrange().descriptors[0], 9))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=20)
    assert done.stdout == b"b''\n"


def test_a_directory_is_refused(tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)  # it would lead a task out of its view, with openat(1, "..")
    script = f"import os; os.dup2({directory}, 1); from enforcer.sandbox import stdio; stdio.arrange()"
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, pass_fds=[directory], timeout=20)
    os.close(directory)
    assert done.returncode == 1
    assert f"{UsageError.__name__}: descriptor 1 is a directory" in done.stderr.decode()


def test_terminals_and_pipes_pass_as_they_are(tmp_path):
    primary, secondary = pty.openpty()
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    assert all(stdio.passes_as_it_is(d) for d in (secondary, reader, writer, null))
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    assert not stdio.passes_as_it_is(file)
    for descriptor in (primary, secondary, reader, writer, null, file):
        os.close(descriptor)
