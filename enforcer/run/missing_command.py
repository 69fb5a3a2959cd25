"""Explains why a command could not be started in a sandbox: what of it is on the host, and what is missing."""

import os
import shlex
import shutil
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from enforcer.policy.run_request import RunRequest
from enforcer.sandbox import mount_plan, system_paths
from enforcer.system.errors import UsageError
from rules.problems import escape_unprintable, quote

_OF_SHELLS = frozenset({"alias", "cd", "eval", "exec", "export", "set", "source", "ulimit", "umask", "."})
_DEEPEST = 4  # interpreters of interpreters, execve(2)
_LONGEST_LINE = 256  # bytes, BINPRM_BUF_SIZE: execve(2), "Interpreter scripts"
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_PT_INTERP = 3
_LONGEST_PATH = 4096  # bytes, PATH_MAX


def explain_missing_command(request: RunRequest) -> str:
    """Return where the command, or its interpreter, is and what to do; empty if no reason is known."""
    shown = (*system_paths.SYSTEM, *request.shown)
    for what, name in _needed(request):
        found = _find(name, request.workspace)
        if found is None:
            return _nowhere(what, name) if what != quote(request.argv[0]) else _is_a_line(request.argv)
        real = os.path.realpath(found)
        seen = (any(system_paths.contains(place, path) for place in shown) for path in (found, real))
        hidden = next((path for path, visible in zip((found, real), seen, strict=True) if not visible), None)
        if hidden is not None:
            return f"{what} {_is(name, hidden)}; {_remedy(hidden)}"
    return ""


def _needed(request: RunRequest) -> Iterator[tuple[str, str]]:
    """Yield the command, then each interpreter: a description, and its name."""
    name = request.argv[0]
    what = quote(name)
    for _ in range(_DEEPEST):
        yield what, name
        found = _find(name, request.workspace)
        words = interpreter(os.path.realpath(found)) if found else ()
        if not words:
            return
        owner, name = what, words[0]
        what = f"the interpreter of {owner}, {quote(name)},"
        if program := env_program(words):
            yield what, name
            name, what = program, f"{quote(program)}, the interpreter of {owner},"


def _find(name: str, workspace: str) -> str | None:
    """Find a program on the host as the task would in the sandbox, which starts in the workspace."""
    if "/" not in name:
        found = shutil.which(name)
        return os.path.join(workspace, found) if found else None
    path = os.path.normpath(os.path.join(workspace, name))
    return path if os.path.isfile(path) else None


def _nowhere(what: str, name: str) -> str:
    if name.endswith("\r"):
        return f"{what} does not exist: the file has Windows line ends (CR LF); save it with LF"
    return f"{what} does not exist on this machine either; install it, or name another one in the first line"


def _is_a_line(argv: Sequence[str]) -> str:
    """Return the remedy for a shell line, or a shell builtin, in place of a program."""
    if len(argv) == 1 and " " in argv[0].strip():
        first = quote(argv[0].split()[0])
        return f"the command is one word with blanks: pass {first} and its arguments separately, or use `-- sh -c LINE`"
    return "that command is a shell builtin: use `-- sh -c LINE`" if argv[0] in _OF_SHELLS else ""


def _is(name: str, hidden: str) -> str:
    if name == hidden:
        return "is not shown in the sandbox"
    return f"{'leads to' if '/' in name else 'is'} `{escape_unprintable(hidden)}` here, which the sandbox does not show"


def _remedy(hidden: str) -> str:
    """Return how to show the program: the tree it was installed in, if that is only a tree of programs."""
    folder = os.path.dirname(hidden)
    show = os.path.dirname(folder) if os.path.basename(folder) in ("bin", "sbin", "shims") else folder
    try:
        mount_plan.paths_to_show((show,))
    except UsageError:
        return "copy it into the workspace"
    if any(system_paths.contains(show, home) for home in system_paths.home_directories()) or not show.isprintable():
        return f"copy it into the workspace, rather than show all of `{escape_unprintable(show)}`"
    return f"show it with `--read {shlex.quote(show)}`"


def interpreter(path: str) -> tuple[str, ...]:
    """Return the words that the kernel puts before `path`: an interpreter and perhaps one argument, or nothing.

    A task may have written the file, so reading is bounded.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return ()
        words = _of_elf(handle) or _of_script(os.pread(handle, _LONGEST_LINE, 0))
    except (OSError, OverflowError, struct.error):
        return ()
    finally:
        os.close(handle)
    return tuple(os.fsdecode(word) for word in words)


def env_program(words: tuple[str, ...]) -> str:
    """Return the program that `/usr/bin/env NAME` looks up in PATH; empty for other words."""
    if len(words) != 2 or Path(words[0]).name != "env":
        return ""
    return next((word for word in words[1].split() if not word.startswith("-") and "=" not in word), "")


def _of_script(head: bytes) -> tuple[bytes, ...]:
    if not head.startswith(b"#!"):
        return ()
    line = head[2:].partition(b"\n")[0].strip(b" \t").replace(b"\t", b" ")
    name, _, argument = line.partition(b" ")
    return tuple(word for word in (name, argument.strip(b" ")) if word)


def _of_elf(handle: int) -> tuple[bytes, ...]:
    """Read the path in the program header PT_INTERP (elf(5))."""
    head = os.pread(handle, 64, 0)
    if not head.startswith(_ELF64_LITTLE):
        return ()
    start, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
    for number in range(min(count, 128)):
        kind, _, offset, _, _, length = struct.unpack("<IIQQQQ", os.pread(handle, 40, start + number * size))
        if kind == _PT_INTERP:
            name = os.pread(handle, min(length, _LONGEST_PATH), offset).partition(b"\0")[0]
            return (name,) if name else ()
    return ()
