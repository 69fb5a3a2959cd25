"""The installation's CA as a start needs it: its certificate, known without touching the key.

Reading a certificate takes a library that costs more than the rest of a start, so what it says is remembered with the
key file's fingerprint. Anything that doesn't match is looked at again, in a process of its own, so that the key is
never in the memory of one that a task descends from.
"""

import contextlib
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from enforcer.errors import HostError
from proxy.authority_file import FILE, load

_NAME = "ca.json"
_RENEWED_BEFORE = 30 * 86400.0  # seconds before its end from which on a CA is looked at, and renewed, by its own module


@dataclass(frozen=True, slots=True)
class PublicAuthority:
    """What may be known of the CA by anybody."""

    certificate: str  # PEM
    link: str  # the name OpenSSL looks it up by in a directory of certificates
    expires: float  # seconds since 1970
    fingerprint: list[int]  # of the file that the key is in


def public(directory: Path, cache: Path) -> PublicAuthority:
    """Return what is public of the CA in `directory`, made there if there is none. Raises HostError."""
    known = _remembered(directory, cache)
    if known is None:
        _look(directory, cache)
        known = _remembered(directory, cache)
    if known is None:
        raise HostError(f"the CA in `{directory}` changes while it is read; start again")
    return known


def _fingerprint(directory: Path) -> list[int]:
    status = os.stat(directory / FILE, follow_symlinks=False)
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _remembered(directory: Path, cache: Path) -> PublicAuthority | None:
    try:
        descriptor = os.open(cache / _NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return None
            known = PublicAuthority(**json.loads(file.read(1 << 16)))
        fresh = known.expires - time.time() > _RENEWED_BEFORE and known.fingerprint == _fingerprint(directory)
    except (OSError, ValueError, TypeError):
        return None
    return known if fresh else None


def _look(directory: Path, cache: Path) -> None:
    """Load or make the CA in a child, which remembers what is public of it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        said = ""
        try:
            _remember(directory, cache)
        except BaseException as error:  # noqa: BLE001 - it is told where it can be
            said = str(error) or type(error).__name__
        os.write(writer, said.encode("utf-8", "replace")[:4096])
        os._exit(0)
    os.close(writer)
    try:
        with open(reader, "rb") as answer:
            said = answer.read().decode("utf-8", "replace")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if said:
        raise HostError(said)


def _remember(directory: Path, cache: Path) -> None:
    from proxy.authority import load_or_create
    from proxy.trust import lookup_name

    authority = load_or_create(directory)
    pem = authority.certificate_pem
    known = PublicAuthority(pem.decode(), lookup_name(pem), authority.expires.timestamp(), _fingerprint(directory))
    if load(directory) != authority.to_pem():
        raise HostError(f"the CA in `{directory}` changes while it is read; start again")
    unfinished = cache / f".{_NAME}.{os.getpid()}.{time.time_ns()}"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(json.dumps(asdict(known)).encode())
    os.rename(unfinished, cache / _NAME)
