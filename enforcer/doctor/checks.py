"""Checks of `exeat doctor`: tests each requirement of Exeat, and names the command that adds a missing one."""

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from enforcer.doctor.self_test import run_self_test
from enforcer.limits import resource_limits
from enforcer.limits.resource_limits import try_limit
from enforcer.policy import rule_files, run_request
from enforcer.policy.rule_files import SYSTEM
from enforcer.sandbox import devices, identity, landlock, namespaces, seccomp
from enforcer.sandbox.identity import enter_own_user_namespace, namespace_remedy
from enforcer.sandbox.init import compiled as compiled_init
from enforcer.sandbox.mount_steps import UNMASK
from enforcer.sandbox.overlays import Show
from enforcer.sandbox.step_lists import NUMBERS
from enforcer.seccomp_supervisor.notification_listener import try_supervision
from enforcer.system import linux
from enforcer.system.errors import HostError
from enforcer.system.state import authority_directory, cache_directory, journal_directory, make_private, state_directory
from proxy.certificates.authority import existing
from proxy.certificates.system_bundles import BUNDLES
from proxy.compiled.library import load
from proxy.wire import strict_json

_MIN_FREE_SPACE = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check: whether it works, what was found, and the remedy if not. Not all are required."""

    name: str
    works: bool
    seen: str
    remedy: str = ""
    needed: bool = True
    tried: bool = True  # False: something that it needs doesn't work


@dataclass(frozen=True, slots=True)
class _Check:
    """One check, with its default remedy and the checks that must succeed before it."""

    name: str
    attempt: Callable[[], str]  # returns what was seen, or raises
    remedy: str
    needed: bool = True
    after: tuple[str, ...] = ()


def examine(system: Path = SYSTEM) -> list[Finding]:
    """Run all checks, each in a process of its own that leaves nothing behind. `system`: for tests, as in `run`."""
    findings: list[Finding] = []
    for check in _checks(system):
        failed_findings = (finding for finding in findings if finding.tried and not finding.works)
        failed_requirements = [finding.name for finding in failed_findings if finding.name in check.after]
        if failed_requirements:
            message = f"not tried: needs {', '.join(failed_requirements)}"
            findings.append(Finding(check.name, works=False, seen=message, needed=check.needed, tried=False))
        else:
            findings.append(_run_check(check))
    return findings


def _require(result: str, *, works: bool) -> str:
    if not works:
        raise HostError(result)
    return result


def _try_python() -> str:
    return _require(".".join(map(str, sys.version_info[:3])), works=sys.version_info >= (3, 12))


def _try_kernel() -> str:
    release = os.uname().release
    return _require(release, works=tuple(int(part) for part in release.split("-")[0].split(".")[:2]) >= (5, 12))


def _try_machine() -> str:
    return _require(linux.platform_machine(), works=linux.platform_machine() in NUMBERS)


def _try_system_roots() -> str:
    bundle = next((path for path in BUNDLES if os.path.isfile(path)), "")
    return _require(bundle or "none of the usual bundles", works=bool(bundle))


def _try_authority() -> str:
    authority = existing(authority_directory())
    if authority is None:
        return "none yet: the first run makes one"
    days_left = (authority.expires - datetime.now(UTC)).days
    renewal = "the next run makes a new one" if authority.is_due else f"{days_left} days left"
    return f"good until {authority.expires:%Y-%m-%d}, {renewal}"


def _try_open_files() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_unlimited = hard == resource.RLIM_INFINITY
    return _require("unlimited" if is_unlimited else str(hard), works=is_unlimited or hard >= 8192)


def _try_library() -> str:
    compiled = load() is not None
    return _require("compiled" if compiled else "not compiled: the Python version is slower", works=compiled)


def _try_init() -> str:
    compiled = bool(compiled_init())
    return _require(
        "compiled" if compiled else "not compiled: the Python version starts tasks more slowly", works=compiled
    )


def _try_nodes() -> str:
    is_own = identity.is_privileged() and devices.can_make()
    problem = "the host's: two tasks can exchange signals by locking them"
    return _require("each sandbox's own" if is_own else problem, works=is_own)


def _try_bounds() -> str:
    if resources := resource_limits.unbounded():
        names = " and ".join(name for name, _ in resources)
        raise HostError(f"one task can use up {names}", ", and ".join(remedy for _, remedy in resources))
    return "no task can use up a machine-wide resource"


def _run_check(check: _Check) -> Finding:
    """Run a check in a child process; an exception or a death is a failure."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            os.write(writer, json.dumps(_check_outcome(check)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        answer_bytes = answer.read()
    os.waitpid(pid, 0)
    works, seen, remedy = strict_json.loads(answer_bytes or b'[false, "the check ended unexpectedly", ""]')
    return Finding(check.name, works, seen, remedy or check.remedy, check.needed)


def _check_outcome(check: _Check) -> tuple[bool, str, str]:
    """Return whether the check succeeds, one line about what was found, and the remedy of an error."""
    try:
        return True, check.attempt(), ""
    except HostError as error:
        seen, remedy = error.what, error.remedy
    except OSError as error:
        seen, remedy = str(error.strerror or error), ""
    except BaseException as error:  # noqa: BLE001 - the parent reports it
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
    ids = identity.choose()  # its lock is released when this process ends
    return "a range of its own for each sandbox" if ids.privileged else f"every task has kernel uid {ids.kernel_uid}"


def _try_namespaces() -> str:
    _enter_namespaces()
    return "user, mount, network, ipc, uts, cgroup"


def _try_overlay() -> str:
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
        raise OSError("a new /proc can't be mounted here")
    return "a new one in a new pid namespace"


def _try_network() -> str:
    from enforcer.network.encode import encode
    from enforcer.network.gate_sockets import open_gate_sockets
    from enforcer.network.install import execute
    from enforcer.network.plan import network_plan

    _enter_namespaces()
    plan = network_plan()
    installed = execute(encode(plan))
    open_gate_sockets(plan.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6).close()
    ipv6 = "IPv4 and IPv6" if installed.ipv6 else "IPv4 only"
    return (
        f"{ipv6}, {'refusals are logged' if installed.refusal_log else 'refusals are counted, not logged (no NFLOG)'}"
    )


def _try_idmap() -> str:
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
        return "a filter denies what it should"
    raise OSError("a filter was loaded and denies nothing")


_SUPERVISION_REMEDY = (
    "rules with `commands` need Linux 5.0, no other seccomp listener around exeat, and kernel.yama.ptrace_scope below 3"
)


def _try_landlock() -> str:
    abi_version = landlock.version()
    if abi_version < landlock.MIN_VERSION:
        raise HostError(
            f"{f'version {abi_version}' if abi_version else 'none'}: only mounts restrict the files of a task"
        )
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)  # Landlock requires it of an ordinary user
    landlock.restrict([landlock.Grant("/", landlock.LIST_RIGHTS)])
    try:
        os.close(os.open("/etc/passwd", os.O_RDONLY))
    except PermissionError:
        return f"version {abi_version}: restricts files, in addition to mounts"
    raise OSError("a restricted process reads a file that it must not")


def _try_state() -> str:
    directory = make_private(state_directory())
    for path in (journal_directory(), cache_directory()):
        make_private(path)
    free_bytes = shutil.disk_usage(directory).free
    seen = f"{directory}, {free_bytes >> 20} MiB free"
    if free_bytes < _MIN_FREE_SPACE:
        raise HostError(seen, "free disk space: with a full journal the gate denies every connection")
    return seen


def _try_roots_rules(system: Path) -> str:
    count = len(rule_files.system_files(system))
    rule_files.load([], system)
    has_identities = run_request.read_identities(system) is not None
    if not count and not has_identities:
        return f"none in {system}"
    return f"{count} rule file{'s' * (count != 1)} in {system}" + (", and who may claim what" if has_identities else "")


def _checks(system: Path) -> tuple[_Check, ...]:
    namespaces_check = ("namespaces",)
    compiler = "install a C compiler (`apt-get install gcc libc6-dev`), then `{} -m {}`"
    machine = f"run on one of {', '.join(sorted(NUMBERS))}"
    required = (
        _Check("system call filter", _try_machine, machine),
        _Check("ids", _try_identity, "run exeat as an ordinary user"),
        _Check("namespaces", _try_namespaces, namespace_remedy()),
        _Check(
            "overlay",
            _try_overlay,
            "load it: `modprobe overlay` as root; Linux 5.11 or newer lets users mount it",
            after=namespaces_check,
        ),
        _Check("proc", _try_proc, UNMASK, after=namespaces_check),
        _Check(
            "network",
            _try_network,
            "load nf_tables and nft_tproxy: `modprobe nft_tproxy` as root",
            after=namespaces_check,
        ),
        _Check("seccomp", _try_seccomp, "boot a kernel with CONFIG_SECCOMP_FILTER"),
        _Check("watched calls", try_supervision, _SUPERVISION_REMEDY, needed=False),
        _Check("state directory", _try_state, "set XDG_STATE_HOME to another directory"),
        _Check("root's rules", partial(_try_roots_rules, system), "have root fix the files in that directory"),
    )
    optional = partial(_Check, needed=False)
    return (
        _Check("python", _try_python, "install Python 3.12 or newer, then `make setup`"),
        _Check("kernel", _try_kernel, "boot Linux 5.12 or newer (mount_setattr, overlays by users)"),
        *required,
        _Check(
            "a whole sandbox",
            lambda: run_self_test(make_private(state_directory()), system),
            "fix this first: `exeat run` fails with the same error",
            after=tuple(check.name for check in required),
        ),
        optional(
            "id-mapped mounts",
            _try_idmap,
            "as root, work on ext4, xfs, btrfs or tmpfs; or run as an ordinary user",
            after=namespaces_check,
        ),
        _Check(
            "certificate authority",
            _try_authority,
            "fix the file as the error says, or replace the CA: `exeat ca rotate`",
        ),
        optional("landlock", _try_landlock, "boot with `lsm=landlock,...`, Linux 5.19 or newer"),
        *(optional(f"limit of {kind}", partial(try_limit, kind), "") for kind in ("memory", "processes", "cpu")),
        _Check("system roots", _try_system_roots, "install the system's roots: `apt-get install ca-certificates`"),
        optional("open files", _try_open_files, "raise the hard limit: `ulimit -Hn 65536`"),
        optional("passing bytes on", _try_library, compiler.format(sys.executable, "proxy.compiled.build")),
        optional("making sandboxes", _try_init, compiler.format(sys.executable, "enforcer.sandbox.compiled.build")),
        optional(
            "device nodes",
            _try_nodes,
            "run tasks as root (in a container, with `--cap-add MKNOD`), or in root's service",
        ),
        optional("what the machine has once", _try_bounds, ""),
    )
