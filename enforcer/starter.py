"""Finds out which user of the host starts a task."""

import contextlib
import os
import pwd
from typing import Final

from proxy.telemetry.events import StartedBy

NOBODY: Final = (1 << 32) - 1  # the uid that says that there is none (proc_pid_loginuid(5))


_process = "self"  # whose login counts


def act_for(process: int) -> None:
    """Say that this process does what another one has asked it for: nobody has logged in to start a service."""
    global _process  # noqa: PLW0603 - what this process is
    _process = str(process)


def starter() -> int:
    """Return the uid of who starts the task: of root's who has logged in, so that sudo(8) makes nobody another."""
    uid = os.getuid()
    if uid != 0:
        return uid
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{_process}/loginuid", encoding="ascii") as file:
        if (found := int(file.read())) != NOBODY:
            return found
    named = os.environ.get("SUDO_UID", "")
    return int(named) if named.isascii() and named.isdigit() and int(named) < NOBODY else uid


def started_by() -> StartedBy:
    """Return who starts the task, with the name of the account where there is one."""
    uid = starter()
    try:
        return StartedBy(uid, pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return StartedBy(uid)
