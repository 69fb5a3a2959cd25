"""What a run says at a terminal that its task has: a line by itself, in which nothing is done to the terminal."""

import os
import pty
import sys
import termios
import tty

import pytest

from enforcer.saying import say


@pytest.mark.parametrize(
    ("raw", "found"), [(False, b"exeat: it's \\x1b[2J\r\n"), (True, b"\r\nexeat: it's \\x1b[2J\r\n")]
)
def test_a_line_begins_and_ends_at_the_margin(raw, found):
    pid, primary = pty.fork()
    if pid == 0:
        try:
            if raw:
                tty.setraw(2, termios.TCSANOW)
            say("it's \x1b[2J")
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
