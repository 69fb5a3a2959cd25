"""Id-mapped mounts: a host directory whose owner a sandbox's task (or the worker) appears to be (mount_setattr(2)).

Only root in the initial user namespace can make one; a task run by a user already has that user's id.
"""

import os
from typing import Final

from enforcer import children, linux, userns
from enforcer.errors import HostError
from enforcer.sandbox import player
from enforcer.sandbox.identity import IdMap, write_map
from enforcer.sandbox.walking import walk

_ahead: Final[dict[tuple[IdMap, IdMap], int]] = {}  # descriptors of user namespaces that are used once, by their maps


def tree(path: str, uid: int, gid: int, *, needed: bool = True) -> int:
    """Clone the mount of `path`, detached, with the owner of `path` on disk shown as kernel ids `uid` and `gid`.

    Every other id on disk appears as nobody's. Raises HostError where the file system can't do it; not `needed`, what
    everybody may read is shown then, and no more. `path` is a real one: a link that somebody puts on the way to it,
    such as another task whose workspace it lies in, is not followed.
    """
    try:
        place = walk(path)
        status = os.fstat(place)
        mount = linux.open_tree("", directory=place)
        os.close(place)
    except OSError as error:
        raise HostError(f"`{path}` cannot be shown: {error.strerror or error}") from error
    maps = _maps((status.st_uid, status.st_gid), (uid, gid))
    users = _ahead.pop(maps) if maps in _ahead else _user_namespace(*maps)
    try:
        linux.mount_setattr(mount, linux.MOUNT_ATTR_IDMAP, userns=users)
    except OSError as error:
        if not needed:
            return mount
        os.close(mount)
        raise HostError(
            f"the file system of `{path}` cannot be id-mapped ({error.strerror}), and a task never runs as root",
            "use a directory on ext4, xfs, btrfs or tmpfs (in a container, a volume), or run exeat as an ordinary user",
        ) from error
    finally:
        os.close(users)
    return mount


def around(path: str, ids: tuple[int, int], others: tuple[int, int]) -> int:
    """Clone the mount of the directory that a file lies in, detached: the file's owner shown as `ids`.

    `others` (uid and gid) is who the directory's owner is shown as, if that is another. Where the file system can't do
    it, the mount as it is. Raises HostError.
    """
    try:
        file, directory = walk(path), walk(os.path.dirname(path))
        of_file, of_directory = os.fstat(file), os.fstat(directory)
        mount = linux.open_tree("", directory=directory)
        os.close(file)
        os.close(directory)
    except OSError as error:
        raise HostError(f"`{path}` cannot be shown: {error.strerror or error}") from error
    users = _user_namespace(
        _both((of_file.st_uid, ids[0]), (of_directory.st_uid, others[0])),
        _both((of_file.st_gid, ids[1]), (of_directory.st_gid, others[1])),
    )
    try:
        linux.mount_setattr(mount, linux.MOUNT_ATTR_IDMAP, userns=users)
    except OSError:
        return mount
    finally:
        os.close(users)
    return mount


def _both(file: tuple[int, int], directory: tuple[int, int]) -> IdMap:
    (of_file, shown), (of_directory, other) = file, directory
    return IdMap(((of_file, shown, 1), *(((of_directory, other, 1),) if of_directory != of_file else ())))


def make_ahead(owner: tuple[int, int], shown: tuple[int, int]) -> None:
    """Make what `tree` needs for a path with this owner (uid and gid) before it is known which. Raises HostError."""
    maps = _maps(owner, shown)
    _ahead[maps] = _user_namespace(*maps)


def descriptors() -> set[int]:
    """Return what is open of what was made ahead."""
    return set(_ahead.values())


def shared(path: str, uids: IdMap, gids: IdMap) -> int:
    """Clone the mount of `path`, detached, with ids on disk shown as kernel ids as the maps say. Raises OSError."""
    mount = linux.open_tree(path)
    users = -1
    try:
        users = _user_namespace(uids, gids)
        linux.mount_setattr(mount, linux.MOUNT_ATTR_IDMAP, userns=users)
    except BaseException:
        os.close(mount)
        raise
    finally:
        if users >= 0:
            os.close(users)
    return mount


def _maps(owner: tuple[int, int], shown: tuple[int, int]) -> tuple[IdMap, IdMap]:
    (uid, gid), (shown_uid, shown_gid) = owner, shown
    return IdMap(((uid, shown_uid, 1),)), IdMap(((gid, shown_gid, 1),))


def _user_namespace(uids: IdMap, gids: IdMap) -> int:
    """Open a user namespace that exists only to carry these maps. Raises HostError where none can be made."""
    try:
        pid, process = player.start()
        try:
            process.calls.call("unshare", os.CLONE_NEWUSER)
            process.do()
            write_map(pid, uids, gids, deny_setgroups=False)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            process.close()
            children.end(pid)
    except OSError as error:
        raise HostError(
            f"no user namespace can be made and mapped here ({error.strerror})", userns.remedy(error.errno)
        ) from error
