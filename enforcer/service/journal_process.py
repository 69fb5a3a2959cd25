"""The process that looks after the journal while the service runs, and has the key that signs it.

It reads what workers wrote and believes none of it (`enforcer.journal.keeper`). It has no descriptor of the
service's, no capabilities, and no way to get any.
"""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enforcer.journal import signing
from enforcer.system import linux
from enforcer.system.processes import detach
from proxy.telemetry.journal.writer import look_ahead

if TYPE_CHECKING:
    from enforcer.journal.keeper import Keeper

_AGAIN: Final = 5.0  # seconds between two beginnings
_LOOK_EVERY: Final = 60.0  # seconds
_PAUSE: Final = 0.01


class JournalProcess:
    """Sees to it that there is one."""

    def __init__(self, journal: Path) -> None:
        """Start it. Raises HostError."""
        self._journal = journal
        self._place = signing.place(journal)
        self._due = self._look = 0.0
        self.pid = 0
        self.turn()

    def turn(self) -> None:
        """Start it again where it has died; and know where today's segments end, for those that runs begin."""
        if time.monotonic() >= self._look:
            self._look = time.monotonic() + _LOOK_EVERY
            look_ahead(self._journal)
        if self.pid == 0 and time.monotonic() >= self._due:
            self._due = time.monotonic() + _AGAIN
            self.pid = _fork(self._journal, self._place)

    def reap(self) -> None:
        """Take note of its end."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0

    def close(self) -> None:
        """End it; whoever runs next signs what it has not. Idempotent."""
        while self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)  # again, if need be: one that has only begun doesn't listen yet
            self.reap()
            time.sleep(_PAUSE)


def _fork(journal: Path, place: Path) -> int:
    parent, out = os.getpid(), os.dup(2)
    pid = os.fork()
    if pid == 0:
        try:
            detach({out}, None)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            from enforcer.journal.keeper import EVERY, Keeper  # here, so that no run is forked with it

            signing.confine()
            linux.die_with_parent(signal.SIGKILL, parent)
            _keep(Keeper(journal, place, lambda text: _say(out, text)), EVERY / 5)
        except Exception as error:  # noqa: BLE001 - it is tried again; meanwhile the journal is not signed
            _say(out, f"the journal's keeper ended and begins again: {type(error).__name__}: {error}")
        finally:
            os._exit(1)
    os.close(out)
    return pid


def _keep(keeper: "Keeper", pause: float) -> None:
    """Look after it until told to end, with this many seconds between two looks; then sign what there is."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    while not told:
        keeper.turn()
        time.sleep(pause)
    keeper.close()


def _say(out: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(out, f"exeat: {text}\n".encode("utf-8", "backslashreplace"))
