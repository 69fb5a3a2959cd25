"""Sandboxes of the service: their workers, rules and sockets, including attached namespaces.

The service keeps a descriptor of every socket that it gives to a worker, and never reads from one. So a worker's death
closes no listener: connections wait in its queue for the next worker.
"""

import contextlib
import itertools
import os
import selectors
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from enforcer.network.constants import GATE_PORT, OWN_ADDRESSES
from enforcer.service.rule_sets import unreadable_policy
from enforcer.system import peers
from enforcer.system.errors import HostError, UsageError
from enforcer.system.notices import print_notice
from proxy.dns.names import KEPT, PARTS
from proxy.sandbox.recorder import Recorder
from proxy.sandbox.sandbox_state import SandboxState, Task
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.prometheus.metrics import Metrics
from proxy.worker.messages import Admission, RuleSetNews, SandboxNews, SandboxReport, WorkerOrder
from rules.matching.policy import Policy
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from enforcer.service.messages import PlaceAnswer
    from enforcer.service.rule_sets import RuleSet, RuleSets
    from enforcer.service.worker_pool import Worker, WorkerPool


MOST_DEATHS: Final = PARTS - 1  # deaths of workers within KEPT seconds that a sandbox survives
_APPROVALS: Final = "approvals"
_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_APART: Final = "a worker died while it served this sandbox, which has a worker of its own now"
_NO_ADDRESS: Final = "workers have died too often while they served this sandbox: names get no addresses for"
_turns: Final = itertools.count(1)
_LONGEST: Final = 200  # characters of an error that is passed on


@dataclass(slots=True, eq=False)
class Sandbox:
    """A sandbox of the service. `send_to_run` sends its worker's messages to the process of its run."""

    id: str
    task: Task
    rules: "RuleSet"
    workspace: str
    pid: int  # of the run's process, or of the attached process
    attached: str  # the name it was attached by; empty for a run
    send_to_run: "Callable[[PlaceAnswer], None]"
    began: float = field(default_factory=time.time)
    worker: "Worker | None" = None
    names: tuple[str, ...] = ()
    sockets: tuple[int, ...] = ()
    started: float | None = None  # seconds that its start took, once its task runs
    refused: Mapping[str, int] = field(default_factory=dict)  # denied packets by kind, by the last count
    event: str = ""  # id of the event that recorded the attachment
    deaths: int = 0  # deaths of workers that served it
    death_times: deque[float] = field(
        default_factory=lambda: deque(maxlen=PARTS)
    )  # times of the last deaths (time.monotonic())
    blamed_death_times: deque[float] = field(
        default_factory=lambda: deque(maxlen=MOST_DEATHS + 1)
    )  # times of the deaths in its own turn
    turn: int = field(default_factory=lambda: next(_turns))  # the number with which its worker marks its turn
    ending: bool = False
    stopped: bool = False  # its task was asked to end

    def wait(self) -> float:
        """Return the seconds until its next name table has a free part of the address pool (`NameTable`)."""
        return max(self.death_times[0] + KEPT - time.monotonic(), 0.0) if len(self.death_times) == PARTS else 0.0

    def close(self) -> None:
        """Close its sockets. Idempotent."""
        for descriptor in self.sockets:
            os.close(descriptor)
        self.sockets = ()


class Sandboxes:
    """All sandboxes by id. `pool` is set after construction."""

    pool: "WorkerPool"

    def __init__(self, sets: "RuleSets") -> None:
        self._sets = sets
        self._by_id: dict[str, Sandbox] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, sandbox: Sandbox) -> None:
        """Add a sandbox that is about to be made. Raises HostError for a known id."""
        if sandbox.id in self._by_id:
            raise HostError(f"a sandbox with the id `{sandbox.id}` exists already")
        self._by_id[sandbox.id] = sandbox
        self._sets.join(sandbox.rules, sandbox.id)

    def get(self, sandbox: str) -> Sandbox | None:
        """Return a sandbox by its id."""
        return self._by_id.get(sandbox)

    def attached(self) -> list[Sandbox]:
        """Return the attached namespaces."""
        return [each for each in self._by_id.values() if each.attached]

    def find(self, name: str) -> list[Sandbox]:
        """Return those with this id, task id, task name, or attached by this name."""
        return [each for each in self._by_id.values() if name in (each.id, each.task.id, each.task.name, each.attached)]

    def serve(self, sandbox: Sandbox, names: Sequence[str], descriptors: list[int]) -> None:
        """Give a sandbox's sockets to a worker, and keep them: `descriptors` are taken over. Raises HostError."""
        if sandbox.sockets or not names or len(names) != len(descriptors):
            raise HostError(f"the sandbox `{sandbox.id}` sent its sockets twice, or incompletely")
        sandbox.names, sandbox.sockets = tuple(names), tuple(descriptors)
        descriptors.clear()
        self._assign(sandbox, self.pool.least_busy())

    def _replace_socket(self, sandbox: Sandbox, name: str, descriptors: list[int]) -> None:
        """Replace or add one descriptor of a sandbox, at its worker too; the first of `descriptors` is taken over."""
        kept = dict(zip(sandbox.names, sandbox.sockets, strict=True))
        if name in kept:
            os.close(kept[name])
        kept[name] = descriptors.pop(0)
        sandbox.names, sandbox.sockets = tuple(kept), tuple(kept.values())
        if sandbox.worker is not None:
            self.pool.send(sandbox.worker, {"to": sandbox.id, name: True}, [kept[name]])

    def send_to_worker(
        self, sandbox: Sandbox, fields: Mapping[str, object], descriptors: list[int] | None = None
    ) -> None:
        """Send a sandbox's message to its worker; descriptors that the worker gets are taken over."""
        if _APPROVALS in fields:
            if descriptors and sandbox.sockets:
                self._replace_socket(sandbox, _APPROVALS, descriptors)
            return
        if isinstance(seconds := fields.get("started"), float):
            sandbox.started = seconds
        if isinstance(refused := fields.get("refused"), dict):
            sandbox.refused = refused
        if sandbox.worker is not None:
            self.pool.send(sandbox.worker, {**fields, "to": sandbox.id})

    def stop(self, sandbox: Sandbox, last: Mapping[str, object] = _NOTHING) -> None:
        """Have its worker finish, with the message `last`; `death_times` is the reason for an unexpected end."""
        sandbox.ending = True
        if sandbox.worker is None:
            self.forget(sandbox)
            return
        if sandbox.worker.channel is None:  # it died, and its replacement would never get this message
            self._fail(sandbox, "its worker has died")
            return
        self.send_to_worker(sandbox, {**last, "stop": True})

    def forget(self, sandbox: Sandbox) -> None:
        """Remove a sandbox. Idempotent."""
        if self._by_id.pop(sandbox.id, None) is None:
            return
        if sandbox.worker is not None:
            sandbox.worker.sandboxes.discard(sandbox.id)
            self._update_signer(sandbox.worker)
        sandbox.close()
        self._sets.leave(sandbox.rules, sandbox.id)

    def _fail(self, sandbox: Sandbox, why: str) -> None:
        sandbox.send_to_run({"failed": why})
        self.forget(sandbox)

    # --- for the worker pool ---

    def handle_report(self, worker: "Worker", fields: SandboxReport) -> None:
        """Handle a worker's message about one of its sandboxes."""
        sandbox = self._by_id.get(str(fields["of"]))
        if sandbox is None or sandbox.worker is not worker:
            return
        if isinstance(summary := fields.get("summary"), str):
            sandbox.send_to_run({"summary": summary})
            self.forget(sandbox)
        elif "unread" in fields:
            answer: PlaceAnswer = {"failed": str(unreadable_policy("its worker", str(fields["unread"])))}
            if not sandbox.deaths:  # a task that ran under another worker can't be declined
                answer["declined"] = True
            sandbox.send_to_run(answer)
            self._sets.stop_sharing(sandbox.rules)
            self.forget(sandbox)
        elif "failed" in fields:
            self._fail(sandbox, str(fields["failed"])[:_LONGEST])

    def handle_worker_death(self, worker: "Worker") -> None:
        """Record a worker's death: its sandboxes wait for another.

        The sandbox whose turn it was waits for a worker of its own, so its neighbours lose a worker only once. The
        death counts for that sandbox alone; a death in nobody's turn counts for all. A sandbox with too many deaths
        isn't served any more.
        """
        now, turn = time.monotonic(), worker.turn()
        affected = [self._by_id[number] for number in worker.sandboxes]
        is_blamed = any(sandbox.turn == turn for sandbox in affected)
        for sandbox in affected:
            sandbox.deaths += 1
            sandbox.death_times.append(now)
            if not is_blamed or sandbox.turn == turn:
                sandbox.blamed_death_times.append(now)
            recent = sum(now - death < KEPT for death in sandbox.blamed_death_times)
            if sandbox.ending or recent > MOST_DEATHS:
                self._fail(sandbox, f"{recent} workers have died while they served it")
            elif sandbox.turn == turn and not worker.apart:
                self._move_apart(sandbox)

    def _move_apart(self, sandbox: Sandbox) -> None:
        """Have a sandbox wait for a worker of its own; without one it is not served any more."""
        worker = self.pool.apart()
        if worker is None:
            self._fail(sandbox, "its worker has died while it served it, and there is no other for it alone")
            return
        if sandbox.worker is not None:
            sandbox.worker.sandboxes.discard(sandbox.id)
            self._update_signer(sandbox.worker)
        sandbox.worker = worker
        worker.sandboxes.add(sandbox.id)

    def reassign(self, worker: "Worker") -> None:
        """Give a new worker its predecessor's sandboxes. One that can't be given (EMFILE) is not served any more."""
        for number in tuple(worker.sandboxes):
            sandbox = self._by_id.get(number)
            if (
                sandbox is None or sandbox.worker is not worker
            ):  # the new worker has died meanwhile (`handle_worker_death`)
                continue
            try:
                self._assign(sandbox, worker)
                if worker.apart:
                    self.send_to_worker(sandbox, SandboxNews(lost=_APART))
            except OSError as error:
                self._fail(sandbox, f"it could not be given to another worker: {error.strerror or error}")

    def publish(self, rules: "RuleSet", fields: RuleSetNews, descriptors: Sequence[int]) -> None:
        """Send news about a rule set to every worker that has it."""
        for worker in self.pool.workers:
            if rules.number in worker.sets:
                self.pool.send(worker, fields, descriptors)

    def drop(self, rules: "RuleSet") -> None:
        """Have the workers drop a rule set."""
        for worker in self.pool.workers:
            if rules.number in worker.sets:
                worker.sets.discard(rules.number)
                self.pool.send(worker, WorkerOrder(forget=rules.number))

    def describe_all(self) -> Iterable[dict[str, object]]:
        """Describe each sandbox for `exeat ps`."""
        for each in self._by_id.values():
            yield {
                "sandbox": each.id,
                "task": each.task.id,
                "name": each.task.name,
                "labels": dict(each.task.labels),
                "pid": each.pid,
                "workspace": each.workspace,
                "attached": each.attached,
                "rules": list(each.rules.searched_paths)[:1] if each.rules.key is None else list(each.rules.key.files),
                "began": each.began,
                "worker": None if each.worker is None else each.worker.number,
                "ending": each.ending or each.stopped,
            }

    def _update_signer(self, worker: "Worker") -> None:
        """Tell the signer how many sandboxes a worker has: each one has a signing allowance."""
        self.pool.signer.serves(worker.number, len(worker.sandboxes))

    def _assign(self, sandbox: Sandbox, worker: "Worker") -> None:
        sandbox.worker = worker
        worker.sandboxes.add(sandbox.id)
        self._update_signer(worker)
        rules = sandbox.rules
        if rules.number not in worker.sets:
            self.pool.send(worker, RuleSetNews(set=rules.number), [rules.policy_file])
            worker.sets.add(rules.number)
        task = sandbox.task
        admission: Admission = {
            "id": task.id,
            "name": task.name,
            "labels": dict(task.labels),
            "admit": sandbox.id,
            "under": rules.number,
            "sockets": list(sandbox.names),
            "before": sandbox.deaths,
            "wait": (wait := sandbox.wait()),
            "turn": sandbox.turn,
            "foreign": bool(sandbox.attached),
        }
        self.pool.refresh_roots(worker)
        self.pool.send(worker, admission, sandbox.sockets)
        if wait:
            self.send_to_worker(sandbox, SandboxNews(lost=f"{_NO_ADDRESS} {wait:.0f} s"))
        if sandbox.started is not None:
            self.pool.send(worker, SandboxNews(to=sandbox.id, again=dict(sandbox.refused)))


_CHECK_PATHS_EVERY: Final = 5.0  # seconds


class AttachedNamespaces:
    """Namespaces attached by `exeat attach`. One ends with the process or path that it was named by."""

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

    def attach(self, request: Mapping[str, Any], descriptors: list[int]) -> dict[str, object]:
        """Serve the sockets that were made in a namespace.

        The first descriptor is the policy's file. The last is a pidfd, if the namespace was named by a process: its pid
        may be another process's by now.
        """
        name, pid = str(request["attached"]), int(request["pid"])
        file, sockets = descriptors[0], descriptors[1 : -1 if pid else None]
        if not name or self._sandboxes.find(name):
            raise UsageError(f"`{name}` is attached already; `exeat ps` lists it")
        if not all(stat.S_ISSOCK(os.fstat(each).st_mode) for each in sockets):
            raise UsageError(f"the descriptors for `{name}` are not sockets")
        if pid and not peers.is_running(descriptors[-1]):
            raise UsageError(f"process {pid} has ended; name a running one")
        rules = self._sets.add({**request, "shared": True}, file)
        task = Task(str(request["id"]), str(request["name"]), dict(request["labels"]))
        sandbox = Sandbox(str(request["sandbox"]), task, rules, "", pid, name, lambda _said: None)
        sandbox.event = str(request["event"])
        sandbox.started = 0.0  # it runs already
        sandbox.send_to_run = lambda fields: self._handle_last_message(sandbox, fields)
        self._sandboxes.add(sandbox)
        try:
            self._sandboxes.serve(sandbox, list(map(str, request["sockets"])), sockets)
        except BaseException:
            self._sandboxes.forget(sandbox)
            raise
        del descriptors[1 : -1 if pid else None]  # taken over by `serve`
        if pid:
            process = self._processes[sandbox.id] = descriptors.pop()
            self._selector.register(process, selectors.EVENT_READ, lambda: self._end(sandbox))
        else:
            self._watch(sandbox)
        return {"sandbox": sandbox.id, "task": task.id}

    def detach(self, name: str) -> dict[str, object]:
        """Stop serving the namespace of this name."""
        matches = [each for each in self._sandboxes.find(name) if each.attached and not each.ending]
        if len(matches) != 1:
            return {}
        (sandbox,) = matches
        self._end(sandbox)
        return {"sandbox": sandbox.id, "task": sandbox.task.id}

    def turn(self) -> None:
        """End those whose paths no longer lead to their namespaces (ip-netns(8), delete), every few seconds."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _CHECK_PATHS_EVERY
        for sandbox, namespace in tuple(self._paths.values()):
            if _namespace_at(sandbox.attached) != namespace:
                self._end(sandbox)

    def close(self) -> None:
        """End all of them, when the service ends."""
        for sandbox in self._sandboxes.attached():
            if not sandbox.ending:
                self._end(sandbox)

    def _watch(self, sandbox: Sandbox) -> None:
        """End a namespace when its path is gone, if this process sees that path."""
        if (namespace := _namespace_at(sandbox.attached)) is not None:
            self._paths[sandbox.id] = sandbox, namespace

    def _end(self, sandbox: Sandbox) -> None:
        self._forget(sandbox.id)
        last: Mapping[str, object] = {}
        try:
            last = record_end(sandbox, self._journal, Outcome.PASSED)
        finally:
            self._sandboxes.stop(sandbox, last)

    def _handle_last_message(self, sandbox: Sandbox, fields: Mapping[str, object]) -> None:
        """Handle the last message of its worker; records and ends a namespace that is no longer served.

        An error of the journal is only reported: other sandboxes go on.
        """
        self._forget(sandbox.id)
        if "failed" in fields and not sandbox.ending:
            last: Mapping[str, object] = {}
            try:
                last = record_end(sandbox, self._journal, Outcome.FAILED)
            except OSError as error:
                print_notice(f"the end of `{sandbox.attached}` could not be recorded: {error.strerror}")
            self._sandboxes.stop(sandbox, last)
            self._sandboxes.forget(sandbox)

    def _forget(self, sandbox: str) -> None:
        self._paths.pop(sandbox, None)
        process = self._processes.pop(sandbox, -1)
        if process >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(process)
            os.close(process)


def _namespace_at(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def recorder_for(task: Task, journal: Path, policy: Policy | None = None) -> Recorder:
    """Return the recorder of a task's own events, without a gate. Raises JournalWriteError."""
    sandbox_state = SandboxState(f"sandbox-{task.id}", task, policy or Policy(()), frozenset(OWN_ADDRESSES), GATE_PORT)
    return Recorder(sandbox_state, Journal(journal), Metrics())


def record_end(sandbox: Sandbox, journal: Path, outcome: Outcome) -> SandboxNews:
    """Record `task.ended`, and return the worker's last message. Raises JournalWriteError."""
    recorder = recorder_for(sandbox.task, journal)
    recorder.task_ended(sandbox.event or None, seconds=max(time.time() - sandbox.began, 0.0), outcome=outcome)
    recorder.journal.close()
    return {"ended": outcome.value, "told": dict(recorder.metrics.events)}
