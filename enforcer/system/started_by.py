"""Finds the user of the host who starts a task: by login, sudo(8) or uid."""

import contextlib
import os
import pwd
from typing import Final

from proxy.telemetry.events import StartedBy

NOBODY: Final = (1 << 32) - 1  # the value of loginuid without a login (proc_pid_loginuid(5))


_process = "self"  # the process in /proc whose login is read


def use_login_of(process: int) -> None:
    """Read the login of another process, the service's client: a service has none of its own."""
    global _process  # noqa: PLW0603 - one for each process
    _process = str(process)


def login_uid() -> int | None:
    """Return the uid of the login (pam_loginuid(8)), which su(1) and sudo(8) keep; None without a login."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{_process}/loginuid", encoding="ascii") as file:
        return found if (found := int(file.read())) != NOBODY else None
    return None


def starter_uid() -> int:
    """Return the uid of the person who starts the task: for root the login's uid, or else the one of sudo(8)."""
    uid = os.getuid()
    if uid != 0:
        return uid
    if (found := login_uid()) is not None:
        return found
    named = os.environ.get("SUDO_UID", "")
    return int(named) if named.isascii() and named.isdigit() and int(named) < NOBODY else uid


def started_by() -> StartedBy:
    """Return the user who starts the task, with the account's name if there is one."""
    uid = starter_uid()
    try:
        return StartedBy(uid, pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return StartedBy(uid)
