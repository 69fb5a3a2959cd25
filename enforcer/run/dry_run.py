"""`exeat run --dry-run`: prints every step of a start, and executes none.

It prints the values that a start executes (`sandbox.mount_plan`, `network.plan`, `sandbox.landlock`, the worker's
view), so a step that isn't printed isn't executed. What exists only at a start has a stand-in: id-mapped mounts, locks,
cgroups, the placeholders of secrets. Nothing is made, and no value of a variable is shown.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from enforcer.limits.resource_limits import Limits, format_bytes, format_seconds, limits_of
from enforcer.network.plan import network_plan
from enforcer.policy.run_request import RunRequest
from enforcer.run import environment, sandbox_spec
from enforcer.sandbox import identity, landlock, mount_plan, namespaces, seccomp
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.mount_steps import with_tmpfs_quota
from enforcer.system import linux, state
from enforcer.worker import confinement, credentials, trust
from proxy.certificates.system_bundles import BUNDLES
from rules.problems import escape_unprintable
from rules.sandbox import SandboxUser, WorkspaceMode

_A_TREE = -1  # stands for a mount that only a start makes


class PlannedStep(NamedTuple):
    """One step of a start: its part of the plan, and a description."""

    where: str
    does: str


def planned_steps(request: RunRequest) -> list[PlannedStep]:
    """Return all steps, in the order of a start. Raises what a start would raise for the same values."""
    if request.policy.secrets:
        credentials.check_environment(
            request.policy, environment.given_variables(os.environ, request.env, request.settings)
        )
    ids = _choose_ids(request)
    limits = limits_of(request.settings)
    network = network_plan()
    kept = _kept(request, ids)
    shown = sandbox_spec.PreparedMounts(_trees(ids, request, kept), kept, *_workspace(request))
    steps = sandbox_spec.steps_of(ids, request, _etc(request, ids), shown)
    said: dict[str, Iterable[str]] = {
        "rules": _rules(request),
        "gate": (step.describe() for step in confinement.steps()),
        "ids": _ids(ids),
        "namespaces": (f"enter a new {name} namespace" for name in namespaces.NAMESPACES),
        "network": network.describe(),
        "limits": _limits(limits),
        "files": (step.describe() for step in with_tmpfs_quota(steps, limits.disk)),
        "task": _task(request, ids, landlock.grants(steps, request.writable)),
    }
    return [PlannedStep(where, escape_unprintable(line)) for where, lines in said.items() for line in lines]


def _choose_ids(request: RunRequest) -> Identity:
    """Choose ids as a start does; the id range is only known at the start."""
    ids = identity.choose()
    if ids.slot >= 0:
        os.close(ids.slot)
    return ids.as_root() if request.settings.user is SandboxUser.ROOT else ids


def _trees(ids: Identity, request: RunRequest, kept: Iterable[mount_plan.CacheMount]) -> Mapping[str, int]:
    return dict.fromkeys((*request.shown, *(each.source for each in kept)), _A_TREE) if ids.privileged else {}


def _kept(request: RunRequest, ids: Identity) -> tuple[mount_plan.CacheMount, ...]:
    top = sandbox_spec.caches_directory()
    return tuple(
        mount_plan.CacheMount(f"{top}/{name}", sandbox_spec.cache_target(path, ids.home))
        for name, path in request.settings.caches
    )


def _workspace(request: RunRequest) -> tuple[str, tuple[str, ...]]:
    """Return where reviewed changes would go, and the protected paths of a workspace that is written directly."""
    from enforcer.workspace import written_places

    is_reviewed = request.settings.workspace is WorkspaceMode.REVIEW
    changes = f"{os.path.realpath(state.state_directory())}/changes/TASK" if is_reviewed else ""
    with contextlib.ExitStack() as opened:
        places = [
            opened.enter_context(contextlib.closing(place)) for place in written_places.open_guarded_paths(request)
        ]
        return changes, tuple(path for place in places for path in place.paths())


def _etc(request: RunRequest, ids: Identity) -> Mapping[str, bytes]:
    trusted = trust.public_authority(state.authority_directory(), state.make_private(state.cache_directory()))
    return sandbox_spec.etc_files(ids, request, trusted, state.cache_directory())


def _rules(request: RunRequest) -> Iterator[str]:
    yield f"apply the rules of revision {request.policy.revision}"
    yield from (f"read {path}" for path in request.searched_paths)
    yield from (f"apply the layer {layer.name} ({layer.kind})" for layer in request.policy.layers)
    yield from (f"{command.action} `{' '.join(command.words)}` ({command.cite})" for command in request.policy.commands)
    if request.settings.workspace is WorkspaceMode.REVIEW:
        yield from (f"merge protected changes only as {terms}" for terms in request.settings.approval)
    for secret in request.policy.secrets:
        yield from (f"put a placeholder for the secret {secret.id} into {name}" for name in secret.variables)


def _ids(ids: Identity) -> Iterator[str]:
    for what, outer, inner in (("uids", ids.outer_uids, ids.inner_uids), ("gids", ids.outer_gids, ids.inner_gids)):
        for name, maps in (("the sandbox", outer), ("the task", inner)):
            yield from (f"map {what} {inside}+{count} of {name} to {outside}" for inside, outside, count in maps.lines)
    yield f"run the task as {ids.user}, uid {ids.uid}, gid {ids.gid}: to the kernel {ids.kernel_uid}, {ids.kernel_gid}"


def _limits(limits: Limits) -> Iterator[str]:
    units = {"memory": format_bytes, "disk": format_bytes, "timeout": format_seconds}
    for name in ("memory", "cpu", "processes", "files", "disk", "timeout"):
        value = getattr(limits, name)
        if value is not None:
            yield f"limit {name} to {units[name](value) if name in units else f'{value:g}'}"


def _task(request: RunRequest, ids: Identity, wall: Iterable[landlock.Grant]) -> Iterator[str]:
    variables = environment.build_environment(os.environ, ids, BUNDLES[0], request.env, request.settings)
    yield f"set the host name to {sandbox_spec.hostname_of(request)}"
    yield f"set the variables {', '.join(sorted(variables))}"
    yield f"work in {request.workspace}"
    yield "enter a user namespace of the task's own"
    yield "drop all capabilities, empty the bounding set, lock securebits, and set no_new_privs"
    if landlock.version() >= landlock.MIN_VERSION:
        yield from (f"let Landlock allow it to {landlock.describe(grant)}" for grant in wall)
    reviewed = request.settings.workspace is WorkspaceMode.REVIEW
    size = len(seccomp.assemble(seccomp.task_filter(reviewed=reviewed), linux.platform_machine()))
    yield f"load a system call filter of {size // 8} instructions"
    if request.policy.commands:
        yield f"hold each program start, and match it against {len(request.policy.commands)} `commands` of the rules"
    yield f"run {' '.join(request.argv)}"
