"""Certificate signer as its supervisor sees it: forked when it is needed, connected to workers, replaced when it dies.

The process that forks it may read the key and reads nothing that a worker sends, so the key is in the signer's memory
alone. The supervisor of one task forks it when its worker asks for the first certificate, which many tasks never need.
A service has one signer for all of its workers from its start.
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

_RESTS: Final = (0.0, 0.5, 2.0, 5.0)  # seconds before one that dies again and again is replaced
_FORGIVEN: Final = 60.0  # seconds after which one has lived long
_LONGEST: Final = 500  # characters of what it says
ASKED_EVERY: Final = 5.0  # seconds between two times that it is asked whether it is well
_MOST_UNANSWERED: Final = 4  # times: one that hangs is as good as dead. No clock: both may have been stopped for hours

type Renew = Callable[[int, socket.socket], None]


class CertificateSigner:
    """Sees to it that there is one, for workers that are known by numbers. For one thread, and only its own process."""

    def __init__(self, directory: Path, certificate: bytes, who: "Identity", *, fingerprint: object = None) -> None:
        """Have one for the CA kept in `directory`, whose certificate (PEM) the sandboxes trust.

        With a `fingerprint` of the key's file it is opened now, must be that file, and stays open for as long as this
        lives: then another CA may take its place there. Raises HostError.
        """
        self._directory, self._certificate, self._who = directory, certificate, who
        self._key: int | None = None
        self.said: Callable[[str], None] = print_notice
        self.renew: Renew | None = None  # gives a worker another pair
        self.pid = 0
        self._control: socket.socket | None = None
        self._waiting: dict[int, socket.socket] = {}  # the signer's ends, while there is no signer
        self._selector: selectors.BaseSelector | None = None
        self._numbers: set[int] = set()
        self._served: dict[int, int] = {}  # how many sandboxes each worker has
        self._began = 0.0
        self._deaths = 0
        self._due = 0.0  # when the workers are to have other pairs; 0: they have them
        self._unanswered = 0  # times that it was asked whether it is well
        self._ask_at = 0.0
        if fingerprint is not None:
            self._key = _open(directory)
            if authority_file.fingerprint(os.fstat(self._key)) != fingerprint:
                self.close()
                raise HostError("the CA was replaced in this very moment; start again")

    def pair(self, number: int) -> socket.socket:
        """Return a worker's end of a new pair. What it had before is worth nothing any more."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._numbers.add(number)
        if self._control is not None:
            with theirs, contextlib.suppress(OSError):  # one that is ending: it is heard of, and there are others then
                message.send(self._control, {"pair": number}, [theirs.fileno()])
        else:
            self._forget(number)
            self._waiting[number] = theirs
            if self._selector is not None:
                self._selector.register(theirs, selectors.EVENT_READ, self.hear)
        return ours

    def serves(self, number: int, sandboxes: int) -> None:
        """Say how many sandboxes a worker has, before it hears of one more: each has an allowance of its own."""
        self._served[number] = sandboxes
        if self._control is not None:
            with contextlib.suppress(OSError):  # one that is ending: the next one is told when it is forked
                message.send(self._control, {"serves": number, "sandboxes": sandboxes})

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Have `hear` called when a worker asks, or when the signer sends something."""
        self._selector = selector
        for sock in (*self._waiting.values(), *([self._control] if self._control is not None else [])):
            selector.register(sock, selectors.EVENT_READ, self.hear)

    def hear(self) -> None:
        """Do what a descriptor is ready for. Never raises: the workers go on without."""
        try:
            if self._control is not None:
                self._listen(self._control)
            elif any(_asks(sock) for sock in list(self._waiting.values())):
                self.start()
            for number, sock in list(self._waiting.items()):
                if _is_gone(sock):
                    self._forget(number)
        except (OSError, ValueError, HostError) as error:
            self._lost(f"it can't be started: {error}")

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        due = [*([self._due] if self._due else []), *([self._ask_at] if self._control is not None else [])]
        return max(min(due) - time.monotonic(), 0.0) if due else _FORGIVEN

    def turn(self) -> None:
        """Do what is due: see whether it hangs, and give the workers of one that is gone other pairs."""
        if self._control is not None and time.monotonic() >= self._ask_at:
            self._ask(self._control)
        if self._due and time.monotonic() >= self._due:
            self._due = 0.0
            for number in sorted(self._numbers):
                ours = self.pair(number)
                if self.renew is not None:
                    self.renew(number, ours)
                ours.close()

    def start(self) -> None:
        """Start it, and have it serve the pairs that there are. Raises OSError, HostError."""
        from enforcer.worker import signer_process  # only where there is one

        self._began = time.monotonic()
        key = _open(self._directory) if self._key is None else os.dup(self._key)
        try:
            self.pid, self._control = signer_process.fork(
                key, self._certificate, self._who, self._waiting, self._served
            )
        finally:
            os.close(key)
        self._control.setblocking(False)
        self._unanswered, self._ask_at = 0, self._began + ASKED_EVERY
        for number in list(self._waiting):
            self._forget(number)
        if self._selector is not None:
            self._selector.register(self._control, selectors.EVENT_READ, self.hear)

    def drop(self, number: int) -> None:
        """Forget a worker that is gone: the signer notices that by itself."""
        self._numbers.discard(number)
        self._served.pop(number, None)
        self._forget(number)

    def close(self) -> None:
        """See that it is gone. Idempotent."""
        self._end()
        for number in list(self._waiting):
            self._forget(number)
        self._numbers.clear()
        self._due = 0.0
        if self._key is not None:
            os.close(self._key)
            self._key = None

    def _listen(self, control: socket.socket) -> None:
        try:
            said, _ = message.receive(control)
        except BlockingIOError:  # it was a pair that was ready
            return
        if "told" in said:
            self.said(f"the key holder: {str(said['told'])[:_LONGEST]}")
        elif "well" in said:
            self._unanswered = 0
        elif not said or "failed" in said:
            self._lost(str(said.get("failed", "its process ended"))[:_LONGEST])

    def _ask(self, control: socket.socket) -> None:
        """Ask it whether it is well, or take one that never says so for gone."""
        if self._unanswered >= _MOST_UNANSWERED:
            self._lost("it hung")
            return
        self._unanswered += 1
        self._ask_at = time.monotonic() + ASKED_EVERY
        with contextlib.suppress(OSError):  # it takes nothing any more
            message.send(control, {"well": True})

    def _lost(self, why: str) -> None:
        """Take note that there is none: until there is another, nobody gets a certificate for a new name."""
        self._end()
        for number in list(self._waiting):
            self._forget(number)
        now = time.monotonic()
        self._deaths = 0 if now - self._began > _FORGIVEN else self._deaths
        self._due = now + _RESTS[min(self._deaths, len(_RESTS) - 1)]
        self._deaths += 1
        self.said(
            f"the key holder is gone ({why}); names that have no certificate yet are refused until there is another"
        )

    def _end(self) -> None:
        if self._control is not None:
            self._unwatch(self._control)
            self._control.close()
            self._control = None
        processes.kill_and_wait(self.pid)
        self.pid = 0

    def _forget(self, number: int) -> None:
        sock = self._waiting.pop(number, None)
        if sock is not None:
            self._unwatch(sock)
            sock.close()

    def _unwatch(self, sock: socket.socket) -> None:
        if self._selector is not None:
            with contextlib.suppress(KeyError):  # who watched is done with it
                self._selector.unregister(sock)


def _open(directory: Path) -> int:
    try:
        return authority_file.open_key(directory)
    except authority_file.AuthorityError as error:
        raise HostError(str(error)) from error


def _asks(sock: socket.socket) -> bool:
    """Whether something was sent; nothing of it is read."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return any(events & select.POLLIN and not events & select.POLLHUP for _, events in poll.poll(0))


def _is_gone(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
