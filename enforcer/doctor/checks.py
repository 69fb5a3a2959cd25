"""Whether this machine can do all that Exeat needs, found by doing it, and the command that gets what is missing."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from enforcer.policy import rule_files, run_request
from enforcer.policy.rule_files import SYSTEM
from enforcer.sandbox import identity, mount_plan, seccomp
from enforcer.sandbox.identity import enter_own_user_namespace, namespace_remedy
from enforcer.sandbox.mount_steps import UNMASK
from enforcer.sandbox.system_calls import NUMBERS
from enforcer.system import linux
from enforcer.system.errors import HostError
from enforcer.system.state import cache_directory, journal_directory, make_private, state_directory
from proxy.wire import strict_json

_LEAST_ROOM = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried: whether it works, what was seen, and what to do if not. Not all are needed to run."""

    name: str
    works: bool
    seen: str
    remedy: str = ""
    needed: bool = True
    tried: bool = True  # else something that it needs doesn't work


@dataclass(frozen=True, slots=True)
class _Trial:
    """Something to try, what to do when it fails without saying what, and what is to work before it is tried."""

    name: str
    attempt: Callable[[], str]  # returns what was seen, or raises
    remedy: str
    needed: bool = True
    after: tuple[str, ...] = ()


def examine(system: Path = SYSTEM) -> list[Finding]:
    """Try everything, each in a process of its own that leaves nothing behind. `system`: for tests, as in `run`."""
    findings = [_python(), _kernel(), _machine()]
    for trial in _trials(system):
        failed = (finding for finding in findings if finding.tried and not finding.works)
        lacking = [finding.name for finding in failed if finding.name in trial.after]
        if lacking:
            seen = f"not tried: needs {', '.join(lacking)}"
            findings.append(Finding(trial.name, works=False, seen=seen, needed=trial.needed, tried=False))
        else:
            findings.append(_tried(trial))
    return [*findings, _roots(), _memory_of_descriptors(), _passing_on(), _beginning(), _nodes(), _once()]


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


def _roots() -> Finding:
    found = next((path for path in mount_plan.BUNDLES if os.path.isfile(path)), "")
    remedy = "install the system's roots: `apt-get install ca-certificates`"
    return Finding("system roots", bool(found), found or "none of the usual bundles", remedy)


_AUTHORITY = "see what it says of the file; `exeat ca rotate` puts a new one in its place"


def _try_authority() -> str:
    from datetime import UTC, datetime

    from enforcer.system.state import authority_directory
    from proxy.certificates.authority import existing

    authority = existing(authority_directory())
    if authority is None:
        return "none yet: the first run makes one"
    left = (authority.expires - datetime.now(UTC)).days
    until = "the next run makes a new one" if authority.is_due else f"{left} days left"
    return f"good until {authority.expires:%Y-%m-%d}, {until}"


def _memory_of_descriptors() -> Finding:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    enough = hard == resource.RLIM_INFINITY or hard >= 8192
    return Finding("open files", enough, seen, "raise the hard limit: `ulimit -Hn 65536`", needed=False)


def _passing_on() -> Finding:
    from proxy.compiled.library import load

    compiled = load() is not None
    seen = "compiled" if compiled else "by the interpreter, which costs more"
    remedy = f"install a C compiler (`apt-get install gcc libc6-dev`), then `{sys.executable} -m proxy.compiled.build`"
    return Finding("passing bytes on", compiled, seen, remedy, needed=False)


def _beginning() -> Finding:
    from enforcer.sandbox.init import compiled as place

    compiled = bool(place())
    seen = "compiled" if compiled else "by the interpreter, which takes longer"
    module = "enforcer.sandbox.compiled.build"
    remedy = f"install a C compiler (`apt-get install gcc libc6-dev`), then `{sys.executable} -m {module}`"
    return Finding("making sandboxes", compiled, seen, remedy, needed=False)


def _nodes() -> Finding:
    from enforcer.sandbox import devices

    own = identity.is_privileged() and devices.can_make()
    seen = "each sandbox's own" if own else "the host's: two tasks can signal to each other by locks on them"
    remedy = "run tasks as root (in a container, with `--cap-add MKNOD`), or in root's service"
    return Finding("device nodes", own, seen, remedy, needed=False)


def _once() -> Finding:
    from enforcer.limits import host_limits

    found = host_limits.unbounded()
    seen = f"one task can use up {' and '.join(what for what, _ in found)}" if found else "no task can use it up"
    remedy = "; ".join(remedy for _, remedy in found)
    return Finding("what the machine has once", not found, seen, remedy, needed=False)


def _tried(trial: _Trial) -> Finding:
    """Run a trial in a child and read what it says; an exception or a death is a no."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            os.write(writer, json.dumps(_outcome(trial)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    works, seen, remedy = strict_json.loads(said or b'[false, "the trial ended unexpectedly", ""]')
    return Finding(trial.name, works, seen, remedy or trial.remedy, trial.needed)


def _outcome(trial: _Trial) -> tuple[bool, str, str]:
    """Return whether it works, one line of what was seen, and the remedy that an error knows."""
    try:
        return True, trial.attempt(), ""
    except HostError as error:
        seen, remedy = error.what, error.remedy
    except OSError as error:
        seen, remedy = str(error.strerror or error), ""
    except BaseException as error:  # noqa: BLE001 - it is the answer
        seen, remedy = str(error) or type(error).__name__, ""
    return False, (seen.splitlines() or [""])[0][:500], remedy


def _enter_namespaces() -> None:
    uid, gid = os.geteuid(), os.getegid()
    identity.refuse_unmapped(uid, gid)
    uids, gids = (identity.IdMap(((0, own, 1),)) for own in (uid, gid))
    enter_own_user_namespace(
        uids, gids, os.CLONE_NEWNS | os.CLONE_NEWNET | os.CLONE_NEWIPC | os.CLONE_NEWUTS | os.CLONE_NEWCGROUP
    )


def _try_identity() -> str:
    who = identity.choose()  # what it holds is let go when this process ends
    return "a range of its own for each sandbox" if who.privileged else f"every task has kernel uid {who.kernel_uid}"


def _try_namespaces() -> str:
    _enter_namespaces()
    return "user, mount, network, ipc, uts, cgroup"


def _try_overlay() -> str:
    from enforcer.sandbox import namespaces
    from enforcer.sandbox.overlays import Show

    _enter_namespaces()
    namespaces.enter([Show("/usr")])
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
    from enforcer.network.gate_sockets import open_gate_sockets
    from enforcer.network.install import execute, network_plan

    _enter_namespaces()
    plan = network_plan()
    installed = execute(plan)
    open_gate_sockets(plan.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6).close()
    ipv6 = "IPv4 and IPv6" if installed.ipv6 else "IPv4 only"
    return (
        f"{ipv6}, {'refusals are logged' if installed.refusal_log else 'refusals are counted, not logged (no NFLOG)'}"
    )


def _try_idmap() -> str:
    from enforcer.sandbox import identity

    if not identity.is_privileged():
        return "not needed: no sandbox gets other ids than ours"
    os.close(identity.idmapped_tree(os.getcwd(), identity.FIRST_ID, identity.FIRST_ID))
    return f"works for {os.getcwd()}"


def _try_seccomp() -> str:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.load_seccomp(seccomp.assemble(seccomp.TASK, linux.platform_machine()))
    try:
        os.unshare(os.CLONE_NEWUSER)
    except PermissionError:
        return "refuses what it should"
    raise OSError("the filter was loaded and refuses nothing")


def _try_limit(kind: str) -> str:
    from enforcer.limits.host_limits import try_limit

    return try_limit(kind)


_WATCHING = "`commands` need Linux 5.0, no other listener to a filter around us, kernel.yama.ptrace_scope below 3"


def _try_watching() -> str:
    from enforcer.seccomp_supervisor.listener import try_watching

    return try_watching()


def _try_landlock() -> str:
    from enforcer.sandbox import landlock

    found = landlock.version()
    if found < landlock.LEAST:
        raise HostError(f"{f'version {found}' if found else 'none'}: mounts alone keep what a task sees")
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)  # an ordinary user may restrict only what gains nothing more
    landlock.restrict([landlock.Grant("/", landlock.LISTS)])
    try:
        os.close(os.open("/etc/passwd", os.O_RDONLY))
    except PermissionError:
        return f"version {found}: a second wall around files"
    raise OSError("a process was put behind it and reads what it should not")


def _try_state() -> str:
    directory = make_private(state_directory())
    for path in (journal_directory(), cache_directory()):
        make_private(path)
    room = shutil.disk_usage(directory).free
    seen = f"{directory}, {room >> 20} MiB free"
    if room < _LEAST_ROOM:
        raise HostError(seen, "free some room: a full journal stops every connection")
    return seen


def _try_roots_rules(system: Path) -> str:
    count = len(rule_files.system_files(system))
    rule_files.load([], system)
    who = run_request.known_identities(system) is not None
    if not count and not who:
        return f"none in {system}"
    return f"{count} rule file{'s' * (count != 1)} in {system}" + (", and who may claim what" if who else "")


def _try_all(system: Path) -> str:
    from enforcer.doctor.self_test import rehearse

    return rehearse(make_private(state_directory()), system)


def _trials(system: Path) -> tuple[_Trial, ...]:
    spaces = ("namespaces",)
    module = "load nf_tables and nft_tproxy: `modprobe nft_tproxy` as root"
    overlay = "load it: `modprobe overlay` as root; Linux 5.11 or newer lets users mount it"
    mapping = "as root, work on ext4, xfs, btrfs or tmpfs; or run as an ordinary user"
    made = (
        _Trial("ids", _try_identity, "run exeat as an ordinary user"),
        _Trial("namespaces", _try_namespaces, namespace_remedy()),
        _Trial("overlay", _try_overlay, overlay, after=spaces),
        _Trial("proc", _try_proc, UNMASK, after=spaces),
        _Trial("network", _try_network, module, after=spaces),
        _Trial("seccomp", _try_seccomp, "boot a kernel with CONFIG_SECCOMP_FILTER"),
        _Trial("watched calls", _try_watching, _WATCHING, needed=False),
        _Trial("state directory", _try_state, "set XDG_STATE_HOME to another place"),
        _Trial("root's rules", partial(_try_roots_rules, system), "have root put right what is in there"),
    )
    before = ("system call filter", *(trial.name for trial in made))
    return (
        *made,
        _Trial("a whole sandbox", partial(_try_all, system), "mend that: `exeat run` would end with it", after=before),
        _Trial("id-mapped mounts", _try_idmap, mapping, needed=False, after=spaces),
        _Trial("certificate authority", _try_authority, _AUTHORITY),
        _Trial("landlock", _try_landlock, "boot with `lsm=landlock,...`, Linux 5.19 or newer", needed=False),
        *(
            _Trial(f"limit of {kind}", partial(_try_limit, kind), "", needed=False)
            for kind in ("memory", "processes", "cpu")
        ),
    )
