"""Syslog exporter (RFC 5424) over TCP and TLS (RFC 6587 section 3.4.1, RFC 5425). An orderly close is its receipt.

A batch has a connection of its own, which we end when all is sent. A receiver that has read it all ends its side in
turn; one that goes away with something unread resets it. Then the next connection is opened: a receiver that was
killed just after it had read everything is not there to take it, or is gone a moment later. Only after that does a
batch count as taken.

The header says the kind (MSGID), how severe it is and the host; the body is whatever format was asked for. There is no
structured data of our own: its name would need a private enterprise number, and Exeat has none.
"""

import contextlib
import fcntl
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Sequence
from typing import Final

from proxy.telemetry.exporters.exporter import Format, Item, TlsTrust, UnavailableError, current_context
from proxy.telemetry.formats.decoded_event import shortened
from proxy.telemetry.formats.fields import Record, own_version, severity

_TIMEOUT: Final = 30.0  # seconds, for each step
_LONGEST_MESSAGE: Final = 8192  # bytes; what every receiver should take (RFC 5425 section 4.3.1)
_POLL_INTERVAL: Final = 0.01  # seconds between
_CLOSE_DELAY: Final = 0.1  # seconds that a process may take to close all it has open, once it is killed
_TOO_LONG: Final = "the event is longer than syslog takes: it is in the journal, under this id"

AUDIT: Final = 13  # the facility "log audit": RFC 5424 section 6.2.1
_LONGEST_HOST: Final = 255
_LONGEST_ID: Final = 32
_MICROSECONDS: Final = 26  # of a timestamp with nine decimals: what TIME-SECFRAC has room for
_SEVERITIES: Final = (6, 6, 5, 4, 2)  # informational, notice, warning, critical; by ours
_NIL: Final = "-"


def syslog(record: Record, body: str) -> bytes:
    """Return one message with `body`, in ASCII: what is beyond it is spelled out."""
    head = (
        f"<{AUDIT * 8 + _SEVERITIES[severity(record)]}>1",
        f"{record['time'][:_MICROSECONDS]}Z",
        _header_field(record.get("host"), _LONGEST_HOST),
        "exeat",
        _NIL,  # PROCID: several processes write one journal
        _header_field(record["kind"], _LONGEST_ID),
        f'[origin software="exeat" swVersion="{own_version()}"]',
    )
    return f"{' '.join(head)} {body}".encode("ascii", "backslashreplace")


def frame_message(message: bytes) -> bytes:
    """Return a message as a frame: its length in decimal, a space, the message."""
    return b"%d %b" % (len(message), message)


def _header_field(text: object, longest: int) -> str:
    """Return printable ASCII without spaces, as a header's field has to be (PRINTUSASCII)."""
    printable = "".join(each if "!" <= each <= "~" else "?" for each in str(text or ""))
    return printable[:longest] or _NIL


class SyslogExporter:
    """Sends to one receiver; with `tls`, over TLS."""

    name = "syslog"

    def __init__(self, host: str, port: int, line_format: Format, tls: ssl.SSLContext | TlsTrust | None = None) -> None:
        self._host, self._port, self._line_format, self._tls = host, port, line_format, tls
        self._next_connection: socket.socket | None = None  # connected, and nothing sent on it yet

    def send(self, items: Sequence[Item]) -> None:
        """Send a message for each item and wait until the receiver has read them all."""
        frames = b"".join(frame_message(self._message(item)) for item in items)
        try:
            plain = self._take_connection()
            try:
                self._deliver(plain, frames)
            finally:
                plain.close()
            self._next_connection = self._open_next()
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            raise UnavailableError(f"{self._host}:{self._port}: {why}") from error

    def _message(self, item: Item) -> bytes:
        """Return a message that no receiver cuts: of a long event little of each text, or what no sandbox chose."""
        message = syslog(item.record, self._line_format(item))
        if len(message) > _LONGEST_MESSAGE:
            for record in shortened(item.record, _TOO_LONG):
                message = syslog(record, self._line_format(Item(b"", record)))
                if len(message) <= _LONGEST_MESSAGE:
                    break
        return message

    def _take_connection(self) -> socket.socket:
        """Return the connection that is open already, if it still is, or a new one."""
        ready, self._next_connection = self._next_connection, None
        if ready is not None:
            if not select.select([ready], [], [], 0)[0]:
                return ready
            ready.close()  # it was idle for too long, or the receiver is another by now
        return self._connect()

    def _open_next(self) -> socket.socket:
        """Return a new connection that stays. Raises OSError."""
        connection = self._connect()
        if select.select([connection], [], [], _CLOSE_DELAY)[0]:
            try:
                connection.recv(1)  # raises where it was reset
            finally:
                connection.close()
            return self._connect()  # it says something first, or is one to end idle connections at once
        return connection

    def _connect(self) -> socket.socket:
        return socket.create_connection((self._host, self._port), _TIMEOUT)

    def _deliver(self, plain: socket.socket, frames: bytes) -> None:
        tls = current_context(self._tls)
        if tls is None:
            plain.sendall(frames)
            _close_gracefully(plain)
            return
        secured = tls.wrap_socket(plain, server_hostname=self._host)
        try:
            secured.sendall(frames)
            # Waits for the receiver's close_notify: nobody on the way can say it in its place. One that only ends
            # its TCP side raises here.
            with secured.unwrap() as under:
                _close_gracefully(under)
        finally:
            with contextlib.suppress(OSError):
                secured.close()


def _close_gracefully(connection: socket.socket) -> None:
    """End our side and wait for the other's end, and until all we sent is acknowledged. Raises OSError."""
    deadline = time.monotonic() + _TIMEOUT
    with contextlib.suppress(OSError):  # the other side ended it altogether: what follows tells
        connection.shutdown(socket.SHUT_WR)
    while connection.recv(4096):
        if time.monotonic() > deadline:
            raise TimeoutError("it doesn't end the connection after all was sent")
    while _unacknowledged(connection):
        if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "it ended the connection before it had all")
        if time.monotonic() > deadline:
            raise TimeoutError("it ended the connection before it had all")
        time.sleep(_POLL_INTERVAL)


def _unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes the other side's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
    found: tuple[int] = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))
    return found[0]
