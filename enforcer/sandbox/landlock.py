"""Landlock rules of a task: a second restriction of files, independent of mounts (landlock(7)).

The mounts decide what a task sees. Landlock repeats it for another part of the kernel: a leaked descriptor of the
host's tree, a forgotten mount or a flaw in a namespace gives access to nothing outside these paths. Masks inside them
(credentials, rules) are up to the mounts alone: Landlock can only add access beneath a path. A kernel without Landlock,
or with version 1 (which forbids moving files between directories), has only the mounts.
"""

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from enforcer.sandbox.devices import Devices
from enforcer.sandbox.mount_steps import Bind, Files, Kernel, Step, Tmpfs
from enforcer.sandbox.overlays import Show, ShowFile
from enforcer.system import linux

MIN_VERSION: Final = 2  # the first version that can allow moving files (LANDLOCK_ACCESS_FS_REFER)
# landlock(7), "Filesystem flags": bits 0-12 are of version 1, then one or more a version.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 13, 1 << 14, 1 << 15
_RIGHTS_BY_VERSION: Final = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
FILE_RIGHTS: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
LIST_RIGHTS: Final = _READ_DIR
READ_RIGHTS: Final = _EXECUTE | _READ_FILE | _READ_DIR
DEVICE_RIGHTS: Final = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
ALL_RIGHTS: Final = _RIGHTS_BY_VERSION[max(_RIGHTS_BY_VERSION)] & ~(_MAKE_CHAR | _MAKE_BLOCK)
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2  # scopes, from version 6 on
_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
PATH_BENEATH: Final = 1


class Grant(NamedTuple):
    """A path, and the Landlock access rights to everything beneath it."""

    path: str
    rights: int


def describe(grant: Grant) -> str:
    """Describe a grant in a few words."""
    verb = {LIST_RIGHTS: "list", READ_RIGHTS: "read and run", DEVICE_RIGHTS: "use"}.get(
        grant.rights, "do everything with"
    )
    return f"{verb} what is beneath {grant.path}"


def version() -> int:
    """Return the kernel's Landlock ABI version; 0 if it has none or it is disabled."""
    try:
        return linux.landlock_create_ruleset(b"", _VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def grants(steps: Iterable[Step], writable: Iterable[str]) -> tuple[Grant, ...]:
    """Return the grants that match a mount plan's steps; `writable`: the host paths that the task may write."""
    rights_by_path: dict[str, int] = {"/": LIST_RIGHTS}
    for step in steps:
        match step:
            case Files():
                rights_by_path.setdefault(step.target, READ_RIGHTS)
            case Show() | ShowFile():
                rights_by_path.setdefault(step.source, READ_RIGHTS)
            case Bind(devices=True) | Tmpfs(target="/dev") | Devices():
                rights_by_path["/dev"] = DEVICE_RIGHTS
            case Bind():
                rights_by_path.setdefault(step.target, ALL_RIGHTS if step.writable else READ_RIGHTS)
            case Tmpfs():
                rights_by_path[step.target] = ALL_RIGHTS
            case Kernel():
                rights_by_path[step.target] = DEVICE_RIGHTS
    rights_by_path.update(dict.fromkeys(writable, ALL_RIGHTS))
    return tuple(Grant(path, rights) for path, rights in sorted(rights_by_path.items()))


def ruleset_attributes() -> tuple[int, int, int]:
    """Return a ruleset's handled rights and scopes, and the size of its attributes; zeros without Landlock."""
    abi_version = version()
    if abi_version < MIN_VERSION:
        return 0, 0, 0
    handled = _RIGHTS_BY_VERSION[min(abi_version, max(_RIGHTS_BY_VERSION))]
    scoped = _ABSTRACT_SOCKETS | _SIGNALS if abi_version >= 6 else 0
    return handled, scoped, 24 if abi_version >= 6 else 16 if abi_version >= 4 else 8


def restrict(grants_to_add: Iterable[Grant], descriptors: Iterable[int] = ()) -> None:
    """Restrict the calling process and its children to these grants, irrevocably.

    Does nothing on a kernel without Landlock. `descriptors`: open terminals and devices that it may open again. From
    version 6 on, signals and abstract sockets can't leave the sandbox. Raises OSError; then the process must end.
    """
    handled, scoped, size = ruleset_attributes()
    if not size:
        return
    ruleset = linux.landlock_create_ruleset(struct.pack("=QQQ", handled, 0, scoped)[:size])
    try:
        for grant in grants_to_add:
            with contextlib.suppress(FileNotFoundError):
                descriptor_of_path = os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
                _add_rule(ruleset, descriptor_of_path, grant.rights & handled)
                os.close(descriptor_of_path)
        for descriptor in descriptors:
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                _add_rule(ruleset, descriptor, DEVICE_RIGHTS & handled)
        linux.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)


def _add_rule(ruleset: int, descriptor: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= FILE_RIGHTS
    linux.landlock_add_rule(ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor))
