"""Process of one run in the service: does what `exeat run` does without a service.

Forked from the fork server, it takes over the client's descriptors, directory, environment and limits. Only the worker
may be the service's, unless this run needs its own. It closes everything of the service before the task starts.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from enforcer.policy.rule_files import LoadedRules
from enforcer.run.environment import Caller
from enforcer.run.host import StandaloneHost
from enforcer.sandbox import init, stdio
from enforcer.service import placement, protocol
from enforcer.service.fork_server import ForkServer
from enforcer.service.placement import RegisteredWorker
from enforcer.service.preload import self_test
from enforcer.service.run_setup import EmptySandbox, RunCommand, prepare_empty_sandbox, take_settings
from enforcer.system import linux
from enforcer.system.notices import print_notice
from enforcer.system.started_by import use_login_of
from enforcer.worker import worker
from proxy.telemetry.journal.writer import cache_highest_number
from proxy.wire import message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.journal.keeper import Keeper
    from enforcer.limits.resource_limits import Limits, ResourceLimits
    from enforcer.policy.run_request import RunRequest
    from enforcer.sandbox.identity import Identity
    from enforcer.sandbox.namespaces import SandboxNamespaces
    from enforcer.service.messages import OwnWorkerRun
    from enforcer.service.rule_sets import RuleSets
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.sandbox_state import SandboxState
    from rules.matching.policy import Policy

_FAILED: Final = 125
_IDLE_BEFORE_SELF_TEST: Final = 0.1  # seconds without a request


def make_fork_server(
    sets: "RuleSets", worker_paths: worker.WorkerPaths, system: Path, command: RunCommand
) -> ForkServer:
    """Return the fork server for the processes of runs.

    Each gets a `run` message over its channel, with the client's connection and descriptors; one that is made in
    advance sends `ready` before.
    """

    def main(service: int, channel: socket.socket, ahead: bool) -> NoReturn:  # noqa: FBT001
        _run_child(service, channel, (sets, worker_paths, system), command, ahead=ahead)

    return ForkServer(main, lambda: cache_highest_number(worker_paths.journal), sets.generation)


def _run_child(
    parent: int,
    service: socket.socket,
    service_parts: "tuple[RuleSets, worker.WorkerPaths, Path]",
    command: RunCommand,
    *,
    ahead: bool,
) -> NoReturn:
    """Run one task, and exit; `ahead`: made before a request, with an empty sandbox."""
    status, empty = _FAILED << 8, None
    try:
        linux.die_with_parent(signal.SIGKILL, parent)
        os.setsid()
        if ahead:
            empty, service = prepare_empty_sandbox(service)
            message.send(service, {"ready": True})
            if empty is not None and not _is_request_pending(service):
                message.send(service, {"busy": True})  # rule files may be slow to read: requests go to others meanwhile
                self_test(service_parts[0], service_parts[2], empty.ids, command)
                message.send(service, {"ready": True})
        client, descriptors = _receive_request(service, empty)
        caller, service, request = _take_over(client, descriptors, service, empty)
        use_login_of(caller.pid)
        host = ServiceHost(caller, service, *service_parts, empty)
        with host.cleanup:
            try:
                status = _perform(command, request, host)
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
            except OSError as error:
                if (unwritable_status := command.status_if_unwritable(error)) is None:
                    raise
                status = unwritable_status << 8
            with contextlib.suppress(OSError):  # the client is gone, and its task with it
                caller.ended(status)
    except BaseException as error:  # noqa: BLE001 - the child must never run the service's loop
        with contextlib.suppress(OSError):
            os.write(2, f"exeat: {type(error).__name__}: {error}\n".encode("utf-8", "backslashreplace"))
    finally:
        os._exit(0)


def _is_request_pending(service: socket.socket) -> bool:
    """Whether a request arrives soon: sequential starts get the processors first."""
    poll = select.poll()
    poll.register(service, select.POLLIN)
    return bool(poll.poll(_IDLE_BEFORE_SELF_TEST * 1000))


def _receive_request(service: socket.socket, empty: "EmptySandbox | None") -> tuple[socket.socket, list[int]]:
    """Wait for a request. Exits when the service needs this process no more."""
    fields, [*descriptors] = message.receive(service, protocol.MOST_DESCRIPTORS)
    if not fields:
        if empty is not None:
            empty.close()
        os._exit(0)
    if len(descriptors) != 1 + protocol.DESCRIPTORS:  # a missing one would shift the others
        for descriptor in descriptors:
            os.close(descriptor)
        raise OSError(errno.EMFILE, "not all descriptors of the client could be passed on")
    return socket.socket(fileno=descriptors[0]), descriptors[1:]


def _take_over(
    client: socket.socket, descriptors: list[int], service: socket.socket, empty: "EmptySandbox | None"
) -> tuple[Caller, socket.socket, protocol.Run]:
    """Take over the client's descriptors, and close everything of the service except the channel to it."""
    *streams, directory, file = descriptors
    # Above 0, 1 and 2, where these are about to be put.
    moved = socket.socket(fileno=os.dup(client.detach())), socket.socket(fileno=os.dup(service.detach()))
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number, inheritable=True)
    request = protocol.unpack(file)
    os.fchdir(directory)
    sandbox_descriptors = () if empty is None else empty.descriptors()
    linux.keep_only({0, 1, 2, moved[0].fileno(), moved[1].fileno(), *init.shared_descriptors(), *sandbox_descriptors})
    take_settings(request)
    return Caller(moved[0]), moved[1], request


def _perform(command: RunCommand, request: protocol.Run, host: "ServiceHost") -> int:
    try:
        arguments = command.read(request.words)
    except SystemExit as error:
        return int(error.code or 0) << 8
    return command.perform(arguments, host.system, host)


class ServiceHost(StandaloneHost):
    """Host of one run in the service (`enforcer.run.host.Host`): rules, workers, and the connection to the caller."""

    def __init__(  # noqa: PLR0917  what it has
        self,
        caller: Caller,
        service: socket.socket,
        sets: "RuleSets",
        worker_paths: worker.WorkerPaths,
        system: Path,
        empty: EmptySandbox | None,
    ) -> None:
        self._caller = caller
        self.system = system
        self._service = service
        self._sets = sets
        self._worker_paths = worker_paths
        self._rule_set_number = 0
        self._empty = empty
        self.cleanup = contextlib.ExitStack()  # the rest of an ended task, removed after the caller has its status

    @property
    def caller(self) -> Caller:
        """The client."""
        return self._caller

    def announce(self) -> None:
        """Do nothing: the service knows the task."""

    def last(self) -> "contextlib.AbstractContextManager[contextlib.ExitStack]":
        """Return the stack that is closed once the caller has its status."""
        return contextlib.nullcontext(self.cleanup)

    def choose_ids(self, limits: "Limits", made: contextlib.ExitStack, last: contextlib.ExitStack) -> "Identity":
        """Return the ids of the empty sandbox, if it has these limits."""
        empty = self._empty
        if empty is not None and empty.limits != limits:
            empty.close()
            empty = self._empty = None
        if empty is None:
            return super().choose_ids(limits, made, last)
        if empty.ids.slot >= 0:
            made.callback(os.close, empty.ids.slot)
        last.callback(empty.resource_limits.remove)
        made.callback(empty.namespaces.end)
        return empty.ids

    def make_sandbox(
        self, run_request: "RunRequest", ids: "Identity", made: contextlib.ExitStack, last: contextlib.ExitStack
    ) -> "tuple[ResourceLimits, SandboxNamespaces | None]":
        """Return the sandbox whose ids were chosen, or start making one."""
        if self._empty is None:
            return super().make_sandbox(run_request, ids, made, last)
        return self._empty.resource_limits, self._empty.namespaces

    def arrange_stdio(self, owner: int) -> "stdio.Stdio":
        """Put pipes or a terminal in front of the caller's streams; the client relays keys."""
        return stdio.arrange(owner, self._caller.carry_in, self._caller.pid)

    def keep_journal(self, journal: Path, recorder: "Recorder") -> "Keeper | None":
        """Sign only a journal that isn't the service's."""
        return None if self._is_service_journal(journal) else super().keep_journal(journal, recorder)

    def close_journal(self, journal: Path, recorder: "Recorder", gate: worker.Worker) -> None:
        """Leave the service's journal to the service."""
        if self._is_service_journal(journal):
            recorder.journal.close()
        else:
            super().close_journal(journal, recorder, gate)

    def counts_anomalies(self, run_request: "RunRequest") -> bool:  # noqa: ARG002
        """Count them, for the service's metrics."""
        return True

    def leave(self, namespaces: "SandboxNamespaces") -> None:
        """End the sandbox when the caller has its status."""
        namespaces.end_later(self.cleanup)

    def _is_service_journal(self, journal: Path) -> bool:
        return journal == self._worker_paths.journal

    def read_rules(self, files: "Sequence[Path]", system: Path) -> LoadedRules:
        """Return the rules, without reading files that are in force already. Raises as `rule_files.load`."""
        found = self._sets.find(files, system)
        if found is None:
            return super().read_rules(files, system)
        self._rule_set_number, loaded = found
        return loaded

    def place(
        self,
        ids: "Identity",
        sandbox_state: "SandboxState",
        worker_paths: worker.WorkerPaths,
        run_request: "RunRequest",
    ) -> worker.Worker:
        """Return a worker of the service, or one of this run's own where the service's can't serve it."""
        if why := _reason_for_own_worker(sandbox_state.policy, worker_paths, self._worker_paths):
            task = sandbox_state.task
            description: OwnWorkerRun = {
                "alone": why,
                "sandbox": sandbox_state.id,
                "id": task.id,
                "name": task.name,
                "labels": dict(task.labels),
                "workspace": run_request.workspace,
                "rules": list(run_request.searched_paths)[:1],
            }
            print_notice(f"{why}, so this task has a gate of its own; the service lists, counts and stops it")
            gate = worker.start(ids, sandbox_state, worker_paths, RegisteredWorker)
            gate.register(self._service, description)
            return gate
        return placement.place(
            self._service, sandbox_state, run_request, shared=not run_request.masked_files, known=self._rule_set_number
        )


def _reason_for_own_worker(policy: "Policy", run_paths: worker.WorkerPaths, service_paths: worker.WorkerPaths) -> str:
    """Return why no worker of the service can serve a task; empty: one can."""
    if policy.secrets:
        return "its rules have `secrets`"
    if policy.settings.upstream_auth is not None:
        return "its rules have an `upstream_auth`"
    if run_paths.metrics is not None:
        return "it has `--metrics` of its own"
    if (run_paths.authority, run_paths.certificate) != (service_paths.authority, service_paths.certificate):
        return "the CA was replaced after the service had started"
    return "" if run_paths.journal == service_paths.journal else "it has a journal of its own"
