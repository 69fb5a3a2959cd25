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


def logged_in() -> int | None:
    """Return the uid that logged in (pam_loginuid(8)), which su(1) and sudo(8) leave as it is. None: nobody did."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{_process}/loginuid", encoding="ascii") as file:
        return found if (found := int(file.read())) != NOBODY else None
    return None


def starter() -> int:
    """Return the uid of who starts the task: of root's who has logged in, so that sudo(8) makes nobody another."""
    uid = os.getuid()
    if uid != 0:
        return uid
    if (found := logged_in()) is not None:
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
