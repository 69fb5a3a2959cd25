"""Java's trust store as a start needs it: made once for a CA and the host's roots, and kept.

Making one takes a library whose import is half as long as the rest of a start; so it is made in a process of its own,
and found by what it was made of. One is kept; of starts with other roots at the same time each has its own.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from enforcer.system import state
from enforcer.system.processes import run_in_child

_PREFIX, _SUFFIX = "java-", ".p12"
_LARGEST = 1 << 24  # bytes


def java(bundle: bytes, cache: Path) -> bytes:
    """Return the trust store of a PEM bundle; empty if there is no certificate in it. Raises HostError."""
    name = f"{_PREFIX}{hashlib.sha256(bundle).hexdigest()[:32]}{_SUFFIX}"
    known = state.read_private(cache / name, _LARGEST)
    if known is None:
        with _alone(cache):  # else another start could take ours away for an old one before it is read
            run_in_child(lambda: _make(bundle, cache, name))
            known = state.read_private(cache / name, _LARGEST)
    return known or b""


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Let nobody else make one meanwhile (flock(2): freed when we end)."""
    folder = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)  # whoever was forked meanwhile has the descriptor too
        os.close(folder)


def _make(bundle: bytes, cache: Path, name: str) -> None:
    from proxy.ca import truststore

    store = truststore.java(bundle)
    for old in cache.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            old.unlink()
    state.write_private(cache / name, store)
