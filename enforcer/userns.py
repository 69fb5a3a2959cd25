"""User namespaces: making one, and what to do on a host that doesn't let us, or lets us and then refuses its use."""

import contextlib
import errno
import os
from collections.abc import Iterator

from enforcer.errors import HostError
from enforcer.sandbox.identity import IdMap

_SWITCHES = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "1"),  # Debian's own, before 11
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),  # Ubuntu, from 23.10 on
)
_MORE = "run `sysctl -w user.max_user_namespaces=15000` as root, or in a container allow user namespaces"
_LET = (
    "have the security module or filter that this runs under allow that, in a container with `--security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined` (Kubernetes: `seccompProfile` and `appArmorProfile`)"
)


def enter_new() -> None:
    """Move the calling process, which must have one thread, into a user namespace of its own. Raises HostError."""
    try:
        os.unshare(os.CLONE_NEWUSER)
    except OSError as error:
        raise HostError(f"no user namespace can be made here ({error.strerror})", remedy(error.errno)) from error


def enter_own(uids: IdMap, gids: IdMap, others: int) -> None:
    """Move the calling process, which must have one thread, into a user namespace with these ids of its own user's.

    And into `others` that belong to it (CLONE_NEW...). Raises HostError.
    """
    enter_new()
    with used():
        for name, text in (("setgroups", "deny"), ("uid_map", uids.text()), ("gid_map", gids.text())):
            with open(f"/proc/self/{name}", "wb", buffering=0) as file:
                file.write(text.encode())
        os.unshare(others)


@contextlib.contextmanager
def used() -> Iterator[None]:
    """Turn a refusal of the ids and capabilities that a user namespace gives, after it was made, into a HostError.

    Ubuntu's AppArmor lets anybody make one, and denies its capabilities to programs without a profile.
    """
    try:
        yield
    except OSError as error:
        what = f"a user namespace can be made here, and its ids or capabilities are refused ({error.strerror})"
        raise HostError(what, permission(error.errno)) from error


def remedy(number: int | None = None) -> str:
    """Say what would let an ordinary user make one, after unshare(2) has failed with this errno."""
    if number == errno.ENOSPC:  # the limit on how many, whoever asks
        return _MORE
    return _switch() or (_LET if number in {errno.EPERM, errno.EACCES} else _MORE)


def permission(number: int | None) -> str:
    """Say what would let a namespace be used, or something be mounted in it, after that has failed with this errno."""
    if number == errno.ENOSPC:
        return "raise the limits that `sysctl user` shows, as root: one of `user.max_*_namespaces` is reached"
    return _switch() or _LET


def _switch() -> str:
    """Say which of the settings that keep user namespaces from ordinary users is on, by what turns it off."""
    for path, wanted in _SWITCHES:
        try:
            with open(path, encoding="utf-8") as file:
                found = file.read().strip()
        except OSError:
            continue
        if found != wanted:
            return f"run `sysctl -w {path.removeprefix('/proc/sys/').replace('/', '.')}={wanted}` as root"
    return ""
