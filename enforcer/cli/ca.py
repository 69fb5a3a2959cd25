"""`exeat ca`: shows, rotates and exports the certificate authority of the installation.

Only the certificate is ever shown or written; the key is nobody's but the gates'.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from enforcer.cli.parsing import FORMAT, argument
from enforcer.system.errors import UsageError
from enforcer.system.state import authority_directory, make_private, state_directory
from proxy.certificates.authority import Authority, existing, rotate
from proxy.certificates.authority_file import AuthorityError

ARGUMENTS: Final = (
    argument("action", ("show", "rotate", "export"), "show the CA; replace it with a new one; write its certificate"),
    argument("file", "FILE", "export: file to write (default: standard output)", nargs="?"),
    argument("--der", "", "export: write DER instead of PEM"),
    FORMAT,
)


def run(arguments: argparse.Namespace) -> int:
    """Do it; 0 when it was done, 2 for misuse, or when there is no CA or it can't be used."""
    if arguments.action != "export" and (arguments.file is not None or arguments.der):
        raise UsageError(f"`exeat ca {arguments.action}` takes neither a file nor --der")
    directory = authority_directory()
    try:
        if arguments.action == "rotate":
            make_private(state_directory())
            authority = rotate(directory)
        else:
            found = existing(directory)
            if found is None:
                raise UsageError(f"there is no CA in `{directory}` yet; the first `exeat run` makes one")
            authority = found
    except AuthorityError as error:
        raise UsageError(str(error)) from error
    if arguments.action == "export":
        return _export(authority, arguments.file, der=arguments.der)
    if arguments.format == "json":
        print(json.dumps(_facts(authority, directory), indent=2))
        return 0
    for name, value in _facts(authority, directory).items():
        print(f"{name.replace('_', ' '):<12}{value}")
    if arguments.action == "rotate":
        print("\nthis is the new CA; running tasks keep the one before")
    elif authority.is_due:
        print("\nthe next `exeat run` makes a new one")
    return 0


def _facts(authority: Authority, directory: Path) -> dict[str, str | int]:
    left = (authority.expires - datetime.now(UTC)).days
    return {
        "name": authority.name,
        "sha256": authority.fingerprint,
        "made": f"{authority.made:%Y-%m-%dT%H:%M:%SZ}",
        "expires": f"{authority.expires:%Y-%m-%dT%H:%M:%SZ}",
        "days_left": left,
        "kept_in": str(directory),
    }


def _export(authority: Authority, file: Path | None, *, der: bool) -> int:
    data = authority.certificate_der if der else authority.certificate_pem
    try:
        if file is None:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            file.write_bytes(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"`{file or 'standard output'}` can't be written: {error.strerror}") from error
    return 0
