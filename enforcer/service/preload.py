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

type Reading = Callable[[Sequence[Path], Path], LoadedRules]


def preload(cache: Path, certificate: bytes, system: Path, command: RunCommand) -> None:
    """Import all modules, and compute what is the same for every run; `cache` keeps some of it.

    `certificate`: our CA's (PEM); `system`: the directory of root's rules.
    """
    for name in MODULES:
        importlib.import_module(name)

    def work_out() -> None:
        encoded(cache)
        trust.trusted_roots(certificate, cache)

    # In a child: without a cache it imports as much as everything else together, which each run would inherit.
    with contextlib.suppress(HostError):
        run_in_child(work_out)
    work_out()
    seccomp.assemble(seccomp.TASK, linux.platform_machine())
    for commands in (False, True):
        seccomp.watched_filter(commands=commands)
    practise(system, command)


def practise(system: Path, command: RunCommand) -> bool:
    """Run the code of a start in the service a few times; returns whether that worked. A real run reports problems."""
    linux.argument_area()
    with contextlib.suppress(ExeatError, OSError), _rules() as file:
        seen, who = LoadedRules(read([file]).policy, (str(file),), ""), identity.choose()
        if who.slot >= 0:
            os.close(who.slot)
        for _ in range(_TIMES):
            _practise_start(command, _request([file]), lambda _files, _system: seen, system, who)
        for _ in range(_TIMES):
            make_empty_sandbox(
                fenced=False
            ).close()  # without cgroups: making one may move the service (`cgroup_tree.choose_locations`)
        return True
    return False


def self_test(sets: "RuleSets", system: Path, who: Identity, command: RunCommand) -> None:
    """Run the code of a start in a process of the warm pool, under a known rule set.

    Ignores errors: a real start reports them.
    """
    with contextlib.suppress(Exception, SystemExit):
        if files := sets.last():
            request = _request(files)
            take_settings(request)
            _practise_start(command, request, partial(_known, sets), system, who)


def _known(sets: "RuleSets", files: Sequence[Path], system: Path) -> LoadedRules:
    found = sets.known(files, system)
    if found is None:
        raise HostError("the rule files have changed")
    return found[1]


@contextlib.contextmanager
def _rules() -> Iterator[Path]:
    """Make a rule file for a moment.

    Without `tempfile`, which imports random numbers and three compression modules into every run.
    """
    place = Path(os.environ.get("TMPDIR") or "/tmp", f"exeat-{os.getpid():x}-{time.time_ns():x}")
    place.mkdir(mode=0o700)  # fails if the name exists
    try:
        rules = place / "rules.yaml"
        rules.write_text(_RULES, encoding="utf-8")
        yield rules
    finally:
        for each in place.iterdir():
            each.unlink()
        place.rmdir()


def _request(files: Sequence[Path]) -> protocol.Run:
    """Return a request of a client with the settings of this process, packed and unpacked."""
    words = [word for file in files for word in ("--rules", str(file))]
    words += ["--workspace", _WORKSPACE, "--quiet", "--", "true"]
    mask = os.umask(0o077)
    os.umask(mask)
    limits = tuple(map(resource.getrlimit, range(_LIMITS)))
    asked = protocol.Run(tuple(words), dict(os.environ), mask, 0, os.getpriority(os.PRIO_PROCESS, 0), limits)
    file = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(file, protocol.pack(asked))
        return protocol.unpack(file)
    finally:
        os.close(file)


def _practise_start(command: RunCommand, request: protocol.Run, reading: Reading, system: Path, who: Identity) -> None:
    wanted = command.wanted(command.read(request.words), system, reading)
    cache = state.cache_directory()
    trusted = trust.known_authority(state.authority_directory(), cache)
    if trusted is None:
        raise HostError("the cached public part of the CA is missing or outdated")
    # Protected paths are searched in the small cache directory: the workspace may have thousands.
    with contextlib.closing(Guard(str(cache), globs_when_direct(wanted.box.protected))) as guard:
        trees = dict.fromkeys(wanted.shown, 0) if who.privileged else {}
        own = sandbox_spec.etc_files(who, wanted, trusted, cache)
        steps, program = sandbox_spec.compose(
            who, wanted, own, sandbox_spec.PreparedMounts(trees, guarded=guard.paths())
        )
    _tell(wanted)
    steps, first = (
        with_tmpfs_quota(each, limits_of(wanted.box).disk) for each in (steps, mount_plan.shared_steps(who))
    )
    recorder = StepRecorder()
    namespaces.begin_view_with(recorder, first)
    for some in namespaces.group_steps(steps[len(first) :]):
        with contextlib.suppress(NotImplementedError, OSError):  # some steps inspect a real sandbox
            namespaces.execute_steps(recorder, some)
    task_start.drop_rights(recorder, who, program, (0, 1, 2))
    recorder.begin()


def _tell(wanted: RunRequest) -> None:
    with open(os.memfd_create("journal", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        journal = Journal(file.fileno())
        journal.segment, journal.ends = os.dup(file.fileno()), _NEVER
        recorder = Recorder(task.sandbox_state_of(wanted), journal, Metrics())
        recorder.rules_loaded()
        recorder.task_ended(recorder.task_started(wanted.argv), seconds=0.0, status=0)
        journal.close()
