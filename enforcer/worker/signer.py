"""Certificate signer as the runner sees it: started when it is needed, connected to workers, replaced when it dies.

Its parent may read the CA's key, but reads nothing that a worker sends; so only the signer has the key in memory. The
runner of one task starts it when its worker requests the first certificate, which many tasks never do. A service starts
one signer for all of its workers.
"""

import contextlib
import os
import select
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enforcer.system import processes
from enforcer.system.errors import HostError
from enforcer.system.notices import print_notice
from proxy.certificates import authority_file
from proxy.wire import message

if TYPE_CHECKING:
    from enforcer.sandbox.identity import Identity
    from enforcer.worker.signer_process import SignerOrder

_RESTS: Final = (0.0, 0.5, 2.0, 5.0)  # seconds before a replacement, by the number of recent deaths
_FORGIVEN: Final = 60.0  # seconds of life after which earlier deaths don't count
_LONGEST: Final = 500  # characters of a message
CHECK_EVERY: Final = 5.0  # seconds between two health checks
_MOST_UNANSWERED: Final = 4  # health checks. No clock: both processes may have been suspended for hours

type Renew = Callable[[int, socket.socket], None]


class CertificateSigner:
    """Keeps one signer running for its workers, which are known by numbers. For one thread, in one process."""

    def __init__(self, directory: Path, certificate: bytes, ids: "Identity", *, fingerprint: object = None) -> None:
        """Prepare a signer for the CA in `directory`, whose certificate (PEM) the sandboxes trust.

        With the `fingerprint` of the key file, the file is opened now, must match it, and stays open: another CA may
        replace it later. Raises HostError.
        """
        self._directory, self._certificate, self._ids = directory, certificate, ids
        self._key: int | None = None
        self.report: Callable[[str], None] = print_notice
        self.renew: Renew | None = None  # called with a worker's number and its new pair
        self.pid = 0
        self._control: socket.socket | None = None
        self._waiting: dict[int, socket.socket] = {}  # the signer's ends of pairs, while no signer runs
        self._selector: selectors.BaseSelector | None = None
        self._numbers: set[int] = set()
        self._sandbox_counts: dict[int, int] = {}  # sandboxes of each worker
        self._began = 0.0
        self._deaths = 0
        self._due = 0.0  # when the workers get new pairs (time.monotonic()); 0: none is due
        self._unanswered = 0  # health checks without an answer
        self._next_check = 0.0
        if fingerprint is not None:
            self._key = _open(directory)
            if authority_file.fingerprint(os.fstat(self._key)) != fingerprint:
                self.close()
                raise HostError("the CA was replaced during the start", "start again")

    def pair(self, number: int) -> socket.socket:
        """Return a worker's end of a new socket pair, which replaces its earlier one."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._numbers.add(number)
        if self._control is not None:
            with theirs, contextlib.suppress(OSError):  # the signer is ending: its replacement gives new pairs
                order: SignerOrder = {"pair": number}
                message.send(self._control, order, [theirs.fileno()])
        else:
            self._close_pair(number)
            self._waiting[number] = theirs
            if self._selector is not None:
                self._selector.register(theirs, selectors.EVENT_READ, self.handle_ready)
        return ours

    def serves(self, number: int, sandboxes: int) -> None:
        """Set how many sandboxes a worker has, before it gets one more: its signing allowance depends on it."""
        self._sandbox_counts[number] = sandboxes
        if self._control is not None:
            with contextlib.suppress(OSError):  # the signer is ending: its replacement gets the numbers
                order: SignerOrder = {"serves": number, "sandboxes": sandboxes}
                message.send(self._control, order)

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Have `handle_ready` called when a worker sends a request, or the signer a message."""
        self._selector = selector
        for sock in (*self._waiting.values(), *([self._control] if self._control is not None else [])):
            selector.register(sock, selectors.EVENT_READ, self.handle_ready)

    def handle_ready(self) -> None:
        """Handle a ready descriptor. Never raises: without a signer, workers have no new certificates."""
        try:
            if self._control is not None:
                self._read_control(self._control)
            elif any(_has_data(sock) for sock in list(self._waiting.values())):
                self.start()
            for number, sock in list(self._waiting.items()):
                if _is_gone(sock):
                    self._close_pair(number)
        except (OSError, ValueError, HostError) as error:
            self._handle_death(f"it can't be started: {error}")

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        due = [*([self._due] if self._due else []), *([self._next_check] if self._control is not None else [])]
        return max(min(due) - time.monotonic(), 0.0) if due else _FORGIVEN

    def turn(self) -> None:
        """Check whether the signer hangs, and give the workers of a dead one new pairs."""
        if self._control is not None and time.monotonic() >= self._next_check:
            self._check_health(self._control)
        if self._due and time.monotonic() >= self._due:
            self._due = 0.0
            for number in sorted(self._numbers):
                ours = self.pair(number)
                if self.renew is not None:
                    self.renew(number, ours)
                ours.close()

    def start(self) -> None:
        """Start the signer with the pairs so far. Raises OSError, HostError."""
        from enforcer.worker import signer_process  # many runs never start one

        self._began = time.monotonic()
        key = _open(self._directory) if self._key is None else os.dup(self._key)
        try:
            self.pid, self._control = signer_process.fork(
                key, self._certificate, self._ids, self._waiting, self._sandbox_counts
            )
        finally:
            os.close(key)
        self._control.setblocking(False)
        self._unanswered, self._next_check = 0, self._began + CHECK_EVERY
        for number in list(self._waiting):
            self._close_pair(number)
        if self._selector is not None:
            self._selector.register(self._control, selectors.EVENT_READ, self.handle_ready)

    def drop(self, number: int) -> None:
        """Forget a worker that has ended; the signer notices the closed pair."""
        self._numbers.discard(number)
        self._sandbox_counts.pop(number, None)
        self._close_pair(number)

    def close(self) -> None:
        """End the signer. Idempotent."""
        self._end()
        for number in list(self._waiting):
            self._close_pair(number)
        self._numbers.clear()
        self._due = 0.0
        if self._key is not None:
            os.close(self._key)
            self._key = None

    def _read_control(self, control: socket.socket) -> None:
        try:
            fields, _ = message.receive(control)
        except BlockingIOError:  # another descriptor was ready
            return
        if "told" in fields:
            self.report(f"certificate signer: {str(fields['told'])[:_LONGEST]}")
        elif "well" in fields:
            self._unanswered = 0
        elif not fields or "failed" in fields:
            self._handle_death(str(fields.get("failed", "its process ended"))[:_LONGEST])

    def _check_health(self, control: socket.socket) -> None:
        """Send a health check; a signer that answers none counts as dead."""
        if self._unanswered >= _MOST_UNANSWERED:
            self._handle_death("it hung")
            return
        self._unanswered += 1
        self._next_check = time.monotonic() + CHECK_EVERY
        with contextlib.suppress(OSError):  # it has ended
            order: SignerOrder = {"well": True}
            message.send(control, order)

    def _handle_death(self, why: str) -> None:
        """Record that the signer is gone: until the next one, no new name gets a certificate."""
        self._end()
        for number in list(self._waiting):
            self._close_pair(number)
        now = time.monotonic()
        self._deaths = 0 if now - self._began > _FORGIVEN else self._deaths
        self._due = now + _RESTS[min(self._deaths, len(_RESTS) - 1)]
        self._deaths += 1
        self.report(
            f"the certificate signer ended ({why}); connections to names without a certificate are denied "
            "until the next one runs"
        )

    def _end(self) -> None:
        if self._control is not None:
            self._unwatch(self._control)
            self._control.close()
            self._control = None
        processes.kill_and_wait(self.pid)
        self.pid = 0

    def _close_pair(self, number: int) -> None:
        sock = self._waiting.pop(number, None)
        if sock is not None:
            self._unwatch(sock)
            sock.close()

    def _unwatch(self, sock: socket.socket) -> None:
        if self._selector is not None:
            with contextlib.suppress(KeyError):  # the selector is closed
                self._selector.unregister(sock)


def _open(directory: Path) -> int:
    try:
        return authority_file.open_key(directory)
    except authority_file.AuthorityError as error:
        raise HostError(str(error)) from error


def _has_data(sock: socket.socket) -> bool:
    """Whether data has arrived; reads none of it."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return any(events & select.POLLIN and not events & select.POLLHUP for _, events in poll.poll(0))


def _is_gone(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
