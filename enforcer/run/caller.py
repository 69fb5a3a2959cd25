"""Connection to the process that asked the service for a run: the other end of `service.client`.

When it is gone, so is its task, as `exeat run` without a service takes its task along.
"""

import signal
import socket
import sys

from enforcer.system.processes import WATCHED, ReceivedSignal
from proxy.wire import descriptor_passing

_LONGEST = 256  # bytes of a call


class Caller:
    """The connection to a client, and the task's terminal, if it has one."""

    __slots__ = ("connection",)

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def fileno(self) -> int:
        """Return what to wait on."""
        return self.connection.fileno()

    def read(self) -> ReceivedSignal:
        """Read what has happened there: a signal. One that is gone, or says what is no signal, is a SIGKILL."""
        try:
            arrived = parse_signal(self.connection.recv(_LONGEST))
        except OSError:
            arrived = None
        return arrived or ReceivedSignal(signal.SIGKILL, from_terminal=False)

    @property
    def pid(self) -> int:
        """The client's process, as of when it connected (SO_PEERCRED)."""
        return int.from_bytes(self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)

    def carry_in(self, primary: int) -> None:
        """Have the client pass on what is typed at its terminal: only a process of its session may read it."""
        descriptor_passing.send(self.connection, b"terminal", [primary])

    def ended(self, status: int) -> None:
        """Say how it ended: a wait status, as waitpid(2) has it."""
        self.connection.send(b"status %d" % status)


def parse_signal(packet: bytes) -> ReceivedSignal | None:
    """Return the signal of a packet `signal NUMBER FROM_TERMINAL`, if it is one that is passed on."""
    word, _, rest = packet.partition(b" ")
    number, _, terminal = rest.partition(b" ")
    if word != b"signal" or not number.isdigit() or terminal not in (b"0", b"1") or int(number) not in WATCHED:
        return None
    return ReceivedSignal(int(number), from_terminal=terminal == b"1")
