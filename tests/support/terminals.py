"""A run on a terminal of its own, as a person would have it."""

import os
import pty
import sys
import time
from pathlib import Path

from tests.support import harness
from tests.support.waiting import readable

WAIT = 60  # seconds for what must happen
EXEAT = (Path(sys.executable).with_name("exeat"),)


class Terminal:
    """`exeat run` on a terminal, and this side of it."""

    def __init__(self, someone, rules, script, program=EXEAT):
        """Start a run of a shell script."""
        argv = [*program, "run", "--quiet", "--rules", rules, "--", "sh", "-c", script]
        words = harness.as_user(argv, someone.home) if someone.user else list(map(str, argv))
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(someone.work)
            os.environ["HOME"] = str(someone.home)
            os.execv(words[0], words)
        self.shown = b""

    @classmethod
    def of_line(cls, someone, rules, line):
        """Start a line of a shell on a terminal, in which `$EXEAT` begins a run."""
        command = f"{Path(sys.executable).with_name('exeat')} run --quiet --rules {rules} --"
        words = ["sh", "-c", line.replace("$EXEAT", command)]
        words = harness.as_user(words, someone.home) if someone.user else words
        self = cls.__new__(cls)
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(someone.work)
            os.environ["HOME"] = str(someone.home)
            os.execvp(words[0], words)
        self.shown = b""
        return self

    def until(self, word):
        """Read until it has shown a word; returns all that it has shown."""
        deadline = time.monotonic() + WAIT
        while word not in self.shown:
            assert readable(self._terminal, deadline - time.monotonic()), (
                f"it never showed {word!r}, only {self.shown!r}"
            )
            self.shown += os.read(self._terminal, 1000)
        return self.shown

    def type(self, keys):
        """Type on it."""
        os.write(self._terminal, keys)

    def hang_up(self):
        """Close it."""
        os.close(self._terminal)

    def ended(self):
        """Wait for the end of the run; returns its status (waitpid(2))."""
        deadline = time.monotonic() + WAIT
        while (found := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, "it never ended"
            time.sleep(0.02)
        return found[1]
