"""Cgroups of tasks: where one can be made, and making, reading and removing it.

This process's place in each hierarchy is read anew for each task: another program (systemd, a container's engine) may
move it at any time (cgroups(7)).

In version 1 a group is made below our own. In version 2 a group with processes in it has no controllers to give to
groups below it ("no internal processes"). So the group is made in the nearest group above that may give what is wanted
and lets us write: a slice that was delegated to its user, a container's own root, or the host's as root. The limits of
the groups left behind on the way up are taken along, so that nothing is gained by it. Two kinds of group need no way
up, because their processes can step aside into a part of them: one with no process but ours, and one that systemd has
marked as delegated (a service or scope with `Delegate=yes`).

The process that made a group holds a lock on its directory (flock(2)) for as long as it lives. A group without a lock
is left over from a run that was killed; the next run removes it, or the service that runs are forked from, so that not
each of many looks through the groups of all others. Unlike a process id in its name, a lock can't be mistaken for
another process's, and is seen from other pid namespaces.

In version 2 the task's processes are in a group inside the one that is made. The outer group hands its controllers
down, which keeps them: a controller can't be taken from a group while a group below it uses it (cgroups(7)), so no
service manager that tidies up its slices can lift the limits.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple


def put(path: str, text: str) -> None:
    """Write a file of the kernel's in one go. Raises OSError that names it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"write `{text}` to {path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(descriptor)


def get(path: str) -> str:
    """Read one; nothing where there is none, or none for us."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall().decode("ascii", "replace")
    except OSError:
        return ""


def words(path: str) -> frozenset[str]:
    """Read one that is a list of words."""
    return frozenset(get(path).split())


def numbers(path: str) -> dict[str, int]:
    """Read one of lines like `oom_kill 3`; lines of another form are passed over."""
    found = {}
    for line in get(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found


def whole(path: str) -> int | None:
    """Read one that is a number; None for `max`, for -1, and where there is none."""
    text = get(path).strip()
    return int(text) if text.isdigit() else None


V2 = 2
_ESCAPE = r"\\([0-7]{3})"


class Hierarchy(NamedTuple):
    """A tree of groups. Paths are directories: where it is mounted, and the group that this process is in."""

    version: int
    controllers: frozenset[str]  # of version 2: those that could be had anywhere in it
    top: str
    own: str


def hierarchies() -> list[Hierarchy]:
    """Return those that this process can see itself in: none of a kernel without cgroups."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = file.read()
    except FileNotFoundError:
        return []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line for line in file if " - cgroup" in line]
    return list(placed(groups, mounts))


def placed(groups: str, mounts: list[str]) -> Iterator[Hierarchy]:
    """Find the directory of each group of /proc/self/cgroup among lines of mountinfo; once for each hierarchy."""
    parsed = [_mount(line) for line in mounts]
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        names = frozenset(controllers.split(",")) - {""}
        for root, top, version, options in parsed:
            if version == V2 if not names else (version == 1 and names <= options):
                inside = _below(root, path)
                if inside is not None:
                    yield Hierarchy(version, names or _offered(top), top, top + inside)
                    break


def _mount(line: str) -> tuple[str, str, int, frozenset[str]]:
    """Root, mount point, version and options of one line of mountinfo (proc_pid_mountinfo(5))."""
    before, _, after = line.partition(" - ")
    fields, (kind, *rest) = before.split(), after.split()
    root, top = (_unescaped(field) for field in fields[3:5])
    return root, top.rstrip("/"), V2 if kind == "cgroup2" else 1, frozenset(rest[-1].split(","))


def _unescaped(field: str) -> str:
    return re.sub(_ESCAPE, lambda match: chr(int(match[1], 8)), field) if "\\" in field else field


def _below(root: str, path: str) -> str | None:
    """Return where `path` lies below a mount whose root is `root`; None: it shows another part of the tree."""
    if path.startswith("/.."):  # outside of our cgroup namespace
        return None
    if root == "/":
        return path.rstrip("/")
    return path.removeprefix(root) if path == root or path.startswith(root + "/") else None


def _offered(top: str) -> frozenset[str]:
    return words(f"{top}/cgroup.controllers")


CONTROLLERS = frozenset({"memory", "pids", "cpu"})


class Ceiling(NamedTuple):
    """What the groups that a task's isn't made in would have let it take. None: they don't say."""

    memory: int | None = None  # bytes
    processes: int | None = None
    cpu: float | None = None  # cores


NO_CEILING = Ceiling()


class Place(NamedTuple):
    """A directory that a group can be made in, and the controllers that it would have."""

    version: int
    path: str
    controllers: frozenset[str]
    ceiling: Ceiling = NO_CEILING
    aside: bool = False  # whether who is in it has to go into a group below it first


def places(found: list[Hierarchy], needed: frozenset[str] = CONTROLLERS) -> list[Place]:
    """Choose a place in each hierarchy that has something for us, version 2 first; a controller is only in one.

    `needed` are the controllers that are worth going further up for.
    """
    chosen: list[Place] = []
    for hierarchy in sorted(found, key=lambda hierarchy: -hierarchy.version):
        place = _in_v2(hierarchy, needed) if hierarchy.version == V2 else _in_v1(hierarchy)
        if place is not None:
            chosen.append(place)
    return chosen


def _in_v1(hierarchy: Hierarchy) -> Place | None:
    useful = hierarchy.controllers & CONTROLLERS
    return Place(1, hierarchy.own, useful) if useful and _may_make(hierarchy.own) else None


def _in_v2(hierarchy: Hierarchy, needed: frozenset[str]) -> Place | None:
    """Return the one with the most of them, of several the nearest. One without any can still be killed whole."""
    best: Place | None = None
    passed: list[str] = []
    for path in _upwards(hierarchy):
        if not _may_make(path):
            break  # nor may we move a process across it
        aside = path == hierarchy.own and not _is_root(path) and (_is_delegated(path) or _only_ours(path))
        given = words(f"{path}/cgroup.subtree_control") & CONTROLLERS
        useful = given | (words(f"{path}/cgroup.controllers") & needed if aside or _can_give(path) else frozenset())
        if best is None or len(useful & needed) > len(best.controllers & needed):
            best = Place(V2, path, useful, _ceiling(passed), aside)
        passed.append(path)
    return best


def _upwards(hierarchy: Hierarchy) -> list[str]:
    below = hierarchy.own[len(hierarchy.top) :].split("/")[1:]
    return ["/".join((hierarchy.top, *below[:depth])) for depth in range(len(below), -1, -1)]


def _may_make(path: str) -> bool:
    """Whether we may make a group there and move processes into it, which takes its own `cgroup.procs` (cgroups(7))."""
    return os.access(path, os.W_OK | os.X_OK) and os.access(f"{path}/cgroup.procs", os.W_OK)


def _can_give(path: str) -> bool:
    """Whether groups below `path` have controllers, or could be given those that it has."""
    given = words(f"{path}/cgroup.subtree_control")
    return bool(given) or _is_root(path) or not words(f"{path}/cgroup.procs")


def _is_delegated(path: str) -> bool:
    """Whether systemd leaves what is below to us (systemd.io/CGROUP_DELEGATION, from version 251 on)."""
    try:
        return os.getxattr(path, "user.delegate") == b"1"
    except OSError:
        return False


def _only_ours(path: str) -> bool:
    """Whether nobody is in a group but this process and its children."""
    found = map(int, words(f"{path}/cgroup.procs"))
    return all(pid == os.getpid() or _parent(pid) == os.getpid() for pid in found)


def _parent(pid: int) -> int:
    fields = get(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def _is_root(path: str) -> bool:
    """Whether it is the root of the whole hierarchy, which may have processes and controllers (cgroups(7))."""
    return not os.path.exists(f"{path}/cgroup.type")


def give(path: str, controllers: frozenset[str]) -> None:
    """Let groups below `path` have these controllers. Raises OSError."""
    for name in sorted(controllers - words(f"{path}/cgroup.subtree_control")):
        put(f"{path}/cgroup.subtree_control", f"+{name}")


def _ceiling(passed: list[str]) -> Ceiling:
    return Ceiling(
        least(whole(f"{path}/memory.max") for path in passed),
        least(whole(f"{path}/pids.max") for path in passed),
        least(_cores(get(f"{path}/cpu.max")) for path in passed),
    )


def _cores(text: str) -> float | None:
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def least[T: (int, float)](values: Iterable[T | None]) -> T | None:
    """Return the lowest of some limits; None: there is none."""
    return min((value for value in values if value is not None), default=None)


# No name that a service manager gives: those end in `.service`, `.scope` or `.slice`.
_PREFIX, _ASIDE = "exeat-task-", "exeat-runner-"
_NAME = _PREFIX + "[0-9a-f]+-[0-9a-f]+-[0-9]+"
_INNER = "task"
_TRIES = 16
_PATIENCE, _PAUSE = 2.0, 0.005  # seconds: killed processes take a moment to be gone
_MICRO, _NANO = 1e-6, 1e-9
_BATCH = 1 << 20  # bytes, more than what a kernel charges a group ahead for
_looked_after: Final[set[str]] = set()  # where a process that we were forked from sweeps


class Counts(NamedTuple):
    """What the kernel says a group has come up against so far."""

    killed: int = 0  # processes, for want of memory
    full: int = 0  # above 0: its own memory has been all in use
    refused: int = 0  # processes and threads that could not be made
    held_back: float = 0.0  # seconds without a processor that its quota had no more of


class Group(NamedTuple):
    """A group that exists. `path` is what is locked and taken away, `inner` where processes and limits are."""

    place: Place
    path: str
    lock: int

    @property
    def inner(self) -> str:
        """Return the directory of the group that holds the processes."""
        return f"{self.path}/{_INNER}" if self.place.version == V2 else self.path

    def limit(self, values: Mapping[str, str], optional: Mapping[str, str]) -> None:
        """Write files of limits; the optional ones only where the kernel has them. Raises OSError."""
        for name, value in values.items():
            put(f"{self.inner}/{name}", value)
        for name, value in optional.items():
            with contextlib.suppress(OSError):
                put(f"{self.inner}/{name}", value)

    def admit(self, pid: int) -> None:
        """Move a process in; what it forks from then on is in it too. Raises OSError."""
        put(f"{self.inner}/cgroup.procs", str(pid))

    def counts(self) -> Counts:
        """Read what it has come up against, and no file but those: they are read every few seconds."""
        has = self.place.controllers
        cpu = numbers(f"{self.inner}/cpu.stat") if "cpu" in has else {}
        refused = numbers(f"{self.inner}/pids.events").get("max", 0) if "pids" in has else 0
        if self.place.version == V2:
            memory = numbers(f"{self.inner}/memory.events") if "memory" in has else {}
            held = cpu.get("throttled_usec", 0) * _MICRO
            return Counts(memory.get("oom_kill", 0), memory.get("max", 0), refused, held)
        killed = numbers(f"{self.inner}/memory.oom_control").get("oom_kill", 0) if "memory" in has else 0
        return Counts(killed, int(killed > 0 and self._is_full()), refused, cpu.get("throttled_time", 0) * _NANO)

    def _is_full(self) -> bool:
        """Whether its own memory has been all in use: not by `memory.failcnt`, newer kernels count there for root's."""
        most, limit = (whole(f"{self.inner}/memory.{name}_in_bytes") for name in ("max_usage", "limit"))
        return most is not None and limit is not None and most + _BATCH >= limit

    def kill(self) -> None:
        """Kill whatever is in it, where the kernel can (cgroup.kill, Linux 5.14)."""
        _kill(self.path)

    def remove(self) -> None:
        """Take it away once its processes are gone. What can't go in time is left to the next run. Idempotent."""
        deadline = time.monotonic() + _PATIENCE
        while not _removed(self.path) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        with contextlib.suppress(OSError):
            os.close(self.lock)


def make(place: Place) -> Group:
    """Make a group there, after taking away what dead runs have left. Raises OSError."""
    if place.aside:
        _step_aside(place)
    if place.path not in _looked_after:
        sweep(place.path)
    if place.version == V2:
        give(place.path, place.controllers)
    group = _locked(place)
    try:
        if place.version == V2:
            give(group.path, place.controllers)
            os.mkdir(group.inner, 0o755)
    except OSError:
        group.remove()
        raise
    return group


def look_after(directories: Iterable[str]) -> None:
    """Have processes that are forked from this one leave it to this one to `sweep` there."""
    _looked_after.update(directories)


def sweep(directory: str) -> int:
    """Take away the groups of runs that are dead: those that nobody has locked. Returns how many have to stay yet."""
    left = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                if name.startswith(_PREFIX) and re.fullmatch(_NAME, name):
                    left += not _swept(f"{directory}/{name}")
                elif name.startswith(_ASIDE):
                    os.rmdir(f"{directory}/{name}")  # one with a process in it stays (EBUSY)
    return left


def _swept(path: str) -> bool:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _kill(path)
        return _removed(path)
    finally:
        os.close(lock)


def _locked(place: Place) -> Group:
    """Make a directory and lock it. Somebody who sweeps may come between: then another one."""
    for number in range(_TRIES):
        path = f"{place.path}/{_PREFIX}{os.getpid():x}-{time.time_ns():x}-{number}"
        os.mkdir(path, 0o755)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(lock).st_ino:
                return Group(place, path, lock)
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(lock)
    raise OSError(errno.EAGAIN, f"no group could be kept in {place.path}: others remove it")


def _step_aside(place: Place) -> None:
    path = f"{place.path}/{_ASIDE}{os.getpid():x}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)
    for _ in range(_TRIES):  # some may fork meanwhile
        for pid in words(f"{place.path}/cgroup.procs"):
            with contextlib.suppress(ProcessLookupError):
                put(f"{path}/cgroup.procs", pid)


def _kill(path: str) -> None:
    with contextlib.suppress(OSError):
        put(f"{path}/cgroup.kill", "1")


def _removed(path: str) -> bool:
    for each in (f"{path}/{_INNER}", path):
        try:
            os.rmdir(each)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
