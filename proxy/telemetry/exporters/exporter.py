"""Interface of an exporter, the line formats, the file exporter, and the credentials of the network exporters.

An exporter takes a batch whole, or raises one of two errors. A file is opened anew for each batch, so that it may be
renamed at any time (logrotate(8), without copytruncate). A secret is read from a private file (invariant 8) for each
use, so that it can be replaced at any time; no error shows it.
"""

import os
import ssl
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from proxy.telemetry.formats.cef import cef
from proxy.telemetry.formats.decoded_event import one_line
from proxy.telemetry.formats.ecs import ecs
from proxy.telemetry.formats.fields import Record
from proxy.telemetry.formats.ocsf import ocsf


class Item(NamedTuple):
    """Line of the journal, newline included, and its record. The line is empty if the record was shortened."""

    line: bytes
    record: Record


class UnavailableError(Exception):
    """The receiver is down, too slow, or refuses for now: retry.

    `wait`: seconds that the receiver asked for.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class RefusedError(Exception):
    """The receiver rejects the data: do not retry."""


class Exporter(Protocol):
    """Exporter: sends events to one receiver."""

    name: str  # from a closed set: it is a metric label

    def send(self, items: Sequence[Item]) -> None:
        """Send all items; the receiver has them when this returns. Raises UnavailableError, RefusedError."""


type Format = Callable[[Item], str]


def _format_event(item: Item) -> str:
    """Return the line exactly as written, so that the receiver can check its hash."""
    plain = item.line.isascii() and item.line[:-1].decode("ascii", "replace").isprintable()
    return item.line[:-1].decode("ascii") if item.line and plain else one_line(item.record)[:-1].decode("ascii")


FORMATS: Final[dict[str, Format]] = {
    "event": _format_event,
    "ocsf": lambda item: one_line(ocsf(item.record))[:-1].decode("ascii"),
    "ecs": lambda item: one_line(ecs(item.record))[:-1].decode("ascii"),
    "cef": lambda item: cef(item.record),
}


_LONGEST_LINE: Final = 1 << 21  # bytes


class FileExporter:
    """Appends to a file and syncs it to the disk."""

    name = "file"

    def __init__(self, path: Path, line_format: Format) -> None:
        self._path = path
        self._line_format = line_format

    def send(self, items: Sequence[Item]) -> None:
        """Write a line for each item."""
        text = "".join(f"{self._line_format(item)}\n" for item in items)
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            file = os.open(self._path, flags, 0o600)
            try:
                self._append(file, text.encode("utf-8", "backslashreplace"))
            finally:
                os.close(file)
        except OSError as error:
            raise UnavailableError(f"cannot write `{self._path}`: {error.strerror}") from error

    def _append(self, file: int, body: bytes) -> None:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise UnavailableError(f"`{self._path}` is not a regular file")
        size = _remove_partial_line(file, status.st_size)
        try:
            while body:
                body = body[os.write(file, body) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)  # a full disk took a part: the whole batch is sent again
            raise
        if not size:
            _sync_name(self._path)


def _remove_partial_line(file: int, size: int) -> int:
    """Remove an unfinished last line, left by a killed exporter; the line is sent again. Return the new size."""
    tail = os.pread(file, _LONGEST_LINE, max(0, size - _LONGEST_LINE))
    if not tail or tail.endswith(b"\n"):
        return size
    size -= len(tail) - (tail.rfind(b"\n") + 1)
    os.ftruncate(file, size)
    return size


def _sync_name(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


_GROUP_AND_OTHERS: Final = 0o077
_LONGEST: Final = 8192  # bytes


def read_secret(path: Path) -> str:
    """Return the line in a regular file that belongs to this user or root and is closed to others.

    Raises UnavailableError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnavailableError(f"`{path}` is not a regular file")
            if status.st_uid not in {0, os.geteuid()}:
                raise UnavailableError(f"`{path}` belongs to uid {status.st_uid}, who could read it: make it yours")
            if status.st_mode & _GROUP_AND_OTHERS:
                raise UnavailableError(f"`{path}` is open to others: run `chmod 600 {path}`")
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise UnavailableError(f"cannot read `{path}`: {error.strerror}") from error
    line = text.strip()
    if not line or len(text) > _LONGEST or not all(0x20 <= byte < 0x7F for byte in line):
        raise UnavailableError(f"`{path}` is not one line of printable ASCII")
    return line.decode("ascii")


type Stat = tuple[int, int, int, int] | None


class TlsTrust:
    """TLS roots of the host and configured files; reloads them when one of them changes. Thread-safe."""

    def __init__(self, ca: Path | None = None, certificate: Path | None = None) -> None:
        """`certificate` has the client certificate and its key (PEM). Reads all files. Raises OSError, ssl.SSLError."""
        self._ca = ca
        self._certificate = certificate
        self._lock = threading.Lock()
        self._file_states = self._stat_files()
        self._context = self._create_context()

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection. Raises OSError, ssl.SSLError."""
        with self._lock:
            states = self._stat_files()
            if states != self._file_states:
                self._context, self._file_states = self._create_context(), states
            return self._context

    def _create_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._ca is not None:
            context.load_verify_locations(self._ca)
        if self._certificate is not None:
            context.load_cert_chain(self._certificate)
        return context

    def _stat_files(self) -> tuple[Stat, ...]:
        paths = ssl.get_default_verify_paths()
        return tuple(_stat(path) for path in (paths.cafile, paths.capath, self._ca, self._certificate))


def current_context(tls: "ssl.SSLContext | TlsTrust | None") -> ssl.SSLContext | None:
    """Return the context for a new connection. Raises OSError, ssl.SSLError."""
    return tls.context() if isinstance(tls, TlsTrust) else tls


def _stat(path: Path | str | None) -> Stat:
    """Return the identity of a file, links followed, to notice a replacement; None: no file."""
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
