"""Confines the worker and the signer: their ids, file system view, capabilities and system calls.

Run by root: ids that nothing else has. Run by a user: a user namespace of its own, so that it doesn't own the
sandboxes' namespaces, and can neither enter them nor inspect the user's processes. In both cases: a read-only view of
the system and of Exeat's code, no capabilities, no new privileges, no execve(2), and no signals to other processes.
"""

import importlib
import os
import signal
import site
import sys

from enforcer.sandbox import landlock, namespaces, seccomp
from enforcer.sandbox.identity import Identity, IdMap, enter_own_user_namespace
from enforcer.sandbox.mount_steps import Bind, Directory, Link, ReadOnly, Step, Tmpfs
from enforcer.sandbox.system_paths import SYSTEM, contains, real_paths
from enforcer.system import linux, state

_DEVICES = ("null", "urandom")


def code_trees() -> tuple[str, ...]:
    """Return every directory tree with Exeat's code, its libraries or its interpreter; resolved paths."""
    trees = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, os.path.dirname(sys.executable)}
    trees.update(site.getsitepackages())
    for package in ("rules", "proxy", "enforcer"):
        trees.update(importlib.import_module(package).__path__)
    return tuple(sorted({*real_paths(path for path in trees if path)} - {"/"}))


def import_directories() -> tuple[str, ...]:
    """Return every directory that a module could be imported from, in place of one of ours."""
    return tuple(sorted({*real_paths(path or os.getcwd() for path in sys.path)}))


def steps() -> tuple[Step, ...]:
    """Return the mount steps of the worker's view: the system and the code, read-only, nothing else."""
    shown = [path for path in SYSTEM if os.path.isdir(path) and not os.path.islink(path)]
    # The target of resolv.conf (systemd-resolved, NetworkManager): the worker resolves names as the host's programs do.
    # A daemon replaces it by renaming, so the daemon's directory is shown.
    resolv = os.path.realpath("/etc/resolv.conf")
    places = [os.path.dirname(resolv)] if contains("/run", resolv) and os.path.dirname(resolv) != "/run" else []
    directories = [*shown, *code_trees(), *(path for path in import_directories() if os.path.isdir(path)), *places]
    binds: list[str] = []
    for path in sorted(set(directories)):
        if os.path.isdir(path) and not any(contains(other, path) for other in binds):
            binds.append(path)
    links = [Link(path, os.readlink(path)) for path in SYSTEM if os.path.islink(path)]
    names: list[Step] = []
    if not any(contains(other, resolv) for other in binds):
        names = [Directory(os.path.dirname(resolv)), Bind(resolv, resolv)]
    return (
        *links,
        *(Bind(path, path) for path in binds),
        # Hide the CA's key and task changes, which may be below the code: a virtual environment in ~/.local, `-m` in ~
        *(Tmpfs(private) for private in [os.path.realpath(state.state_directory())] if _is_shown(private, binds)),
        *names,
        Tmpfs("/dev"),
        *(Bind(f"/dev/{name}", f"/dev/{name}", writable=True, devices=True) for name in _DEVICES),
        # Of /proc only this process's own directory and the boot time.
        *(Bind(path, path) for path in (f"/proc/{os.getpid()}", "/proc/stat") if os.path.exists(path)),
        Directory("/tmp"),
        ReadOnly("/"),
    )


def _is_shown(path: str, binds: list[str]) -> bool:
    return os.path.isdir(path) and any(contains(bind, path) for bind in binds)


def enter(identity: Identity) -> None:
    """Confine the calling process, irrevocably.

    It must have one thread. Raises OSError, HostError; then it must end.
    """
    plan = steps()
    filters = seccomp.assemble(seccomp.WORKER, linux.platform_machine())
    if identity.privileged:
        os.unshare(os.CLONE_NEWNS | os.CLONE_NEWIPC)
    else:
        uids, gids = (IdMap(((current, current, 1),)) for current in (os.geteuid(), os.getegid()))
        enter_own_user_namespace(uids, gids, os.CLONE_NEWNS | os.CLONE_NEWIPC)
    namespaces.enter(plan)
    linux.drop_bounding_set()
    if identity.privileged:
        _set_ids(identity.worker_uid)
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.load_seccomp(filters)


def confine_signer(identity: Identity, parent: int) -> None:
    """Confine the signer, irrevocably: to its memory, its open sockets, and the life of its `parent`.

    It opens no file any more, so it needs no view: its filter has no call for files and the network, and Landlock, if
    present, denies every file. Raises OSError; then it must end.
    """
    filters = seccomp.assemble(seccomp.SIGNER, linux.platform_machine())
    os.chdir("/")
    if identity.privileged:
        linux.drop_bounding_set()
        _set_ids(identity.signer_uid)
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.die_with_parent(signal.SIGKILL, parent)
    landlock.restrict(())
    linux.load_seccomp(filters)


def _set_ids(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
