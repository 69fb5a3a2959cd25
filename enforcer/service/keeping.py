"""The process that looks after the journal while the service runs, and has the key that signs it.

It reads what workers wrote and believes none of it (`proxy.telemetry.journal.keeper`). It has no descriptor of the
service's, no capabilities, and no way to get any.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from enforcer import keeping, linux
from enforcer.worker import detach
from proxy.telemetry.journal.keeper import EVERY, Keeper


class Keeping:
    """Sees to it that there is one."""

    def __init__(self, journal: Path) -> None:
        """Start it. Raises HostError."""
        self._journal = journal
        self._place = keeping.place(journal)
        self._due = 0.0
        self.pid = 0
        self.turn()

    def turn(self) -> None:
        """Start it again where it has died."""
        if self.pid == 0 and time.monotonic() >= self._due:
            self._due = time.monotonic() + EVERY
            self.pid = _fork(self._journal, self._place)

    def reap(self) -> None:
        """Take note of its end."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0

    def close(self) -> None:
        """End it; whoever runs next signs what it has not. Idempotent."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)
            self.pid = 0


def _fork(journal: Path, place: Path) -> int:
    parent, out = os.getpid(), os.dup(2)
    pid = os.fork()
    if pid == 0:
        try:
            detach({out}, None)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            keeping.confine()
            linux.die_with_parent(signal.SIGKILL, parent)
            _keep(Keeper(journal, place, lambda text: _say(out, text)))
        except Exception as error:  # noqa: BLE001 - it is tried again; meanwhile the journal is not signed
            _say(out, f"the journal's keeper ended and begins again: {type(error).__name__}: {error}")
        finally:
            os._exit(1)
    os.close(out)
    return pid


def _keep(keeper: Keeper) -> None:
    """Look after it until told to end; then sign what there is."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    while not told:
        keeper.turn()
        time.sleep(EVERY / 5)
    keeper.close()


def _say(out: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(out, f"exeat: {text}\n".encode("utf-8", "backslashreplace"))
