"""Runs one task from start to end: makes everything it needs, supervises it, and removes everything.

The order is for safety: the rules are valid, the gate's worker is confined and has its CA, and the task's start is in
the journal before anything of the task runs. A failure removes all that was made before it.
"""

import contextlib
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from enforcer.limits.resource_limits import limits_of
from enforcer.network.constants import GATE_PORT, OWN_ADDRESSES
from enforcer.policy.run_request import RunRequest
from enforcer.sandbox import identity
from enforcer.system import state
from enforcer.system.errors import ExeatError, HostError
from enforcer.system.processes import close_signals, open_signals
from enforcer.system.started_by import started_by
from enforcer.worker import trust, worker
from proxy.sandbox.recorder import Recorder
from proxy.sandbox.sandbox_state import SandboxState, Task
from proxy.telemetry.journal.writer import Journal, JournalWriteError
from proxy.telemetry.prometheus.metrics import Metrics
from proxy.telemetry.summary import Summary
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from enforcer.approvals.registration import Registration
    from enforcer.journal.signing import AnomalyCountReader
    from enforcer.limits.resource_limits import ResourceLimits
    from enforcer.run.host import Host
    from enforcer.run.launch import Sandbox, SandboxSpec
    from enforcer.run.supervise import TaskEnd
    from enforcer.sandbox.namespaces import SandboxNamespaces
    from enforcer.sandbox.stdio import Stdio
    from enforcer.workspace.written_places import Workspace


_CANNOT_EXECUTE, _NOT_FOUND = 126, 127


class Result(NamedTuple):
    """The result of a run: the task's wait status (None: it never started), and what its gate counted."""

    task: Task
    status: int | None
    summary: Summary | None  # None: the gate ended early, and with it the counts
    journal: Path
    problems: tuple[str, ...]  # lost output
    limited: tuple[str, ...] = ()  # limits that it reached
    cut_short: bool = False  # it was ended for a limit
    workspace: tuple[str, ...] = ()  # notices about the workspace
    command: str = ""  # its command, as given


def run(request: RunRequest, host: "Host") -> Result:
    """Run one task on a host. Raises ExeatError when it can't be started."""
    began = time.monotonic()
    with contextlib.ExitStack() as made:
        signal_fd = open_signals()
        signals_open = made.enter_context(contextlib.ExitStack())
        signals_open.callback(close_signals, signal_fd)
        _check_secrets(request)
        last = made.enter_context(host.last())
        ids = host.choose_ids(limits_of(request.settings), made, last)
        state.make_private(state.state_directory())
        journal = state.make_private(request.journal or state.journal_directory())
        sandbox_state = sandbox_state_of(request)
        trusted = trust.public_authority(state.authority_directory(), state.make_private(state.cache_directory()))
        worker_paths = worker.WorkerPaths(
            state.authority_directory(),
            trusted.fingerprint,
            trusted.expires,
            trusted.certificate.encode(),
            journal,
            request.metrics,
        )
        gate = host.place(ids, sandbox_state, worker_paths, request)
        made.callback(_stop_worker, gate)
        # Imported while the worker starts on another core: modules for both were imported before the fork.
        from enforcer.limits.limit_monitor import LimitMonitor
        from enforcer.run import sandbox_spec
        from enforcer.run.supervise import Supervision, supervise

        resource_limits, empty = host.make_sandbox(request, ids, made, last)
        recorder = _recorder(sandbox_state, journal, gate, host, made)
        gate.report_errors_to(partial(recorder.error, "worker"))
        io = host.arrange_stdio(ids.kernel_uid)
        made.callback(io.finish)
        workspace = _workspace(request, sandbox_state, journal, ids, resource_limits, made)
        make_registration, registration = _register_for_approvals(request, sandbox_state, journal, made)
        spec = sandbox_spec.gather_spec(
            ids,
            request,
            trusted,
            gate=gate,
            io=io,
            resource_limits=resource_limits,
            workspace=workspace,
            given=registration.given if registration is not None else {},
            empty=empty,
            made=made,
        )
        started = _record_start(recorder, request, journal, resource_limits)
        try:
            sandbox = _launch(spec, io, registration, made, empty=empty, gate=gate)
            monitor = LimitMonitor(resource_limits, partial(recorder.task_limited, started), workspace.disk_quota)
            unusual = _anomaly_reader(journal, sandbox_state) if host.counts_anomalies(request) else None
            keeper = host.keep_journal(journal, recorder)
            watch = Supervision(sandbox, gate, monitor, keeper, began, registration, make_registration, unusual)
            ended = supervise(watch, signal_fd, io, request, host.caller)
        except ExeatError as error:
            recorder.task_ended(started, seconds=time.monotonic() - began, outcome=Outcome.FAILED)
            raise _with_limits(error, resource_limits) from error
        _kill_rest(resource_limits, sandbox, ended, workspace)
        monitor.report_counts(is_final=True, status=ended.status)
        over = partial(record_end, recorder, gate, started, ended, time.monotonic() - began)
        found = _finish(workspace, recorder, started, over, signals_open)
        signals_open.close()  # from here on signals end this process again
        problems = io.finish()
        if not spec.locks:  # otherwise the next task may need its locks
            host.leave(sandbox.namespaces)
    result = Result(
        sandbox_state.task,
        ended.status,
        _summary(gate),
        journal,
        tuple(problems),
        tuple(monitor.reached),
        monitor.cut_short,
        found,
        request.argv[0],
    )
    if ended.failed and not result.cut_short:
        raise HostError("; ".join((f"the sandbox could not be made: {ended.failed}", *result.limited)))
    _raise_if_unreachable(request, ended)
    return result


def _with_limits(error: ExeatError, resource_limits: "ResourceLimits") -> ExeatError:
    """Return the error of a failed start, with the limits that it reached."""
    if not isinstance(error, HostError):
        return error
    from enforcer.limits.cgroup_tree import Counts
    from enforcer.limits.limit_monitor import limits_reached

    limited = tuple(each.detail for each in limits_reached(Counts(), resource_limits.counts(), resource_limits.limits))
    return HostError("; ".join((error.what, *limited)), error.remedy) if limited else error


def sandbox_state_of(request: RunRequest) -> SandboxState:
    """Return the task as its gate is to know it, under a name that no other task has."""
    task = Task(id=f"{os.getpid():x}-{time.time_ns():x}", name=request.name, labels=dict(request.labels))
    return SandboxState(f"sandbox-{task.id}", task, request.policy, frozenset(OWN_ADDRESSES), GATE_PORT)


def _workspace(  # noqa: PLR0917
    request: RunRequest,
    sandbox_state: SandboxState,
    journal: Path,
    ids: identity.Identity,
    resource_limits: "ResourceLimits",
    made: contextlib.ExitStack,
) -> "Workspace":
    from enforcer.workspace.written_places import Workspace

    workspace = made.enter_context(contextlib.closing(Workspace(request, sandbox_state, journal, ids)))
    workspace.set_limits(resource_limits.limits)
    return workspace


def _open_registration(
    request: RunRequest, sandbox_state: SandboxState, journal: Path, made: contextlib.ExitStack
) -> "Registration":
    from enforcer.approvals.registration import (
        Registration,
        introduction,
    )  # imported only for rules that need approvals

    return made.enter_context(contextlib.closing(Registration(introduction(request, sandbox_state), journal)))


def _register_for_approvals(
    request: RunRequest, sandbox_state: SandboxState, journal: Path, made: contextlib.ExitStack
) -> "tuple[Callable[[], Registration], Registration | None]":
    """Return what makes a place to ask people, and that place if the rules may want them to be asked already."""
    make_registration = partial(_open_registration, request, sandbox_state, journal, made)
    if not request.policy.needs.approvals:
        return make_registration, None
    registration = make_registration()
    registration.begin()
    return make_registration, registration


def _launch(
    sandbox_spec: "SandboxSpec",
    io: "Stdio",
    registration: "Registration | None",
    made: contextlib.ExitStack,
    *,
    empty: "SandboxNamespaces | None",
    gate: worker.Worker,
) -> "Sandbox":
    """Start the sandbox, and close what was made for it alone."""
    from enforcer.run import launch

    try:
        sandbox = launch.launch(sandbox_spec, empty, io.start_terminal)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise worker.start_error(gate) from error
    made.callback(sandbox.end)
    io.close()
    io.start_relays()
    if registration is not None:
        registration.handed_over()
    return sandbox


def _stop_worker(gate: worker.Worker) -> None:
    """Wait for the last message of a stopped worker, and end it."""
    try:
        gate.wait_for_summary()
    finally:
        gate.kill()


def _kill_rest(resource_limits: "ResourceLimits", sandbox: "Sandbox", ended: "TaskEnd", workspace: "Workspace") -> None:
    """Kill the rest of the task, and the mounts of what is inspected next."""
    resource_limits.kill()
    if (
        ended.status is None or workspace.review
    ):  # otherwise only init and the outermost process are left, and are ending
        sandbox.end()


def _finish(
    workspace: "Workspace",
    recorder: Recorder,
    started: str,
    over: "Callable[[Callable[[], tuple[str, ...]]], tuple[str, ...]]",
    signals_open: contextlib.ExitStack,
) -> tuple[str, ...]:
    """Process what the task has left, and record its end by `over`; returns notices for the user.

    No signal ends this process before that: others could execute what a task has left. Reviewed changes are kept, and
    gathered later by `exeat changes`; the gate gets the end before.
    """
    finish = partial(
        workspace.finish, partial(recorder.changes_kept, started), partial(recorder.protected_changed, started)
    )
    if not workspace.review:
        return over(finish)
    over(tuple)
    signals_open.close()
    return finish()


def _check_secrets(request: RunRequest) -> None:
    if not request.policy.secrets:
        return
    from enforcer.run import environment
    from enforcer.system import linux  # before a command for a secret is run
    from enforcer.worker import credentials

    linux.disable_core_dumps()  # our environment may have a secret; a task may raise an inherited limit
    credentials.check_environment(
        request.policy, environment.given_variables(os.environ, request.env, request.settings)
    )
    credentials.hidden_files(request.policy, os.environ, request.shown)


def _raise_if_unreachable(request: RunRequest, ended: "TaskEnd") -> None:
    """Raise UnreachableError for a command that exists on the host, and not in the sandbox."""
    code = os.waitstatus_to_exitcode(ended.status) if ended.status is not None else None
    if code in (_CANNOT_EXECUTE, _NOT_FOUND):
        from enforcer.run.missing_command import explain_missing_command

        if hint := explain_missing_command(request):
            raise UnreachableError(hint, code)


def _recorder(
    sandbox_state: SandboxState, journal: Path, gate: worker.Worker, host: "Host", made: contextlib.ExitStack
) -> Recorder:
    try:
        recorder = Recorder(sandbox_state, Journal(journal), Metrics())
    except JournalWriteError as error:
        raise _journal_error(journal, error) from error
    made.callback(host.close_journal, journal, recorder, gate)
    recorder.rules_loaded()
    return recorder


def _anomaly_reader(journal: Path, sandbox_state: SandboxState) -> "AnomalyCountReader":
    from enforcer.journal.signing import AnomalyCountReader

    return AnomalyCountReader(journal, sandbox_state.task.id)


def _record_start(recorder: Recorder, request: RunRequest, journal: Path, resource_limits: "ResourceLimits") -> str:
    try:
        return recorder.task_started(
            request.argv, resource_limits.describe(), started_by=started_by(), workspace=request.workspace
        )
    except JournalWriteError as error:
        raise _journal_error(journal, error) from error


def _journal_error(journal: Path, error: JournalWriteError) -> HostError:
    problem = f"the journal `{journal}` cannot be written, so nothing may run: {error.strerror or error}"
    return HostError(problem, state.remedy(error))


def record_end(  # noqa: PLR0917
    recorder: Recorder,
    gate: worker.Worker,
    started: str,
    ended: "TaskEnd",
    seconds: float,
    finish: "Callable[[], tuple[str, ...]]",
) -> tuple[str, ...]:
    """Record the task's end and, by `finish`, what it has left; returns what `finish` returns.

    Then the gate gets one message, so that it closes what is open; its metrics include the events recorded here.
    """
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
    try:
        return finish()
    finally:
        told, errors = recorder.metrics.events, recorder.metrics.gate_errors
        gate.stop({"ended": outcome.value, "refused": dict(ended.counters), "told": dict(told), "errors": dict(errors)})


class UnreachableError(ExeatError):
    """The command, or its interpreter, is not in the sandbox."""

    def __init__(self, text: str, status: int) -> None:
        """Take the message, and the exit status: 126 or 127."""
        super().__init__(text)
        self.status = status


def _summary(gate: worker.Worker) -> Summary | None:
    try:
        return Summary.decode(str(gate.received_fields["summary"]).encode())
    except (KeyError, ValueError):
        return None
