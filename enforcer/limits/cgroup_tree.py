"""Cgroups of tasks: finds where one can be made, makes, reads and removes it (cgroups(7)).

This process's cgroup in each hierarchy is read anew for each task: systemd or a container engine may move it at any
time.

In version 1 a group is made below our own. In version 2 a group with processes can't pass controllers to groups below
it ("no internal processes"). So the group is made in the nearest group above that passes the needed controllers and
lets us write: a slice delegated to its user, a container's root, or the host's root. The limits of the groups passed on
the way up still apply (`ParentLimits`). Two kinds of group need no way up, since their processes can move into a child
group: one with no process but ours, and one that systemd marks as delegated (a service or scope with `Delegate=yes`).

The process that made a group holds a lock on its directory (flock(2)) while it lives. A group without a lock is left
over from a killed run; the next run removes it, or the service for all of its runs. Unlike a pid in the name, a lock
can't be mistaken for another process's, and is visible from other pid namespaces.

In version 2 the task's processes are in a group inside the one that is made. The outer group passes its controllers
down and so keeps them: a controller can't be disabled while a child group uses it. So no service manager that tidies
its slices can lift the limits.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple


def write_file(path: str, text: str) -> None:
    """Write a cgroup file with one write(2). Raises OSError that names the file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"write `{text}` to {path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(descriptor)


def read_file(path: str) -> str:
    """Read a cgroup file; empty if it is missing or not readable."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall().decode("ascii", "replace")
    except OSError:
        return ""


def read_words(path: str) -> frozenset[str]:
    """Read a file with a list of words."""
    return frozenset(read_file(path).split())


def read_numbers(path: str) -> dict[str, int]:
    """Read a file with lines like `oom_kill 3`; skips other lines."""
    numbers = {}
    for line in read_file(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            numbers[name] = int(value)
    return numbers


def read_number(path: str) -> int | None:
    """Read a file with one number; None for `max`, for -1, and for a missing file."""
    text = read_file(path).strip()
    return int(text) if text.isdigit() else None


V2 = 2
_OCTAL_ESCAPE = r"\\([0-7]{3})"


class Hierarchy(NamedTuple):
    """A cgroup hierarchy: `top` is its mount point, `own` the directory of this process's group."""

    version: int
    controllers: frozenset[str]  # in version 2: those available at its root
    top: str
    own: str


def hierarchies() -> list[Hierarchy]:
    """Return the hierarchies in which this process sees its own group; empty on a kernel without cgroups."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = file.read()
    except FileNotFoundError:
        return []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line for line in file if " - cgroup" in line]
    return list(match_mounts(groups, mounts))


def match_mounts(groups: str, mounts: list[str]) -> Iterator[Hierarchy]:
    """Match the groups of /proc/self/cgroup to cgroup lines of mountinfo; yields each hierarchy once."""
    parsed = [_parse_mount(line) for line in mounts]
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        names = frozenset(controllers.split(",")) - {""}
        for root, top, version, options in parsed:
            if version == V2 if not names else (version == 1 and names <= options):
                relative = _relative_path(root, path)
                if relative is not None:
                    yield Hierarchy(version, names or _available_controllers(top), top, top + relative)
                    break


def _parse_mount(line: str) -> tuple[str, str, int, frozenset[str]]:
    """Root, mount point, version and options of one line of mountinfo (proc_pid_mountinfo(5))."""
    own_fields, _, fs_fields = line.partition(" - ")
    fields, (kind, *options) = own_fields.split(), fs_fields.split()
    root, top = (_unescape(field) for field in fields[3:5])
    return root, top.rstrip("/"), V2 if kind == "cgroup2" else 1, frozenset(options[-1].split(","))


def _unescape(field: str) -> str:
    return re.sub(_OCTAL_ESCAPE, lambda match: chr(int(match[1], 8)), field) if "\\" in field else field


def _relative_path(root: str, path: str) -> str | None:
    """Return `path` relative to a mount whose root is `root`; None if the mount doesn't show it."""
    if path.startswith("/.."):  # outside of our cgroup namespace
        return None
    if root == "/":
        return path.rstrip("/")
    return path.removeprefix(root) if path == root or path.startswith(root + "/") else None


def _available_controllers(top: str) -> frozenset[str]:
    return read_words(f"{top}/cgroup.controllers")


CONTROLLERS = frozenset({"memory", "pids", "cpu"})


class ParentLimits(NamedTuple):
    """Limits of the groups between ours and the one that a task's group is made in; None: no limit."""

    memory: int | None = None  # bytes
    processes: int | None = None
    cpu: float | None = None  # cores


NO_PARENT_LIMITS = ParentLimits()


class CgroupLocation(NamedTuple):
    """A directory where a group can be made, and the controllers that the group gets."""

    version: int
    path: str
    controllers: frozenset[str]
    ceiling: ParentLimits = NO_PARENT_LIMITS
    must_empty: bool = False  # its processes have to move into a child group first


def choose_locations(found: list[Hierarchy], needed: frozenset[str] = CONTROLLERS) -> list[CgroupLocation]:
    """Choose a location in each hierarchy that has a controller for a task, version 2 first.

    `needed`: the controllers for which a location further up is chosen.
    """
    chosen: list[CgroupLocation] = []
    for hierarchy in sorted(found, key=lambda hierarchy: -hierarchy.version):
        location = _locate_v2(hierarchy, needed) if hierarchy.version == V2 else _locate_v1(hierarchy)
        if location is not None:
            chosen.append(location)
    return chosen


def _locate_v1(hierarchy: Hierarchy) -> CgroupLocation | None:
    useful = hierarchy.controllers & CONTROLLERS
    return CgroupLocation(1, hierarchy.own, useful) if useful and _can_make_group(hierarchy.own) else None


def _locate_v2(hierarchy: Hierarchy, needed: frozenset[str]) -> CgroupLocation | None:
    """Return the nearest location with the most needed controllers.

    A location without any is still useful: all processes of a group can be killed at once.
    """
    best: CgroupLocation | None = None
    ancestors: list[str] = []
    for path in _paths_to_root(hierarchy):
        if not _can_make_group(path):
            break  # a process can't be moved across it either
        must_empty = (
            path == hierarchy.own and not _is_root(path) and (_is_delegated(path) or _has_only_our_processes(path))
        )
        enabled = read_words(f"{path}/cgroup.subtree_control") & CONTROLLERS
        controllers = enabled | (
            read_words(f"{path}/cgroup.controllers") & needed
            if must_empty or _passes_controllers(path)
            else frozenset()
        )
        if best is None or len(controllers & needed) > len(best.controllers & needed):
            best = CgroupLocation(V2, path, controllers, _read_parent_limits(ancestors), must_empty)
        ancestors.append(path)
    return best


def _paths_to_root(hierarchy: Hierarchy) -> list[str]:
    names = hierarchy.own[len(hierarchy.top) :].split("/")[1:]
    return ["/".join((hierarchy.top, *names[:depth])) for depth in range(len(names), -1, -1)]


def _can_make_group(path: str) -> bool:
    """Whether we may make a group below it and move processes there, which needs write access to `cgroup.procs`."""
    return os.access(path, os.W_OK | os.X_OK) and os.access(f"{path}/cgroup.procs", os.W_OK)


def _passes_controllers(path: str) -> bool:
    """Whether groups below `path` have controllers, or `path` can enable its own for them."""
    enabled = read_words(f"{path}/cgroup.subtree_control")
    return bool(enabled) or _is_root(path) or not read_words(f"{path}/cgroup.procs")


def _is_delegated(path: str) -> bool:
    """Whether systemd has delegated the group to us (systemd.io/CGROUP_DELEGATION, from version 251 on)."""
    try:
        return os.getxattr(path, "user.delegate") == b"1"
    except OSError:
        return False


def _has_only_our_processes(path: str) -> bool:
    """Whether a group has no process but this one and its children."""
    pids = map(int, read_words(f"{path}/cgroup.procs"))
    return all(pid == os.getpid() or _parent_pid(pid) == os.getpid() for pid in pids)


def _parent_pid(pid: int) -> int:
    fields = read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def _is_root(path: str) -> bool:
    """Whether the group is the root of its hierarchy, which may have both processes and controllers (cgroups(7))."""
    return not os.path.exists(f"{path}/cgroup.type")


def enable_controllers(path: str, controllers: frozenset[str]) -> None:
    """Enable controllers for the groups below `path`. Raises OSError."""
    for name in sorted(controllers - read_words(f"{path}/cgroup.subtree_control")):
        write_file(f"{path}/cgroup.subtree_control", f"+{name}")


def _read_parent_limits(paths: list[str]) -> ParentLimits:
    return ParentLimits(
        lowest(read_number(f"{path}/memory.max") for path in paths),
        lowest(read_number(f"{path}/pids.max") for path in paths),
        lowest(_parse_cpu_max(read_file(f"{path}/cpu.max")) for path in paths),
    )


def _parse_cpu_max(text: str) -> float | None:
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def lowest[T: (int, float)](values: Iterable[T | None]) -> T | None:
    """Return the lowest limit; None if there is none."""
    return min((value for value in values if value is not None), default=None)


# Names that no service manager uses: those end in `.service`, `.scope` or `.slice`.
_PREFIX, _RUNNER_PREFIX = "exeat-task-", "exeat-runner-"
_NAME = _PREFIX + "[0-9a-f]+-[0-9a-f]+-[0-9]+"
_INNER = "task"
_TRIES = 16
_REMOVAL_TIMEOUT, _PAUSE = 2.0, 0.005  # seconds: the kernel takes a moment to remove killed processes
_MICRO, _NANO = 1e-6, 1e-9
_BATCH = 1 << 20  # bytes, more than a kernel charges a group in advance
_swept_by_parent: Final[set[str]] = set()  # directories that the parent process sweeps


class Counts(NamedTuple):
    """The kernel's counts of how often a group has reached its limits."""

    killed: int = 0  # processes, by the OOM killer
    full: int = 0  # above 0: the group has reached its own memory limit
    refused: int = 0  # forks that failed at the process limit
    throttled: float = 0.0  # seconds throttled by the cpu quota


class Group(NamedTuple):
    """An existing group. `path` is locked, and removed in the end; `inner` has the processes and limits."""

    place: CgroupLocation
    path: str
    lock: int

    @property
    def inner(self) -> str:
        """The directory of the group with the processes."""
        return f"{self.path}/{_INNER}" if self.place.version == V2 else self.path

    def limit(self, values: Mapping[str, str], optional: Mapping[str, str]) -> None:
        """Write limit files; ignores errors of the optional ones. Raises OSError."""
        for name, value in values.items():
            write_file(f"{self.inner}/{name}", value)
        for name, value in optional.items():
            with contextlib.suppress(OSError):
                write_file(f"{self.inner}/{name}", value)

    def admit(self, pid: int) -> None:
        """Move a process, and so its future children, into the group. Raises OSError."""
        write_file(f"{self.inner}/cgroup.procs", str(pid))

    def counts(self) -> Counts:
        """Read the counts; called every few seconds, so it reads no other file."""
        controllers = self.place.controllers
        cpu = read_numbers(f"{self.inner}/cpu.stat") if "cpu" in controllers else {}
        refused = read_numbers(f"{self.inner}/pids.events").get("max", 0) if "pids" in controllers else 0
        if self.place.version == V2:
            memory = read_numbers(f"{self.inner}/memory.events") if "memory" in controllers else {}
            throttled = cpu.get("throttled_usec", 0) * _MICRO
            return Counts(memory.get("oom_kill", 0), memory.get("max", 0), refused, throttled)
        killed = read_numbers(f"{self.inner}/memory.oom_control").get("oom_kill", 0) if "memory" in controllers else 0
        return Counts(killed, int(killed > 0 and self._is_full()), refused, cpu.get("throttled_time", 0) * _NANO)

    def _is_full(self) -> bool:
        """Whether it has reached its own memory limit.

        Not from `memory.failcnt`: newer kernels count the parent's there.
        """
        peak, limit = (read_number(f"{self.inner}/memory.{name}_in_bytes") for name in ("max_usage", "limit"))
        return peak is not None and limit is not None and peak + _BATCH >= limit

    def kill(self) -> None:
        """Kill every process in the group, where the kernel has cgroup.kill (Linux 5.14)."""
        _kill_group(self.path)

    def remove(self) -> None:
        """Remove the group once its processes are gone; after 2 s leave it to the next run. Idempotent."""
        deadline = time.monotonic() + _REMOVAL_TIMEOUT
        while not _try_remove(self.path) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        with contextlib.suppress(OSError):
            os.close(self.lock)


def make_group(location: CgroupLocation) -> Group:
    """Make a group, after removing those of killed runs. Raises OSError."""
    if location.must_empty:
        _move_processes_into_child(location)
    if location.path not in _swept_by_parent:
        remove_dead_groups(location.path)
    if location.version == V2:
        enable_controllers(location.path, location.controllers)
    group = _make_locked(location)
    try:
        if location.version == V2:
            enable_controllers(group.path, location.controllers)
            os.mkdir(group.inner, 0o755)
    except OSError:
        group.remove()
        raise
    return group


def leave_sweep_to_parent(directories: Iterable[str]) -> None:
    """Sweep these directories in this process alone: processes forked from it don't."""
    _swept_by_parent.update(directories)


def remove_dead_groups(directory: str) -> int:
    """Remove the groups of killed runs, which have no lock. Returns how many can't be removed yet."""
    remaining = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                if name.startswith(_PREFIX) and re.fullmatch(_NAME, name):
                    remaining += not _sweep(f"{directory}/{name}")
                elif name.startswith(_RUNNER_PREFIX):
                    os.rmdir(f"{directory}/{name}")  # fails while it has a process (EBUSY)
    return remaining


def _sweep(path: str) -> bool:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _kill_group(path)
        return _try_remove(path)
    finally:
        os.close(lock)


def _make_locked(location: CgroupLocation) -> Group:
    """Make a directory and lock it; tries again if another process removes it before it is locked."""
    for number in range(_TRIES):
        path = f"{location.path}/{_PREFIX}{os.getpid():x}-{time.time_ns():x}-{number}"
        os.mkdir(path, 0o755)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(lock).st_ino:
                return Group(location, path, lock)
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(lock)
    raise OSError(errno.EAGAIN, f"no cgroup stays in {location.path}: another process removes it")


def _move_processes_into_child(location: CgroupLocation) -> None:
    path = f"{location.path}/{_RUNNER_PREFIX}{os.getpid():x}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)
    for _ in range(_TRIES):  # processes may fork meanwhile
        for pid in read_words(f"{location.path}/cgroup.procs"):
            with contextlib.suppress(ProcessLookupError):
                write_file(f"{path}/cgroup.procs", pid)


def _kill_group(path: str) -> None:
    with contextlib.suppress(OSError):
        write_file(f"{path}/cgroup.kill", "1")


def _try_remove(path: str) -> bool:
    for directory in (f"{path}/{_INNER}", path):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
