"""Connection of a run to its client, the `exeat run` that sent the request: the peer of `service.client`.

When the client ends, its task is killed, as without a service.
"""

import signal
import socket
import sys

from enforcer.system.processes import WATCHED, ReceivedSignal
from proxy.wire import message

_LONGEST = 256  # bytes of a message


class Caller:
    """The connection to a client."""

    __slots__ = ("connection",)

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.connection.fileno()

    def read(self) -> ReceivedSignal:
        """Read a signal. The end of the client, or an invalid message, is returned as SIGKILL."""
        try:
            arrived = parse_signal(self.connection.recv(_LONGEST))
        except OSError:
            arrived = None
        return arrived or ReceivedSignal(signal.SIGKILL, from_terminal=False)

    @property
    def pid(self) -> int:
        """The client's pid, as of when it connected (SO_PEERCRED)."""
        return int.from_bytes(self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)

    def carry_in(self, primary: int) -> None:
        """Send the client the task's terminal, to relay typed keys: only a process of its session may read them."""
        message.send_packet(self.connection, b"terminal", [primary])

    def ended(self, status: int) -> None:
        """Send the task's wait status (waitpid(2))."""
        self.connection.send(b"status %d" % status)


def parse_signal(packet: bytes) -> ReceivedSignal | None:
    """Return the signal in a message `signal NUMBER FROM_TERMINAL`, if it is one that is passed on."""
    word, _, rest = packet.partition(b" ")
    number, _, terminal = rest.partition(b" ")
    if word != b"signal" or not number.isdigit() or terminal not in (b"0", b"1") or int(number) not in WATCHED:
        return None
    return ReceivedSignal(int(number), from_terminal=terminal == b"1")
