"""Records the end of what was attached: no process of ours looks after it, so the service does."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.network.constants import GATE_PORT, OWN_ADDRESSES
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.recorder import Recorder
from proxy.tenant import Task, Tenant
from rules.matching.policy import Policy
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from enforcer.service.sandboxes import Sandbox


def recorder_for(task: Task, journal: Path, policy: Policy | None = None) -> Recorder:
    """Return what writes a task's own events, without a gate. Raises JournalFailed."""
    tenant = Tenant(f"sandbox-{task.id}", task, policy or Policy(()), frozenset(OWN_ADDRESSES), GATE_PORT)
    return Recorder(tenant, Journal(journal), Metrics())


def record_end(sandbox: "Sandbox", journal: Path, outcome: Outcome) -> dict[str, object]:
    """Write `task.ended`, and return what the sandbox's worker is to count of it. Raises JournalFailed."""
    task = sandbox.task
    recorder = recorder_for(Task(str(task["id"]), str(task["name"]), sandbox.labels), journal)
    recorder.task_ended(sandbox.event or None, seconds=max(time.time() - sandbox.began, 0.0), outcome=outcome)
    recorder.journal.close()
    return {"ended": outcome.value, "told": dict(recorder.metrics.events)}
