"""What can't be put aside, under another name: it stays in the workspace, and nothing that a host runs looks there.

A task can see to it that what it made can't be taken out: by a FIFO or a great many names in it, where the changes are
kept on another file system, or by a full disk. A name takes no room and isn't copied.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable
from typing import Final

from enforcer.workspace.beneath import Tree
from enforcer.workspace.opened import opened_up

_PREFIX: Final = ".exeat-aside-"


def renamed(workspace: Tree, paths: Iterable[str], owner: int) -> dict[str, str]:
    """Give what stands at `paths`, if it is its owner's, another name. Returns which, by the old one."""
    found: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(OSError), opened_up(workspace, path, owner):
            found[path] = _rename(workspace, path, owner)
    return found


def _rename(workspace: Tree, path: str, owner: int) -> str:
    above, name = workspace.parent(path, os.O_PATH)
    try:
        if os.lstat(name, dir_fd=above).st_uid != owner:
            raise OSError(errno.EPERM, "it is somebody else's")
        to = _PREFIX + secrets.token_hex(8)
        try:
            os.rename(name, to, src_dir_fd=above, dst_dir_fd=workspace.descriptor)
        except OSError:  # there is no room for another name there
            os.rename(name, to, src_dir_fd=above, dst_dir_fd=above)
            return os.path.join(os.path.dirname(path), to)
        return to
    finally:
        os.close(above)
