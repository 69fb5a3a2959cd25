"""What is looked at of a process, and how long it is waited for."""

import contextlib
import os
import time
from pathlib import Path

PATIENCE = 60.0  # seconds


def until(true, what, every=0.01):
    deadline = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(every)
    return found


def descriptors(pid):
    """What a process has open: what goes while it is looked at is left out alone, not with all the rest."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.append(os.readlink(each))
    return found
