"""What is said of a command that could not be started: of the program that is missing, and of no other."""

import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import pytest

from enforcer.policy.run_request import RunRequest
from enforcer.run.missing_command import explain_missing_command, interpreter
from rules.loading.load import read


@pytest.fixture
def base(monkeypatch):
    """A directory with a workspace, and tools that no sandbox shows unless it is asked to."""
    made = Path(tempfile.mkdtemp(prefix="exeat-where-"))
    (made / "desk").mkdir()
    (made / "tools" / "bin").mkdir(parents=True)
    program(made / "tools" / "bin" / "python9", "")
    monkeypatch.setenv("PATH", f"{made}/tools/bin:{os.environ['PATH']}")
    monkeypatch.chdir(made / "desk")
    yield made
    shutil.rmtree(made)


def program(path, text):
    path.write_text(text, newline="")
    path.chmod(0o755)
    return path


def said(base, name, read_only=()):
    wanted = RunRequest(
        (name,), "x", read([]).policy, (), str(base / "desk"), tuple(str(base / part) for part in read_only)
    )
    return explain_missing_command(wanted).replace(str(base), "BASE")


NOWHERE = "does not exist on this machine either; install it, or name another one in the first line"
HERE = "`BASE/tools/bin/python9` here, which the sandbox does not show; show it with `--read BASE/tools`"
WINDOWS = "does not exist: the file has Windows line ends (CR LF); save it with LF"
SHOW = "show it with `--read BASE/tools`"
# the first line of ./sc, and what is said of it
SCRIPTS = [
    ("#!/bin/sh", ""),
    ("#!/usr/bin/env sh", ""),
    ("#!/usr/bin/env -S LANG=C sh -e", ""),
    ("echo", ""),
    ("", ""),
    ("#!", ""),
    ("#! \t", ""),
    ("#!/nonexist", f"the interpreter of `./sc`, `/nonexist`, {NOWHERE}"),
    ("#! \t/nonexist\t-x y", f"the interpreter of `./sc`, `/nonexist`, {NOWHERE}"),
    ("#!nonexist", f"the interpreter of `./sc`, `nonexist`, {NOWHERE}"),
    ("#!/bin/sh\r", f"the interpreter of `./sc`, `/bin/sh\\r`, {WINDOWS}"),
    ("#!BASE/tools/bin/python9", f"the interpreter of `./sc`, `BASE/tools/bin/python9`, is not shown in the sandbox; {SHOW}"),
    ("#!BASE/desk/link", f"the interpreter of `./sc`, `BASE/desk/link`, leads to {HERE}"),
    ("#!/usr/bin/env python9", f"`python9`, the interpreter of `./sc`, is {HERE}"),
    ("#!/usr/bin/env -S x=1 node99 -x", f"`node99`, the interpreter of `./sc`, {NOWHERE}"),
    ("#!/\x1b[2Jx", f"the interpreter of `./sc`, `/\\x1b[2Jx`, {NOWHERE}"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "says"), SCRIPTS, ids=[repr(row[0]) for row in SCRIPTS])
def test_missing_interpreter_of_a_script_is_named(base, first, says):
    (base / "desk" / "link").symlink_to(base / "tools" / "bin" / "python9")
    program(base / "desk" / "sc", first.replace("BASE", str(base)) + "\n")
    assert said(base, "./sc") == says


def test_visible_path_gives_no_hint(base):
    program(base / "desk" / "sc", f"#!{base}/tools/bin/python9\n")
    assert said(base, "./sc", ["tools"]) == ""
    assert said(base, "python9", ["tools"]) == ""
    assert said(base, "sh") == said(base, "/bin/sh") == said(base, "./nothing") == said(base, "no-such-program") == ""


def test_paths_are_resolved_for_the_hint(base):
    path = base / "tools" / "bin" / "python9"
    (base / "desk" / "link").symlink_to(path)
    assert said(base, "python9") == f"`python9` is {HERE}"
    assert said(base, str(path)) == f"`BASE/tools/bin/python9` is not shown in the sandbox; {SHOW}"
    assert said(base, "./link") == f"`./link` leads to {HERE}"


@pytest.mark.parametrize("name", ["curl https://x.example/", "echo 'it", "cd", "source"])
def test_shell_command_line_gives_a_hint(base, name):
    assert said(base, name).endswith("`-- sh -c LINE`")
    assert said(base, "nosuch") == ""


def test_hint_never_suggests_a_home_or_system_path(base, monkeypatch):
    monkeypatch.setenv("HOME", str(base / "tools"))
    path = program(base / "tools" / "tool", "")
    assert said(base, str(path)).endswith("; copy it into the workspace, rather than show all of `BASE/tools`")
    assert said(base, "python9").endswith("; copy it into the workspace, rather than show all of `BASE/tools`")
    monkeypatch.setattr("enforcer.sandbox.system_paths.home_directories", frozenset)
    (base / "tools" / "a\x1b").mkdir()
    path = program(base / "tools" / "a\x1b" / "tool", "")
    assert said(base, str(path)).endswith("; copy it into the workspace, rather than show all of `BASE/tools/a\\x1b`")
    monkeypatch.setattr(
        "enforcer.run.missing_command._find", lambda name, _workspace: "/tmp/tool" if name == "x" else None
    )
    assert said(base, "x").endswith("; copy it into the workspace")


def elf(name, *, offset=120, length=None, count=1, size=56):
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", size, count)
    entry = struct.pack("<IIQQQQ", 3, 4, offset, 0, 0, len(name) if length is None else length)
    return head.ljust(64, b"\0") + entry.ljust(56, b"\0") + name


ELVES = [
    (elf(b"/lib/ld-musl.so.1\0"), ("/lib/ld-musl.so.1",)),
    (elf(b"/lib/ld"), ("/lib/ld",)),
    (elf(b"\0"), ()),
    (elf(b"/x", count=0), ()),
    (elf(b"/x", count=65535, size=0), ("/x",)),
    (elf(b"/x", offset=1 << 62), ()),
    (elf(b"/x", offset=(1 << 64) - 1), ()),
    (elf(b"/x", length=(1 << 64) - 1), ("/x",)),
    *((elf(b"/x")[:cut], ()) for cut in (0, 5, 6, 63, 64, 103)),
]


@pytest.mark.parametrize(("content", "words"), ELVES, ids=range(len(ELVES)))
def test_missing_interpreter_of_an_elf_file_is_named(tmp_path, content, words):
    (tmp_path / "file").write_bytes(content)
    assert interpreter(str(tmp_path / "file")) == words


def test_real_binary_has_an_existing_interpreter():
    [found] = interpreter(os.path.realpath("/bin/sh"))
    assert os.path.exists(found)


def test_irregular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(sys.executable)
    assert [interpreter(str(tmp_path / name)) for name in ("fifo", "link", "none", ".")] == [()] * 4


def test_run_prints_the_hint(someone):
    script = someone.write(someone.work / "sc", "#!/nonexist\n")
    script.chmod(0o755)
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\nrules: []\n")
    done = someone.exeat("run", "--rules", rules, "--", "./sc")
    assert done.returncode == 126
    assert done.stderr.decode().splitlines() == [
        "exeat: `./sc`: its interpreter is not in the sandbox (No such file or directory)",
        f"exeat: the interpreter of `./sc`, `/nonexist`, {NOWHERE}",
    ]
