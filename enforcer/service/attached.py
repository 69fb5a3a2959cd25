"""Network namespaces that somebody else made and that have the gate, as the service knows them."""

import contextlib
import os
import selectors
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enforcer.errors import UsageError
from enforcer.saying import say
from enforcer.service import peers
from enforcer.service.endings import record_end
from enforcer.service.sandboxes import Sandbox
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from enforcer.service.rule_sets import RuleSets
    from enforcer.service.sandboxes import Sandboxes


class Attached:
    """All of them. One that was attached by a process is let go when that process ends."""

    def __init__(
        self, sets: "RuleSets", sandboxes: "Sandboxes", selector: selectors.BaseSelector, journal: Path
    ) -> None:
        """`journal`: where their ends are recorded."""
        self._sets = sets
        self._journal = journal
        self._sandboxes = sandboxes
        self._selector = selector
        self._processes: dict[str, int] = {}  # descriptors of processes (pidfd_open(2)), by sandbox

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
        return {"sandbox": sandbox.id, "task": task["id"]}

    def detach(self, name: str) -> dict[str, object]:
        """Serve them no more."""
        found = [each for each in self._sandboxes.find(name) if each.attached and not each.ending]
        if len(found) != 1:
            return {}
        (sandbox,) = found
        self._end(sandbox)
        return {"sandbox": sandbox.id, "task": sandbox.task["id"]}

    def close(self) -> None:
        """End all of them: the service ends."""
        for sandbox in self._sandboxes.attached():
            if not sandbox.ending:
                self._end(sandbox)

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
        process = self._processes.pop(sandbox, -1)
        if process >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(process)
            os.close(process)
