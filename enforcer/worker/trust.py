"""Trusted roots of a sandbox: our CA's certificate, the host's bundle, and Java's trust store.

Parsing certificates and making a trust store take libraries that import slower than the rest of a start. So results are
cached by their input, and computed in a child: the CA's key is never in the memory of a process from which a task
descends.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from enforcer.system import state
from enforcer.system.errors import HostError
from enforcer.system.processes import run_in_child
from proxy.certificates.authority_file import FILE, fingerprint, load
from proxy.certificates.system_bundles import BUNDLES
from proxy.wire import strict_json

_NAME = "ca.json"
_LARGEST = 1 << 16  # bytes
_RENEW_BEFORE = 30 * 86400.0  # seconds before its expiry from which on the CA's module may renew it
_PREFIX, _SUFFIX = "java-", ".p12"
_LARGEST_STORE = 1 << 24  # bytes


class PublicAuthority(NamedTuple):
    """The public part of the CA."""

    certificate: str  # PEM
    link: str  # the name OpenSSL looks it up by in a directory of certificates
    expires: float  # seconds since 1970
    fingerprint: list[int]  # of the file that the key is in


def public_authority(directory: Path, cache: Path) -> PublicAuthority:
    """Return the public part of the CA in `directory`; makes a CA if there is none. Raises HostError."""
    found = cached_authority(directory, cache)
    if found is None:
        run_in_child(lambda: _cache_authority(directory, cache))
        found = cached_authority(directory, cache)
    if found is None:
        raise HostError(f"the CA in `{directory}` changed while it was read", "start again")
    return found


def _fingerprint(directory: Path) -> list[int]:
    return fingerprint(os.stat(directory / FILE, follow_symlinks=False))


def cached_authority(directory: Path, cache: Path) -> PublicAuthority | None:
    """Return the cached public part of the CA in `directory`; None: it has to be read, or made."""
    try:
        found = PublicAuthority(**strict_json.loads(state.read_private(cache / _NAME, _LARGEST) or b""))
        is_fresh = found.expires - time.time() > _RENEW_BEFORE and found.fingerprint == _fingerprint(directory)
    except (OSError, ValueError, TypeError):
        return None
    return found if is_fresh else None


def _cache_authority(directory: Path, cache: Path) -> None:
    from OpenSSL import crypto

    from proxy.certificates.authority import load_or_create

    authority = load_or_create(directory)
    pem = authority.certificate_pem
    subject = crypto.load_certificate(crypto.FILETYPE_PEM, pem).subject_name_hash()
    name = f"{subject:08x}.0"  # the name for OpenSSL's directory look-up: openssl-rehash(1)
    cached = PublicAuthority(pem.decode(), name, authority.expires.timestamp(), _fingerprint(directory))
    if load(directory) != authority.to_pem():
        raise HostError(f"the CA in `{directory}` changed while it was read", "start again")
    state.write_private(cache / _NAME, json.dumps(cached._asdict()).encode())


def system_roots() -> bytes:
    """Return the host's bundle of roots (PEM), which its administrator trusts."""
    for path in BUNDLES:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            return file.read()
    return b""


def trusted_roots(certificate: bytes, cache: Path) -> tuple[bytes, bytes]:
    """Return the roots of a sandbox, the host's and our CA's `certificate`: as PEM, and as Java's trust store.

    Checks for a changed host bundle each time. Raises HostError.
    """
    return _roots(certificate, cache, bundle_fingerprints())


@functools.lru_cache(maxsize=1)
def _roots(certificate: bytes, cache: Path, _fingerprints: object) -> tuple[bytes, bytes]:
    host = system_roots().rstrip(b"\n")
    bundle = (host + b"\n" if host else b"") + certificate
    return bundle, java_store(bundle, cache)


def bundle_fingerprints() -> tuple[tuple[int, ...], ...]:
    """Return the identity and times of the host's bundles, which change when one is replaced."""
    found = []
    for path in BUNDLES:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


def java_store(bundle: bytes, cache: Path) -> bytes:
    """Return the trust store of a PEM bundle; empty if the bundle has no certificate. Raises HostError.

    The cache keeps one; concurrent starts with other roots each get their own.
    """
    name = f"{_PREFIX}{hashlib.sha256(bundle).hexdigest()[:32]}{_SUFFIX}"
    cached = state.read_private(cache / name, _LARGEST_STORE)
    if cached is None:
        with _cache_lock(cache):  # else another start could remove our store before it is read
            run_in_child(lambda: _make_store(bundle, cache, name))
            cached = state.read_private(cache / name, _LARGEST_STORE)
    return cached or b""


@contextlib.contextmanager
def _cache_lock(cache: Path) -> Iterator[None]:
    """Hold a lock on the cache directory (flock(2), released when the process ends)."""
    folder = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)  # a process forked meanwhile has the descriptor, too
        os.close(folder)


def _make_store(bundle: bytes, cache: Path, name: str) -> None:
    from proxy.certificates.authority import java_truststore

    store = java_truststore(bundle)
    for old in cache.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            old.unlink()
    state.write_private(cache / name, store)
