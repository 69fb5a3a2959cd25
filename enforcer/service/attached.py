"""Network namespaces that somebody else made and that have the gate, as the service knows them."""

import contextlib
import os
import selectors
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enforcer.network.constants import GATE_PORT, OWN_ADDRESSES
from enforcer.service.sandboxes import Sandbox
from enforcer.system import peers
from enforcer.system.errors import UsageError
from enforcer.system.notices import say
from proxy.sandbox.tenant import Task, Tenant
from proxy.telemetry.journal.recorder import Recorder
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.prometheus.metrics import Metrics
from rules.matching.policy import Policy
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from enforcer.service.rule_sets import RuleSets
    from enforcer.service.sandboxes import Sandboxes


_LOOK_AGAIN: Final = 5.0  # seconds


class Attached:
    """All of them. One that was attached by a process, or a path, is let go when that is gone."""

    def __init__(
        self, sets: "RuleSets", sandboxes: "Sandboxes", selector: selectors.BaseSelector, journal: Path
    ) -> None:
        """`journal`: where their ends are recorded."""
        self._sets = sets
        self._journal = journal
        self._sandboxes = sandboxes
        self._selector = selector
        self._processes: dict[str, int] = {}  # descriptors of processes (pidfd_open(2)), by sandbox
        self._paths: dict[str, tuple[Sandbox, tuple[int, int]]] = {}  # and which namespace they lead to, by sandbox
        self._due = 0.0  # when paths are looked at again (time.monotonic())

    def attach(self, asked: Mapping[str, Any], descriptors: list[int]) -> dict[str, object]:
        """Serve the sockets that were made in a namespace.

        Of the descriptors the first is the policy's file, and the last, if it was named by one, the process: by its
        number another may be meant by now.
        """
        named, pid = str(asked["attached"]), int(asked["pid"])
        file, sockets = descriptors[0], descriptors[1 : -1 if pid else None]
        if not named or self._sandboxes.find(named):
            raise UsageError(f"`{named}` is attached already")
        if not all(stat.S_ISSOCK(os.fstat(each).st_mode) for each in sockets):
            raise UsageError("these are no sockets")
        if pid and not peers.runs(descriptors[-1]):
            raise UsageError(f"process {pid} has ended")
        rules = self._sets.take({**asked, "shared": True}, file)
        task = {"id": str(asked["id"]), "name": str(asked["name"]), "labels": dict(asked["labels"])}
        sandbox = Sandbox(str(asked["sandbox"]), task, rules, "", pid, named, lambda _said: None)
        sandbox.event = str(asked["event"])
        sandbox.started = 0.0  # its worker counts it from the start
        sandbox.tell = lambda said: self._told(sandbox, said)
        self._sandboxes.add(sandbox)
        try:
            self._sandboxes.serve(sandbox, list(map(str, asked["sockets"])), sockets)
        except BaseException:
            self._sandboxes.forget(sandbox)
            raise
        del descriptors[1 : -1 if pid else None]  # they are kept
        if pid:
            process = self._processes[sandbox.id] = descriptors.pop()
            self._selector.register(process, selectors.EVENT_READ, lambda: self._end(sandbox))
        else:
            self._watch(sandbox)
        return {"sandbox": sandbox.id, "task": task["id"]}

    def detach(self, name: str) -> dict[str, object]:
        """Serve them no more."""
        found = [each for each in self._sandboxes.find(name) if each.attached and not each.ending]
        if len(found) != 1:
            return {}
        (sandbox,) = found
        self._end(sandbox)
        return {"sandbox": sandbox.id, "task": sandbox.task["id"]}

    def turn(self) -> None:
        """End those whose paths lead to their namespaces no more (ip-netns(8), delete). Called every few seconds."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _LOOK_AGAIN
        for sandbox, namespace in tuple(self._paths.values()):
            if _leads_to(sandbox.attached) != namespace:
                self._end(sandbox)

    def close(self) -> None:
        """End all of them: the service ends."""
        for sandbox in self._sandboxes.attached():
            if not sandbox.ending:
                self._end(sandbox)

    def _watch(self, sandbox: Sandbox) -> None:
        """End one when its path is gone, if it is seen from here at all."""
        if (namespace := _leads_to(sandbox.attached)) is not None:
            self._paths[sandbox.id] = sandbox, namespace

    def _end(self, sandbox: Sandbox) -> None:
        """Take the gate away from one, and record that."""
        self._forget(sandbox.id)
        last: Mapping[str, object] = {}
        try:
            last = record_end(sandbox, self._journal, Outcome.PASSED)
        finally:
            self._sandboxes.stop(sandbox, last)

    def _told(self, sandbox: Sandbox, said: Mapping[str, object]) -> None:
        """Hear the last of its worker; one that serves it no more although nobody ended it is recorded, and ended.

        Whatever the journal is like: whoever tells this has other sandboxes to see to.
        """
        self._forget(sandbox.id)
        if "failed" in said and not sandbox.ending:
            last: Mapping[str, object] = {}
            try:
                last = record_end(sandbox, self._journal, Outcome.FAILED)
            except OSError as error:
                say(f"the end of `{sandbox.attached}` could not be recorded: {error.strerror}")
            self._sandboxes.stop(sandbox, last)
            self._sandboxes.forget(sandbox)

    def _forget(self, sandbox: str) -> None:
        self._paths.pop(sandbox, None)
        process = self._processes.pop(sandbox, -1)
        if process >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(process)
            os.close(process)


def _leads_to(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def recorder_for(task: Task, journal: Path, policy: Policy | None = None) -> Recorder:
    """Return what writes a task's own events, without a gate. Raises JournalFailed."""
    tenant = Tenant(f"sandbox-{task.id}", task, policy or Policy(()), frozenset(OWN_ADDRESSES), GATE_PORT)
    return Recorder(tenant, Journal(journal), Metrics())


def record_end(sandbox: Sandbox, journal: Path, outcome: Outcome) -> dict[str, object]:
    """Write `task.ended`, and return what the sandbox's worker is to count of it. Raises JournalFailed."""
    task = sandbox.task
    recorder = recorder_for(Task(str(task["id"]), str(task["name"]), sandbox.labels), journal)
    recorder.task_ended(sandbox.event or None, seconds=max(time.time() - sandbox.began, 0.0), outcome=outcome)
    recorder.journal.close()
    return {"ended": outcome.value, "told": dict(recorder.metrics.events)}
