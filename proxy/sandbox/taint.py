"""Taint of a task: records that it has read from an untrusted source, so that rules with `when: tainted` apply.

A task's taint only grows. The registry of approvals keeps it, as it outlives a worker. The worker reports a source
before anything of it can reach the task; what it can't report, the task doesn't receive. A worker that replaces another
has no state yet: until the registry has sent it, the task counts as tainted.
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
    from rules.addresses import Address
    from rules.decision import Decision
    from rules.names import HostName

MOST: Final = 64  # sources that are named


class Taint:
    """Taint of one task. For one thread, within a running loop. Decisions use `SandboxState.tainted`."""

    __slots__ = ("_asking", "_known", "_metrics", "_recorder", "_reviewing", "_said", "_sandbox", "review", "sources")

    def __init__(
        self, sandbox: "SandboxState", recorder: "ApprovalRecorder", metrics: "Metrics", *, unsure: bool = False
    ) -> None:
        """`unsure`: there was another worker before this one."""
        self.sources: list[Source] = []
        self.review: Callable[[], None] = lambda: None  # decides again on all that is open
        self._sandbox = sandbox
        self._recorder = recorder
        self._metrics = metrics
        self._asking: ApprovalsClient | None = None
        self._known: set[tuple[str, object, int]] = set()
        self._said = False  # whether a source was really read
        self._reviewing = False
        if unsure:
            sandbox.tainted = True

    def needs_approval(self, asking: "ApprovalsClient") -> None:
        """Have the registry know, and hear what it knows, over `asking`, before that has started."""
        self._asking = asking
        asking.on_task_state, asking.known_sources = self._told, lambda: self.sources

    def reads(self, decision: "Decision", target: "HostName | Address", port: int, event: str) -> bool:
        """Record a read that `decision` allows; False: it could not be recorded, so block it."""
        rule = decision.rules[0] if decision.rules else decision.reason.value
        key = rule, target, port
        if key in self._known or (self._said and len(self._known) >= MOST):
            return True
        source = Source(rule, f"[{target}]:{port}" if ":" in str(target) else f"{target}:{port}", event)
        if not self._tell(source):
            return False
        self._known.add(key)
        self._set((source,))
        return True

    def _told(self, state: "TaskTaint") -> None:
        """Take note of what the registry knows."""
        if state.tainted:
            self._set(state.tainted_by)
        elif not self._said:
            self._sandbox.tainted = False

    def _tell(self, source: Source) -> bool:
        """Have the taint recorded, by the approvals server if there is one."""
        if self._asking is not None and self._asking.is_there:
            return self._asking.tainted(source)
        if not self._sandbox.policy.needs.approvals:
            return True  # nothing hangs on it, unless other rules come
        try:
            self._recorder.tainted(source)
        except JournalWriteError:
            return False
        return True

    def _set(self, sources: "tuple[Source, ...]") -> None:
        self.sources += [source for source in sources if source not in self.sources][: MOST - len(self.sources)]
        sandbox = self._sandbox
        first, self._said = not sandbox.tainted, True
        sandbox.tainted = True
        self._metrics.tasks_tainted += first
        if first and not self._reviewing and sandbox.policy.needs.approvals:
            self._reviewing = True
            asyncio.get_running_loop().call_soon(self._review)

    def _review(self) -> None:
        """Schedule a review of earlier decisions, outside of the current one."""
        self._reviewing = False
        self.review()
