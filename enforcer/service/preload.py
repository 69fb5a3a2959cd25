"""Preloads the service: imports modules, and runs the code of a start before the first request.

Forked processes inherit the result: CPython specialises code on first use (PEP 659), the linker resolves functions, and
each page written after a fork is copied. A process of the warm pool runs it once more. Output goes to memory files.
MODULES lists what every run uses; a missing name only costs time.
"""

import contextlib
import importlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enforcer.limits.resource_limits import limits_of
from enforcer.network.install import encoded
from enforcer.policy.rule_files import LoadedRules
from enforcer.policy.run_request import RunRequest
from enforcer.run import sandbox_spec, task
from enforcer.sandbox import identity, mount_plan, namespaces, seccomp, task_start
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.init import StepRecorder
from enforcer.sandbox.mount_steps import with_tmpfs_quota
from enforcer.service import protocol
from enforcer.service.run_setup import RunCommand, make_empty_sandbox, take_settings
from enforcer.system import linux, state
from enforcer.system.errors import ExeatError, HostError
from enforcer.system.processes import run_in_child
from enforcer.worker import trust
from enforcer.workspace.protected_files import Guard, globs_when_direct
from proxy.sandbox.recorder import Recorder
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.prometheus.metrics import Metrics
from rules.loading.load import read

if TYPE_CHECKING:
    from enforcer.service.rule_sets import RuleSets

MODULES: Final = (
    "enforcer.workspace.written_places",
    "enforcer.workspace.review",
    "enforcer.workspace.overlay_changes",
    "enforcer.journal.signing",
    "enforcer.limits.cgroup_tree",
    "enforcer.limits.limit_monitor",
    "enforcer.seccomp_supervisor.supervisor",
    "enforcer.run.sandbox_spec",
    "enforcer.run.launch",
    "enforcer.service.run_setup",
    "enforcer.sandbox.stdio",
    "enforcer.run.supervise",
    "enforcer.run.task",
    "enforcer.policy.reload",
    "proxy.worker.policy_transfer",
    "proxy.telemetry.encoding",
    "proxy.telemetry.masking",
    "proxy.sandbox.recorder",
    "proxy.telemetry.summary",
    "proxy.telemetry.baseline.anomalies",
    "proxy.telemetry.visible",
    "proxy.udp.sockets",
    "tty",
)
_TIMES: Final = 3  # after that, code is specialised
_RULES: Final = "version: 1\nname: preload\nrules: []\n"
_WORKSPACE: Final = "/usr/share"  # a stand-in: nothing is written to it or mounted from it
_LIMITS: Final = 16  # RLIM_NLIMITS
_NEVER: Final = (1 << 63) - 1

type ReadRules = Callable[[Sequence[Path], Path], LoadedRules]


def preload(cache: Path, certificate: bytes, system: Path, command: RunCommand) -> None:
    """Import all modules, and compute what is the same for every run; `cache` keeps some of it.

    `certificate`: our CA's (PEM); `system`: the directory of root's rules.
    """
    for name in MODULES:
        importlib.import_module(name)

    def compute_shared() -> None:
        encoded(cache)
        trust.trusted_roots(certificate, cache)

    # In a child: without a cache it imports as much as everything else together, which each run would inherit.
    with contextlib.suppress(HostError):
        run_in_child(compute_shared)
    compute_shared()
    seccomp.assemble(seccomp.TASK, linux.platform_machine())
    for commands in (False, True):
        seccomp.watched_filter(commands=commands)
    warm_up(system, command)


def warm_up(system: Path, command: RunCommand) -> bool:
    """Run the code of a start in the service a few times; returns whether that worked. A real run reports problems."""
    linux.argument_area()
    with contextlib.suppress(ExeatError, OSError), _temporary_rules() as file:
        loaded, ids = LoadedRules(read([file]).policy, (str(file),), ""), identity.choose()
        if ids.slot >= 0:
            os.close(ids.slot)
        for _ in range(_TIMES):
            _warm_up_start(command, _request([file]), lambda _files, _system: loaded, system, ids)
        for _ in range(_TIMES):
            make_empty_sandbox(
                with_limits=False
            ).close()  # without cgroups: making one may move the service (`cgroup_tree.choose_locations`)
        return True
    return False


def self_test(sets: "RuleSets", system: Path, ids: Identity, command: RunCommand) -> None:
    """Run the code of a start in a process of the warm pool, under a known rule set.

    Ignores errors: a real start reports them.
    """
    with contextlib.suppress(Exception, SystemExit):
        if files := sets.newest_files():
            request = _request(files)
            take_settings(request)
            _warm_up_start(command, request, partial(_load_known, sets), system, ids)


def _load_known(sets: "RuleSets", files: Sequence[Path], system: Path) -> LoadedRules:
    found = sets.find(files, system)
    if found is None:
        raise HostError("the rule files have changed")
    return found[1]


@contextlib.contextmanager
def _temporary_rules() -> Iterator[Path]:
    """Make a rule file for a moment.

    Without `tempfile`, which imports random numbers and three compression modules into every run.
    """
    directory = Path(os.environ.get("TMPDIR") or "/tmp", f"exeat-{os.getpid():x}-{time.time_ns():x}")
    directory.mkdir(mode=0o700)  # fails if the name exists
    try:
        rules = directory / "rules.yaml"
        rules.write_text(_RULES, encoding="utf-8")
        yield rules
    finally:
        for part in directory.iterdir():
            part.unlink()
        directory.rmdir()


def _request(files: Sequence[Path]) -> protocol.Run:
    """Return a request of a client with the settings of this process, packed and unpacked."""
    words = [word for file in files for word in ("--rules", str(file))]
    words += ["--workspace", _WORKSPACE, "--quiet", "--", "true"]
    mask = os.umask(0o077)
    os.umask(mask)
    limits = tuple(map(resource.getrlimit, range(_LIMITS)))
    request = protocol.Run(tuple(words), dict(os.environ), mask, 0, os.getpriority(os.PRIO_PROCESS, 0), limits)
    file = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(file, protocol.pack(request))
        return protocol.unpack(file)
    finally:
        os.close(file)


def _warm_up_start(
    command: RunCommand, request: protocol.Run, read_rules: ReadRules, system: Path, ids: Identity
) -> None:
    run_request = command.make_request(command.read(request.words), system, read_rules)
    cache = state.cache_directory()
    authority = trust.cached_authority(state.authority_directory(), cache)
    if authority is None:
        raise HostError("the cached public part of the CA is missing or outdated")
    # Protected paths are searched in the small cache directory: the workspace may have thousands.
    with contextlib.closing(Guard(str(cache), globs_when_direct(run_request.settings.protected))) as guard:
        trees = dict.fromkeys(run_request.shown, 0) if ids.privileged else {}
        etc_files = sandbox_spec.etc_files(ids, run_request, authority, cache)
        steps, program = sandbox_spec.compose(
            ids, run_request, etc_files, sandbox_spec.PreparedMounts(trees, guarded=guard.paths())
        )
    _record_events(run_request)
    steps, shared_steps = (
        with_tmpfs_quota(part, limits_of(run_request.settings).disk) for part in (steps, mount_plan.shared_steps(ids))
    )
    recorder = StepRecorder()
    namespaces.begin_view_with(recorder, shared_steps)
    for group in namespaces.group_steps(steps[len(shared_steps) :]):
        with contextlib.suppress(NotImplementedError, OSError):  # some steps inspect a real sandbox
            namespaces.execute_steps(recorder, group)
    task_start.drop_rights(recorder, ids, program, (0, 1, 2))
    recorder.submit()


def _record_events(run_request: RunRequest) -> None:
    with open(os.memfd_create("journal", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        journal = Journal(file.fileno())
        journal.segment, journal.ends = os.dup(file.fileno()), _NEVER
        recorder = Recorder(task.sandbox_state_of(run_request), journal, Metrics())
        recorder.rules_loaded()
        recorder.task_ended(recorder.task_started(run_request.argv), seconds=0.0, status=0)
        journal.close()
