"""Taint of a task: records that it has read from an untrusted source, so that rules with `when: tainted` apply.

A task's taint only grows. The registry of approvals keeps it, as it outlives a worker. The worker reports a source
before the task receives anything from it; if the report fails, the read is blocked. A worker that replaces another has
no state at first: until the registry has sent it, the task counts as tainted.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from proxy.approvals.approval_request import Source
from proxy.telemetry.journal.writer import JournalWriteError

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.approvals.client import ApprovalsClient
    from proxy.approvals.protocol import TaskTaint
    from proxy.approvals.recording import ApprovalRecorder
    from proxy.sandbox.sandbox_state import SandboxState
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.decision import Decision
    from rules.values.addresses import Address
    from rules.values.names import HostName

MOST_SOURCES: Final = 64  # sources that are named


class Taint:
    """Taint of one task. For one thread, within a running loop. Decisions use `SandboxState.tainted`."""

    __slots__ = (
        "_approvals_client", "_has_read", "_metrics", "_recorded", "_recorder", "_review_scheduled", "_sandbox",
        "review", "sources",
    )  # fmt: skip

    def __init__(
        self, sandbox: "SandboxState", recorder: "ApprovalRecorder", metrics: "Metrics", *, is_unknown: bool = False
    ) -> None:
        """`is_unknown`: another worker served the task before."""
        self.sources: list[Source] = []
        self.review: Callable[[], None] = lambda: None  # reviews open connections
        self._sandbox = sandbox
        self._recorder = recorder
        self._metrics = metrics
        self._approvals_client: ApprovalsClient | None = None
        self._recorded: set[tuple[str, object, int]] = set()
        self._has_read = False  # a source was read
        self._review_scheduled = False
        if is_unknown:
            sandbox.tainted = True

    def connect(self, approvals_client: "ApprovalsClient") -> None:
        """Exchange sources with the registry over `approvals_client`, which has not started yet."""
        self._approvals_client = approvals_client
        approvals_client.on_task_state, approvals_client.known_sources = self._handle_task_state, lambda: self.sources

    def record_read(self, decision: "Decision", target: "HostName | Address", port: int, event: str) -> bool:
        """Record a read that `decision` allows; False: it could not be recorded, so block it."""
        rule = decision.rules[0] if decision.rules else decision.reason.value
        key = rule, target, port
        if key in self._recorded or (self._has_read and len(self._recorded) >= MOST_SOURCES):
            return True
        source = Source(rule, f"[{target}]:{port}" if ":" in str(target) else f"{target}:{port}", event)
        if not self._report(source):
            return False
        self._recorded.add(key)
        self._set((source,))
        return True

    def _handle_task_state(self, state: "TaskTaint") -> None:
        """Handle the task's state in the registry."""
        if state.tainted:
            self._set(state.tainted_by)
        elif not self._has_read:
            self._sandbox.tainted = False

    def _report(self, source: Source) -> bool:
        """Have the taint recorded, by the approvals server if there is one."""
        if self._approvals_client is not None and self._approvals_client.is_there:
            return self._approvals_client.tainted(source)
        if not self._sandbox.policy.needs.approvals:
            return True  # no rule depends on it, unless rules change
        try:
            self._recorder.tainted(source)
        except JournalWriteError:
            return False
        return True

    def _set(self, sources: "tuple[Source, ...]") -> None:
        self.sources += [source for source in sources if source not in self.sources][: MOST_SOURCES - len(self.sources)]
        sandbox = self._sandbox
        is_first, self._has_read = not sandbox.tainted, True
        sandbox.tainted = True
        self._metrics.tasks_tainted += is_first
        if is_first and not self._review_scheduled and sandbox.policy.needs.approvals:
            self._review_scheduled = True
            asyncio.get_running_loop().call_soon(self._review)

    def _review(self) -> None:
        """Schedule a review of earlier decisions, outside of the current one."""
        self._review_scheduled = False
        self.review()
