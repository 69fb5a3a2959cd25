"""Ids of a sandbox: kernel ids, user namespaces and id-mapped mounts. A task never has kernel uid 0.

Kernel uid 0 owns files such as core_pattern without any capability.

Run by root, every sandbox has an id range of its own, so two tasks share no file, limit or signal. Run by a user, there
is only that user's id, mapped alone:

    inside the outer user namespace   kernel id, run by root      kernel id, run by a user
    0     init                        base                        the user
    1000  the task (root-run)         base + 1000                 -
    -     the gate's worker           base + 65533 (not mapped)   the user, in a user namespace of its own
    -     the certificate signer      base + 65532 (not mapped)   the user

An id-mapped mount shows a host directory as if the task (or the worker) owned it (mount_setattr(2)). Only root in the
initial user namespace can make one; a task run by a user already has that user's id.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from enforcer.sandbox import init
from enforcer.sandbox.path_scan import open_without_links
from enforcer.system import linux, processes
from enforcer.system.errors import HostError

# systemd's container range ends at 0x6FFFFFFF (systemd.io/UIDS-GIDS); ours lies above it and below 2**31, where
# programs that keep ids signed go wrong.
FIRST_ID, RANGE, SLOTS = 0x70000000, 0x10000, 4096
TASK_ID, WORKER_ID, SIGNER_ID = 1000, 65533, 65532
# The capabilities that root needs (capabilities(7)): make namespaces, set ids of processes and files, end processes.
_NEEDED_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_SYS_ADMIN": 21,
}
SLOT_FILE = Path("/run/exeat/id-ranges")


class IdMap(NamedTuple):
    """Lines of a uid_map or gid_map (user_namespaces(7))."""

    lines: tuple[tuple[int, int, int], ...]  # inside, outside, count

    def text(self) -> str:
        """Return the map as the kernel reads it."""
        return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in self.lines)


class Identity(NamedTuple):
    """The ids of init, the task, the worker and the signer. `slot`: a locked descriptor for the id range, or -1."""

    privileged: bool
    outer_uids: IdMap
    outer_gids: IdMap
    inner_uids: IdMap  # of the task's own user namespace, in ids of the outer one
    inner_gids: IdMap
    user: str
    uid: int  # as the task sees it
    gid: int
    home: str
    kernel_uid: int
    kernel_gid: int
    worker_uid: int  # kernel id
    signer_uid: int  # kernel id
    slot: int = -1

    @property
    def owner(self) -> tuple[int, int]:
        """The task's uid and gid in the outer user namespace, where its mounts are made."""
        return self.inner_uids.lines[0][1], self.inner_gids.lines[0][1]

    def as_root(self) -> "Identity":
        """Return the identity with the task shown as uid 0. Its kernel ids stay, and it has no capability."""
        uids, gids = (IdMap(((0, outer, 1),)) for outer in self.owner)
        return self._replace(inner_uids=uids, inner_gids=gids, user="root", uid=0, gid=0, home="/root")


def write_map(pid: int, uids: IdMap, gids: IdMap, *, deny_setgroups: bool) -> None:
    """Write a child's id maps (user_namespaces(7)). An ordinary user must deny setgroups first."""
    lines = [("setgroups", "deny")] if deny_setgroups else []
    for name, text in (*lines, ("uid_map", uids.text()), ("gid_map", gids.text())):
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def is_privileged() -> bool:
    """Whether this process is root with all ids of the host to assign: not root in a container's user namespace."""
    return os.geteuid() == 0 and _parent_id(0) == 0 and _has_full_id_map() and not _missing_capabilities()


def choose() -> Identity:
    """Choose the ids of one sandbox. Raises HostError when every range is taken, or no usable id exists."""
    if is_privileged():
        return _privileged_identity()
    refuse_unmapped(os.geteuid(), os.getegid())
    if _parent_id(os.geteuid()) == 0:
        raise _root_error()
    return _ordinary_identity()


def _root_error() -> HostError:
    """Return the error for a root that can't run a task under another id."""
    intro = "a task never runs under kernel uid 0, and this root"
    if missing := _missing_capabilities():
        options = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in missing)
        return HostError(
            f"{intro} lacks capabilities to run one under another id ({', '.join(missing)})",
            f"run exeat as an ordinary user, or as root with them; in a container, `--user 1000`, or `{options}`",
        )
    return HostError(
        f"{intro} is in a user namespace without the ids to give it another",
        "run exeat as an ordinary user, or outside of that user namespace",
    )


def refuse_unmapped(uid: int, gid: int) -> None:
    """Raise HostError for ids that aren't mapped here: they can't make a user namespace (EPERM)."""
    if _parent_id(uid) is None or _parent_id(gid, "gid_map") is None:
        raise HostError(
            f"uid {uid} and gid {gid}, which this runs under, are not mapped in the user namespace that it is in",
            "map them (`unshare --map-current-user`), or run exeat outside of it",
        )


def _read_id_map(name: str = "uid_map") -> list[tuple[int, int, int]]:
    with open(f"/proc/self/{name}", encoding="utf-8") as file:
        fields = [tuple(map(int, line.split())) for line in file]
    return [(inside, outside, count) for inside, outside, count in fields]


def _has_full_id_map() -> bool:
    return _read_id_map() == [(0, 0, 0xFFFFFFFF)]


def _parent_id(number: int, name: str = "uid_map") -> int | None:
    """Return one of our uids (or, with `gid_map`, gids) as the parent user namespace numbers it; None if unmapped."""
    for inside, outside, count in _read_id_map(name):
        if inside <= number < inside + count:
            return outside + number - inside
    return None


def _missing_capabilities() -> list[str]:
    """Return the names of required capabilities that this process lacks."""
    with open("/proc/self/status", encoding="utf-8") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return [name for name, number in _NEEDED_CAPABILITIES.items() if not effective >> number & 1]


def _privileged_identity() -> Identity:
    number, slot = _take_slot()
    base = FIRST_ID + number * RANGE
    outer = IdMap(((0, base, 1), (TASK_ID, base + TASK_ID, 1)))
    inner = IdMap(((TASK_ID, TASK_ID, 1),))
    return Identity(
        privileged=True,
        outer_uids=outer,
        outer_gids=outer,
        inner_uids=inner,
        inner_gids=inner,
        user="task",
        uid=TASK_ID,
        gid=TASK_ID,
        home="/home/task",
        kernel_uid=base + TASK_ID,
        kernel_gid=base + TASK_ID,
        worker_uid=base + WORKER_ID,
        signer_uid=base + SIGNER_ID,
        slot=slot,
    )


def _ordinary_identity() -> Identity:
    uid, gid = os.geteuid(), os.getegid()
    # Root in a container's user namespace is an ordinary user to the kernel; inside it is never shown as root.
    shown_uid, shown_gid = uid or TASK_ID, gid or TASK_ID
    name, home = _account_name_and_home(uid)
    return Identity(
        privileged=False,
        outer_uids=IdMap(((0, uid, 1),)),
        outer_gids=IdMap(((0, gid, 1),)),
        inner_uids=IdMap(((shown_uid, 0, 1),)),
        inner_gids=IdMap(((shown_gid, 0, 1),)),
        user=name,
        uid=shown_uid,
        gid=shown_gid,
        home=home,
        kernel_uid=uid,
        kernel_gid=gid,
        worker_uid=uid,
        signer_uid=uid,
    )


def _account_name_and_home(uid: int) -> tuple[str, str]:
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return "task", "/home/task"
    home = os.path.normpath(entry.pw_dir)
    # A system account's home may be a system directory, which the sandbox must not replace with an empty one.
    if uid == 0 or ":" in entry.pw_name or not home.startswith(("/home/", "/Users/", "/root")):
        return "task", "/home/task"
    return entry.pw_name, home


def _take_slot() -> tuple[int, int]:
    """Lock one byte of the slot file, until every copy of the returned descriptor is closed."""
    try:
        SLOT_FILE.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        slot = os.open(SLOT_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(
            f"cannot keep track of id ranges in `{SLOT_FILE}`: {error.strerror}",
            f"let root write in `{SLOT_FILE.parent.parent}`, or run exeat as an ordinary user",
        ) from error
    for number in _slots_from_random_start(int.from_bytes(os.urandom(2))):
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
        try:
            fcntl.fcntl(slot, fcntl.F_OFD_SETLK, lock)
        except OSError:
            continue
        return number, slot
    os.close(slot)
    raise HostError(f"all {SLOTS} id ranges are in use", "stop some tasks first: `exeat ps`, `exeat stop`")


def _slots_from_random_start(start: int) -> Iterator[int]:
    """Return every slot once, from a random start, so that a start tries few taken ones.

    Random, since the roots of two containers see neither each other's locks nor different pids.
    """
    return ((start + number) % SLOTS for number in range(SLOTS))


_user_namespaces_in_advance: Final[
    dict[tuple[IdMap, IdMap], int]
] = {}  # user namespaces made in advance, by their maps; each is used once


def idmapped_tree(path: str, uid: int, gid: int, *, required: bool = True) -> int:
    """Clone the mount of `path`, detached, with the owner on disk shown as kernel ids `uid` and `gid`.

    All other ids on disk appear as nobody. Raises HostError where the file system can't be id-mapped; with `required`
    false the mount stays as it is then. `path` must contain no symbolic link: one that another task puts there is not
    followed.
    """
    with _open_path(path) as descriptor:
        status, mount = os.fstat(descriptor), linux.open_tree("", directory=descriptor)
    try:
        _map_mount(mount, *_maps((status.st_uid, status.st_gid), (uid, gid)))
    except OSError as error:
        if required:
            os.close(mount)
            raise HostError(
                f"the file system of `{path}` cannot be id-mapped ({error.strerror}), and a task never runs as root",
                "use a directory on ext4, xfs, btrfs or tmpfs (in a container, a volume), or run exeat as an ordinary "
                "user",
            ) from error
    return mount


def idmapped_directory_of(path: str, ids: tuple[int, int], directory_ids: tuple[int, int]) -> int:
    """Clone the mount of a file's directory, detached, with the file's owner shown as `ids`.

    `directory_ids` (uid and gid): how the directory's owner is shown, if it differs. Where the file system can't be
    id-mapped, the mount is as it is. Raises HostError.
    """
    with _open_path(path) as file, _open_path(os.path.dirname(path)) as directory:
        file_status, directory_status = os.fstat(file), os.fstat(directory)
        mount = linux.open_tree("", directory=directory)
    uids = _map_two_owners((file_status.st_uid, ids[0]), (directory_status.st_uid, directory_ids[0]))
    gids = _map_two_owners((file_status.st_gid, ids[1]), (directory_status.st_gid, directory_ids[1]))
    with contextlib.suppress(OSError):
        _map_mount(mount, uids, gids)
    return mount


@contextlib.contextmanager
def _open_path(path: str) -> Iterator[int]:
    """Open a path without following symbolic links. Raises HostError, also for an OSError in the block."""
    try:
        descriptor = open_without_links(path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HostError(f"`{path}` cannot be shown: {error.strerror or error}") from error


def _map_mount(mount: int, uids: IdMap, gids: IdMap) -> None:
    """Id-map a detached mount: show ids on disk as kernel ids. Raises OSError, HostError."""
    users = (
        _user_namespaces_in_advance.pop((uids, gids))
        if (uids, gids) in _user_namespaces_in_advance
        else _user_namespace(uids, gids)
    )
    try:
        linux.mount_setattr(mount, linux.MOUNT_ATTR_IDMAP, userns=users)
    finally:
        os.close(users)


def _map_two_owners(file: tuple[int, int], directory: tuple[int, int]) -> IdMap:
    (file_owner, file_shown), (directory_owner, directory_shown) = file, directory
    return IdMap(
        (
            (file_owner, file_shown, 1),
            *(((directory_owner, directory_shown, 1),) if directory_owner != file_owner else ()),
        )
    )


def make_idmap_ahead(owner: tuple[int, int], shown: tuple[int, int]) -> None:
    """Make the user namespace that `idmapped_tree` needs for this owner (uid, gid), in advance. Raises HostError."""
    maps = _maps(owner, shown)
    _user_namespaces_in_advance[maps] = _user_namespace(*maps)


def idmap_descriptors() -> set[int]:
    """Return the descriptors of user namespaces made in advance."""
    return set(_user_namespaces_in_advance.values())


def idmapped_shared(path: str, uids: IdMap, gids: IdMap) -> int:
    """Clone the mount of `path`, detached, id-mapped by these maps. Raises OSError."""
    mount = linux.open_tree(path)
    try:
        _map_mount(mount, uids, gids)
    except BaseException:
        os.close(mount)
        raise
    return mount


def _maps(owner: tuple[int, int], shown: tuple[int, int]) -> tuple[IdMap, IdMap]:
    (uid, gid), (shown_uid, shown_gid) = owner, shown
    return IdMap(((uid, shown_uid, 1),)), IdMap(((gid, shown_gid, 1),))


def _user_namespace(uids: IdMap, gids: IdMap) -> int:
    """Open a user namespace that exists only to carry these maps. Raises HostError."""
    try:
        pid, process = init.start()
        try:
            process.calls.call("unshare", os.CLONE_NEWUSER)
            process.run()
            write_map(pid, uids, gids, deny_setgroups=False)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            process.close()
            processes.kill_and_wait(pid)
    except OSError as error:
        raise HostError(
            f"no user namespace can be made and mapped here ({error.strerror})", namespace_remedy(error.errno)
        ) from error


_NAMESPACE_SYSCTLS = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "1"),  # Debian's own, before 11
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),  # Ubuntu, from 23.10 on
)
_LIMIT_REMEDY = "run `sysctl -w user.max_user_namespaces=15000` as root, or in a container allow user namespaces"
_ALLOW_REMEDY = (
    "have the security module or filter that this runs under allow that, in a container with `--security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined` (Kubernetes: `seccompProfile` and `appArmorProfile`)"
)


def enter_own_user_namespace(uids: IdMap, gids: IdMap, namespace_flags: int) -> None:
    """Move the calling process, which must have one thread, into a new user namespace with these id maps.

    `namespace_flags`: further namespaces to make, which belong to it (CLONE_NEW...). Raises HostError.
    """
    try:
        os.unshare(os.CLONE_NEWUSER)
    except OSError as error:
        raise HostError(
            f"no user namespace can be made here ({error.strerror})", namespace_remedy(error.errno)
        ) from error
    with namespace_used():
        for name, text in (("setgroups", "deny"), ("uid_map", uids.text()), ("gid_map", gids.text())):
            with open(f"/proc/self/{name}", "wb", buffering=0) as file:
                file.write(text.encode())
        os.unshare(namespace_flags)


@contextlib.contextmanager
def namespace_used() -> Iterator[None]:
    """Raise HostError with a remedy when using the ids or capabilities of a new user namespace fails.

    Ubuntu's AppArmor lets every process make one, and denies its capabilities to programs without a profile.
    """
    try:
        yield
    except OSError as error:
        message = f"a user namespace can be made here, and its ids or capabilities are refused ({error.strerror})"
        raise HostError(message, namespace_permission(error.errno)) from error


def namespace_remedy(number: int | None = None) -> str:
    """Return what lets an ordinary user make a user namespace, after unshare(2) failed with this errno."""
    if number == errno.ENOSPC:  # the limit on their number
        return _LIMIT_REMEDY
    return _sysctl_remedy() or (_ALLOW_REMEDY if number in {errno.EPERM, errno.EACCES} else _LIMIT_REMEDY)


def namespace_permission(number: int | None) -> str:
    """Return what lets a namespace be used, or a file system be mounted in it, after that failed with this errno."""
    if number == errno.ENOSPC:
        return "raise the limits that `sysctl user` shows, as root: one of `user.max_*_namespaces` is reached"
    return _sysctl_remedy() or _ALLOW_REMEDY


def _sysctl_remedy() -> str:
    """Return how to turn off the sysctl that keeps user namespaces from ordinary users; empty if none does."""
    for path, value in _NAMESPACE_SYSCTLS:
        try:
            with open(path, encoding="utf-8") as file:
                current = file.read().strip()
        except OSError:
            continue
        if current != value:
            return f"run `sysctl -w {path.removeprefix('/proc/sys/').replace('/', '.')}={value}` as root"
    return ""
