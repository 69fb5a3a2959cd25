"""Starts and ends the journal's keeper in the process that supervises a task, which has the key (`keeper`)."""

import contextlib
import os
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.system import linux, state
from enforcer.system.errors import HostError
from enforcer.system.notices import say
from proxy.telemetry.events import Where

if TYPE_CHECKING:
    from enforcer.journal.keeper import Keeper
    from enforcer.worker.worker import Worker
    from proxy.sandbox.recorder import Recorder


def place(journal: Path) -> Path:
    """Return where lies what belongs to a journal and must be out of its writers' reach: bookmarks, locks, settings.

    Raises HostError.
    """
    base = state.make_private(keys().parent)
    real = os.path.realpath(journal)
    default = real == os.path.realpath(state.journal_directory())
    return state.make_private(base / ("journal" if default else sha256(os.fsencode(real)).hexdigest()[:16]))


def keys() -> Path:
    """Return the directory of the keys that sign journals."""
    return state.state_directory() / "keeper" / "keys"


def begin(journal: Path, recorder: "Recorder") -> "Keeper":
    """Look after a journal from here on. Raises HostError."""
    from enforcer.journal.keeper import Keeper  # and cryptography, which is large: only where it is used
    from proxy.telemetry import encoding  # noqa: F401  at the end it is needed, and somebody waits

    return Keeper(journal, place(journal), partial(recorder.error, Where.JOURNAL), confine)


def end(journal: Path, recorder: "Recorder", gate: "Worker") -> None:
    """Sign what a task's gate and its supervisor have told; both are done. Raises HostError."""
    from enforcer.journal.keeper import Keeper
    from proxy.telemetry.journal.ledger import is_left

    recorder.journal.close()
    keeper = Keeper(journal, place(journal), say, confine)
    keeper.close(gate.writers)
    if any(is_left(journal, pid) for pid in gate.writers):  # it has said that it had closed what it wrote
        gate.kill()
        keeper.close(gate.writers)


def sign(journal: Path) -> None:
    """Sign what this process has told of a run that is over: else it is taken for one that was killed. Never raises."""
    from enforcer.journal.keeper import Keeper

    with contextlib.suppress(HostError):  # whoever writes there next signs it
        Keeper(journal, place(journal), say, confine).close((os.getpid(),))


def confine() -> None:
    """Give up every capability, and any way to get one: whoever reads what workers wrote needs none. Raises OSError."""
    with contextlib.suppress(PermissionError):  # an ordinary user has no capability, this one neither
        linux.drop_bounding_set()
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)  # and nothing that is executed has one
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
