"""Host of a run: provides rules, ids, a sandbox, a worker, journal signing, and the connection to its caller.

`task.run` is the same run on each host. `StandaloneHost` makes everything for one task in this process;
`service.run_process.ServiceHost` gets it from the service.
"""

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

from enforcer.policy.rule_files import LoadedRules, load_with_fingerprint
from enforcer.sandbox import identity
from enforcer.system.errors import HostError
from enforcer.worker import worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from enforcer.journal.keeper import Keeper
    from enforcer.limits.resource_limits import Limits, ResourceLimits
    from enforcer.policy.run_request import RunRequest
    from enforcer.run.environment import Caller
    from enforcer.sandbox.identity import Identity
    from enforcer.sandbox.namespaces import SandboxNamespaces
    from enforcer.sandbox.stdio import Stdio
    from enforcer.worker.worker import Worker, WorkerPaths
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.sandbox_state import SandboxState


class Host(Protocol):
    """Host of a run. What a method makes is removed by the stacks it gets: `made` first, `last` last."""

    @property
    def caller(self) -> "Caller | None":
        """The client that sent the run and passes signals on; None: this process."""

    def announce(self) -> None:
        """Print what the caller has to know before the run starts."""

    def read_rules(self, files: "Sequence[Path]", system: "Path") -> LoadedRules:
        """Return the policy of these rule files and root's. Raises as `rule_files.load`."""

    def last(self) -> "contextlib.AbstractContextManager[contextlib.ExitStack]":
        """Return the stack for what is removed after everything that may use it."""

    def choose_ids(self, limits: "Limits", made: contextlib.ExitStack, last: contextlib.ExitStack) -> "Identity":
        """Return the ids of a sandbox with these limits. Raises HostError."""

    def make_sandbox(
        self, request: "RunRequest", ids: "Identity", made: contextlib.ExitStack, last: contextlib.ExitStack
    ) -> "tuple[ResourceLimits, SandboxNamespaces | None]":
        """Return resource limits and an empty sandbox with these ids; None: `launch` makes one, or raises."""

    def place(
        self, ids: "Identity", sandbox_state: "SandboxState", worker_paths: "WorkerPaths", request: "RunRequest"
    ) -> "Worker":
        """Return a worker for the sandbox. Raises HostError."""

    def arrange_stdio(self, owner: int) -> "Stdio":
        """Return the standard streams of a task with the kernel uid `owner`. Raises UsageError."""

    def keep_journal(self, journal: "Path", recorder: "Recorder") -> "Keeper | None":
        """Return what signs the journal while the task runs; None: another process does. Raises HostError."""

    def close_journal(self, journal: "Path", recorder: "Recorder", gate: "Worker") -> None:
        """Sign everything that the run has recorded. Raises HostError."""

    def counts_anomalies(self, request: "RunRequest") -> bool:
        """Whether the task's metrics, and so its anomalies, are read."""

    def leave(self, namespaces: "SandboxNamespaces") -> None:
        """Give up the sandbox of an ended task; no other process uses it."""


class StandaloneHost:
    """A run without a service: everything is made in this process, and removed at its end."""

    @property
    def caller(self) -> "Caller | None":
        """None: no client sent the run."""
        return None

    def announce(self) -> None:
        """Print that a running service doesn't know this task: it wasn't asked, or declined."""
        from enforcer.system.control_socket import is_service_running
        from enforcer.system.notices import print_notice

        if is_service_running():
            print_notice(
                "this task runs without the service, so `exeat ps`, `exeat stop` and the service's metrics omit it"
            )

    def read_rules(self, files: "Sequence[Path]", system: "Path") -> LoadedRules:
        """Read the files."""
        return load_with_fingerprint(files, system)

    def last(self) -> "contextlib.AbstractContextManager[contextlib.ExitStack]":
        """Return a stack that closes with the run."""
        return contextlib.ExitStack()

    def choose_ids(self, limits: "Limits", made: contextlib.ExitStack, last: contextlib.ExitStack) -> "Identity":  # noqa: ARG002
        """Choose ids that no other sandbox has until `made` is closed."""
        ids = identity.choose()
        if ids.slot >= 0:
            made.callback(os.close, ids.slot)
        return ids

    def make_sandbox(
        self, request: "RunRequest", ids: "Identity", made: contextlib.ExitStack, last: contextlib.ExitStack
    ) -> "tuple[ResourceLimits, SandboxNamespaces | None]":
        """Make the resource limits, and within them an empty sandbox, which goes on making itself."""
        from enforcer.limits.resource_limits import limits_of, make_resource_limits
        from enforcer.run import sandbox_spec

        resource_limits = make_resource_limits(limits_of(request.settings))
        last.callback(resource_limits.remove)
        with contextlib.suppress(HostError, OSError):
            empty = sandbox_spec.start_empty_sandbox(ids, resource_limits, request.settings.devices)
            made.callback(empty.end)
            return resource_limits, empty
        return resource_limits, None

    def place(
        self,
        ids: "Identity",
        sandbox_state: "SandboxState",
        worker_paths: "WorkerPaths",
        request: "RunRequest",  # noqa: ARG002
    ) -> "Worker":
        """Start a worker for this sandbox alone."""
        return worker.start(ids, sandbox_state, worker_paths, worker.WorkerProcess)

    def arrange_stdio(self, owner: int) -> "Stdio":
        """Put pipes or a terminal in front of this process's streams."""
        from enforcer.sandbox import stdio

        return stdio.arrange(owner)

    def keep_journal(self, journal: "Path", recorder: "Recorder") -> "Keeper | None":
        """Sign the journal in this process."""
        from enforcer.journal import signing  # imported while the sandbox is being made: cryptography is slow

        return signing.start_keeper(journal, recorder)

    def close_journal(self, journal: "Path", recorder: "Recorder", gate: "Worker") -> None:
        """Wait for the worker's last event, then sign everything."""
        from enforcer.journal import signing

        gate.wait_for_summary()
        signing.stop_keeper(journal, recorder, gate)

    def counts_anomalies(self, request: "RunRequest") -> bool:
        """Only with `--metrics`."""
        return request.metrics is not None

    def leave(self, namespaces: "SandboxNamespaces") -> None:
        """Do nothing: the sandbox ends with the run."""
