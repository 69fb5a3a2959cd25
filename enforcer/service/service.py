"""Main loop of the service: makes sandboxes for its user, and assigns them to workers.

It may make namespaces, so it reads nothing that a task or the network sends: workers read connections, and the process
of a run reads its request. One thread; no turn blocks. Its children end with it.
"""

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from enforcer.service import protocol, run_process
from enforcer.service.channel import Channel, ChannelOverflowError
from enforcer.service.control_server import ControlServer
from enforcer.service.helper_processes import CgroupSweep, JournalProcess, MetricsServer
from enforcer.service.preload import preload
from enforcer.service.rule_sets import RuleSet, RuleSets
from enforcer.service.sandboxes import AttachedNamespaces, Sandbox, Sandboxes
from enforcer.service.start_queue import StartQueue, most_at_once, most_waiting
from enforcer.service.warm_pool import WarmPool
from enforcer.service.worker_pool import Worker, WorkerPool
from enforcer.system import state
from enforcer.system.errors import HostError
from proxy.sandbox.sandbox_state import Task

if TYPE_CHECKING:
    from pathlib import Path

    from enforcer.service.control_server import Control, Notifier
    from enforcer.service.messages import PlaceAnswer, ServiceStatus, StopAnswer
    from enforcer.service.run_setup import RunCommand
    from enforcer.worker.worker import WorkerPaths
    from proxy.worker.messages import RuleSetNews

_GRACE: Final = 10.0  # seconds for tasks to end when they or the service are stopped
_KILLING: Final = 2.0  # seconds for a run to kill its task and report the end
_LONGEST_WAIT: Final = 5.0  # seconds
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True, eq=False)
class _Run:
    """The process of one run, and its sandbox, once it has requested a worker."""

    pid: int
    channel: Channel
    sandbox: Sandbox | None = None
    killing: bool = False  # it was asked to kill its task
    alone: dict[str, object] = field(default_factory=dict)  # the description for `ps`, if it has a worker of its own
    stopped: bool = False


class Service:
    """One service. `run` returns when it is asked to end."""

    def __init__(
        self,
        control: "Control",
        worker_paths: "WorkerPaths",
        size: int,
        *,
        system: "Path",
        command: "RunCommand",
        notifier: "Notifier",
        metrics: socket.socket | None = None,
    ) -> None:
        """Start the workers. `metrics`: a listening socket. Raises HostError."""
        self._control = control
        self._worker_paths = worker_paths
        self._system = system
        self._command = command
        self._notifier = notifier
        self._began = time.time()
        self._selector = selectors.DefaultSelector()
        self._runs: dict[int, _Run] = {}
        self._stopped: dict[int, float] = {}  # when stopped runs are killed (time.monotonic()), by pid
        self._said = 0.0
        self._ending = 0.0
        self._sets = RuleSets(self._selector, self._publish, lambda rules: self.sandboxes.drop(rules))  # noqa: PLW0108  assigned below
        self.sandboxes = Sandboxes(self._sets)
        self._attached = AttachedNamespaces(self._sets, self.sandboxes, self._selector, worker_paths.journal)
        self._wake, wake = os.pipe()
        for end in (self._wake, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake)
        for number in (*_ENDING, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        self._selector.register(self._wake, selectors.EVENT_READ, self._signalled)
        self._pool = self.sandboxes.pool = WorkerPool(
            size,
            worker_paths,
            self._selector,
            heard=self.sandboxes.heard,
            replaced=self.sandboxes.replaced,
            lost=self._lost,
            said=_log,
            forbidden=() if metrics is None else (metrics.getsockname()[:2],),
        )
        self._metrics_server = None if metrics is None else MetricsServer(metrics, self._selector)
        self._journal_process = JournalProcess(worker_paths.journal)
        self._cgroup_sweep = CgroupSweep()
        self._fork_server = run_process.make_fork_server(self._sets, worker_paths, system, command)
        self._warm_pool = WarmPool(self._selector, lambda: self._fork_server.fork(ahead=True), self._sets.generation)
        self._start_queue = StartQueue(self._run, most_at_once(), most_waiting())
        self._requests = ControlServer(control.socket, self._selector, self._start_queue.ask, self._answers)

    def run(self) -> None:
        """Serve until asked to end."""
        preload(state.cache_directory(), self._worker_paths.certificate, self._system, self._command)
        gc.collect()
        gc.freeze()  # objects so far are shared with forked processes: no collection may write to them
        gc.enable()  # the service runs for months
        self._notifier.say("READY=1", f"STATUS={len(self._pool.workers)} workers")
        while not (self._ending and (not self._runs or time.monotonic() > self._ending)):
            for key, _ in self._selector.select(self._wait()):
                if key.fd in self._selector.get_map():  # not unregistered in this turn
                    self._guarded(key.data)
            self._turn()

    def close(self) -> None:
        """End everything. Idempotent."""
        self._notifier.say("STOPPING=1")
        for run in self._runs.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGKILL)
        for run in self._runs.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(run.pid, 0)
        self._guarded(self._attached.close)
        self._warm_pool.close()
        self._fork_server.close()
        self._pool.close()
        self._journal_process.close()
        if self._metrics_server is not None:
            self._metrics_server.close()
        self._cgroup_sweep.close()
        self._control.close()

    def _wait(self) -> float:
        now = time.monotonic()
        due = [_LONGEST_WAIT, self._pool.wait(), self._sets.wait(), self._requests.wait(), self._start_queue.wait()]
        due += [self._warm_pool.wait(), self._cgroup_sweep.wait(), *(at - now for at in self._stopped.values())]
        if self._metrics_server is not None:
            due.append(self._metrics_server.wait())
        if self._notifier.watchdog is not None:
            due.append(self._said + self._notifier.watchdog - now)
        if self._ending:
            due.append(self._ending - now)
        return max(min(due), 0.0)

    def _turn(self) -> None:
        now = time.monotonic()
        turns = [self._pool.turn, self._sets.turn, self._attached.turn, self._requests.turn, self._start_queue.turn]
        turns += [self._cgroup_sweep.turn, self._journal_process.turn]
        if self._metrics_server is not None:
            turns.append(partial(self._metrics_server.turn, self._pool.metrics))
        if not self._ending:
            turns.append(self._warm_pool.turn)
        for turn in turns:
            self._guarded(turn)
        for pid, at in tuple(self._stopped.items()):
            if now >= at:
                self._kill(self._runs[pid])
        if self._notifier.watchdog is not None and now >= self._said + self._notifier.watchdog:
            self._said = now
            self._notifier.say("WATCHDOG=1")

    def _guarded(self, what: Callable[[], object]) -> None:
        """Call a function, and log its errors: one fault must not stop the others."""
        try:
            what()
        except Exception as error:  # noqa: BLE001
            _log(f"{type(error).__name__}: {error}")

    # --- signals and children ---

    def _signalled(self) -> None:
        for number in os.read(self._wake, 4096):
            if number in _ENDING:
                self._end()
            elif number == signal.SIGHUP:
                self._sets.again()
        self._reap()

    def _end(self) -> None:
        if not self._ending:
            self._ending = time.monotonic() + _GRACE
            self._notifier.say("STOPPING=1")
            self._requests.close()
            self._start_queue.close()
            for run in self._runs.values():
                self._stop(run)

    def _stop(self, run: _Run) -> None:
        if run.pid not in self._stopped:
            self._stopped[run.pid] = time.monotonic() + _GRACE
            run.stopped = True
            if run.sandbox is not None:
                run.sandbox.stopped = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGTERM)

    def _kill(self, run: _Run) -> None:
        """Have a run kill its task and report the end; kill both if it doesn't respond."""
        self._stopped[run.pid] = time.monotonic() + _KILLING
        if not run.killing and (run.sandbox is not None or run.alone) and not run.channel.closed:
            run.killing = run.stopped = True
            if run.sandbox is not None:
                run.sandbox.stopped = True
            with contextlib.suppress(ChannelOverflowError):
                run.channel.tell({"kill": True})
                return
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Record the end of children. Those that read rules are waited for by their parents."""
        for run in tuple(self._runs.values()):
            pid, status = os.waitpid(run.pid, os.WNOHANG)
            if pid:
                del self._runs[pid]
                self._stopped.pop(pid, None)
                self._look_whether_it_started(pid, {})
                # Its channel stays open: it may still contain messages of its sandbox.
                if status:  # it was killed
                    self._cgroup_sweep.some()
        for part in (self._fork_server, self._journal_process, self._metrics_server):
            if part is not None:
                part.reap()
        if self._warm_pool.reap():
            self._cgroup_sweep.some()
        for worker in self._pool.workers:
            if worker.pid and os.waitpid(worker.pid, os.WNOHANG)[0]:
                self._pool.died(worker.pid)

    # --- requests ---

    def _run(self, client: socket.socket, descriptors: list[int]) -> int:
        waiting = self._warm_pool.take()
        if waiting is not None:
            pid, channel = waiting.pid, waiting.channel
        else:
            try:
                pid, ours = self._fork_server.fork(ahead=False)
            except OSError as error:
                raise HostError(error.strerror or str(error)) from error
            channel = Channel(ours, self._selector, lambda _said, _given: None, descriptors=True)
        run = self._runs[pid] = _Run(pid, channel)
        channel.heard = lambda said, given: self._hear(run, said, given)
        try:
            channel.tell({"run": True}, [client.fileno(), *descriptors])
        except OSError as error:
            channel.close()  # it ends without a request
            raise HostError(f"the request can't be passed on to the process of the run: {error.strerror}") from error
        return pid

    def _hear(self, run: _Run, said: dict[str, Any], descriptors: list[int]) -> None:
        self._look_whether_it_started(run.pid, said)
        sandbox = run.sandbox
        if not said:
            self._pool.other_ended(str(run.alone.get("sandbox")))
            if sandbox is not None and not sandbox.ending:
                self.sandboxes.stop(sandbox, {"lost": "the process that looked after the task ended"})
        elif "lodge" in said:
            self._lodge(run, said, descriptors)
        elif sandbox is None:
            self._hear_alone(run, said)
        elif "sockets" in said:
            self.sandboxes.serve(sandbox, list(map(str, said["sockets"])), descriptors)
        elif "reread" in said:
            self._sets.again()
        elif "rules" in said and descriptors:
            self._sets.replaced(sandbox.rules, str(said["rules"]), descriptors[0])
        elif isinstance(said.get("rules_rejected"), list):
            self._sets.rejected(sandbox.rules, list(map(str, said["rules_rejected"])))
        elif "stop" in said:
            self.sandboxes.stop(sandbox, said)
        else:
            self.sandboxes.say(sandbox, said, descriptors)

    def _hear_alone(self, run: _Run, said: dict[str, Any]) -> None:
        if "alone" in said:
            run.alone = _described(run, said)
        elif "metrics" in said and run.alone:
            self._pool.hear_other(str(run.alone["sandbox"]), said)

    def _look_whether_it_started(self, pid: int, said: Mapping[str, Any]) -> None:
        if (not said or "started" in said or "alone" in said) and self._start_queue.over(pid):
            self._warm_pool.calm()

    def _lodge(self, run: _Run, said: Mapping[str, Any], descriptors: list[int]) -> None:
        channel = run.channel
        if "known" in said:
            rules = self._sets.get(int(said["known"]))
            if rules is None:
                channel.tell({"unknown": True})
                return
        else:
            try:
                rules = self._sets.take(said, descriptors[0])
            except (HostError, OSError) as error:
                channel.tell({"failed": str(error)})
                return

        def tell(what: "PlaceAnswer") -> None:
            with contextlib.suppress(ChannelOverflowError):
                channel.tell(what)
            channel.close()  # that was the last message

        task = Task(str(said["id"]), str(said["name"]), dict(said["labels"]))
        sandbox = Sandbox(str(said["lodge"]), task, rules, str(said["workspace"]), run.pid, "", tell)
        try:
            self._pool.make_room(len(self.sandboxes) + 1)
            self._pool.least_busy()
            self.sandboxes.add(sandbox)
        except HostError as error:
            channel.tell({"failed": str(error)})
            return
        run.sandbox = sandbox
        channel.tell({"confined": True})

    def _answers(self, asked: dict[str, Any], descriptors: list[int]) -> Sequence[Mapping[str, object]]:
        what = asked.get("what")
        if what == "list":
            return [{"sandboxes": batch} for batch in _batches([*self.sandboxes.listed(), *self._alone()])]
        if what == "status":
            return [self._status()]
        if what == "stop":
            return [self._stop_named(str(asked.get("name")), forced=asked.get("kill") is True)]
        if what == "attach":
            return [self._attached.attach(asked, descriptors)]
        if what == "detach":
            return [self._attached.detach(str(asked.get("name")))]
        raise protocol.MalformedRequestError(f"unknown request `{what}`")

    def _stop_named(self, name: str, *, forced: bool) -> "StopAnswer":
        named = self.sandboxes.find(name)
        found = [each for each in named if not each.attached]
        runs_of = [run for run in self._runs.values() if run.sandbox in found]
        names = ("sandbox", "task", "name")
        alone = [run for run in self._runs.values() if name in {run.alone.get(of) for of in names}]
        ids = [*(each.id for each in found), *(str(run.alone["sandbox"]) for run in alone)]
        runs_of += alone
        if len(runs_of) != 1:
            return {"stopped": [], "found": ids, "attached": len(named) > len(found)}
        if forced:
            self._kill(runs_of[0])
        else:
            self._stop(runs_of[0])
        return {"stopped": ids, "found": []}

    def _alone(self) -> list[dict[str, object]]:
        """Describe the runs with a worker of their own, as `Sandboxes.listed` does."""
        return [
            {**run.alone, "attached": "", "worker": None, "ending": run.stopped}
            for run in self._runs.values()
            if run.alone
        ]

    def _status(self) -> "ServiceStatus":
        return {
            "pid": os.getpid(),
            "began": self._began,
            "uid": os.geteuid(),
            "control": str(self._control.path),
            "journal": str(self._worker_paths.journal),
            "sandboxes": len(self.sandboxes),
            "alone": [{"task": each["task"], "name": each["name"], "why": each["alone"]} for each in self._alone()],
            "restarts": self._pool.restarts,
            "keyholder": self._pool.signer.pid,  # 0: none runs
            "zygote": self._fork_server.pid,  # 0: none runs, as for the next two
            "keeper": self._journal_process.pid,
            "scraped": 0 if self._metrics_server is None else self._metrics_server.pid,
            "workers": [
                {
                    "number": each.number,
                    "pid": each.pid,
                    "uid": each.who.worker_uid,
                    "sandboxes": len(each.sandboxes),
                    "apart": each.apart,
                }
                for each in self._pool.workers
            ],
        }

    # --- workers ---

    def _lost(self, worker: Worker) -> None:
        _log(f"worker {worker.number} has ended; another takes its place")
        self.sandboxes.lost(worker)

    def _publish(self, rules: RuleSet, what: "RuleSetNews", descriptors: Any) -> None:
        """Send news about rules to the workers; of rules that need approvals, also to the runs under them."""
        if what.get("asks"):
            for run in self._runs.values():
                if run.sandbox is not None and run.sandbox.rules is rules:
                    run.channel.tell({"asks": True})
        self.sandboxes.publish(rules, what, descriptors)


def _described(run: _Run, said: Mapping[str, Any]) -> dict[str, object]:
    names = ("alone", "sandbox", "name", "labels", "workspace", "rules")
    return {name: said[name] for name in names} | {"task": said["id"], "pid": run.pid, "began": time.time()}


def raise_limits() -> None:
    """Raise the limit of open files as far as possible: each sandbox takes a few (getrlimit(2))."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, _most_open()), max(hard, _most_open())))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _most_open() -> int:
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _batches(items: list[dict[str, object]]) -> list[list[dict[str, object]]]:
    return [items[at : at + 50] for at in range(0, len(items), 50)] or [[]]


def _log(sentence: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"exeat: {sentence}\n")
        sys.stderr.flush()
