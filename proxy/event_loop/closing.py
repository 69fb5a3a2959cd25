"""Closing a socket by a reset or in peace: a cut is not an end (invariant 12). Source: socket(7), SO_LINGER."""

import socket
import struct
from typing import Final

_RESET: Final = struct.pack("ii", 1, 0)  # struct linger, on with no time: close sends a reset
_IN_PEACE: Final = struct.pack("ii", 0, 0)
_closed = socket.SocketType.close  # the C type's: a socket's own goes through two functions, for makefile(), first


def reset(sock: socket.socket) -> None:
    """Close so that the other side can't take it for an end."""
    _close(sock, _RESET)


def finish(sock: socket.socket) -> None:
    """Close in peace: what was sent is delivered, and the other side sees an end."""
    _close(sock, _IN_PEACE)


def cut_if_killed(sock: socket.socket) -> None:
    """Have the kernel reset the connection should this process end without closing it (invariant 12).

    What a listener has set, its accepted sockets inherit. `finish` closes in peace.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _close(sock: socket.socket, linger: bytes) -> None:
    try:  # noqa: SIM105  contextlib.suppress is three calls, twice a connection
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    except OSError:
        pass  # it is broken already
    _closed(sock)
