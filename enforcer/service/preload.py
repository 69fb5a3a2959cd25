"""Preloads the service: imports modules, and practises a start before the first request.

Forked processes have it already: CPython writes into its code on first use (PEP 659), the linker resolves functions,
and each page that is written after a fork is copied. A process that waits for a request walks through it once more.
What a start would write goes to a file in memory. MODULES has what every run uses; a missing name only costs time.
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
from enforcer.policy.rule_files import Seen
from enforcer.policy.run_request import Wanted
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
from enforcer.workspace.guard import Guard, directly
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
    "enforcer.limits.cgroups",
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
    "proxy.udp.receiving_socket",
    "tty",
)
_TIMES: Final = 3  # by then code has taken the form that it keeps
_RULES: Final = "version: 1\nname: warming\nrules: []\n"
_WORKSPACE: Final = "/usr/share"  # stands for one: nothing is written in it, or shown of it
_LIMITS: Final = 16  # RLIM_NLIMITS
_NEVER: Final = (1 << 63) - 1

type Reading = Callable[[Sequence[Path], Path], Seen]


def preload(cache: Path, certificate: bytes, system: Path, command: RunCommand) -> None:
    """Import it all, and work out what is the same for every run; `cache` is where the rest of that is kept.

    `certificate` is our CA's (PEM), `system` where root's rules are.
    """
    for name in MODULES:
        importlib.import_module(name)

    def work_out() -> None:
        encoded(cache)
        trust.trusted_roots(certificate, cache)

    # What that imports where nothing is kept yet is as large as all the rest, and each run would be forked with it.
    with contextlib.suppress(HostError):
        run_in_child(work_out)
    work_out()
    seccomp.assemble(seccomp.TASK, linux.platform_machine())
    for commands in (False, True):
        seccomp.watched_filter(commands=commands)
    practise(system, command)


def practise(system: Path, command: RunCommand) -> bool:
    """Walk it in the service a few times; whether that was possible. What is wrong here a run says that comes to it."""
    linux.argument_area()
    with contextlib.suppress(ExeatError, OSError), _rules() as file:
        seen, who = Seen(read([file]).policy, (str(file),), ""), identity.choose()
        if who.slot >= 0:
            os.close(who.slot)
        for _ in range(_TIMES):
            _practise_start(command, _request([file]), lambda _files, _system: seen, system, who)
        for _ in range(_TIMES):
            make_empty_sandbox(
                fenced=False
            ).close()  # who makes a cgroup may have to leave its own (`cgroups.choose_locations`)
        return True
    return False


def self_test(sets: "RuleSets", system: Path, who: Identity, command: RunCommand) -> None:
    """Walk it in the process of a run that nobody has asked for yet, under rules that are known already.

    Whatever goes wrong with it is nobody's trouble: a start that comes to it says so.
    """
    with contextlib.suppress(Exception, SystemExit):
        if files := sets.last():
            request = _request(files)
            take_settings(request)
            _practise_start(command, request, partial(_known, sets), system, who)


def _known(sets: "RuleSets", files: Sequence[Path], system: Path) -> Seen:
    found = sets.known(files, system)
    if found is None:
        raise HostError("they aren't what they were")
    return found[1]


@contextlib.contextmanager
def _rules() -> Iterator[Path]:
    """Have a rule file for a moment.

    Not by `tempfile`: with it come random numbers and three ways to compress, and every run would be forked with them.
    """
    place = Path(os.environ.get("TMPDIR") or "/tmp", f"exeat-{os.getpid():x}-{time.time_ns():x}")
    place.mkdir(mode=0o700)  # fails where there is anything of this name
    try:
        rules = place / "rules.yaml"
        rules.write_text(_RULES, encoding="utf-8")
        yield rules
    finally:
        for each in place.iterdir():
            each.unlink()
        place.rmdir()


def _request(files: Sequence[Path]) -> protocol.Run:
    """Return the request of somebody who is as this process is; read, as one that came."""
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
        raise HostError("there is no CA that would be as it is remembered")
    # What rules protect is looked for in a small directory of ours: there may be thousands below the other.
    with contextlib.closing(Guard(str(cache), directly(wanted.box.protected))) as guard:
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
        with contextlib.suppress(NotImplementedError, OSError):  # one looks at what only a sandbox has
            namespaces.execute_steps(recorder, some)
    task_start.drop_rights(recorder, who, program, (0, 1, 2))
    recorder.begin()


def _tell(wanted: Wanted) -> None:
    with open(os.memfd_create("journal", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        journal = Journal(file.fileno())
        journal.segment, journal.ends = os.dup(file.fileno()), _NEVER
        recorder = Recorder(task.sandbox_state_of(wanted), journal, Metrics())
        recorder.rules_loaded()
        recorder.task_ended(recorder.task_started(wanted.argv), seconds=0.0, status=0)
        journal.close()
