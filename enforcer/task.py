"""A task's life: everything it needs is made, it runs, it ends, and nothing of it is left.

The order is the safety: rules are valid, the gate's worker is confined and has its CA, the task's start is in the
journal, and only then does anything of the task run. Whatever fails takes down all that was made before it.
"""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enforcer import confine, environment, etc, linux, state, worker
from enforcer.errors import ExeatError, HostError
from enforcer.network.cache import cached
from enforcer.network.counters import open_counter_socket, read_counters
from enforcer.network.execute import Encoded, execute
from enforcer.network.plan import GATE_PORT, OWN_ADDRESSES, NetworkPlan, network_plan
from enforcer.network.sockets import open_gate_sockets
from enforcer.sandbox import identity, idmap, init, launch, seccomp, stdio, view
from enforcer.sandbox.steps import Step
from enforcer.signals import open_signals
from enforcer.supervise import Ended, supervise
from proxy.telemetry.journal import Journal, JournalFailed
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.recorder import Recorder
from proxy.telemetry.summary import Summary
from proxy.tenant import Task, Tenant
from rules.policy import Policy
from rules.verdicts import Outcome


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `exeat run` was asked for. `workspace` and `read` are real, absolute paths."""

    argv: tuple[str, ...]
    name: str
    policy: Policy
    rules: tuple[str, ...]  # the rule files as they were named
    workspace: str
    read: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    journal: Path | None = None
    metrics: socket.socket | None = None  # already listening


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended: the task's wait status (None: it never started), and what its gate counted."""

    task: Task
    status: int | None
    summary: Summary | None  # None: the gate was lost, and with it the count
    journal: Path


def run(wanted: Wanted) -> Result:
    """Run one task behind a gate of its own. Raises ExeatError when it could not be started."""
    began = time.monotonic()
    with contextlib.ExitStack() as made:
        signal_fd = open_signals()
        made.callback(os.close, signal_fd)
        who = identity.choose()
        if who.slot >= 0:
            made.callback(os.close, who.slot)
        state.make_private(state.state_directory())
        journal = state.make_private(wanted.journal or state.journal_directory())
        task = Task(id=f"{os.getpid():x}-{time.time_ns():x}", name=wanted.name)
        tenant = Tenant(f"sandbox-{task.id}", task, wanted.policy, frozenset(OWN_ADDRESSES), GATE_PORT)
        recorder = Recorder(tenant, _open_journal(journal), Metrics())
        recorder.rules_loaded()
        gate = worker.start(who, tenant, worker.Stations(state.authority_directory(), journal, wanted.metrics))
        made.callback(gate.kill)
        io = stdio.arrange()
        made.callback(io.finish)
        recipe = _recipe(who, wanted, gate, io, made)
        try:
            started = recorder.task_started(wanted.argv)
        except JournalFailed as error:
            raise _unwritable(journal, error) from error
        try:
            sandbox = launch.launch(recipe)
            made.callback(launch.end, sandbox)
            io.close()
            ended = supervise(sandbox, gate, signal_fd, began)
        except ExeatError:
            recorder.task_ended(started, seconds=time.monotonic() - began, outcome=Outcome.FAILED)
            raise
        launch.end(sandbox)
        io.finish()
        _tell_end(recorder, gate, started, ended, time.monotonic() - began)
    return _result(wanted, task, ended, gate, journal)


def _open_journal(directory: Path) -> Journal:
    try:
        return Journal(directory)
    except JournalFailed as error:
        raise _unwritable(directory, error) from error


def _unwritable(journal: Path, error: JournalFailed) -> HostError:
    return HostError(f"the journal `{journal}` cannot be written, so nothing may run: {error.strerror or error}")


def _recipe(
    who: identity.Identity, wanted: Wanted, gate: worker.Worker, io: stdio.Stdio, made: contextlib.ExitStack
) -> launch.Recipe:
    """Gather what a sandbox is made of. The gate's worker starts up meanwhile; its CA is waited for at the end."""
    plan = network_plan()
    encoded = cached(plan, state.make_private(state.cache_directory()))
    trees = _trees(who, wanted)
    for tree in trees.values():
        made.callback(os.close, tree)
    hostname = "".join(c if c.isalnum() or c == "-" else "-" for c in wanted.name)[:63].strip("-") or "task"
    program = init.Program(
        wanted.argv,
        environment.build(os.environ, who, view.BUNDLES[0], wanted.env),
        wanted.workspace,
        stdio.ignored_signals(),
        seccomp.assemble(seccomp.TASK, linux.platform_machine()),
    )
    worker.wait_for_certificate(gate)
    own = etc.files(who, hostname, str(OWN_ADDRESSES[0]), gate.certificate, gate.link)
    steps = _view(who, wanted, own, trees)
    return launch.Recipe(who, steps, program, io.descriptors, _network(plan, encoded), gate.gate, hostname)


def _tell_end(recorder: Recorder, gate: worker.Worker, started: str, ended: Ended, seconds: float) -> None:
    """Tell the journal and the gate that the task is over, and let the gate close what is open."""
    code = os.waitstatus_to_exitcode(ended.status) if ended.status is not None else None
    if ended.lost_gate:
        recorder.error("worker", "the gate's worker ended while its task ran; the task had no network from then on")
    outcome = Outcome.FAILED if ended.failed or ended.lost_gate else Outcome.PASSED
    recorder.task_ended(
        started,
        seconds=seconds,
        status=code if code is not None and code >= 0 else None,
        signal=-code if code is not None and code < 0 else None,
        outcome=outcome,
    )
    gate.tell({"ended": outcome.value})
    gate.tell({"refused": dict(ended.counters)})
    gate.stop()


def _result(wanted: Wanted, task: Task, ended: Ended, gate: worker.Worker, journal: Path) -> Result:
    if ended.failed:
        raise HostError(f"the sandbox could not be made: {ended.failed}")
    code = os.waitstatus_to_exitcode(ended.status) if ended.status is not None else None
    if code in (init.CANNOT_EXECUTE, init.NOT_FOUND) and (hint := _where_it_is(wanted)):
        raise UnreachableError(hint, code)
    return Result(task, ended.status, _summary(gate), journal)


class UnreachableError(ExeatError):
    """The command exists on the host and not in the sandbox."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def _summary(gate: worker.Worker) -> Summary | None:
    try:
        return Summary.decode(str(gate.said["summary"]).encode())
    except (KeyError, ValueError):
        return None


def _trees(who: identity.Identity, wanted: Wanted) -> dict[str, int]:
    """Mounts that only root can make or reach: the id-mapped workspace, and what is shown from behind a 0700."""
    if not who.privileged:
        return {}
    trees = {wanted.workspace: idmap.tree(wanted.workspace, who.kernel_uid, who.kernel_gid)}
    trees.update((path, linux.open_tree(path)) for path in wanted.read)
    return trees


def _view(
    who: identity.Identity, wanted: Wanted, own: Mapping[str, bytes], trees: Mapping[str, int]
) -> tuple[Step, ...]:
    rules = {os.path.abspath(path) for path in (*wanted.rules, *map(str, wanted.policy.sources))}
    secret = {state.state_directory(), wanted.journal or state.journal_directory()}
    return view.plan(
        view.Wanted(
            identity=who,
            workspace=wanted.workspace,
            etc=own,
            read=wanted.read,
            protect=(*sorted(rules), *confine.code_places()),
            sealed=confine.code_trees(),
            secret=tuple(sorted(os.path.realpath(path) for path in secret)),
            trees=trees,
        )
    )


def _network(plan: NetworkPlan, encoded: Encoded) -> launch.Network:
    def prepare() -> tuple[dict[str, object], Sequence[int]]:
        installed = execute(plan, encoded)
        sockets = open_gate_sockets(plan.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6)
        found = [sockets.tcp, sockets.dns_udp, sockets.diag]
        if sockets.refusal_log is not None:
            found.append(sockets.refusal_log)
        return {"sockets": len(found)}, [sock.detach() for sock in found]

    def counters() -> dict[str, int]:
        with open_counter_socket() as sock:
            return read_counters(sock)

    return launch.Network(prepare, counters)


def _where_it_is(wanted: Wanted) -> str:
    """Say what to do about a command that is here and that the sandbox does not show; empty when there is nothing."""
    found = shutil.which(wanted.argv[0])
    if found is None:
        return ""
    shown = (*view.SYSTEM, wanted.workspace, *wanted.read)
    real = os.path.realpath(found)
    hidden = next((p for p in (found, real) if not any(view.contains(place, p) for place in shown)), None)
    if hidden is None:
        return ""
    folder = os.path.dirname(hidden)
    show = os.path.dirname(folder) if os.path.basename(folder) in ("bin", "sbin", "shims") else folder
    return f"`{wanted.argv[0]}` is `{found}` here, which the sandbox does not show; show it with `--read {show}`"
