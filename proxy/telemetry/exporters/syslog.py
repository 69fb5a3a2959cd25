"""Syslog exporter (RFC 5424) over TCP and TLS (RFC 6587 section 3.4.1, RFC 5425). An orderly close is its receipt.

Each batch has its own connection, which the exporter closes when all is sent. A receiver that has read everything
closes its side too; one that ends with unread data resets the connection. Then the exporter opens the next connection:
that fails if the receiver was killed right after reading.
Only after that the batch counts as delivered.

The header has the kind (MSGID), the severity and the host; the body is the chosen format. There is no structured data
of our own: its name would need a private enterprise number, and Exeat has none.
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
_LONGEST_MESSAGE: Final = 8192  # bytes; the size that every receiver should accept (RFC 5425 section 4.3.1)
_POLL_INTERVAL: Final = 0.01  # seconds between checks
_CLOSE_DELAY: Final = 0.1  # seconds until the kernel has closed the sockets of a killed process
_TOO_LONG: Final = "the event is longer than syslog takes: it is in the journal, under this id"

AUDIT: Final = 13  # the facility "log audit": RFC 5424 section 6.2.1
_LONGEST_HOST: Final = 255
_LONGEST_ID: Final = 32
_MICROSECONDS: Final = 26  # characters of a timestamp with six decimals, the maximum of TIME-SECFRAC
_SEVERITIES: Final = (6, 6, 5, 4, 2)  # informational, notice, warning, critical; by our severity
_NIL: Final = "-"


def syslog(record: Record, body: str) -> bytes:
    """Return one message with `body`, in ASCII; other characters are escaped."""
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
    """Return printable ASCII without spaces, as header fields require (PRINTUSASCII)."""
    printable = "".join(each if "!" <= each <= "~" else "?" for each in str(text or ""))
    return printable[:longest] or _NIL


class SyslogExporter:
    """Sends to one receiver; with `tls`, over TLS."""

    name = "syslog"

    def __init__(self, host: str, port: int, line_format: Format, tls: ssl.SSLContext | TlsTrust | None = None) -> None:
        self._host, self._port, self._line_format, self._tls = host, port, line_format, tls
        self._next_connection: socket.socket | None = None  # connected, still unused

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
        """Return a message within the size that receivers accept; a long event is shortened."""
        message = syslog(item.record, self._line_format(item))
        if len(message) > _LONGEST_MESSAGE:
            for record in shortened(item.record, _TOO_LONG):
                message = syslog(record, self._line_format(Item(b"", record)))
                if len(message) <= _LONGEST_MESSAGE:
                    break
        return message

    def _take_connection(self) -> socket.socket:
        """Return the open connection if it is still usable, or a new one."""
        ready, self._next_connection = self._next_connection, None
        if ready is not None:
            if not select.select([ready], [], [], 0)[0]:
                return ready
            ready.close()  # closed by the receiver while idle, or the receiver restarted
        return self._connect()

    def _open_next(self) -> socket.socket:
        """Open a connection and check that it stays open. Raises OSError."""
        connection = self._connect()
        if select.select([connection], [], [], _CLOSE_DELAY)[0]:
            try:
                connection.recv(1)  # raises where it was reset
            finally:
                connection.close()
            return self._connect()  # the receiver sends first, or closes idle connections at once
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
            # Wait for the receiver's close_notify, which no one on the path can forge. A receiver that only closes
            # its TCP side raises an error here.
            with secured.unwrap() as under:
                _close_gracefully(under)
        finally:
            with contextlib.suppress(OSError):
                secured.close()


def _close_gracefully(connection: socket.socket) -> None:
    """Close our side, then wait for the peer's close and for the acknowledgement of all data. Raises OSError."""
    deadline = time.monotonic() + _TIMEOUT
    with contextlib.suppress(OSError):  # the peer closed it: the next reads tell how
        connection.shutdown(socket.SHUT_WR)
    while connection.recv(4096):
        if time.monotonic() > deadline:
            raise TimeoutError("it does not close the connection after the last message")
    while _unacknowledged(connection):
        if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "it closed the connection before it had read everything")
        if time.monotonic() > deadline:
            raise TimeoutError("it closed the connection before it had read everything")
        time.sleep(_POLL_INTERVAL)


def _unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes the peer's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
    found: tuple[int] = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))
    return found[0]
