"""Credentials of an exporter: the secret it sends, and the certificates by which it checks a receiver.

A secret is read from a file that is nobody else's (invariant 8), anew for each use, so that it can be replaced at any
time. Nothing here shows it, not even an error about it.
"""

import os
import ssl
import stat
import threading
from pathlib import Path
from typing import Final

from proxy.telemetry.exporters.exporter import UnavailableError

_TOO_OPEN: Final = 0o077
_LONGEST: Final = 8192  # bytes


def read(path: Path) -> str:
    """Return the one line in a file: a plain one, ours or root's, closed to others. Raises UnavailableError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnavailableError(f"`{path}` is no plain file")
            if status.st_uid not in {0, os.geteuid()}:
                raise UnavailableError(f"`{path}` belongs to uid {status.st_uid}, who could read it: make it yours")
            if status.st_mode & _TOO_OPEN:
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
    """The host's own roots, and files named beside them; read anew once one of them is another. For any thread."""

    def __init__(self, ca: Path | None = None, certificate: Path | None = None) -> None:
        """`certificate` has our own certificate and its key (PEM). Reads them all. Raises OSError, ssl.SSLError."""
        self._ca = ca
        self._certificate = certificate
        self._lock = threading.Lock()
        self._seen = self._look()
        self._context = self._made()

    def context(self) -> ssl.SSLContext:
        """Return what checks a connection that is made now. Raises OSError, ssl.SSLError."""
        with self._lock:
            seen = self._look()
            if seen != self._seen:
                self._context, self._seen = self._made(), seen
            return self._context

    def _made(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._ca is not None:
            context.load_verify_locations(self._ca)
        if self._certificate is not None:
            context.load_cert_chain(self._certificate)
        return context

    def _look(self) -> tuple[Stat, ...]:
        paths = ssl.get_default_verify_paths()
        return tuple(_stat(path) for path in (paths.cafile, paths.capath, self._ca, self._certificate))


def current(tls: "ssl.SSLContext | TlsTrust | None") -> ssl.SSLContext | None:
    """Return the context for a connection that is made now. Raises OSError, ssl.SSLError."""
    return tls.context() if isinstance(tls, TlsTrust) else tls


def _stat(path: Path | str | None) -> Stat:
    """Return what tells a file from the one that was there before, links followed; None: there is none."""
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
