"""Mount plan of a task: its view of the file system as a list of steps, closed by default.

Shown read-only: the system's directories. Writable: the directory it works in, and empty directories in memory (home,
/tmp, /run, /var, /dev/shm). Everything else of the host isn't there. What must never be written (rules, Exeat's code)
or read (state, the CA key) is masked where it lies inside something shown, and a start that can't mask it is refused
(invariant 8).

A mask lies on the file or directory that is there when it is made, under whatever name that has later; directories
above it are pinned, so that no task can put another in the way of the next start.
"""

import contextlib
import os
import shlex
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from enforcer.limits import resource_limits
from enforcer.sandbox import devices, overlays, system_paths
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.mount_steps import (
    Bind,
    Directory,
    Files,
    HideMounts,
    HideNames,
    Kernel,
    Link,
    Mask,
    MaskSockets,
    Pin,
    ReadOnly,
    Step,
    Sysctl,
    Tmpfs,
)
from enforcer.sandbox.overlays import Review, Show, ShowFile
from enforcer.sandbox.system_paths import (
    SYSTEM,
    ShownPaths,
    contains,
    home_directories,
    outermost,
    real_paths,
    refuse_workspace,
    refuse_write,
)
from enforcer.system.errors import HostError, UsageError
from proxy.certificates.system_bundles import BUNDLES

_OWN_SYSTEM = ("/dev", "/proc")  # a sandbox has these for itself, and there is something in them


def masks(wanted: "MountRequest", read: Collection[str], others: Collection[str]) -> list[Step]:
    """Hide what must not be read in anything shown; make read-only what must not be written. `others`: every home."""
    hidden, protected = _hidden(wanted, read, others), _protected(wanted)
    protected += [path for path in wanted.guarded if not any(contains(other, path) for other in (*hidden, *protected))]
    pins: dict[str, Step] = {}
    for path in (*hidden, *protected):
        for place in wanted.writable:
            if contains(place, path):
                pins.update(_pins(place, path))
    read_only = (Mask(path) for path in protected if path not in hidden)
    return [*pins.values(), *(Mask(path, hide=True) for path in hidden), *read_only]


def _hidden(wanted: "MountRequest", read: Collection[str], others: Collection[str]) -> list[str]:
    """State, credentials of whoever runs this, and what is to be hidden besides, as far as it lies in what is shown."""
    shown = ShownPaths((*wanted.writable, *(path for path in SYSTEM if not os.path.islink(path)), *read, *_OWN_SYSTEM))
    secret = {*wanted.secret, *wanted.hide, *system_paths.credential_paths({wanted.identity.home, *others}, shown)}
    for path in secret:
        if place := shown.one_in(path):
            raise UsageError(f"`{place}` cannot be shown to a task: it lies in `{path}`, which stays hidden")
    return outermost(real_paths(filter(shown.hold, secret)))


def _protected(wanted: "MountRequest") -> list[str]:
    """Rules and code in what may be written, the outermost tree of each. Raises UsageError where that is all of it."""
    _refuse_other_names(wanted)
    found: set[str] = set()
    for place in wanted.writable:
        for path in wanted.sealed:
            if contains(path, place):
                raise _code_within(path)
        inside = {path for path in (*wanted.sealed, *wanted.protect) if contains(place, path)}
        if place in inside:
            raise _code_within(place)
        found |= inside
    return [path for path in sorted(found) if not any(t != path and contains(t, path) for t in wanted.sealed)]


def _refuse_other_names(wanted: "MountRequest") -> None:
    """Raise UsageError for a rule file with a second name, which could lie where a task may write, uncovered."""
    devices = {os.stat(place).st_dev for place in wanted.writable}
    for path in wanted.protect:
        status = os.stat(path) if os.path.isfile(path) else None
        if status is not None and status.st_nlink > 1 and status.st_dev in devices:
            raise UsageError(
                f"`{path}` has {status.st_nlink - 1} more hard links, through which a task could write it; "
                f"give exeat a copy of its own: `cp {path} {path}.new && mv {path}.new {path}`"
            )


def _code_within(path: str) -> UsageError:
    return UsageError(
        f"`{path}` holds exeat's own code or rules, so it cannot be a task's to write; "
        "run from another directory, or name one with --workspace"
    )


def _pins(top: str, path: str) -> dict[str, Step]:
    """Every directory strictly between `top` and `path`, outermost first."""
    parts = os.path.relpath(os.path.dirname(path), top).split("/")
    places = ["/".join((top, *parts[: depth + 1])) for depth in range(len(parts))] if parts != ["."] else []
    return {place: Pin(place) for place in places if os.path.isdir(place)}


_ETC = "/etc"
_OF_ONE = ("hostname", "hosts")  # in it, of one task alone
_OWN = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var")  # a sandbox has these for itself
_CLOSED = ("/dev", "/etc", "/proc", "/run", "/sys")  # nothing more of the host's is shown in these
# Of /proc, only these are shown beside the sandbox's own processes. The rest counts what all of the host does, names
# its hardware, or lists its locks: exact numbers that one sandbox moves and another reads.
_PROC_SHOWN: Final = """
    cmdline config.gz cpuinfo devices filesystems loadavg meminfo mounts net self stat swaps sys sysvipc thread-self tty
    uptime version version_signature
"""
PROC_SHOWN: Final = frozenset(_PROC_SHOWN.split())
# In /proc/sys, what counts instead of setting something. The test of the view looks for others.
_SYS_HIDDEN: Final = (
    *(f"fs/{name}" for name in ("aio-nr", "dentry-state", "file-nr", "inode-nr", "inode-state", "quota")),
    *(f"kernel/{name}" for name in ("hung_task_detect_count", "pty/nr")),
    "sunrpc/transports",
)
_MOST_GROUPS: Final = 4  # of IPv4 multicast, that one socket is in
# Where distributions have their JDKs look (ca-certificates-java, update-ca-trust(8)), and where any other is sent.
JAVA_STORES = (
    "/etc/ssl/certs/java/cacerts",
    "/etc/pki/java/cacerts",
    "/etc/pki/ca-trust/extracted/java/cacerts",
)
JAVA_STORE = "/etc/ssl/exeat-java.p12"
# Of the host's /var, what installed programs can't do without: package managers make it of what packages hold.
SHARED_VAR: Final = (
    "/var/cache/fontconfig",
    "/var/cache/man",
    *(f"/var/lib/{name}" for name in (
        "alternatives", "aspell", "dictionaries-common", "dpkg", "emacsen-common", "gems", "ghc", "ghostscript",
        "ispell", "ocaml", "pacman/local", "rpm", "sgml-base", "tex-common", "texmf", "texlive", "xml-core",
    )),
)  # fmt: skip
_PROCESSORS: Final = "/sys/devices/system/cpu"
_TOPOLOGY: Final = ("core_id", "core_siblings", "physical_package_id", "thread_siblings", "thread_siblings_list")


class CacheMount(NamedTuple):
    """A directory of the host's that a task finds at `target`, in what its sandbox has for itself."""

    source: str  # "": an empty one, of which nothing is kept
    target: str


_NO_TREES: Final[Mapping[str, int]] = MappingProxyType({})


class MountRequest(NamedTuple):
    """What a view is made for. Paths are real (no symbolic links) unless they say otherwise."""

    identity: Identity
    workspace: str
    etc: Mapping[str, bytes]  # files of ours, relative to /etc
    read: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()  # rules and places that code is loaded from: never writable
    sealed: tuple[str, ...] = ()  # trees of code: never writable, and no workspace may lie inside one
    secret: tuple[str, ...] = ()  # state: never readable
    trees: Mapping[str, int] = _NO_TREES  # detached mounts, by source, made by who could
    write: tuple[str, ...] = ()  # beside the workspace
    hide: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()  # hidden wherever they lie: globs of names, one below the other
    kept: tuple[CacheMount, ...] = ()
    review: str = ""  # the directory that changes to the workspace go to, if they don't go there itself
    guarded: tuple[str, ...] = ()  # in the workspace: never writable
    devices: tuple[str, ...] = ()  # of the host's, by name, beside what every task has
    homes: frozenset[str] | None = None  # of this host; None: they are looked for

    @property
    def writable(self) -> tuple[str, ...]:
        """What of the host a task may write."""
        return (self.workspace, *self.write)


def paths_to_show(read: tuple[str, ...]) -> list[str]:
    """Leave out what is shown anyhow. Raises UsageError for what a sandbox has for itself, in another form."""
    for path in read:
        for place in (*SYSTEM, *_OWN):
            holds = contains(path, place) and (path != place or place in _OWN or place == "/etc")
            if holds or (place in _CLOSED and contains(place, path)):
                raise UsageError(
                    f"--read: `{path}` cannot be shown as it is on the host: the sandbox has its own `{place}`"
                )
    return [path for path in read if not any(contains(place, path) for place in SYSTEM)]


def plan(wanted: MountRequest) -> tuple[Step, ...]:
    """Make the steps. Raises UsageError when something can't be shown without showing what must stay hidden."""
    others = home_directories() if wanted.homes is None else wanted.homes
    refuse_workspace(wanted.workspace, wanted.identity.home, others)
    for path in wanted.write:
        refuse_write(path, wanted.identity.home, others)
    read = [path for path in paths_to_show(wanted.read) if path not in wanted.writable]
    _refuse_mounts(wanted)
    return (
        *shared_steps(wanted.identity, wanted.devices),
        *etc_steps(wanted.etc),
        *_shown(wanted, read),
        *_kept(wanted),
        *masks(wanted, read, others),
        *(HideNames(path, wanted.names) for path in (*wanted.writable, *read) if wanted.names and os.path.isdir(path)),
        *(MaskSockets(path) for path in wanted.writable if os.path.isdir(path) and not _is_reviewed(wanted, path)),
        ReadOnly("/"),
    )


def _refuse_mounts(wanted: MountRequest) -> None:
    """Raise UsageError for a file system that lies in what the task writes and isn't shown: it would write below it.

    Shown as it is to an ordinary user's task: that one's mount is cloned with those below it.
    """
    for top in wanted.writable:
        if not (wanted.identity.privileged or _is_reviewed(wanted, top)):
            continue
        known = [path for path in (*wanted.write, *wanted.read, *wanted.hide) if path != top and contains(top, path)]
        for point, kind in overlays.mounts_of_host(top):
            if not any(contains(path, point) for path in known):
                named = shlex.quote(point)
                raise UsageError(
                    f"`{point}` is another file system ({kind}), mounted inside `{top}`: the task would write below it "
                    f"where nobody sees it; say `--write {named}`, `--read {named}` or `--hide {named}`, or unmount it"
                )


def shared_steps(identity: Identity, given: tuple[str, ...] = ()) -> tuple[Step, ...]:
    """Make the steps that every view of this identity begins with: they can be taken before it is known what for.

    Unless it is `given` devices.
    """
    return (*_system(), *_private(identity), *_proc(), *_devices(identity, given))


def _shown(wanted: MountRequest, read: Collection[str]) -> list[Step]:
    """Show what is the host's: each directory before what lies in it and is shown in another way."""
    steps: list[Step] = []
    for path in sorted((*wanted.writable, *read)):
        tree = wanted.trees.get(path)
        if _is_reviewed(wanted, path):
            steps.append(Review(path, wanted.review, tree, wanted.trees.get(wanted.review)))
        elif path in wanted.writable:
            steps.append(Bind(path, path, writable=True, tree=tree))
            steps += [HideMounts(path)] if os.path.isdir(path) else []
        elif os.path.isdir(path):
            steps.append(Show(path, staged=tree, guarded=True))
        else:
            steps.append(ShowFile(path, tree, wanted.trees.get(directory_tree_key(path))))
    return steps


def directory_tree_key(path: str) -> str:
    """Name, among `Wanted.trees`, the mount of the directory that a single file is shown from."""
    return f"{os.path.dirname(path)}/./{os.path.basename(path)}"


def _is_reviewed(wanted: MountRequest, path: str) -> bool:
    """Whether a directory is shown through an overlay, whose sockets, FIFOs and mounts aren't the host's."""
    return bool(wanted.review) and path == wanted.workspace


def _kept(wanted: MountRequest) -> list[Step]:
    """Put directories that are kept, and empty ones in their place, where a sandbox has nothing but its own."""
    identity = wanted.identity
    steps: dict[str, Step] = {}
    for number, kept in enumerate(wanted.kept):
        # What a task left in one cache must have no say in where another comes to lie.
        others = (other.target for other in wanted.kept[:number])
        for place in (*wanted.writable, *wanted.read, *others):
            if contains(place, kept.target) or contains(kept.target, place):
                raise UsageError(f"the cache at `{kept.target}` would stand in the way of `{place}`, shown or kept")
        if contains(identity.home, kept.target):
            parts = os.path.relpath(os.path.dirname(kept.target), identity.home).split("/")
            for depth in range(len(parts) if parts != ["."] else 0):
                above = "/".join((identity.home, *parts[: depth + 1]))
                steps.setdefault(above, Directory(above, 0o755, identity.owner))
        if kept.source:
            steps[kept.target] = Bind(kept.source, kept.target, writable=True, tree=wanted.trees.get(kept.source))
        else:
            steps[kept.target] = Tmpfs(kept.target, 0o700, owner=identity.owner)
    return list(steps.values())


def _system() -> list[Step]:
    steps: list[Step] = []
    for path in SYSTEM:
        if os.path.islink(path):
            steps.append(Link(path, os.readlink(path)))
        elif os.path.isdir(path) and path != _ETC:
            steps.append(Show(path))
    return steps


def etc_steps(own: Mapping[str, bytes]) -> tuple[Step, ...]:
    """Show /etc, with files of the task's own before the host's: what every view goes on with after `shared_steps`."""
    same = {name: content for name, content in own.items() if name not in _OF_ONE}
    of_one = {name: content for name, content in own.items() if name in _OF_ONE}
    steps: list[Step] = [Show(_ETC, same, of_one)] if os.path.isdir(_ETC) else []
    if os.path.isdir("/etc/exeat"):
        steps.append(Mask("/etc/exeat", hide=True))
    return tuple(steps)


def _private(identity: Identity) -> list[Step]:
    return [
        Tmpfs("/tmp", 0o1777),
        Tmpfs("/run"),
        Tmpfs("/var"),
        Directory("/var/tmp", 0o1777),
        *(Directory(f"/var/{name}") for name in ("cache", "lib", "log")),
        Link("/var/run", "/run"),
        Directory(f"/run/user/{identity.uid}", 0o700, identity.owner),
        Tmpfs(identity.home, 0o700, owner=identity.owner),
        Directory("/sys"),
        Files("/sys", _processors()),
        *(Show(path) for path in SHARED_VAR if os.path.isdir(path) and not os.path.islink(path)),
    ]


def _processors() -> dict[str, bytes]:
    """Copy which processors the host has (Documentation/admin-guide/cputopology.rst): lscpu(1) ends without that."""
    found: dict[str, bytes] = {}
    with contextlib.suppress(OSError):
        each = sorted(name for name in os.listdir(_PROCESSORS) if name[:3] == "cpu" and name[3:].isdigit())
        paths = [f"{name}/topology/{kind}" for name in each for kind in _TOPOLOGY]
        for path in ("kernel_max", "online", "possible", "present", *paths):
            with contextlib.suppress(OSError), open(f"{_PROCESSORS}/{path}", "rb", buffering=0) as file:
                found[f"{os.path.relpath(_PROCESSORS, '/sys')}/{path}"] = file.readall()
    return found


def _devices(identity: Identity, given: tuple[str, ...]) -> list[Step]:
    """Make /dev; the host's device nodes are read-only, so that no time stamp of theirs can be set."""
    own: list[Step] = [
        Tmpfs("/dev"),
        *(Bind(f"/dev/{name}", f"/dev/{name}", devices=True) for name in devices.NODES),
        *(Bind(f"/dev/{name}", f"/dev/{name}", devices=True) for name in given),
        *(Link(f"/dev/{name}", to) for name, to in devices.LINKS.items()),
    ]
    whole = devices.Devices(given=given, owner=(identity.kernel_uid, identity.kernel_gid) if given else (0, 0))
    return [
        *([whole] if identity.privileged and devices.can_make() else own),
        Kernel("devpts", "/dev/pts", f"newinstance,ptmxmode=0666,mode=620,max={resource_limits.max_terminals()}"),
        Tmpfs("/dev/shm", 0o1777),
        ReadOnly("/dev"),
    ]


def _proc() -> list[Step]:
    names = _of_kernel()
    if "sys" not in names:  # subset=pid (proc(5)): a sandbox's /proc is another, with all that is to be hidden
        raise HostError("/proc of this process isn't whole", "mount all of it (in a unit: `ProcSubset=all`)")
    return [
        Kernel("proc", "/proc"),
        # One user namespace below the sandbox's: the task's own. A nested one would hand a task capabilities again.
        Sysctl("user/max_user_namespaces", "1"),
        *(Sysctl(name, str(most)) for name, most in resource_limits.namespace_sysctls()),
        # Of each membership the kernel keeps 240 bytes that no cgroup counts; it may be 20 a socket otherwise.
        Sysctl("net/ipv4/igmp_max_memberships", str(_MOST_GROUPS)),
        *(Mask(f"/proc/{name}", hide=True) for name in names if name not in PROC_SHOWN),
        Mask("/proc/sys"),
        *(Mask(f"/proc/sys/{name}", hide=True) for name in _SYS_HIDDEN if os.path.exists(f"/proc/sys/{name}")),
    ]


def _of_kernel() -> list[str]:
    """List what /proc has beside processes. The kernel lists those last: a thousand others cost a start nothing."""
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                break
            names.append(entry.name)
    return sorted(names)


def java_store_files(content: bytes) -> dict[str, bytes]:
    """Where Java's trust store stands in /etc: at a place of its own, and over the real files of this host's."""
    places = {
        JAVA_STORE,
        *(path for path in real_paths(JAVA_STORES) if os.path.isfile(path) and contains("/etc", path)),
    }
    return {os.path.relpath(path, "/etc"): content for path in sorted(places)} if content else {}


def bundle_files(content: bytes, extra: Mapping[str, bytes]) -> dict[str, bytes]:
    """Where the merged bundle stands in /etc: over the real file behind each of this host's bundle paths."""
    names: dict[str, bytes] = {}
    for path in real_paths(BUNDLES):
        if os.path.isfile(path) and contains("/etc", path):
            names[os.path.relpath(path, "/etc")] = content
    if not names:
        names["ssl/certs/ca-certificates.crt"] = content
    return {**names, **extra}
