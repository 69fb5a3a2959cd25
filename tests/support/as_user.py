"""Become an ordinary user and run a program: `python as_user.py UID HOME PROGRAM [ARGUMENT...]`, as root.

The interpreter and the project may lie behind a directory that only root may enter (a pyenv of root). So this makes a
private mount namespace in which their exact paths, and nothing else of such a directory, can be reached.
"""

import ctypes
import os
import sys

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source, target, kind, flags, data=None):
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    if _libc.mount(*encoded, ctypes.c_ulong(flags), None if data is None else data.encode()) < 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def _closed_above(path):
    """The outermost directory above `path` that others may not enter, if any."""
    at = "/"
    for part in path.strip("/").split("/")[:-1]:
        at = os.path.join(at, part)
        if not os.stat(at).st_mode & 0o001:
            return at
    return None


def _reach(paths):
    """Put a directory that everyone may enter over each closed one, with only `paths` in it."""
    held = [(path, os.open(path, os.O_PATH)) for path in paths]
    for closed in sorted({closed for path in paths if (closed := _closed_above(path))}):
        _mount("tmpfs", closed, "tmpfs", 0, "mode=755")
    for path, descriptor in held:
        if not os.path.exists(path):
            os.makedirs(path)
            _mount(f"/proc/self/fd/{descriptor}", path, None, MS_BIND)
        os.close(descriptor)


def main():
    uid, home, *argv = sys.argv[1:]
    os.unshare(os.CLONE_NEWNS)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    project = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    _reach(sorted({sys.base_prefix, sys.prefix, project}))
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    os.environ.update(HOME=home, USER="someone", LOGNAME="someone")
    os.environ.pop("XDG_STATE_HOME", None)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()
