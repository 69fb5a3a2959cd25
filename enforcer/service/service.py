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

_STOP_TIMEOUT: Final = 10.0  # seconds for tasks to end when they or the service are stopped
_KILL_TIMEOUT: Final = 2.0  # seconds for a run to kill its task and report the end
_LONGEST_WAIT: Final = 5.0  # seconds
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True, eq=False)
class _Run:
    """The process of one run, and its sandbox, once it has requested a worker."""

    pid: int
    channel: Channel
    sandbox: Sandbox | None = None
    killing: bool = False  # it was asked to kill its task
    own_worker: dict[str, object] = field(
        default_factory=dict
    )  # the description for `ps`, if it has a worker of its own
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
        self._last_watchdog = 0.0
        self._ending = 0.0
        self._sets = RuleSets(self._selector, self._publish, lambda rules: self.sandboxes.drop(rules))  # noqa: PLW0108  assigned below
        self.sandboxes = Sandboxes(self._sets)
        self._attached = AttachedNamespaces(self._sets, self.sandboxes, self._selector, worker_paths.journal)
        self._wake_reader, wake_writer = os.pipe()
        for end in (self._wake_reader, wake_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake_writer)
        for number in (*_ENDING, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._handle_signals)
        self._pool = self.sandboxes.pool = WorkerPool(
            size,
            worker_paths,
            self._selector,
            on_report=self.sandboxes.handle_report,
            on_replaced=self.sandboxes.reassign,
            on_death=self._handle_worker_death,
            log=_log,
            forbidden=() if metrics is None else (metrics.getsockname()[:2],),
        )
        self._metrics_server = None if metrics is None else MetricsServer(metrics, self._selector)
        self._journal_process = JournalProcess(worker_paths.journal)
        self._cgroup_sweep = CgroupSweep()
        self._fork_server = run_process.make_fork_server(self._sets, worker_paths, system, command)
        self._warm_pool = WarmPool(self._selector, lambda: self._fork_server.fork(ahead=True), self._sets.generation)
        self._start_queue = StartQueue(self._run, most_at_once(), most_waiting())
        self._requests = ControlServer(control.socket, self._selector, self._start_queue.submit, self._answer_request)

    def run(self) -> None:
        """Serve until asked to end."""
        preload(state.cache_directory(), self._worker_paths.certificate, self._system, self._command)
        gc.collect()
        gc.freeze()  # objects so far are shared with forked processes: no collection may write to them
        gc.enable()  # the service runs for months
        self._notifier.notify("READY=1", f"STATUS={len(self._pool.workers)} workers")
        while not (self._ending and (not self._runs or time.monotonic() > self._ending)):
            for key, _ in self._selector.select(self._wait()):
                if key.fd in self._selector.get_map():  # not unregistered in this turn
                    self._log_errors(key.data)
            self._turn()

    def close(self) -> None:
        """End everything. Idempotent."""
        self._notifier.notify("STOPPING=1")
        for run in self._runs.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGKILL)
        for run in self._runs.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(run.pid, 0)
        self._log_errors(self._attached.close)
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
            due.append(self._last_watchdog + self._notifier.watchdog - now)
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
            self._log_errors(turn)
        for pid, at in tuple(self._stopped.items()):
            if now >= at:
                self._kill(self._runs[pid])
        if self._notifier.watchdog is not None and now >= self._last_watchdog + self._notifier.watchdog:
            self._last_watchdog = now
            self._notifier.notify("WATCHDOG=1")

    def _log_errors(self, fields: Callable[[], object]) -> None:
        """Call a function, and log its errors: one fault must not stop the others."""
        try:
            fields()
        except Exception as error:  # noqa: BLE001
            _log(f"{type(error).__name__}: {error}")

    # --- signals and children ---

    def _handle_signals(self) -> None:
        for number in os.read(self._wake_reader, 4096):
            if number in _ENDING:
                self._end()
            elif number == signal.SIGHUP:
                self._sets.reload_all()
        self._reap()

    def _end(self) -> None:
        if not self._ending:
            self._ending = time.monotonic() + _STOP_TIMEOUT
            self._notifier.notify("STOPPING=1")
            self._requests.close()
            self._start_queue.close()
            for run in self._runs.values():
                self._stop(run)

    def _stop(self, run: _Run) -> None:
        if run.pid not in self._stopped:
            self._stopped[run.pid] = time.monotonic() + _STOP_TIMEOUT
            run.stopped = True
            if run.sandbox is not None:
                run.sandbox.stopped = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGTERM)

    def _kill(self, run: _Run) -> None:
        """Have a run kill its task and report the end; kill both if it doesn't respond."""
        self._stopped[run.pid] = time.monotonic() + _KILL_TIMEOUT
        if not run.killing and (run.sandbox is not None or run.own_worker) and not run.channel.closed:
            run.killing = run.stopped = True
            if run.sandbox is not None:
                run.sandbox.stopped = True
            with contextlib.suppress(ChannelOverflowError):
                run.channel.send({"kill": True})
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
                self._note_start(pid, {})
                # Its channel stays open: it may still contain messages of its sandbox.
                if status:  # it was killed
                    self._cgroup_sweep.schedule()
        for part in (self._fork_server, self._journal_process, self._metrics_server):
            if part is not None:
                part.reap()
        if self._warm_pool.reap():
            self._cgroup_sweep.schedule()
        for worker in self._pool.workers:
            if worker.pid and os.waitpid(worker.pid, os.WNOHANG)[0]:
                self._pool.died(worker.pid)

    # --- requests ---

    def _run(self, client: socket.socket, descriptors: list[int]) -> int:
        warm_process = self._warm_pool.take()
        if warm_process is not None:
            pid, channel = warm_process.pid, warm_process.channel
        else:
            try:
                pid, ours = self._fork_server.fork(ahead=False)
            except OSError as error:
                raise HostError(error.strerror or str(error)) from error
            channel = Channel(ours, self._selector, lambda _last_watchdog, _descriptors: None, descriptors=True)
        run = self._runs[pid] = _Run(pid, channel)
        channel.on_message = lambda fields, descriptors: self._handle_run_message(run, fields, descriptors)
        try:
            channel.send({"run": True}, [client.fileno(), *descriptors])
        except OSError as error:
            channel.close()  # it ends without a request
            raise HostError(f"the request can't be passed on to the process of the run: {error.strerror}") from error
        return pid

    def _handle_run_message(self, run: _Run, fields: dict[str, Any], descriptors: list[int]) -> None:
        self._note_start(run.pid, fields)
        sandbox = run.sandbox
        if not fields:
            self._pool.end_own_worker_metrics(str(run.own_worker.get("sandbox")))
            if sandbox is not None and not sandbox.ending:
                self.sandboxes.stop(sandbox, {"lost": "the process that looked after the task ended"})
        elif "lodge" in fields:
            self._place_run(run, fields, descriptors)
        elif sandbox is None:
            self._handle_own_worker_message(run, fields)
        elif "sockets" in fields:
            self.sandboxes.serve(sandbox, list(map(str, fields["sockets"])), descriptors)
        elif "reread" in fields:
            self._sets.reload_all()
        elif "rules" in fields and descriptors:
            self._sets.replace_policy(sandbox.rules, str(fields["rules"]), descriptors[0])
        elif isinstance(fields.get("rules_rejected"), list):
            self._sets.report_rejection(sandbox.rules, list(map(str, fields["rules_rejected"])))
        elif "stop" in fields:
            self.sandboxes.stop(sandbox, fields)
        else:
            self.sandboxes.send_to_worker(sandbox, fields, descriptors)

    def _handle_own_worker_message(self, run: _Run, fields: dict[str, Any]) -> None:
        if "alone" in fields:
            run.own_worker = _describe_run(run, fields)
        elif "metrics" in fields and run.own_worker:
            self._pool.add_own_worker_metrics(str(run.own_worker["sandbox"]), fields)

    def _note_start(self, pid: int, fields: Mapping[str, Any]) -> None:
        if (not fields or "started" in fields or "alone" in fields) and self._start_queue.finish_start(pid):
            self._warm_pool.note_idle()

    def _place_run(self, run: _Run, fields: Mapping[str, Any], descriptors: list[int]) -> None:
        channel = run.channel
        if "known" in fields:
            rules = self._sets.get(int(fields["known"]))
            if rules is None:
                channel.send({"unknown": True})
                return
        else:
            try:
                rules = self._sets.add(fields, descriptors[0])
            except (HostError, OSError) as error:
                channel.send({"failed": str(error)})
                return

        def send_to_run(fields: "PlaceAnswer") -> None:
            with contextlib.suppress(ChannelOverflowError):
                channel.send(fields)
            channel.close()  # that was the last message

        task = Task(str(fields["id"]), str(fields["name"]), dict(fields["labels"]))
        sandbox = Sandbox(str(fields["lodge"]), task, rules, str(fields["workspace"]), run.pid, "", send_to_run)
        try:
            self._pool.make_room(len(self.sandboxes) + 1)
            self._pool.least_busy()
            self.sandboxes.add(sandbox)
        except HostError as error:
            channel.send({"failed": str(error)})
            return
        run.sandbox = sandbox
        channel.send({"confined": True})

    def _answer_request(self, request: dict[str, Any], descriptors: list[int]) -> Sequence[Mapping[str, object]]:
        request_kind = request.get("what")
        if request_kind == "list":
            return [
                {"sandboxes": batch} for batch in _batches([*self.sandboxes.describe_all(), *self._own_worker_runs()])
            ]
        if request_kind == "status":
            return [self._status()]
        if request_kind == "stop":
            return [self._stop_named(str(request.get("name")), forced=request.get("kill") is True)]
        if request_kind == "attach":
            return [self._attached.attach(request, descriptors)]
        if request_kind == "detach":
            return [self._attached.detach(str(request.get("name")))]
        raise protocol.MalformedRequestError(f"unknown request `{request_kind}`")

    def _stop_named(self, name: str, *, forced: bool) -> "StopAnswer":
        named = self.sandboxes.find(name)
        found = [each for each in named if not each.attached]
        runs_of = [run for run in self._runs.values() if run.sandbox in found]
        names = ("sandbox", "task", "name")
        alone = [run for run in self._runs.values() if name in {run.own_worker.get(of) for of in names}]
        ids = [*(each.id for each in found), *(str(run.own_worker["sandbox"]) for run in alone)]
        runs_of += alone
        if len(runs_of) != 1:
            return {"stopped": [], "found": ids, "attached": len(named) > len(found)}
        if forced:
            self._kill(runs_of[0])
        else:
            self._stop(runs_of[0])
        return {"stopped": ids, "found": []}

    def _own_worker_runs(self) -> list[dict[str, object]]:
        """Describe the runs with a worker of their own, as `Sandboxes.describe_all` does."""
        return [
            {**run.own_worker, "attached": "", "worker": None, "ending": run.stopped}
            for run in self._runs.values()
            if run.own_worker
        ]

    def _status(self) -> "ServiceStatus":
        return {
            "pid": os.getpid(),
            "began": self._began,
            "uid": os.geteuid(),
            "control": str(self._control.path),
            "journal": str(self._worker_paths.journal),
            "sandboxes": len(self.sandboxes),
            "alone": [
                {"task": each["task"], "name": each["name"], "why": each["alone"]} for each in self._own_worker_runs()
            ],
            "restarts": self._pool.restarts,
            "keyholder": self._pool.signer.pid,  # 0: none runs
            "zygote": self._fork_server.pid,  # 0: none runs, as for the next two
            "keeper": self._journal_process.pid,
            "scraped": 0 if self._metrics_server is None else self._metrics_server.pid,
            "workers": [
                {
                    "number": each.number,
                    "pid": each.pid,
                    "uid": each.ids.worker_uid,
                    "sandboxes": len(each.sandboxes),
                    "apart": each.apart,
                }
                for each in self._pool.workers
            ],
        }

    # --- workers ---

    def _handle_worker_death(self, worker: Worker) -> None:
        _log(f"worker {worker.number} has ended; another takes its place")
        self.sandboxes.handle_worker_death(worker)

    def _publish(self, rules: RuleSet, fields: "RuleSetNews", descriptors: Any) -> None:
        """Send news about rules to the workers; of rules that need approvals, also to the runs under them."""
        if fields.get("asks"):
            for run in self._runs.values():
                if run.sandbox is not None and run.sandbox.rules is rules:
                    run.channel.send({"asks": True})
        self.sandboxes.publish(rules, fields, descriptors)


def _describe_run(run: _Run, fields: Mapping[str, Any]) -> dict[str, object]:
    names = ("alone", "sandbox", "name", "labels", "workspace", "rules")
    return {name: fields[name] for name in names} | {"task": fields["id"], "pid": run.pid, "began": time.time()}


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
