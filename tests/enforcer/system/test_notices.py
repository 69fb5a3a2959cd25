"""What a run says at a terminal that its task has: a line by itself, in which nothing is done to the terminal."""

import contextlib
import os
import pty
import signal
import sys
import termios
import time
import tty

import pytest

from enforcer.system import notices
from enforcer.system.notices import print_notice


@pytest.mark.parametrize(
    ("raw", "found"), [(False, b"exeat: it's \\x1b[2J\r\n"), (True, b"\r\nexeat: it's \\x1b[2J\r\n")]
)
def test_notice_starts_and_ends_at_the_margin(raw, found):
    pid, primary = pty.fork()
    if pid == 0:
        try:
            if raw:
                tty.setraw(2, termios.TCSANOW)
            print_notice("it's \x1b[2J")
            termios.tcdrain(2)
        finally:
            sys.stderr.flush()
            os._exit(0)
    said = b""
    while len(said) < len(found):
        said += os.read(primary, 1024)
    os.close(primary)
    os.waitpid(pid, 0)
    assert said == found


def _waited(*_):
    raise AssertionError("it waits")


def test_unread_standard_error_does_not_block_a_run(monkeypatch):
    monkeypatch.setattr(notices, "_PATIENCE", 0.1)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    os.set_blocking(writer, True)
    kept = os.dup(2)
    os.dup2(writer, 2)
    before = signal.signal(signal.SIGALRM, _waited)
    signal.alarm(10)
    try:
        began = time.monotonic()
        print_notice("x" * 100_000)
        waited = time.monotonic() - began
        os.read(reader, 8192)
        print_notice("y" * 100_000)
    finally:
        os.dup2(kept, 2)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        for descriptor in (kept, writer):
            os.close(descriptor)
    assert 0.1 <= waited < 5
    with open(reader, "rb") as file:
        said = file.read().lstrip(b"\0")
    assert said.startswith(b"exeat: yyy")
    assert said.endswith(b"y\n")
    assert len(said) <= 4096
