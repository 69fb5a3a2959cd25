"""Worker pool of the service: forks, confines and monitors workers, and replaces one that dies or hangs.

A worker reads what tasks send, so its messages are not trusted, and descriptors from it are never accepted.
"""

import contextlib
import gc
import mmap
import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from enforcer.journal.signing import AnomalyCountReader
from enforcer.network.constants import GATE_PORT, OWN_ADDRESSES
from enforcer.sandbox import identity, init
from enforcer.service.channel import Channel, ChannelOverflowError
from enforcer.service.helper_processes import fork_confined
from enforcer.system.errors import HostError
from enforcer.worker.signer import CertificateSigner
from enforcer.worker.trust import bundle_fingerprints, system_roots
from enforcer.worker.worker import open_journal
from proxy.event_loop import turn
from proxy.sandbox.sandbox_state import MOST, DescriptorQuotas
from proxy.telemetry.prometheus import totals
from proxy.telemetry.prometheus.totals import ReportedMetrics
from proxy.worker.messages import SandboxReport, WorkerOrder

if TYPE_CHECKING:
    from enforcer.sandbox.identity import Identity
    from enforcer.worker.worker import WorkerPaths
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.values.addresses import Address

PATIENCE: Final = 20.0  # seconds for a worker to answer; then it counts as hanging
_CHECK_EVERY: Final = 2.0  # seconds
_RESTS: Final = (0.0, 0.5, 2.0, 5.0)  # seconds before a replacement, by the number of recent deaths
_FORGIVEN: Final = 60.0  # seconds of life after which earlier deaths don't count
MOST_APART: Final = 8  # further workers for one sandbox each
MOST_FURTHER: Final = 32  # further workers, once the first ones have no descriptors for more sandboxes
_KEPT_EMPTY: Final = 3 * _CHECK_EVERY  # seconds that a further worker stays without a sandbox, to send its last metrics
_LONGEST: Final = 500  # characters of a worker's error

type OnReport = Callable[["Worker", SandboxReport], None]


@dataclass(slots=True, eq=False)
class Worker:
    """A worker, as the service sees it."""

    number: int
    ids: "Identity"
    apart: bool = False  # it serves one sandbox alone, after a worker died serving it
    further: bool = False  # started when the others were full; ends without a sandbox
    empty: float = 0.0  # since when it has no sandbox; 0: it has one
    page: mmap.mmap | None = None  # where it marks the sandbox whose work runs
    pid: int = 0
    roots: object = None  # fingerprint of the host's bundles that it has
    channel: Channel | None = None  # None: no process runs
    sets: set[int] = field(default_factory=set)  # numbers of its rule sets
    sandboxes: set[str] = field(default_factory=set)
    began: float = 0.0
    check_sent: float = 0.0  # time of an unanswered health check; 0: none
    deaths: int = 0  # in quick succession
    due: float = 0.0  # when it is started again
    reported: ReportedMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.reported = ReportedMetrics(self.role)

    @property
    def role(self) -> str:
        """Its name in metrics about processes."""
        return f"worker-{self.number}"

    def turn(self) -> int:
        """Return the sandbox whose work ran when the worker died, by its mark: `Sandbox.turn`, or `NOBODY`."""
        return turn.NOBODY if self.page is None else turn.marked(self.page)


class WorkerPool:
    """All workers. `on_report` gets messages about sandboxes; `on_replaced` gets a new worker, which has no state."""

    def __init__(
        self,
        size: int,
        worker_paths: "WorkerPaths",
        selector: selectors.BaseSelector,
        *,
        on_report: OnReport,
        on_replaced: Callable[[Worker], None],
        on_death: Callable[[Worker], None],
        log: Callable[[str], None],
        forbidden: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._log = log
        self._worker_paths = worker_paths
        self._anomaly_counts = AnomalyCountReader(worker_paths.journal)
        self._selector = selector
        self._on_report = on_report
        self._on_replaced = on_replaced
        self._on_death = on_death
        self._forbidden = tuple(forbidden)
        self._last_check = 0.0
        self._ended_metrics = totals.total()  # metrics of ended workers
        self._own_worker_metrics: dict[str, ReportedMetrics] = {}  # metrics of runs' own workers, by sandbox
        self.restarts = 0
        self.most_each = DescriptorQuotas(
            resource.getrlimit(resource.RLIMIT_NOFILE)[0], MOST
        ).most  # most sandboxes of one worker
        self.workers = [Worker(number, identity.choose()) for number in range(1, size + 1)]
        self.signer = CertificateSigner(
            worker_paths.authority,
            worker_paths.certificate,
            self.workers[0].ids,
            fingerprint=worker_paths.authority_fingerprint,
        )
        self.signer.report, self.signer.renew = log, self._renew
        self.signer.watch(selector)
        self.signer.start()
        for worker in self.workers:
            self._start(worker)

    def least_busy(self) -> Worker:
        """Return the worker with the fewest sandboxes, a new one if all are full. Raises HostError."""
        available = [worker for worker in self.workers if worker.channel is not None and not worker.apart]
        if not available:
            raise HostError("all workers of the service have died", "start the task again in a few seconds")
        least = min(available, key=lambda worker: len(worker.sandboxes))
        return least if len(least.sandboxes) < self.most_each else self._start_further()

    def make_room(self, sandboxes: int) -> None:
        """Start further workers until this many sandboxes fit. Raises HostError if they can't."""
        while sum(not worker.apart for worker in self.workers) * self.most_each < sandboxes:
            self._start_further()

    def _start_further(self) -> Worker:
        if sum(worker.further for worker in self.workers) >= MOST_FURTHER:
            raise HostError(
                f"the service has no room for another sandbox: its workers have descriptors for {self.most_each} each",
                "raise its limit of open files (LimitNOFILE= of its unit), or stop other tasks",
            )
        worker = Worker(max(worker.number for worker in self.workers) + 1, identity.choose(), further=True)
        try:
            self._start(worker)
        except BaseException:
            self.signer.drop(worker.number)
            if worker.ids.slot >= 0:
                os.close(worker.ids.slot)
            raise
        self.workers.append(worker)
        return worker

    def apart(self) -> Worker | None:
        """Return a further worker for one sandbox alone, started by the next `turn`. None: there are enough."""
        if sum(worker.apart for worker in self.workers) >= MOST_APART:
            return None
        number = max(worker.number for worker in self.workers) + 1
        try:
            self.workers.append(Worker(number, identity.choose(), apart=True))
        except HostError:
            return None
        return self.workers[-1]

    def send(self, worker: Worker, fields: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send a message to a worker; one that doesn't read any more is ended and replaced."""
        if worker.channel is None:
            return
        try:
            worker.channel.send(fields, descriptors)
        except ChannelOverflowError:
            self._end(worker)

    def refresh_roots(self, worker: Worker) -> None:
        """Send a worker the host's root certificates if they have changed, for its later sandboxes."""
        now = bundle_fingerprints()
        if now == worker.roots:
            return
        with os.fdopen(init.new_file(system_roots()), "rb") as file:
            self.send(worker, WorkerOrder(roots=True), [file.fileno()])
        worker.roots = now

    def turn(self) -> None:
        """Do what is due: health checks, end workers that don't respond, start those that are due."""
        now = time.monotonic()
        self.signer.turn()
        for worker in tuple(self.workers):
            if not worker.sandboxes and (worker.apart or worker.further):
                worker.empty = worker.empty or now
                if worker.channel is None or now - worker.empty > _KEPT_EMPTY:
                    self._remove(worker)
                continue
            worker.empty = 0.0
            if worker.channel is None and now >= worker.due:
                self._start(worker)
                self._on_replaced(worker)
            elif worker.check_sent and now - worker.check_sent > PATIENCE:
                self._end(worker)
        if now - self._last_check >= _CHECK_EVERY:
            self._last_check = now
            self.check_health()

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        now = time.monotonic()
        due = [worker.due for worker in self.workers if worker.channel is None]
        return min(max(min([self._last_check + _CHECK_EVERY, *due]) - now, 0.0), self.signer.wait())

    def check_health(self) -> None:
        """Request a sign of life and metrics from every worker."""
        for worker in self.workers:
            if worker.channel is not None and not worker.check_sent:
                worker.check_sent = time.monotonic()
                self.send(worker, WorkerOrder(ask=worker.number, metrics=True))

    def metrics(self) -> "Metrics":
        """Return the sum of the latest metrics."""
        metrics_sum = totals.total()
        totals.add(metrics_sum, self._ended_metrics)
        for reported in (*(worker.reported for worker in self.workers), *self._own_worker_metrics.values()):
            if reported.counts is not None:
                totals.add(metrics_sum, reported.counts)
        metrics_sum.worker_restarts = self.restarts
        self._anomaly_counts.news()
        metrics_sum.flags = self._anomaly_counts.flags
        return metrics_sum

    def add_own_worker_metrics(self, sandbox: str, fields: Mapping[str, object]) -> None:
        """Add a piece of the metrics of a run's own worker."""
        own_metrics = self._own_worker_metrics.setdefault(sandbox, ReportedMetrics(steady=True))
        own_metrics.take(fields)
        if own_metrics.counts is not None:
            own_metrics.counts.processes = {}  # without a task name all runs would share one series

    def end_own_worker_metrics(self, sandbox: str) -> None:
        """Keep the metrics of such a run after its end. Idempotent."""
        own_metrics = self._own_worker_metrics.pop(sandbox, None)
        if own_metrics is not None and own_metrics.counts is not None:
            totals.add(self._ended_metrics, own_metrics.counts, ended=True)

    def died(self, pid: int) -> bool:
        """Record a child's end; returns whether it was a worker."""
        for worker in self.workers:
            if worker.pid == pid:
                worker.pid = 0
                self._end(worker)
                return True
        return False

    def close(self) -> None:
        """Have all workers close what is open, and end them."""
        for worker in self.workers:
            self.send(worker, WorkerOrder(stop=True))
        deadline = time.monotonic() + 2.0
        for worker in self.workers:
            while worker.pid and time.monotonic() < deadline:
                if os.waitpid(worker.pid, os.WNOHANG)[0]:
                    worker.pid = 0
                else:
                    time.sleep(0.01)
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
            if worker.channel is not None:
                worker.channel.close()
        self.signer.close()

    def _renew(self, number: int, pair: socket.socket) -> None:
        for worker in self.workers:
            if worker.number == number:
                self.send(worker, WorkerOrder(keyholder=True), [pair.fileno()])

    def _start(self, worker: Worker) -> None:
        """Fork a worker. Raises HostError when its journal can't be opened, or it can't be confined."""
        page = mmap.mmap(-1, mmap.PAGESIZE)
        worker.roots, roots = bundle_fingerprints(), system_roots()  # the confined worker can't read them
        worker_paths, journal = self._worker_paths, open_journal(worker.ids, self._worker_paths.journal)
        with self.signer.pair(worker.number) as pair:

            def serve(control: socket.socket) -> None:
                from proxy.worker import server  # imported from the view that it is confined to
                from proxy.worker.messages import Setup

                gc.freeze()
                gc.enable()
                own: frozenset[Address] = frozenset(OWN_ADDRESSES)
                ends, forbidden = worker_paths.authority_expires, self._forbidden
                server.serve(Setup(pair, ends, roots, journal, control, own, GATE_PORT, forbidden, page))

            try:
                worker.pid, control = fork_confined(worker.ids, serve, keep=frozenset({journal, pair.fileno()}))
            except HostError as error:
                raise HostError(f"the gate could not be started: {error}") from error
            finally:
                os.close(journal)
        page.madvise(mmap.MADV_DONTFORK)  # no other process gets it
        worker.began = time.monotonic()
        worker.check_sent, worker.page = 0.0, page
        worker.sets.clear()
        worker.channel = Channel(control, self._selector, lambda fields, _: self._handle_message(worker, fields))

    def _handle_message(self, worker: Worker, fields: dict[str, object]) -> None:
        if not fields:
            self._end(worker)
        elif "answer" in fields:
            worker.check_sent = 0.0
            worker.reported.take(fields)
        elif "of" in fields:
            self._on_report(worker, cast("SandboxReport", fields))
        elif "failed" in fields:
            self._log(f"worker {worker.number}: {str(fields['failed'])[:_LONGEST]}")

    def _end(self, worker: Worker) -> None:
        """End a worker, and schedule its replacement."""
        if worker.channel is None:
            return
        self._kill(worker)
        now = time.monotonic()
        worker.deaths = 0 if now - worker.began > _FORGIVEN else worker.deaths + 1
        worker.due = now + _RESTS[min(worker.deaths, len(_RESTS) - 1)]
        self.restarts += 1
        self._on_death(worker)

    def _remove(self, worker: Worker) -> None:
        if worker.channel is not None:
            self._kill(worker)
        self.workers.remove(worker)
        if worker.ids.slot >= 0:
            os.close(worker.ids.slot)

    def _kill(self, worker: Worker) -> None:
        if worker.channel is not None:
            worker.channel.close()
            worker.channel = None
        self.signer.drop(worker.number)
        if worker.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.pid = 0
        if worker.reported.counts is not None:
            totals.add(self._ended_metrics, worker.reported.counts, ended=True)
        worker.reported = ReportedMetrics(worker.role)
