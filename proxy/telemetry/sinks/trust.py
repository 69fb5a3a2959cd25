"""Whom receivers are checked by, as of now: a process that runs for months follows what its host trusts."""

import os
import ssl
import threading
from pathlib import Path

type Stat = tuple[int, int, int, int] | None


class Trust:
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


def current(tls: "ssl.SSLContext | Trust | None") -> ssl.SSLContext | None:
    """Return the context for a connection that is made now. Raises OSError, ssl.SSLError."""
    return tls.context() if isinstance(tls, Trust) else tls


def _stat(path: Path | str | None) -> Stat:
    """Return what tells a file from the one that was there before, links followed; None: there is none."""
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
