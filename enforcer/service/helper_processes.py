"""Helper processes of the service: the metrics server, the journal's keeper, and the cgroup sweep.

The metrics server answers Prometheus, confined like a worker. The journal's keeper signs what workers wrote, and trusts
none of it (`enforcer.journal.keeper`). Neither has a descriptor of the service. The service restarts one that ends.
"""

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from enforcer.journal import signing
from enforcer.limits import cgroup_tree
from enforcer.limits.cgroup_tree import CONTROLLERS, choose_locations, hierarchies
from enforcer.sandbox import identity
from enforcer.service.channel import Channel, ChannelOverflowError
from enforcer.system import linux, processes
from enforcer.system.errors import HostError
from enforcer.worker import confinement
from proxy.telemetry.journal.writer import cache_highest_number
from proxy.telemetry.prometheus.metrics import read_process
from proxy.telemetry.prometheus.totals import pieces
from proxy.wire import message

if TYPE_CHECKING:
    from enforcer.journal.keeper import Keeper
    from enforcer.sandbox.identity import Identity
    from proxy.telemetry.prometheus.metrics import Metrics


_PATIENCE: Final = 20.0  # seconds for being confined
_METRICS_EVERY: Final = 2.0  # seconds
_RESTART_AFTER: Final = 5.0  # seconds between two starts of the journal's keeper
_CACHE_NUMBER_EVERY: Final = 60.0  # seconds
_PAUSE: Final = 0.01


def fork_confined(
    ids: "Identity",
    serve: Callable[[socket.socket], None],
    *,
    keep: frozenset[int] = frozenset(),
    listener: socket.socket | None = None,
) -> tuple[int, socket.socket]:
    """Fork a process that is confined like a worker, then calls `serve` with its end of a pair.

    It keeps these descriptors and the listener, and ends with the service. Returns its pid and our end. Raises
    HostError if it can't be confined.
    """

    def run_confined(parent: int, theirs: socket.socket) -> None:
        linux.disable_core_dumps()
        processes.detach({theirs.fileno(), *keep}, listener)
        confinement.enter(ids)
        linux.die_with_parent(signal.SIGKILL, parent)
        message.send(theirs, {"confined": True})
        serve(theirs)

    pid, ours = processes.fork(run_confined)
    ours.settimeout(_PATIENCE)
    try:
        fields, _ = message.receive(ours)
    except TimeoutError:
        fields = {}
    if "confined" not in fields:
        processes.kill_and_wait(pid)
        ours.close()
        raise HostError(str(fields.get("failed", "its process ended")))
    return pid, ours


class HelperProcess:
    """A process of the service that is replaced when it ends."""

    pid = 0  # 0: none runs

    def reap(self) -> None:
        """Record its end."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0


class MetricsServer(HelperProcess):
    """Serves metrics to Prometheus on a listening socket, which stays open here for the next process."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        self._listener = listener
        self._selector = selector
        self._ids = identity.choose()
        self._channel = self._start()
        self._due = 0.0

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        return max(self._due - time.monotonic(), 0.0)

    def turn(self, metrics: "Callable[[], Metrics]") -> None:
        """Send it the metrics, if it is time; restarts one that has died."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _METRICS_EVERY
        if self._channel.closed:
            self._end()
            self._channel = self._start()
        metrics_sum = metrics()
        if (use := read_process(os.getpid())) is not None:
            metrics_sum.processes["service"] = use
        with contextlib.suppress(ChannelOverflowError):
            for piece in pieces(metrics_sum):
                self._channel.send(piece)

    def close(self) -> None:
        """End it. Idempotent."""
        self._end()
        self._listener.close()

    def _start(self) -> Channel:
        try:
            self.pid, control = fork_confined(self._ids, self._serve, listener=self._listener)
        except HostError as error:
            raise HostError(f"metrics can't be served: {error}") from error
        return Channel(control, self._selector, lambda _said, _descriptors: None)

    def _serve(self, control: socket.socket) -> None:
        from proxy.telemetry.prometheus import scrape_server  # from the view that it is confined to

        scrape_server.serve(control, self._listener)

    def _end(self) -> None:
        self._channel.close()
        processes.kill_and_wait(self.pid)
        self.pid = 0


class JournalProcess(HelperProcess):
    """Signs the journal, with the key, without capabilities or a way to get any."""

    def __init__(self, journal: Path) -> None:
        """Start it. Raises HostError."""
        self._journal = journal
        self._keeper_directory = signing.keeper_directory(journal)
        self._due = self._next_caching = 0.0
        self.turn()

    def turn(self) -> None:
        """Restart it if it has died; and remember where today's segments end, for runs that begin one."""
        now = time.monotonic()
        if now >= self._next_caching:
            self._next_caching = now + _CACHE_NUMBER_EVERY
            cache_highest_number(self._journal)
        if self.pid == 0 and now >= self._due:
            self._due = now + _RESTART_AFTER
            parent, out = os.getpid(), os.dup(2)
            self.pid = os.fork()
            if self.pid == 0:
                self._run_keeper(parent, out)
            os.close(out)

    def close(self) -> None:
        """End it; the next run signs the rest. Idempotent."""
        while self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)  # repeated: a process that has just started may ignore it
            self.reap()
            time.sleep(_PAUSE)

    def _run_keeper(self, parent: int, out: int) -> NoReturn:
        def report(text: str) -> None:
            with contextlib.suppress(OSError):
                os.write(out, f"exeat: {text}\n".encode("utf-8", "backslashreplace"))

        try:
            processes.detach({out}, None)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            from enforcer.journal.keeper import EVERY, Keeper  # here, so that no run inherits the module

            signing.confine()
            linux.die_with_parent(signal.SIGKILL, parent)
            _sign_until_stopped(Keeper(self._journal, self._keeper_directory, report), EVERY / 5)
        except Exception as error:  # noqa: BLE001 - it is restarted; meanwhile the journal is not signed
            report(f"the journal's keeper failed and restarts: {type(error).__name__}: {error}")
        finally:
            os._exit(1)


def _sign_until_stopped(keeper: "Keeper", pause: float) -> None:
    """Sign the journal until SIGTERM, with this many seconds between two turns; then sign the rest."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # sigtimedwait(2) receives it between turns
    keeper.turn()
    while signal.sigtimedwait({signal.SIGTERM}, pause) is None:
        keeper.turn()
    keeper.close()


_SWEEP_DELAY: Final = 0.5  # seconds: killed processes take a moment to be gone
_SWEEP_EVERY: Final = 60.0  # seconds: a run may leave a group whose processes take long to end
_SWEEP_PATIENCE: Final = 10.0  # seconds at the end


class CgroupSweep:
    """Removes cgroups that killed runs leave, in the locations that runs of this service use."""

    def __init__(self) -> None:
        """Find the locations, once."""
        found = hierarchies()
        needed = (CONTROLLERS, CONTROLLERS - {"cpu"})  # as in `limits.resource_limits`
        self._directories = {location.path for each in needed for location in choose_locations(found, each)}
        cgroup_tree.leave_sweep_to_parent(self._directories)
        self._due = 0.0  # now: an earlier service may have been killed

    def schedule(self) -> None:
        """Schedule a sweep: a run ended without removing its cgroup."""
        self._due = min(self._due, time.monotonic() + _SWEEP_DELAY)

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        return self._due - time.monotonic()

    def turn(self) -> None:
        """Sweep, if it is due."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + (_SWEEP_DELAY if self._sweep() else _SWEEP_EVERY)

    def close(self) -> None:
        """Remove what is left, for at most 10 s."""
        deadline = time.monotonic() + _SWEEP_PATIENCE
        while self._sweep() and time.monotonic() < deadline:
            time.sleep(_PAUSE)

    def _sweep(self) -> int:
        return sum(map(cgroup_tree.remove_dead_groups, self._directories))
