"""What systemd and the service tell each other: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).

A few lines each, in place of a library. What the variables say is for this very process, so they are taken out of the
environment: no task inherits them.
"""

import contextlib
import os
import socket
from typing import Final

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_LARGEST: Final = 64  # descriptors; more than anybody passes


class Notifier:
    """Tells systemd how things are, where it has asked."""

    def __init__(self) -> None:
        """Read what systemd has said, once."""
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        seconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        self.watchdog = int(seconds) / 2e6 if seconds.isdigit() and mine else None  # seconds: twice as often as asked

    def say(self, *lines: str) -> None:
        """Say one or several things, as in `READY=1`. Nobody may be listening."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto("\n".join(lines).encode(), address)


def passed() -> list[tuple[str, socket.socket]]:
    """Return the sockets that systemd has opened for this process, with the names that their units give them."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for number in range(min(int(count), _LARGEST)):
        descriptor = _FIRST + number
        os.set_inheritable(descriptor, False)
        found.append((names[number] if number < len(names) else "", socket.socket(fileno=descriptor)))
    return found
