"""`exeat shell` on a real terminal: the shell's own prompt, job control, ^C, ^Z and the size of the window."""

import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pytest

from enforcer.cli.run import choose_shell
from tests.support import harness
from tests.support.terminals import Terminal


class Shell(Terminal):
    """`exeat shell` on a terminal."""

    def __init__(self, someone, rules, shell):
        argv = [Path(sys.executable).with_name("exeat"), "shell", "--quiet", "--rules", rules]
        words = harness.as_user(argv, someone.home) if someone.user else list(map(str, argv))
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(someone.work)
            os.environ.update(HOME=str(someone.home), SHELL=shell, TERM="dumb")
            os.execv(words[0], words)
        self.shown = b""

    def does(self, line, word):
        """Type a line and wait for what it must show; what was shown before doesn't count."""
        self.shown = b""
        self.type(line.encode() + b"\n")
        return self.until(word.encode())

    def resize(self, rows, columns):
        """Give its window another size, once it waits for a line.

        On the way to its prompt readline asks for the size and sets what it heard: one of between would be lost.
        """
        self.shown = self.shown.rpartition(b"\n")[2]
        self.until(b"$ ")
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def test_shell_works_on_a_terminal(someone):
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\n")
    shell = Shell(someone, rules, "/bin/bash")
    shell.until(b"$ ")
    shell.does("echo $0 $SHELL $((6*7))", "/bin/bash /bin/bash 42")
    shell.does("shopt -o monitor", "monitor        \ton")
    shell.resize(31, 97)
    shell.does("for i in $(seq 600); do [ \"$(stty size)\" = '31 97' ] && echo the size 'is' right && break; sleep 0.1; done", "the size is right")  # fmt: skip
    shell.does(
        "sh -c 'trap \"echo caught''one; exit 3\" INT; echo wait''ing; while :; do sleep 0.05; done'; echo got $?",
        "waiting",
    )
    shell.type(b"\x03")
    shell.until(b"caughtone")
    shell.until(b"$ ")
    assert b"caughtonecaughtone" not in shell.shown
    shell.does("sh -c 'echo up''now; exec sleep 301'", "upnow")
    shell.type(b"\x1a")
    shell.until(b"Stopped")
    shell.does("bg; jobs", "Running")
    shell.does("kill %1; wait; echo gone''now", "gonenow")
    shell.does("sh -c 'echo up''again; exec sleep 302'", "upagain")
    shell.type(b"\x03")  # it ends what runs, and not the shell
    shell.does("echo still $((1+1))", "still 2")
    shell.does("echo its $(tty) is $(stat -c %U $(tty) | sed s/$(id -un)/mine/)", "its /dev/pts/0 is mine\r\n")
    shell.does("echo x >$(tty); echo y >/dev/tty", "x\r\ny\r\n")
    shell.type(b"exit 7\n")
    status = shell.ended()
    assert os.waitstatus_to_exitcode(status) == 7
    shell.hang_up()


def test_hangup_ends_the_shell_and_its_children(someone):
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\n")
    shell = Shell(someone, rules, "/usr/sbin/nologin")
    shell.does("echo $SHELL", "/bin/sh\r\n")
    shell.type(b"sleep 302 &\n")
    shell.hang_up()
    shell.ended()


def test_shell_without_a_terminal_is_an_error(someone):
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\n")
    said = someone.exeat("shell", "--rules", rules)
    assert (said.returncode, b"`exeat shell` needs a terminal" in said.stderr) == (2, True)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("/bin/bash", "/bin/bash"), ("", "/bin/sh"), ("bash", "/bin/sh"), ("/no/such", "/bin/sh"), ("/sbin/nologin", "/bin/sh")],
)  # fmt: skip
def test_shell_is_chosen_from_the_account(wanted, found):
    assert choose_shell(wanted, ()) == found


def test_shell_outside_the_sandbox_is_not_used(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link").symlink_to(mine)
    assert choose_shell(str(mine), ()) == "/bin/sh"
    assert choose_shell(str(mine), (str(tmp_path),)) == str(mine)
    assert choose_shell(str(tmp_path / "other" / "link"), (str(tmp_path / "other"),)) == "/bin/sh"
