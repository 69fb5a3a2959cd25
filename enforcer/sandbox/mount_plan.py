"""Mount plan of a task: the steps that make its file system view, closed by default.

Shown read-only: the system's directories. Writable: the workspace, and empty directories in memory (home, /tmp, /run,
/var, /dev/shm). Nothing else of the host is visible. What must never be written (rules, Exeat's code) or read (state,
the CA key) is masked where it lies inside something shown; a start that can't mask it fails (invariant 8).

A mask covers the file or directory that exists when it is made, whatever its later name. The directories above it are
pinned, so that no task can replace one before the next start.
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

_SANDBOX_SYSTEM = ("/dev", "/proc")  # the sandbox's own, and not empty


def masks(request: "MountRequest", read: Collection[str], homes: Collection[str]) -> list[Step]:
    """Return steps that hide what must not be read, and make read-only what must not be written.

    `homes`: every home.
    """
    hidden, protected = _paths_to_hide(request, read, homes), _paths_to_protect(request)
    protected += [
        path for path in request.guarded if not any(contains(covering, path) for covering in (*hidden, *protected))
    ]
    pins: dict[str, Step] = {}
    for path in (*hidden, *protected):
        for writable in request.writable:
            if contains(writable, path):
                pins.update(_pins(writable, path))
    read_only = (Mask(path) for path in protected if path not in hidden)
    return [*pins.values(), *(Mask(path, hide=True) for path in hidden), *read_only]


def _paths_to_hide(request: "MountRequest", read: Collection[str], homes: Collection[str]) -> list[str]:
    """Return state, credentials and `hide` paths that lie in something shown. Raises UsageError if one contains it."""
    shown = ShownPaths(
        (*request.writable, *(path for path in SYSTEM if not os.path.islink(path)), *read, *_SANDBOX_SYSTEM)
    )
    secret = {*request.secret, *request.hide, *system_paths.credential_paths({request.identity.home, *homes}, shown)}
    for path in secret:
        if shown_path := shown.find_inside(path):
            raise UsageError(f"`{shown_path}` cannot be shown to a task: it lies in `{path}`, which stays hidden")
    return outermost(real_paths(filter(shown.contains_path, secret)))


def _paths_to_protect(request: "MountRequest") -> list[str]:
    """Return rule files and code in writable directories, the outermost tree of each. Raises UsageError."""
    _refuse_hard_links(request)
    paths: set[str] = set()
    for writable in request.writable:
        for path in request.sealed:
            if contains(path, writable):
                raise _contains_code_error(path)
        protected = {path for path in (*request.sealed, *request.protect) if contains(writable, path)}
        if writable in protected:
            raise _contains_code_error(writable)
        paths |= protected
    return [path for path in sorted(paths) if not any(t != path and contains(t, path) for t in request.sealed)]


def _refuse_hard_links(request: "MountRequest") -> None:
    """Raise UsageError for a rule file with a hard link, which could lie unmasked where the task may write."""
    devices = {os.stat(path_of_task).st_dev for path_of_task in request.writable}
    for path in request.protect:
        status = os.stat(path) if os.path.isfile(path) else None
        if status is not None and status.st_nlink > 1 and status.st_dev in devices:
            raise UsageError(
                f"`{path}` has {status.st_nlink - 1} more hard links, through which a task could write it; "
                f"give exeat a copy of its own: `cp {path} {path}.new && mv {path}.new {path}`"
            )


def _contains_code_error(path: str) -> UsageError:
    return UsageError(
        f"a task cannot write to `{path}`: it holds exeat's own code or rules; "
        "run from another directory, or name one with --workspace"
    )


def _pins(top: str, path: str) -> dict[str, Step]:
    """Return a pin for every directory strictly between `top` and `path`, outermost first."""
    components = os.path.relpath(os.path.dirname(path), top).split("/")
    directories = (
        ["/".join((top, *components[: depth + 1])) for depth in range(len(components))] if components != ["."] else []
    )
    return {directory: Pin(directory) for directory in directories if os.path.isdir(directory)}


_ETC = "/etc"
_PER_TASK_FILES = ("hostname", "hosts")  # files in it that differ between tasks
_SANDBOX_DIRECTORIES = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var")  # the sandbox's own
_NO_SHOWN_PATHS = ("/dev", "/etc", "/proc", "/run", "/sys")  # no other path of the host can be shown inside these
# Shown in /proc beside the sandbox's processes. The rest counts the whole host's activity, names its hardware, or lists
# its locks: exact numbers that one sandbox changes and another reads, which makes a channel.
_PROC_SHOWN: Final = """
    cmdline config.gz cpuinfo devices filesystems loadavg meminfo mounts net self stat swaps sys sysvipc thread-self tty
    uptime version version_signature
"""
PROC_SHOWN: Final = frozenset(_PROC_SHOWN.split())
# Counters in /proc/sys. A test of the mount plan looks for new ones.
_SYS_HIDDEN: Final = (
    *(f"fs/{name}" for name in ("aio-nr", "dentry-state", "file-nr", "inode-nr", "inode-state", "quota")),
    *(f"kernel/{name}" for name in ("hung_task_detect_count", "pty/nr")),
    "sunrpc/transports",
)
_MAX_MULTICAST_GROUPS: Final = 4  # IPv4 multicast groups of one socket
# Trust stores of distributions' JDKs (ca-certificates-java, update-ca-trust(8)), and the one for every other JDK.
JAVA_STORES = (
    "/etc/ssl/certs/java/cacerts",
    "/etc/pki/java/cacerts",
    "/etc/pki/ca-trust/extracted/java/cacerts",
)
JAVA_STORE = "/etc/ssl/exeat-java.p12"
# Directories of the host's /var that installed programs need: package managers generate them from packages.
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
    """A host directory that the task finds at `target`, in a part of the tree that is the sandbox's own."""

    source: str  # "": an empty directory that isn't kept
    target: str


_NO_TREES: Final[Mapping[str, int]] = MappingProxyType({})


class MountRequest(NamedTuple):
    """The input of a mount plan. Paths are real (no symbolic links) unless noted."""

    identity: Identity
    workspace: str
    etc: Mapping[str, bytes]  # the sandbox's own files, relative to /etc
    read: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()  # rules and places that code is loaded from: never writable
    sealed: tuple[str, ...] = ()  # trees of code: never writable, and no workspace may lie inside one
    secret: tuple[str, ...] = ()  # state: never readable
    trees: Mapping[str, int] = _NO_TREES  # detached mounts, by source, that the runner made with more rights
    write: tuple[str, ...] = ()  # beside the workspace
    hide: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()  # hidden everywhere: globs of names, one below the other
    caches: tuple[CacheMount, ...] = ()
    review: str = ""  # the directory for reviewed changes; empty: the task writes the workspace itself
    guarded: tuple[str, ...] = ()  # in the workspace: never writable
    devices: tuple[str, ...] = ()  # names of further host devices
    homes: frozenset[str] | None = None  # home directories of this host; None: look them up

    @property
    def writable(self) -> tuple[str, ...]:
        """The host paths that the task may write."""
        return (self.workspace, *self.write)


def paths_to_show(read: tuple[str, ...]) -> list[str]:
    """Return `read` without paths that every sandbox shows.

    Raises UsageError for one that the sandbox has as its own.
    """
    for path in read:
        for sandbox_path in (*SYSTEM, *_SANDBOX_DIRECTORIES):
            covers = contains(path, sandbox_path) and (
                path != sandbox_path or sandbox_path in _SANDBOX_DIRECTORIES or sandbox_path == "/etc"
            )
            if covers or (sandbox_path in _NO_SHOWN_PATHS and contains(sandbox_path, path)):
                raise UsageError(
                    f"--read: `{path}` cannot be shown as it is on the host: the sandbox has its own `{sandbox_path}`"
                )
    return [path for path in read if not any(contains(sandbox_path, path) for sandbox_path in SYSTEM)]


def plan(request: MountRequest) -> tuple[Step, ...]:
    """Return the mount steps of a sandbox.

    Raises UsageError when a path can't be shown without what must stay hidden.
    """
    homes = home_directories() if request.homes is None else request.homes
    refuse_workspace(request.workspace, request.identity.home, homes)
    for path in request.write:
        refuse_write(path, request.identity.home, homes)
    read = [path for path in paths_to_show(request.read) if path not in request.writable]
    _refuse_mounts(request)
    return (
        *shared_steps(request.identity, request.devices),
        *etc_steps(request.etc),
        *_show_steps(request, read),
        *_cache_steps(request),
        *masks(request, read, homes),
        *(
            HideNames(path, request.names)
            for path in (*request.writable, *read)
            if request.names and os.path.isdir(path)
        ),
        *(MaskSockets(path) for path in request.writable if os.path.isdir(path) and not _is_reviewed(request, path)),
        ReadOnly("/"),
    )


def _refuse_mounts(request: MountRequest) -> None:
    """Raise UsageError for another file system inside a writable path, unless rules or options name it.

    An ordinary user's task gets the mount as it is: its clone includes the mounts below.
    """
    for top in request.writable:
        if not (request.identity.privileged or _is_reviewed(request, top)):
            continue
        named_paths = [
            path for path in (*request.write, *request.read, *request.hide) if path != top and contains(top, path)
        ]
        for point, kind in overlays.mounts_of_host(top):
            if not any(contains(path, point) for path in named_paths):
                quoted = shlex.quote(point)
                raise UsageError(
                    f"`{point}` is another file system ({kind}), mounted inside `{top}`: the task would write below "
                    f"that mount, where it isn't visible; use `--write {quoted}`, `--read {quoted}` or "
                    f"`--hide {quoted}`, or unmount it"
                )


def shared_steps(identity: Identity, extra_devices: tuple[str, ...] = ()) -> tuple[Step, ...]:
    """Return the steps that every mount plan of this identity begins with, so they can be executed in advance.

    `extra_devices`: names of host devices.
    """
    return (*_system_steps(), *_private_steps(identity), *_proc_steps(), *_device_steps(identity, extra_devices))


def _show_steps(request: MountRequest, read: Collection[str]) -> list[Step]:
    """Return the steps that show host paths, each directory before those inside it."""
    steps: list[Step] = []
    for path in sorted((*request.writable, *read)):
        tree = request.trees.get(path)
        if _is_reviewed(request, path):
            steps.append(Review(path, request.review, tree, request.trees.get(request.review)))
        elif path in request.writable:
            steps.append(Bind(path, path, writable=True, tree=tree))
            steps += [HideMounts(path)] if os.path.isdir(path) else []
        elif os.path.isdir(path):
            steps.append(Show(path, staged=tree, guarded=True))
        else:
            steps.append(ShowFile(path, tree, request.trees.get(directory_tree_key(path))))
    return steps


def directory_tree_key(path: str) -> str:
    """Return the key in `MountRequest.trees` for the mount of a single file's directory."""
    return f"{os.path.dirname(path)}/./{os.path.basename(path)}"


def _is_reviewed(request: MountRequest, path: str) -> bool:
    """Whether a directory is shown through a writable overlay, whose sockets, FIFOs and mounts aren't the host's."""
    return bool(request.review) and path == request.workspace


def _cache_steps(request: MountRequest) -> list[Step]:
    """Return the steps that mount caches, or empty directories in their place."""
    identity = request.identity
    steps: dict[str, Step] = {}
    for number, cache in enumerate(request.caches):
        # A task may have put links into one cache: no other cache may be mounted through it.
        earlier = (earlier_cache.target for earlier_cache in request.caches[:number])
        for used_path in (*request.writable, *request.read, *earlier):
            if contains(used_path, cache.target) or contains(cache.target, used_path):
                raise UsageError(
                    f"the cache at `{cache.target}` overlaps `{used_path}`, which the task is shown or "
                    "another cache uses; change its path"
                )
        if contains(identity.home, cache.target):
            parts = os.path.relpath(os.path.dirname(cache.target), identity.home).split("/")
            for depth in range(len(parts) if parts != ["."] else 0):
                parent = "/".join((identity.home, *parts[: depth + 1]))
                steps.setdefault(parent, Directory(parent, 0o755, identity.owner))
        if cache.source:
            steps[cache.target] = Bind(cache.source, cache.target, writable=True, tree=request.trees.get(cache.source))
        else:
            steps[cache.target] = Tmpfs(cache.target, 0o700, owner=identity.owner)
    return list(steps.values())


def _system_steps() -> list[Step]:
    steps: list[Step] = []
    for path in SYSTEM:
        if os.path.islink(path):
            steps.append(Link(path, os.readlink(path)))
        elif os.path.isdir(path) and path != _ETC:
            steps.append(Show(path))
    return steps


def etc_steps(files: Mapping[str, bytes]) -> tuple[Step, ...]:
    """Return the steps that show /etc, with the task's own files above the host's; they follow `shared_steps`."""
    shared = {name: content for name, content in files.items() if name not in _PER_TASK_FILES}
    per_task = {name: content for name, content in files.items() if name in _PER_TASK_FILES}
    steps: list[Step] = [Show(_ETC, shared, per_task)] if os.path.isdir(_ETC) else []
    if os.path.isdir("/etc/exeat"):
        steps.append(Mask("/etc/exeat", hide=True))
    return tuple(steps)


def _private_steps(identity: Identity) -> list[Step]:
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
    """Copy the host's processor topology (Documentation/admin-guide/cputopology.rst): lscpu(1) fails without it."""
    files: dict[str, bytes] = {}
    with contextlib.suppress(OSError):
        processors = sorted(name for name in os.listdir(_PROCESSORS) if name[:3] == "cpu" and name[3:].isdigit())
        paths = [f"{name}/topology/{kind}" for name in processors for kind in _TOPOLOGY]
        for path in ("kernel_max", "online", "possible", "present", *paths):
            with contextlib.suppress(OSError), open(f"{_PROCESSORS}/{path}", "rb", buffering=0) as file:
                files[f"{os.path.relpath(_PROCESSORS, '/sys')}/{path}"] = file.readall()
    return files


def _device_steps(identity: Identity, extra_devices: tuple[str, ...]) -> list[Step]:
    """Return the steps that make /dev; host device nodes are read-only, so that their time stamps stay."""
    bind_steps: list[Step] = [
        Tmpfs("/dev"),
        *(Bind(f"/dev/{name}", f"/dev/{name}", devices=True) for name in devices.NODES),
        *(Bind(f"/dev/{name}", f"/dev/{name}", devices=True) for name in extra_devices),
        *(Link(f"/dev/{name}", to) for name, to in devices.LINKS.items()),
    ]
    own_tmpfs = devices.Devices(
        extra_devices=extra_devices, owner=(identity.kernel_uid, identity.kernel_gid) if extra_devices else (0, 0)
    )
    return [
        *([own_tmpfs] if identity.privileged and devices.can_make() else bind_steps),
        Kernel("devpts", "/dev/pts", f"newinstance,ptmxmode=0666,mode=620,max={resource_limits.max_terminals()}"),
        Tmpfs("/dev/shm", 0o1777),
        ReadOnly("/dev"),
    ]


def _proc_steps() -> list[Step]:
    names = _kernel_proc_names()
    if "sys" not in names:  # subset=pid (proc(5)): a sandbox's /proc is another, with all that is to be hidden
        raise HostError(
            "/proc of this process shows only processes (`subset=pid`)", "mount all of it (in a unit: `ProcSubset=all`)"
        )
    return [
        Kernel("proc", "/proc"),
        # One user namespace below the sandbox's: the task's own. A nested one would give the task capabilities again.
        Sysctl("user/max_user_namespaces", "1"),
        *(Sysctl(name, str(value)) for name, value in resource_limits.namespace_sysctls()),
        # The kernel keeps 240 bytes of each membership that no cgroup counts; the default is 20 a socket.
        Sysctl("net/ipv4/igmp_max_memberships", str(_MAX_MULTICAST_GROUPS)),
        *(Mask(f"/proc/{name}", hide=True) for name in names if name not in PROC_SHOWN),
        Mask("/proc/sys"),
        *(Mask(f"/proc/sys/{name}", hide=True) for name in _SYS_HIDDEN if os.path.exists(f"/proc/sys/{name}")),
    ]


def _kernel_proc_names() -> list[str]:
    """Return the names in /proc except processes. The kernel lists them first, so the scan stops early."""
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                break
            names.append(entry.name)
    return sorted(names)


def java_store_files(content: bytes) -> dict[str, bytes]:
    """Return Java's trust store as files of /etc: at our own path, and in place of the host's real files."""
    paths = {
        JAVA_STORE,
        *(path for path in real_paths(JAVA_STORES) if os.path.isfile(path) and contains("/etc", path)),
    }
    return {os.path.relpath(path, "/etc"): content for path in sorted(paths)} if content else {}


def bundle_files(content: bytes, extra: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the merged bundle as files of /etc: in place of the real file of each bundle path of this host."""
    names: dict[str, bytes] = {}
    for path in real_paths(BUNDLES):
        if os.path.isfile(path) and contains("/etc", path):
            names[os.path.relpath(path, "/etc")] = content
    if not names:
        names["ssl/certs/ca-certificates.crt"] = content
    return {**names, **extra}
