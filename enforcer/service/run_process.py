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
_CALM: Final = 0.1  # seconds without a request


def make_fork_server(
    sets: "RuleSets", worker_paths: worker.WorkerPaths, system: Path, command: RunCommand
) -> ForkServer:
    """Return the fork server for the processes of runs.

    Each gets a `run` message over its channel, with the client's connection and descriptors; one that is made in
    advance sends `ready` before.
    """

    def be(service: int, channel: socket.socket, ahead: bool) -> NoReturn:  # noqa: FBT001
        _be_run(service, channel, (sets, worker_paths, system), command, ahead=ahead)

    return ForkServer(be, lambda: cache_highest_number(worker_paths.journal), sets.generation)


def _be_run(
    parent: int,
    service: socket.socket,
    known: "tuple[RuleSets, worker.WorkerPaths, Path]",
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
            if empty is not None and not _is_asked(service):
                message.send(service, {"busy": True})  # rule files may be slow to read: requests go to others meanwhile
                self_test(known[0], known[2], empty.who, command)
                message.send(service, {"ready": True})
        client, given = _await(service, empty)
        caller, service, request = _settle_in(client, given, service, empty)
        use_login_of(caller.pid)
        host = ServiceHost(caller, service, *known, empty)
        with host.left:
            try:
                status = _run(command, request, host)
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
            except OSError as error:
                if (unsaid := command.status_if_unsaid(error)) is None:
                    raise
                status = unsaid << 8
            with contextlib.suppress(OSError):  # the client is gone, and its task with it
                caller.ended(status)
    except BaseException as error:  # noqa: BLE001 - the child must never run the service's loop
        with contextlib.suppress(OSError):
            os.write(2, f"exeat: {type(error).__name__}: {error}\n".encode("utf-8", "backslashreplace"))
    finally:
        os._exit(0)


def _is_asked(service: socket.socket) -> bool:
    """Whether a request arrives soon: sequential starts get the processors first."""
    poll = select.poll()
    poll.register(service, select.POLLIN)
    return bool(poll.poll(_CALM * 1000))


def _await(service: socket.socket, empty: "EmptySandbox | None") -> tuple[socket.socket, list[int]]:
    """Wait for a request. Exits when the service needs this process no more."""
    said, [*given] = message.receive(service, protocol.MOST_DESCRIPTORS)
    if not said:
        if empty is not None:
            empty.close()
        os._exit(0)
    if len(given) != 1 + protocol.DESCRIPTORS:  # a missing one would shift the others
        for descriptor in given:
            os.close(descriptor)
        raise OSError(errno.EMFILE, "not all descriptors of the client could be passed on")
    return socket.socket(fileno=given[0]), given[1:]


def _settle_in(
    client: socket.socket, given: list[int], service: socket.socket, empty: "EmptySandbox | None"
) -> tuple[Caller, socket.socket, protocol.Run]:
    """Take over the client's descriptors, and close everything of the service except the channel to it."""
    *streams, here, file = given
    # Above 0, 1 and 2, where these are about to be put.
    moved = socket.socket(fileno=os.dup(client.detach())), socket.socket(fileno=os.dup(service.detach()))
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number, inheritable=True)
    request = protocol.unpack(file)
    os.fchdir(here)
    kept = () if empty is None else empty.descriptors()
    linux.keep_only({0, 1, 2, moved[0].fileno(), moved[1].fileno(), *init.kept_files(), *kept})
    take_settings(request)
    return Caller(moved[0]), moved[1], request


def _run(command: RunCommand, request: protocol.Run, host: "ServiceHost") -> int:
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
        self._known = 0
        self._empty = empty
        self.left = contextlib.ExitStack()  # the rest of an ended task, removed after the caller has its status

    @property
    def caller(self) -> Caller:
        """The client."""
        return self._caller

    def announce(self) -> None:
        """Do nothing: the service knows the task."""

    def last(self) -> "contextlib.AbstractContextManager[contextlib.ExitStack]":
        """Return the stack that is closed once the caller has its status."""
        return contextlib.nullcontext(self.left)

    def choose_ids(self, limits: "Limits", made: contextlib.ExitStack, last: contextlib.ExitStack) -> "Identity":
        """Return the ids of the empty sandbox, if it has these limits."""
        empty = self._empty
        if empty is not None and empty.limits != limits:
            empty.close()
            empty = self._empty = None
        if empty is None:
            return super().choose_ids(limits, made, last)
        if empty.who.slot >= 0:
            made.callback(os.close, empty.who.slot)
        last.callback(empty.resource_limits.remove)
        made.callback(empty.namespaces.end)
        return empty.who

    def make_sandbox(
        self, wanted: "RunRequest", who: "Identity", made: contextlib.ExitStack, last: contextlib.ExitStack
    ) -> "tuple[ResourceLimits, SandboxNamespaces | None]":
        """Return the sandbox whose ids were chosen, or start making one."""
        if self._empty is None:
            return super().make_sandbox(wanted, who, made, last)
        return self._empty.resource_limits, self._empty.namespaces

    def arrange_stdio(self, owner: int) -> "stdio.Stdio":
        """Put pipes or a terminal in front of the caller's streams; the client relays keys."""
        return stdio.arrange(owner, self._caller.carry_in, self._caller.pid)

    def keep_journal(self, journal: Path, recorder: "Recorder") -> "Keeper | None":
        """Sign only a journal that isn't the service's."""
        return None if self._keeps(journal) else super().keep_journal(journal, recorder)

    def close_journal(self, journal: Path, recorder: "Recorder", gate: worker.Worker) -> None:
        """Leave the service's journal to the service."""
        if self._keeps(journal):
            recorder.journal.close()
        else:
            super().close_journal(journal, recorder, gate)

    def counts_anomalies(self, wanted: "RunRequest") -> bool:  # noqa: ARG002
        """Count them, for the service's metrics."""
        return True

    def leave(self, namespaces: "SandboxNamespaces") -> None:
        """End the sandbox when the caller has its status."""
        namespaces.end_later(self.left)

    def _keeps(self, journal: Path) -> bool:
        return journal == self._worker_paths.journal

    def read_rules(self, files: "Sequence[Path]", system: Path) -> LoadedRules:
        """Return the rules, without reading files that are in force already. Raises as `rule_files.load`."""
        found = self._sets.known(files, system)
        if found is None:
            return super().read_rules(files, system)
        self._known, seen = found
        return seen

    def place(
        self, who: "Identity", sandbox_state: "SandboxState", worker_paths: worker.WorkerPaths, wanted: "RunRequest"
    ) -> worker.Worker:
        """Return a worker of the service, or one of this run's own where the service's can't serve it."""
        if why := _why_alone(sandbox_state.policy, worker_paths, self._worker_paths):
            task = sandbox_state.task
            described: OwnWorkerRun = {
                "alone": why,
                "sandbox": sandbox_state.id,
                "id": task.id,
                "name": task.name,
                "labels": dict(task.labels),
                "workspace": wanted.workspace,
                "rules": list(wanted.asked)[:1],
            }
            print_notice(f"{why}, so this task has a gate of its own; the service lists, counts and stops it")
            gate = worker.start(who, sandbox_state, worker_paths, RegisteredWorker)
            gate.register(self._service, described)
            return gate
        return placement.place(self._service, sandbox_state, wanted, shared=not wanted.covers, known=self._known)


def _why_alone(policy: "Policy", wanted: worker.WorkerPaths, ours: worker.WorkerPaths) -> str:
    """Return why no worker of the service can serve a task; empty: one can."""
    if policy.secrets:
        return "its rules have `secrets`"
    if policy.settings.upstream_auth is not None:
        return "its rules have an `upstream_auth`"
    if wanted.metrics is not None:
        return "it has `--metrics` of its own"
    if (wanted.authority, wanted.certificate) != (ours.authority, ours.certificate):
        return "the CA was replaced after the service had started"
    return "" if wanted.journal == ours.journal else "it has a journal of its own"
