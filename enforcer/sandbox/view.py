"""What a task sees of the file system: the closed default, as a list of steps.

Shown read-only: the system's directories. Writable: the directory it works in, and empty directories in memory (home,
/tmp, /run, /var, /dev/shm). Everything else of the host isn't there. What must never be written (rules, Exeat's code)
or read (state, the CA key) is covered where it lies inside something shown, and a start that can't cover it is refused
(invariant 8).
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from enforcer.errors import UsageError
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.steps import (
    Bind,
    Cover,
    Directory,
    HideMounts,
    Kernel,
    Link,
    MaskDoors,
    Pin,
    ReadOnly,
    Show,
    Step,
    Sysctl,
    Tmpfs,
)

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/gnu/store")
# A workspace that is one of these, or holds one, would make the system or every credential of a user writable.
_NEVER_WORKSPACE = (*SYSTEM, "/", "/boot", "/dev", "/home", "/proc", "/root", "/run", "/srv", "/sys", "/tmp", "/var")
_OWN = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var")  # a sandbox has these for itself
_CLOSED = ("/dev", "/etc", "/proc", "/run", "/sys")  # nothing more of the host's is shown in these
_NOBODYS = frozenset({"/", "/nonexistent", "/tmp", "/var", "/var/empty"})  # homes of accounts that have none
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_PROC_READ_ONLY = ("sys", "bus", "fs", "irq", "sysrq-trigger", "acpi", "scsi")
_PROC_HIDDEN = (
    "kcore",
    "keys",
    "key-users",
    "timer_list",
    "sched_debug",
    "kallsyms",
    "kmsg",
    "kpagecount",
    "kpageflags",
)
# Where people and programs keep credentials, relative to a home (bubblewrap, firejail and sandbox-runtime lists).
CREDENTIALS = (
    ".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker", ".netrc", ".pgpass", ".my.cnf", ".npmrc", ".pypirc",
    ".git-credentials", ".gem/credentials", ".cargo/credentials", ".cargo/credentials.toml", ".vault-token",
    ".terraform.d", ".bash_history", ".zsh_history", ".python_history", ".password-store", ".mozilla", ".thunderbird",
    ".config/gcloud", ".config/gh", ".config/hub", ".config/git/credentials", ".config/google-chrome",
    ".config/chromium", ".config/BraveSoftware", ".config/op", ".config/rclone", ".config/sops",
    ".local/share/keyrings", ".local/share/pki", ".pki",
)  # fmt: skip
# Every place where a distribution keeps its bundle of roots (golang.org/src/crypto/x509/root_linux.go).
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# Where distributions have their JDKs look (ca-certificates-java, update-ca-trust(8)), and where any other is sent.
JAVA_STORES = (
    "/etc/ssl/certs/java/cacerts",
    "/etc/pki/java/cacerts",
    "/etc/pki/ca-trust/extracted/java/cacerts",
)
JAVA_STORE = "/etc/ssl/exeat-java.p12"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a view is made for. Paths are real (no symbolic links) unless they say otherwise."""

    identity: Identity
    workspace: str
    etc: Mapping[str, bytes]  # files of ours, relative to /etc
    read: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()  # rules and places that code is loaded from: never writable
    sealed: tuple[str, ...] = ()  # trees of code: never writable, and no workspace may lie inside one
    secret: tuple[str, ...] = ()  # state: never readable
    trees: Mapping[str, int] = field(default_factory=dict)  # detached mounts, by source, made by who could


def homes() -> frozenset[str]:
    """Every home of this host, as it really lies: of whoever runs this and of every account (passwd(5))."""
    found = {os.environ.get("HOME", ""), os.path.expanduser("~")}
    try:
        with open("/etc/passwd", encoding="utf-8", errors="surrogateescape") as file:
            found.update(fields[5] for line in file if len(fields := line.split(":")) > 5)
    except OSError:
        pass
    real = {os.path.realpath(home) for home in found if os.path.isabs(home)}
    nobodys = (*SYSTEM, "/dev", "/proc", "/run", "/sys")
    return frozenset(home for home in real - _NOBODYS if not any(contains(place, home) for place in nobodys))


def refuse_workspace(workspace: str, home: str) -> None:
    """Raise UsageError for a directory that can't be given to a task."""
    for place in (*_NEVER_WORKSPACE, home, *sorted(homes())):
        if contains(workspace, place):
            raise UsageError(
                f"the directory `{workspace}` cannot be a task's to write: it is or holds `{place}`; "
                "run from a project's own directory, or name one with --workspace"
            )


def to_show(read: tuple[str, ...]) -> list[str]:
    """Leave out what is shown anyhow. Raises UsageError for what a sandbox has for itself, in another form."""
    for path in read:
        for place in (*SYSTEM, *_OWN):
            holds = contains(path, place) and (path != place or place in _OWN or place == "/etc")
            if holds or (place in _CLOSED and contains(place, path)):
                raise UsageError(
                    f"--read: `{path}` cannot be shown as it is on the host: the sandbox has its own `{place}`"
                )
    return [path for path in read if not any(contains(place, path) for place in SYSTEM)]


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies below it."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def shown_in(path: str, shown: Iterable[str]) -> str | None:
    """Return in which of some places a path lies, by its name or by where it leads; None: in none."""
    real = os.path.realpath(path)
    return next((place for place in shown if contains(place, path) or contains(place, real)), None)


def plan(wanted: Wanted) -> tuple[Step, ...]:
    """Make the steps. Raises UsageError when something can't be shown without showing what must stay hidden."""
    refuse_workspace(wanted.workspace, wanted.identity.home)
    read = to_show(wanted.read)
    before = [path for path in read if not contains(wanted.workspace, path)]
    inside = [path for path in read if contains(wanted.workspace, path)]
    return (
        *_system(wanted),
        *_private(wanted.identity),
        *_devices(),
        *_proc(),
        *(Show(path, staged=wanted.trees.get(path)) for path in before),
        Bind(wanted.workspace, wanted.workspace, writable=True, tree=wanted.trees.get(wanted.workspace)),
        HideMounts(wanted.workspace),
        *(Show(path, staged=wanted.trees.get(path)) for path in inside),
        *_covers(wanted),
        MaskDoors(wanted.workspace),
        ReadOnly("/"),
    )


def _system(wanted: Wanted) -> list[Step]:
    steps: list[Step] = []
    for path in SYSTEM:
        if os.path.islink(path):
            steps.append(Link(path, os.readlink(path)))
        elif os.path.isdir(path):
            steps.append(Show(path, wanted.etc if path == "/etc" else {}))
    if os.path.isdir("/etc/exeat"):
        steps.append(Cover("/etc/exeat", hide=True))
    return steps


def _private(identity: Identity) -> list[Step]:
    owner = (0, 0) if not identity.privileged else (identity.uid, identity.gid)
    return [
        Tmpfs("/tmp", 0o1777),
        Tmpfs("/run"),
        Tmpfs("/var"),
        Directory("/var/tmp", 0o1777),
        *(Directory(f"/var/{name}") for name in ("cache", "lib", "log")),
        Link("/var/run", "/run"),
        Directory(f"/run/user/{identity.uid}", 0o700, owner),
        Tmpfs(identity.home, 0o700, owner=owner),
        Directory("/sys"),
    ]


def _devices() -> list[Step]:
    return [
        Tmpfs("/dev"),
        *(Bind(f"/dev/{name}", f"/dev/{name}", writable=True, devices=True) for name in _DEVICES),
        Kernel("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620"),
        Tmpfs("/dev/shm", 0o1777),
        *(
            Link(f"/dev/{name}", to)
            for name, to in (
                ("ptmx", "pts/ptmx"),
                ("fd", "/proc/self/fd"),
                ("stdin", "/proc/self/fd/0"),
                ("stdout", "/proc/self/fd/1"),
                ("stderr", "/proc/self/fd/2"),
            )
        ),
        ReadOnly("/dev"),
    ]


def _proc() -> list[Step]:
    return [
        Kernel("proc", "/proc"),
        # One user namespace below the sandbox's: the task's own. A nested one would hand a task capabilities again.
        Sysctl("user/max_user_namespaces", "1"),
        *(Cover(f"/proc/{name}") for name in _PROC_READ_ONLY if os.path.exists(f"/proc/{name}")),
        *(Cover(f"/proc/{name}", hide=True) for name in _PROC_HIDDEN),
    ]


def _covers(wanted: Wanted) -> list[Step]:
    """Hide what must not be read in anything shown, and make read-only what must not be written in the workspace."""
    hidden, protected = _hidden(wanted), _protected(wanted)
    pins: dict[str, Step] = {}
    for path in (*hidden, *protected):
        if contains(wanted.workspace, path):
            pins.update(_pins(wanted.workspace, path))
    read_only = (Cover(path) for path in protected if path not in hidden)
    return [*pins.values(), *(Cover(path, hide=True) for path in hidden), *read_only]


def _hidden(wanted: Wanted) -> list[str]:
    """State, and the credential places of whoever runs this, as far as they lie in something shown."""
    shown = (wanted.workspace, *(path for path in SYSTEM if not os.path.islink(path)), *wanted.read)
    credentials = {f"{home}/{name}" for home in (wanted.identity.home, *homes()) for name in CREDENTIALS}
    found = set()
    for path in {*wanted.secret, *credentials}:
        for place in shown:
            if contains(path, place):
                raise UsageError(f"`{place}` cannot be shown to a task: it lies in `{path}`, which stays hidden")
            if contains(place, path):
                found.add(path)
    return sorted(found)


def _protected(wanted: Wanted) -> list[str]:
    """Rules and code in the workspace, the outermost tree of each. Raises UsageError where that is all of it."""
    for path in wanted.sealed:
        if contains(path, wanted.workspace):
            raise _code_in_workspace(path)
    _refuse_other_names(wanted)
    inside = sorted({path for path in (*wanted.sealed, *wanted.protect) if contains(wanted.workspace, path)})
    if wanted.workspace in inside:
        raise _code_in_workspace(wanted.workspace)
    return [path for path in inside if not any(tree != path and contains(tree, path) for tree in wanted.sealed)]


def _refuse_other_names(wanted: Wanted) -> None:
    """Raise UsageError for a rule file with a second name, which could lie in the workspace where nothing covers it."""
    device = os.stat(wanted.workspace).st_dev
    for path in wanted.protect:
        status = os.stat(path) if os.path.isfile(path) else None
        if status is not None and status.st_nlink > 1 and status.st_dev == device:
            raise UsageError(
                f"`{path}` has {status.st_nlink - 1} more hard links, through which a task could write it; "
                f"give exeat a copy of its own: `cp {path} {path}.new && mv {path}.new {path}`"
            )


def _code_in_workspace(path: str) -> UsageError:
    return UsageError(
        f"`{path}` holds exeat's own code or rules, so it cannot be a task's to write; "
        "run from another directory, or name one with --workspace"
    )


def _pins(top: str, path: str) -> dict[str, Step]:
    """Every directory strictly between `top` and `path`, outermost first."""
    parts = os.path.relpath(os.path.dirname(path), top).split("/")
    places = ["/".join((top, *parts[: depth + 1])) for depth in range(len(parts))] if parts != ["."] else []
    return {place: Pin(place) for place in places if os.path.isdir(place)}


def java_names(content: bytes) -> dict[str, bytes]:
    """Where Java's trust store stands in /etc: at a place of its own, and over the real files of this host's."""
    real = {os.path.realpath(path) for path in JAVA_STORES}
    places = {JAVA_STORE, *(path for path in real if os.path.isfile(path) and contains("/etc", path))}
    return {os.path.relpath(path, "/etc"): content for path in sorted(places)} if content else {}


def bundle_names(content: bytes, extra: Mapping[str, bytes]) -> dict[str, bytes]:
    """Where the merged bundle stands in /etc: over the real file behind each of this host's bundle paths."""
    names: dict[str, bytes] = {}
    for path in BUNDLES:
        real = os.path.realpath(path)
        if os.path.isfile(real) and contains("/etc", real):
            names[os.path.relpath(real, "/etc")] = content
    if not names:
        names["ssl/certs/ca-certificates.crt"] = content
    return {**names, **extra}
