"""The installation's CA as a start needs it: its certificate, known without touching the key.

Reading a certificate takes a library that costs more than the rest of a start, so what it says is remembered with the
key file's fingerprint. Anything that doesn't match is looked at again, in a process of its own, so that the key is
never in the memory of one that a task descends from.
"""

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from enforcer.system import state
from enforcer.system.errors import HostError
from enforcer.system.processes import run_in_child
from proxy import strict_json
from proxy.ca.authority_file import FILE, fingerprint, load

_NAME = "ca.json"
_LARGEST = 1 << 16  # bytes
_RENEWED_BEFORE = 30 * 86400.0  # seconds before its end from which on a CA is looked at, and renewed, by its own module


class PublicAuthority(NamedTuple):
    """What may be known of the CA by anybody."""

    certificate: str  # PEM
    link: str  # the name OpenSSL looks it up by in a directory of certificates
    expires: float  # seconds since 1970
    fingerprint: list[int]  # of the file that the key is in


def public(directory: Path, cache: Path) -> PublicAuthority:
    """Return what is public of the CA in `directory`, made there if there is none. Raises HostError."""
    found = known(directory, cache)
    if found is None:
        run_in_child(lambda: _remember(directory, cache))
        found = known(directory, cache)
    if found is None:
        raise HostError(f"the CA in `{directory}` changes while it is read; start again")
    return found


def _fingerprint(directory: Path) -> list[int]:
    return fingerprint(os.stat(directory / FILE, follow_symlinks=False))


def known(directory: Path, cache: Path) -> PublicAuthority | None:
    """Return what is remembered of the CA in `directory`; None: it has to be looked at, or made."""
    try:
        found = PublicAuthority(**strict_json.loads(state.read_private(cache / _NAME, _LARGEST) or b""))
        fresh = found.expires - time.time() > _RENEWED_BEFORE and found.fingerprint == _fingerprint(directory)
    except (OSError, ValueError, TypeError):
        return None
    return found if fresh else None


def _remember(directory: Path, cache: Path) -> None:
    from OpenSSL import crypto

    from proxy.ca.authority import load_or_create

    authority = load_or_create(directory)
    pem = authority.certificate_pem
    subject = crypto.load_certificate(crypto.FILETYPE_PEM, pem).subject_name_hash()
    name = f"{subject:08x}.0"  # under which OpenSSL looks for it in a directory: openssl-rehash(1)
    known = PublicAuthority(pem.decode(), name, authority.expires.timestamp(), _fingerprint(directory))
    if load(directory) != authority.to_pem():
        raise HostError(f"the CA in `{directory}` changes while it is read; start again")
    state.write_private(cache / _NAME, json.dumps(known._asdict()).encode())
