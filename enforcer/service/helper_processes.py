"""Helpers of the service: processes that are confined, the metrics server, the journal's keeper, and the cgroup sweep.

The metrics server answers Prometheus, confined as a worker is. The journal's keeper signs what workers wrote, and
believes none of it (`enforcer.journal.keeper`). Neither has a descriptor of the service's. The service starts another
where one has ended, and removes cgroups that killed runs leave.
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
from enforcer.limits import cgroups
from enforcer.limits.cgroups import CONTROLLERS, choose_locations, hierarchies
from enforcer.sandbox import identity
from enforcer.service.channel import Channel, ChannelOverflowError
from enforcer.system import linux, processes
from enforcer.system.errors import HostError
from enforcer.worker import confinement
from proxy.telemetry.journal.writer import look_ahead
from proxy.telemetry.prometheus.processes import read_process
from proxy.telemetry.prometheus.totals import pieces
from proxy.wire import message

if TYPE_CHECKING:
    from enforcer.journal.keeper import Keeper
    from enforcer.sandbox.identity import Identity
    from proxy.telemetry.prometheus.metrics import Metrics


_PATIENCE: Final = 20.0  # seconds for being confined
_NUMBERS_EVERY: Final = 2.0  # seconds
_AGAIN: Final = 5.0  # seconds between two starts of the journal's keeper
_LOOK_EVERY: Final = 60.0  # seconds
_PAUSE: Final = 0.01


def fork_confined(
    who: "Identity",
    serve: Callable[[socket.socket], None],
    *,
    keep: frozenset[int] = frozenset(),
    listener: socket.socket | None = None,
) -> tuple[int, socket.socket]:
    """Fork a process that is confined as a worker, and then calls `serve` with its end of a pair.

    It keeps these descriptors and the listener, and ends with the service. Returns its pid and our end. Raises
    HostError where it isn't confined.
    """

    def be(parent: int, theirs: socket.socket) -> None:
        linux.disable_core_dumps()
        processes.detach({theirs.fileno(), *keep}, listener)
        confinement.enter(who)
        linux.die_with_parent(signal.SIGKILL, parent)
        message.send(theirs, {"confined": True})
        serve(theirs)

    pid, ours = processes.fork(be)
    ours.settimeout(_PATIENCE)
    try:
        said, _ = message.receive(ours)
    except TimeoutError:
        said = {}
    if "confined" not in said:
        processes.kill_and_wait(pid)
        ours.close()
        raise HostError(str(said.get("failed", "its process ended")))
    return pid, ours


class HelperProcess:
    """One process of the service that another takes the place of when it ends."""

    pid = 0  # 0: there is none just now

    def reap(self) -> None:
        """Take note if it has ended."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0


class MetricsServer(HelperProcess):
    """Answers Prometheus on a listening socket, which stays here for the process that takes its place."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        self._listener = listener
        self._selector = selector
        self._who = identity.choose()
        self._channel = self._start()
        self._due = 0.0

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return max(self._due - time.monotonic(), 0.0)

    def turn(self, metrics: "Callable[[], Metrics]") -> None:
        """Tell it the numbers, if it is time; one that has died is started again."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _NUMBERS_EVERY
        if self._channel.closed:
            self._end()
            self._channel = self._start()
        counted = metrics()
        if (use := read_process(os.getpid())) is not None:
            counted.processes["service"] = use
        with contextlib.suppress(ChannelOverflowError):
            for piece in pieces(counted):
                self._channel.tell(piece)

    def close(self) -> None:
        """Answer no more. Idempotent."""
        self._end()
        self._listener.close()

    def _start(self) -> Channel:
        try:
            self.pid, control = fork_confined(self._who, self._serve, listener=self._listener)
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
    """Looks after the journal, with the key that signs it, without capabilities or a way to get any."""

    def __init__(self, journal: Path) -> None:
        """Start it. Raises HostError."""
        self._journal = journal
        self._place = signing.place(journal)
        self._due = self._look = 0.0
        self.turn()

    def turn(self) -> None:
        """Start it again where it has died; and know where today's segments end, for those that runs begin."""
        now = time.monotonic()
        if now >= self._look:
            self._look = now + _LOOK_EVERY
            look_ahead(self._journal)
        if self.pid == 0 and now >= self._due:
            self._due = now + _AGAIN
            parent, out = os.getpid(), os.dup(2)
            self.pid = os.fork()
            if self.pid == 0:
                self._be(parent, out)
            os.close(out)

    def close(self) -> None:
        """End it; whoever runs next signs what it has not. Idempotent."""
        while self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)  # again, if need be: one that has only begun doesn't listen yet
            self.reap()
            time.sleep(_PAUSE)

    def _be(self, parent: int, out: int) -> NoReturn:
        def say(text: str) -> None:
            with contextlib.suppress(OSError):
                os.write(out, f"exeat: {text}\n".encode("utf-8", "backslashreplace"))

        try:
            processes.detach({out}, None)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            from enforcer.journal.keeper import EVERY, Keeper  # here, so that no run is forked with it

            signing.confine()
            linux.die_with_parent(signal.SIGKILL, parent)
            _keep(Keeper(self._journal, self._place, say), EVERY / 5)
        except Exception as error:  # noqa: BLE001 - it is tried again; meanwhile the journal is not signed
            say(f"the journal's keeper ended and begins again: {type(error).__name__}: {error}")
        finally:
            os._exit(1)


def _keep(keeper: "Keeper", pause: float) -> None:
    """Look after the journal until told to end, with this many seconds between two looks; then sign what there is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it is waited for, and interrupts no look
    keeper.turn()
    while signal.sigtimedwait({signal.SIGTERM}, pause) is None:
        keeper.turn()
    keeper.close()


_SWEEP_REST: Final = 0.5  # seconds: killed processes take a moment to be gone
_SELDOM: Final = 60.0  # seconds: a run may also give up on a group whose processes are not gone in time
_SWEEP_PATIENCE: Final = 10.0  # seconds at the end


class CgroupSweep:
    """Those in the places that runs of this service make groups in; where these are is looked up once."""

    def __init__(self) -> None:
        """Look after these places from now on."""
        found = hierarchies()
        needed = (CONTROLLERS, CONTROLLERS - {"cpu"})  # as runs ask for them (`limits.resource_limits`)
        self._places = {place.path for each in needed for place in choose_locations(found, each)}
        cgroups.leave_sweep_to_parent(self._places)
        self._due = 0.0  # at once: an earlier service may have been killed

    def some(self) -> None:
        """Take note that a run has ended which could take nothing away."""
        self._due = min(self._due, time.monotonic() + _SWEEP_REST)

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return self._due - time.monotonic()

    def turn(self) -> None:
        """Take away what is there, if that is due."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + (_SWEEP_REST if self._sweep() else _SELDOM)

    def close(self) -> None:
        """Take away all that is left, and leave what comes later to others."""
        deadline = time.monotonic() + _SWEEP_PATIENCE
        while self._sweep() and time.monotonic() < deadline:
            time.sleep(_PAUSE)

    def _sweep(self) -> int:
        return sum(map(cgroups.remove_dead_groups, self._places))
