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


def planned_steps(wanted: RunRequest) -> list[PlannedStep]:
    """Return all steps, in the order of a start. Raises what a start would raise for the same values."""
    if wanted.policy.secrets:
        credentials.check_environment(wanted.policy, environment.given_variables(os.environ, wanted.env, wanted.box))
    who = _who(wanted)
    limits = limits_of(wanted.box)
    network = network_plan()
    kept = _kept(wanted, who)
    shown = sandbox_spec.PreparedMounts(_trees(who, wanted, kept), kept, *_workspace(wanted))
    steps = sandbox_spec.steps_of(who, wanted, _etc(wanted, who), shown)
    said: dict[str, Iterable[str]] = {
        "rules": _rules(wanted),
        "gate": (step.describe() for step in confinement.steps()),
        "ids": _ids(who),
        "namespaces": (f"enter a new {name} namespace" for name in namespaces.NAMESPACES),
        "network": network.describe(),
        "limits": _limits(limits),
        "files": (step.describe() for step in with_tmpfs_quota(steps, limits.disk)),
        "task": _task(wanted, who, landlock.grants(steps, wanted.writable)),
    }
    return [PlannedStep(where, escape_unprintable(line)) for where, lines in said.items() for line in lines]


def _who(wanted: RunRequest) -> Identity:
    """Choose ids as a start does; the id range is only known at the start."""
    who = identity.choose()
    if who.slot >= 0:
        os.close(who.slot)
    return who.as_root() if wanted.box.user is SandboxUser.ROOT else who


def _trees(who: Identity, wanted: RunRequest, kept: Iterable[mount_plan.CacheMount]) -> Mapping[str, int]:
    return dict.fromkeys((*wanted.shown, *(each.source for each in kept)), _A_TREE) if who.privileged else {}


def _kept(wanted: RunRequest, who: Identity) -> tuple[mount_plan.CacheMount, ...]:
    top = sandbox_spec.caches_directory()
    return tuple(
        mount_plan.CacheMount(f"{top}/{name}", sandbox_spec.cache_target(path, who.home))
        for name, path in wanted.box.caches
    )


def _workspace(wanted: RunRequest) -> tuple[str, tuple[str, ...]]:
    """Return where reviewed changes would go, and the protected paths of a workspace that is written directly."""
    from enforcer.workspace import written_places

    is_reviewed = wanted.box.workspace is WorkspaceMode.REVIEW
    changes = f"{os.path.realpath(state.state_directory())}/changes/TASK" if is_reviewed else ""
    with contextlib.ExitStack() as opened:
        places = [
            opened.enter_context(contextlib.closing(place)) for place in written_places.open_guarded_places(wanted)
        ]
        return changes, tuple(path for place in places for path in place.paths())


def _etc(wanted: RunRequest, who: Identity) -> Mapping[str, bytes]:
    trusted = trust.public_authority(state.authority_directory(), state.make_private(state.cache_directory()))
    return sandbox_spec.etc_files(who, wanted, trusted, state.cache_directory())


def _rules(wanted: RunRequest) -> Iterator[str]:
    yield f"apply the rules of revision {wanted.policy.revision}"
    yield from (f"read {path}" for path in wanted.asked)
    yield from (f"apply the layer {layer.name} ({layer.kind})" for layer in wanted.policy.layers)
    yield from (f"{command.action} `{' '.join(command.words)}` ({command.cite})" for command in wanted.policy.commands)
    if wanted.box.workspace is WorkspaceMode.REVIEW:
        yield from (f"merge protected changes only as {terms}" for terms in wanted.box.approval)
    for secret in wanted.policy.secrets:
        yield from (f"put a placeholder for the secret {secret.id} into {name}" for name in secret.variables)


def _ids(who: Identity) -> Iterator[str]:
    for what, outer, inner in (("uids", who.outer_uids, who.inner_uids), ("gids", who.outer_gids, who.inner_gids)):
        for name, ids in (("the sandbox", outer), ("the task", inner)):
            yield from (f"map {what} {inside}+{count} of {name} to {outside}" for inside, outside, count in ids.lines)
    yield f"run the task as {who.user}, uid {who.uid}, gid {who.gid}: to the kernel {who.kernel_uid}, {who.kernel_gid}"


def _limits(limits: Limits) -> Iterator[str]:
    units = {"memory": format_bytes, "disk": format_bytes, "timeout": format_seconds}
    for name in ("memory", "cpu", "processes", "files", "disk", "timeout"):
        value = getattr(limits, name)
        if value is not None:
            yield f"limit {name} to {units[name](value) if name in units else f'{value:g}'}"


def _task(wanted: RunRequest, who: Identity, wall: Iterable[landlock.Grant]) -> Iterator[str]:
    variables = environment.build_environment(os.environ, who, BUNDLES[0], wanted.env, wanted.box)
    yield f"set the host name to {sandbox_spec.hostname_of(wanted)}"
    yield f"set the variables {', '.join(sorted(variables))}"
    yield f"work in {wanted.workspace}"
    yield "enter a user namespace of the task's own"
    yield "drop all capabilities, empty the bounding set, lock securebits, and set no_new_privs"
    if landlock.version() >= landlock.MIN_VERSION:
        yield from (f"let Landlock allow it to {landlock.describe(grant)}" for grant in wall)
    reviewed = wanted.box.workspace is WorkspaceMode.REVIEW
    size = len(seccomp.assemble(seccomp.task_filter(reviewed=reviewed), linux.platform_machine()))
    yield f"load a system call filter of {size // 8} instructions"
    if wanted.policy.commands:
        yield f"hold each program start, and match it against {len(wanted.policy.commands)} `commands` of the rules"
    yield f"run {' '.join(wanted.argv)}"
