"""Doing something in a process of its own: what it reads and imports is never in one that a task descends from."""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from enforcer.errors import HostError

_DONE = b"\0"  # no error's text; without a word it was killed, as where memory has run out


def apart(what: Callable[[], None]) -> None:
    """Do it in a child and wait for it. Raises HostError with what it said when it failed, or when it just ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_apart(what, writer)
    os.close(writer)
    try:
        with open(reader, "rb") as answer:
            said = answer.read()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if said != _DONE:
        raise HostError(said.decode("utf-8", "replace") or "a process that was to read or make a file ended in it")


def _be_apart(what: Callable[[], None], writer: int) -> NoReturn:
    """Do it and say how it went. Whatever goes wrong, nothing gets from here to where the parent goes on."""
    try:
        said = _DONE
        try:
            what()
        except BaseException as error:  # noqa: BLE001 - it is told where it can be
            said = (str(error) or type(error).__name__).encode("utf-8", "replace")[:4096]
        os.write(writer, said)
    finally:
        os._exit(0)
