"""User namespaces: making one, and what to do on a host that doesn't let us."""

import errno
import os

from enforcer.errors import HostError

_SWITCHES = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "1"),  # Debian's own, before 11
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),  # Ubuntu, from 23.10 on
)


def enter_new() -> None:
    """Move the calling process, which must have one thread, into a user namespace of its own. Raises HostError."""
    try:
        os.unshare(os.CLONE_NEWUSER)
    except OSError as error:
        raise HostError(f"no user namespace can be made here ({error.strerror})", remedy(error.errno)) from error


def remedy(number: int | None = None) -> str:
    """Say what would let an ordinary user make one, after unshare(2) has failed with this errno."""
    for path, wanted in _SWITCHES if number != errno.ENOSPC else ():  # that one is the limit on how many, whoever asks
        try:
            with open(path, encoding="utf-8") as file:
                found = file.read().strip()
        except OSError:
            continue
        if found != wanted:
            return f"run `sysctl -w {path.removeprefix('/proc/sys/').replace('/', '.')}={wanted}` as root"
    return "run `sysctl -w user.max_user_namespaces=15000` as root, or in a container allow user namespaces"
