"""Whether this machine can do all that Exeat needs, found by doing it, and the command that gets what is missing."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from enforcer import linux, userns
from enforcer.sandbox import identity, seccomp, view
from enforcer.sandbox.syscalls import NUMBERS


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried: whether it works, what was seen, and what to do if not. Not all are needed to run."""

    name: str
    works: bool
    seen: str
    remedy: str = ""
    needed: bool = True


def examine() -> list[Finding]:
    """Try everything, each in a process of its own that leaves nothing behind."""
    return [
        _python(),
        _kernel(),
        _machine(),
        *(_tried(name, trial, remedy, needed=needed) for name, trial, remedy, needed in _TRIALS),
        _state(),
        _roots(),
        _memory_of_descriptors(),
    ]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 12), found, "install Python 3.12 or newer, then `make setup`")


def _kernel() -> Finding:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    return Finding("kernel", numbers >= (5, 12), release, "boot Linux 5.12 or newer (mount_setattr, overlays by users)")


def _machine() -> Finding:
    machine = linux.platform_machine()
    known = ", ".join(sorted(NUMBERS))
    return Finding("system call filter", machine in NUMBERS, machine, f"run on one of {known}")


def _state() -> Finding:
    from enforcer.errors import HostError
    from enforcer.state import make_private, state_directory

    try:
        directory = make_private(state_directory())
    except HostError as error:
        return Finding("state directory", works=False, seen=str(error), remedy="set XDG_STATE_HOME to another place")
    room = shutil.disk_usage(directory).free
    seen = f"{directory}, {room >> 20} MiB free"
    return Finding("state directory", room > 64 << 20, seen, "free some room: a full journal stops every connection")


def _roots() -> Finding:
    found = next((path for path in view.BUNDLES if os.path.isfile(path)), "")
    remedy = "install the system's roots: `apt-get install ca-certificates`"
    return Finding("system roots", bool(found), found or "none of the usual bundles", remedy)


def _memory_of_descriptors() -> Finding:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    enough = hard == resource.RLIM_INFINITY or hard >= 8192
    return Finding("open files", enough, seen, "raise the hard limit: `ulimit -Hn 65536`", needed=False)


def _tried(name: str, trial: Callable[[], str], remedy: str, *, needed: bool) -> Finding:
    """Run a trial in a child and read what it says; an exception or a death is a no."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            said = "+" + trial()
        except BaseException as error:  # noqa: BLE001 - it is the answer
            said = "-" + (str(error.strerror or error) if isinstance(error, OSError) else str(error))
        os.write(writer, said.encode("utf-8", "replace")[:1000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode("utf-8", "replace")
    os.waitpid(pid, 0)
    return Finding(name, said.startswith("+"), said[1:] or "the trial ended unexpectedly", remedy, needed)


def _enter_namespaces() -> None:
    uid, gid = os.geteuid(), os.getegid()
    userns.enter_new()
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1\n"), ("gid_map", f"0 {gid} 1\n")):
        with open(f"/proc/self/{file}", "wb", buffering=0) as target:
            target.write(text.encode())
    os.unshare(os.CLONE_NEWNS | os.CLONE_NEWNET | os.CLONE_NEWIPC | os.CLONE_NEWUTS | os.CLONE_NEWCGROUP)


def _try_namespaces() -> str:
    _enter_namespaces()
    return "user, mount, network, ipc, uts, cgroup"


def _try_overlay() -> str:
    from enforcer.sandbox import build
    from enforcer.sandbox.steps import Show

    _enter_namespaces()
    build.enter([Show("/usr")])
    return "made by an ordinary user"


def _try_proc() -> str:
    _enter_namespaces()
    os.unshare(os.CLONE_NEWPID)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.mount("proc", "/proc", "proc")
            os.write(writer, b"+")
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    if os.read(reader, 1) != b"+":
        raise OSError("a fresh /proc cannot be mounted here")
    return "fresh in a new pid namespace"


def _try_network() -> str:
    from enforcer.network.encode import encode
    from enforcer.network.execute import execute
    from enforcer.network.plan import network_plan
    from enforcer.network.sockets import open_gate_sockets

    _enter_namespaces()
    plan = network_plan()
    installed = execute(plan, encode(plan))
    open_gate_sockets(plan.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6).close()
    ipv6 = "IPv4 and IPv6" if installed.ipv6 else "IPv4 only"
    return (
        f"{ipv6}, {'refusals are logged' if installed.refusal_log else 'refusals are counted, not logged (no NFLOG)'}"
    )


def _try_idmap() -> str:
    from enforcer.sandbox import idmap

    if not identity.is_privileged():
        return "not needed: not run by root"
    os.close(idmap.tree(os.getcwd(), identity.FIRST_ID, identity.FIRST_ID))
    return f"works for {os.getcwd()}"


def _try_seccomp() -> str:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.load_seccomp(seccomp.assemble(seccomp.TASK, linux.platform_machine()))
    try:
        os.unshare(os.CLONE_NEWUSER)
    except PermissionError:
        return "refuses what it should"
    raise OSError("the filter was loaded and refuses nothing")


_TRIALS: tuple[tuple[str, Callable[[], str], str, bool], ...] = (
    ("namespaces", _try_namespaces, userns.remedy(), True),
    ("overlay", _try_overlay, "load it: `modprobe overlay` as root; Linux 5.11 or newer lets users mount it", True),
    ("proc", _try_proc, "in a container, unmask /proc (`--security-opt unmask=ALL`)", True),
    ("network", _try_network, "load nf_tables and nft_tproxy: `modprobe nft_tproxy` as root", True),
    ("seccomp", _try_seccomp, "boot a kernel with CONFIG_SECCOMP_FILTER", True),
    ("id-mapped mounts", _try_idmap, "as root, work on ext4, xfs, btrfs or tmpfs; or run as an ordinary user", False),
)
