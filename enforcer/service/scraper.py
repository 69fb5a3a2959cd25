"""The process that answers Prometheus for the service: confined as a worker is, and told all numbers now and then."""

import contextlib
import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

from enforcer.sandbox import identity
from enforcer.service.channel import Channel, Overflowed
from enforcer.system import linux, processes
from enforcer.system.errors import HostError
from enforcer.system.processes import detach
from enforcer.worker import confinement
from proxy.telemetry.prometheus.processes import read_process
from proxy.telemetry.prometheus.totals import pieces
from proxy.wire import message

if TYPE_CHECKING:
    from enforcer.sandbox.identity import Identity
    from proxy.telemetry.prometheus.metrics import Metrics

_EVERY: Final = 2.0  # seconds
_PATIENCE: Final = 20.0  # seconds for being confined


class Scraper:
    """Answers on a listening socket, which stays here for who takes its place when it dies."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        self._listener = listener
        self._selector = selector
        self._who = identity.choose()
        self._channel: Channel | None = None
        self._due = 0.0
        self.pid = 0  # 0: there is none just now
        self._start()

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return max(self._due - time.monotonic(), 0.0)

    def turn(self, metrics: "Metrics") -> None:
        """Tell it the numbers, if it is time; one that has died is started again."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _EVERY
        if self._channel is None or self._channel.closed:
            self._end()
            self._start()
        if (use := read_process(os.getpid())) is not None:
            metrics.processes["service"] = use
        with contextlib.suppress(Overflowed):
            for piece in pieces(metrics):
                assert self._channel is not None
                self._channel.tell(piece)

    def reap(self) -> None:
        """Take note if it has ended; another takes its place when the numbers are told next."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0

    def close(self) -> None:
        """Answer no more. Idempotent."""
        self._end()
        self._listener.close()

    def _start(self) -> None:
        self.pid, control = _fork(self._who, self._listener)
        self._channel = Channel(control, self._selector, lambda _said, _descriptors: None)

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        processes.end(self.pid)
        self.pid = 0


def _fork(who: "Identity", listener: socket.socket) -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            detach({theirs.fileno()}, listener)
            confinement.enter(who)
            linux.die_with_parent(signal.SIGKILL, parent)
            message.send(theirs, {"confined": True})
            from proxy.telemetry.prometheus import scrape_server  # from the view that it is confined to

            scrape_server.serve(theirs, listener)
        except BaseException as error:  # noqa: BLE001 - what isn't confined must not run
            with contextlib.suppress(OSError):
                message.send(theirs, {"failed": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(0)
    theirs.close()
    ours.settimeout(_PATIENCE)
    try:
        said, _ = message.receive(ours)
    except TimeoutError:
        said = {}
    if "confined" not in said:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise HostError(f"metrics can't be served: {said.get('failed', 'the process ended')}")
    return pid, ours
