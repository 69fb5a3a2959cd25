"""Tells a SIGHUP of a closed terminal from one that means "read the rules again".

A client of the service imports this before anything else, so it imports nothing but `os`.
"""

import os


class Terminals:
    """The terminals of this process: its controlling terminal (tty(4)), and those among its standard streams."""

    def __init__(self) -> None:
        self._controls = _has_controlling()
        self._streams = [number for number in range(3) if os.isatty(number)]

    def have_gone(self) -> bool:
        """Whether one of the terminals was closed, for which the shell or the kernel sends SIGHUP."""
        return not all(map(os.isatty, self._streams)) or (self._controls and not _has_controlling())


def _has_controlling() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
