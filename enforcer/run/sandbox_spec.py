"""Gathers the spec of one task's sandbox from the host: mounts, program and network. Changes nothing on the host."""

import contextlib
import fcntl
import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from enforcer.limits.resource_limits import ResourceLimits
from enforcer.network.constants import OWN_IPV4
from enforcer.policy.rule_files import own_files
from enforcer.policy.run_request import RunRequest
from enforcer.run import environment, launch
from enforcer.sandbox import identity, landlock, mount_plan, namespaces, seccomp, stdio, task_start
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.mount_plan import CacheMount
from enforcer.sandbox.mount_steps import Step, with_tmpfs_quota
from enforcer.sandbox.system_paths import contains, real_paths
from enforcer.system import linux, state
from enforcer.system.errors import HostError, UsageError
from enforcer.worker import confinement, trust
from enforcer.worker.trust import PublicAuthority
from enforcer.worker.worker import Worker, wait_until_confined
from enforcer.workspace.written_places import Workspace
from proxy.certificates.system_bundles import BUNDLES
from rules.sandbox import SandboxUser


class PreparedMounts(NamedTuple):
    """Mounts and paths of the host that are ready for the sandbox."""

    trees: Mapping[str, int]  # detached mounts, by path
    kept: tuple[mount_plan.CacheMount, ...] = ()
    review: str = ""
    guarded: tuple[str, ...] = ()


def gather_spec(
    ids: Identity,
    request: RunRequest,
    trusted: PublicAuthority,
    *,
    gate: Worker,
    io: stdio.Stdio,
    resource_limits: ResourceLimits,
    workspace: Workspace,
    given: Mapping[str, int],
    empty: namespaces.SandboxNamespaces | None,
    made: contextlib.ExitStack,
) -> launch.SandboxSpec:
    """Gather the spec while the worker starts up; wait at the end until the worker is confined.

    `empty` gets its steps for /etc first, which it executes meanwhile. `given`: descriptors for the worker, by name,
    which stay the caller's. `made` closes descriptors that are opened. Raises ExeatError.
    """
    cache = state.make_private(state.cache_directory())
    if request.settings.user is SandboxUser.ROOT:
        ids = ids.as_root()
    own = etc_files(ids, request, trusted, cache)
    if empty is not None:
        empty.execute_in_advance(mount_plan.etc_steps(own))
    kept: tuple[mount_plan.CacheMount, ...] = ()
    locks: tuple[int, ...] = ()
    if request.settings.caches:
        kept, locks = lock_caches(request.settings.caches, ids.home, request.writable)
        for lock in locks:
            made.callback(os.close, lock)
    trees = _trees(ids, request, [each.source for each in kept if each.source])
    for tree in trees.values():
        made.callback(os.close, tree)
    trees |= workspace.trees
    shown = PreparedMounts(trees, kept, workspace.review, workspace.guarded)
    steps, program = compose(ids, request, own, shown)
    wait_until_confined(gate)
    variables = dict(program.environment)
    environment.add_placeholders(variables, gate.received_fields.get("placeholders"))
    return launch.SandboxSpec(
        ids,
        with_tmpfs_quota(steps, resource_limits.limits.disk),
        program._replace(environment=variables, rlimits=resource_limits.rlimits),
        io.descriptors,
        gate.gate,
        hostname_of(request),
        resource_limits,
        locks,
        given,
        named=request.settings.hostname is not None,
        terminal=io.settings,
        umask=_umask(),
        may_allow_udp=request.policy.needs.udp,
    )


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def etc_files(ids: Identity, request: RunRequest, trusted: PublicAuthority, cache: Path) -> dict[str, bytes]:
    """Return the task's own files of /etc, by relative path."""
    certificate = trusted.certificate.encode()
    bundle, java = trust.trusted_roots(certificate, cache)
    return environment.etc_files(ids, hostname_of(request), str(OWN_IPV4), certificate, trusted.link, bundle, java)


def compose(
    ids: Identity, request: RunRequest, own: Mapping[str, bytes], shown: PreparedMounts
) -> tuple[tuple[Step, ...], task_start.Program]:
    """Return a task's mount steps and its program. Changes nothing on the host. Raises ExeatError."""
    steps = steps_of(ids, request, own, shown)
    program = task_start.Program(
        request.argv,
        environment.build_environment(os.environ, ids, BUNDLES[0], request.env, request.settings),
        request.workspace,
        stdio.ignored_signals(),
        seccomp.assemble(seccomp.task_filter(reviewed=bool(shown.review)), linux.platform_machine()),
        seccomp.watched_filter(commands=bool(request.policy.commands), reviewed=bool(shown.review)),
        grants=landlock.grants(steps, request.writable),
    )
    return steps, program


def start_empty_sandbox(
    ids: Identity, resource_limits: ResourceLimits, devices: tuple[str, ...] = ()
) -> namespaces.SandboxNamespaces:
    """Start an empty sandbox with these ids and limits, which goes on making itself. Raises HostError."""
    steps = with_tmpfs_quota(mount_plan.shared_steps(ids, devices), resource_limits.limits.disk)
    return namespaces.start_empty(ids, resource_limits, steps)


def hostname_of(request: RunRequest) -> str:
    """Return the sandbox's host name."""
    made = "".join(c if c.isalnum() or c == "-" else "-" for c in request.name)[:63].strip("-")
    return request.settings.hostname or made or "task"


def _trees(ids: Identity, request: RunRequest, kept: Sequence[str]) -> dict[str, int]:
    """Return mounts that only root can make: host directories and files, shown as owned by the task."""
    if not ids.privileged:
        return {}
    kernel_ids = ids.kernel_uid, ids.kernel_gid
    trees = {path: identity.idmapped_tree(path, *kernel_ids) for path in (*request.writable, *kept)}
    for path in request.read:
        if path not in trees:
            trees[path] = identity.idmapped_tree(path, *kernel_ids, required=False)
            if not os.path.isdir(path):
                trees[mount_plan.directory_tree_key(path)] = identity.idmapped_directory_of(
                    path, kernel_ids, (ids.outer_uids.lines[0][1], ids.outer_gids.lines[0][1])
                )
    return trees


def steps_of(ids: Identity, request: RunRequest, own: Mapping[str, bytes], shown: PreparedMounts) -> tuple[Step, ...]:
    """Return a task's mount steps. Changes nothing on the host. Raises UsageError."""
    obeyed = (*request.rules, *map(str, request.policy.sources), *map(str, own_files()))
    rules = {os.path.abspath(path) for path in obeyed}
    hidden: tuple[str, ...] = ()
    if request.policy.secrets or request.policy.settings.upstream_auth is not None:
        from enforcer.worker import credentials  # imported only for such rules

        hidden = credentials.hidden_files(request.policy, os.environ, request.shown)
    secret = {str(state.state_directory()), str(request.journal or state.journal_directory()), *hidden}
    return mount_plan.plan(
        mount_plan.MountRequest(
            identity=ids,
            workspace=request.workspace,
            etc=own,
            read=request.read,
            protect=(*sorted(rules), *confinement.import_directories()),
            sealed=confinement.code_trees(),
            secret=tuple(sorted(real_paths(secret))),
            trees=shown.trees,
            write=request.write,
            hide=request.hide,
            names=request.names,
            caches=shown.kept,
            review=shown.review,
            guarded=shown.guarded,
            devices=request.settings.devices,
            homes=request.homes,
        )
    )


class TaskCaches(NamedTuple):
    """The caches of one task; `locks` stay open as long as a process of the task runs."""

    kept: tuple[CacheMount, ...] = ()
    locks: tuple[int, ...] = ()


def caches_directory() -> str:
    """Return the resolved path of the directory of all caches."""
    return os.path.realpath(state.state_directory() / "caches")


def cache_target(path: str, home: str) -> str:
    """Return a cache's path in a sandbox, for a task with this home directory."""
    return home + path[1:] if path.startswith("~") else path


def lock_caches(caches: Iterable[tuple[str, str]], home: str, writable: Iterable[str]) -> TaskCaches:
    """Lock the free caches, and report those in use. `home`: the task's; `writable`: host paths that it may write.

    Raises UsageError where a task could have replaced a cache's directory, HostError where one can't be made.
    """
    caches = tuple(caches)
    if not caches:
        return TaskCaches()
    top = caches_directory()
    for place in writable:
        if contains(place, top) or contains(top, place):
            raise UsageError(
                f"the task may write to `{place}`, where the caches are (`{top}`): "
                "choose another workspace or `--write` path"
            )
    state.make_private(state.state_directory() / "caches")
    kept: list[CacheMount] = []
    locks: list[int] = []
    for name, path in caches:
        place = cache_target(path, home)
        source = f"{top}/{name}"
        _make_cache(source)
        lock = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            said = f"the cache `{name}` is in use by another task: this task gets an empty one, which isn't kept"
            sys.stderr.write(f"exeat: {said}\n")
            kept.append(CacheMount("", place))
            continue
        locks.append(lock)
        kept.append(CacheMount(source, place))
    return TaskCaches(tuple(kept), tuple(locks))


def _make_cache(source: str) -> None:
    """Make a cache's directory, or restore its mode, which a task may have changed. Raises HostError."""
    try:
        os.makedirs(source, mode=0o700, exist_ok=True)
        if os.lstat(source).st_mode != stat.S_IFDIR | 0o700:
            os.chmod(source, 0o700)
    except OSError as error:
        raise HostError(f"the cache `{source}` cannot be used: {error.strerror}", "remove that directory") from error
