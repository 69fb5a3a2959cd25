"""The last that a task's process plays: it is kept to its limits and executes the program, or says why it can't.

As os.execvpe does it: where a name has no slash, in each place of the task's PATH, and the first that can be is it.
"""

import errno
import mmap
import os
import resource
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from enforcer import linux
from enforcer.limits.resource_limits import Bound, least
from enforcer.sandbox.calls import ANY, ARGV, ENVIRONMENT, Calls, Data
from enforcer.sandbox.player import GoneError, Remote

CANNOT_EXECUTE, NOT_FOUND = 126, 127
_LONGEST: Final = 4096  # bytes of what is said of a program that can't be executed
_IN_WORDS: Final = 1 << 14  # bytes of words and variables that a program has room for beside all else
_AT_ONCE: Final = 16  # programs that are tried before it is asked which has failed how
_PATH_MAX: Final = 4096  # bytes of a path; of one that is longer no more matters
_RLIMIT: Final = struct.Struct("=2Q")  # struct rlimit64, getrlimit(2)
_UNLIMITED: Final = (1 << 64) - 1


class _Strings(NamedTuple):
    """Pointers to strings, as from their own beginning, and those; and how many there are."""

    content: bytes
    number: int


def execute(task: Remote, argv: Sequence[str], environment: Mapping[str, str], bounds: Iterable[Bound]) -> None:
    """Have it kept to these bounds, and execute the first of the programs that can be, as os.execvpe does."""
    calls = task.calls
    words = tuple(_strings(each) for each in (map(os.fsencode, argv), _variables(environment)))
    short = sum(len(each.content) for each in words) <= _IN_WORDS
    if not short:
        _map(task, words)
    for which, soft, hard in bounds:
        have = resource.getrlimit(which)
        bound = _RLIMIT.pack(*(least(*both) & _UNLIMITED for both in zip(have, (soft, hard), strict=True)))
        calls.call("prlimit64", 0, which, bound, 0, says="setrlimit")
    if errors := _tried(task, _programs(argv[0], environment), words if short else ()):
        told = next((error for error in errors if error not in (errno.ENOENT, errno.ENOTDIR)), errors[-1])
        status, text = _why_not(argv[0], OSError(told, os.strerror(told)), there=_is_there(task, argv[0]))
        calls.call("write", 2, text, len(text), but=(ANY,))
        calls.call("exit_group", status)
        task.tell()


def _tried(task: Remote, programs: Sequence[bytes], words: Sequence[_Strings]) -> list[int]:
    """Have them executed one after the other; the errors, or none if one is. Raises GoneError where it ended before.

    `words`: the words and variables that go along with each; none: they are in memory there.
    """
    errors, calls = [], task.calls
    for at in range(0, len(programs), _AT_ONCE):
        some = programs[at : at + _AT_ONCE]
        argv, environment = (_along(calls, each) for each in words) if words else (ARGV, ENVIRONMENT)
        tried = [calls.get("execve", path[:_PATH_MAX] + b"\0", argv, environment, but=(ANY,)) for path in some]
        try:
            task.do()
        except GoneError:
            if task.waits > 1:
                raise
            return []
        errors += [-task.value(each) for each in tried]
    return errors


def _strings(strings: Iterable[bytes]) -> _Strings:
    each = [string + b"\0" for string in strings]
    at = accumulate(map(len, each), initial=8 * (len(each) + 1))
    pointers = [place.to_bytes(8, sys.byteorder) for place, _ in zip(at, each, strict=False)]
    return _Strings(b"".join((*pointers, bytes(8), *each)), len(each))


def _along(calls: Calls, strings: _Strings) -> Data:
    """Have them in the program itself, with pointers that lead there."""
    there = calls.data(strings.content)
    calls.point(there, strings.number)
    return there


def _map(task: Remote, words: Sequence[_Strings]) -> None:
    """Have them in memory of their own: they may be more than a program has room for."""
    calls, files = task.calls, []
    try:
        for each, into in zip(words, (ARGV, ENVIRONMENT), strict=True):
            files.append(os.memfd_create("words", os.MFD_CLOEXEC))
            with open(os.dup(files[-1]), "wb") as out:
                out.write(each.content)
            there, size = calls.take(files[-1]), len(each.content)
            calls.call("mmap", 0, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, there, 0, into=into)
            calls.point(into, each.number)
            calls.close(there)
        task.begin()
    finally:
        for file in files:
            os.close(file)


def _variables(environment: Mapping[str, str]) -> Iterator[bytes]:
    return (os.fsencode(name) + b"=" + os.fsencode(value) for name, value in environment.items())


def _programs(word: str, environment: Mapping[str, str]) -> list[bytes]:
    """List what is executed, the first that can be: as os.execvpe does."""
    name = os.fsencode(word)
    if os.path.dirname(name):
        return [name]
    return [os.path.join(os.fsencode(place), name) for place in os.get_exec_path(dict(environment))]


def _is_there(task: Remote, path: str) -> bool:
    """Whether there is anything at a path, as the task sees it."""
    path = os.fsdecode(os.fsencode(path)[:_PATH_MAX])
    found = task.calls.get("faccessat", linux.AT_FDCWD, path, os.F_OK, but=(ANY,))
    link = task.calls.get("readlinkat", linux.AT_FDCWD, path, Data(0), 1, but=(ANY,))  # even to nowhere
    task.do()
    return task.value(found) >= 0 or task.value(link) >= 0


def _why_not(name: str, error: OSError, *, there: bool) -> tuple[int, bytes]:
    """Return the status of what couldn't be executed, 126 or 127 as env(1) has them, and what to say of it."""
    status = CANNOT_EXECUTE
    if isinstance(error, FileNotFoundError) and "/" in name and there:
        text = f"exeat: `{name}`: its interpreter is not in the sandbox ({error.strerror})"
    elif isinstance(error, FileNotFoundError | NotADirectoryError):
        status, text = NOT_FOUND, f"exeat: `{name}`: not found in the sandbox"
    else:
        text = f"exeat: `{name}` cannot be executed: {error.strerror}"
    return status, text.encode("utf-8", "replace")[:_LONGEST] + b"\n"
