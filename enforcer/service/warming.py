"""Planning done in the service before anybody asks for a run, for the sake of what the interpreter learns by it.

CPython writes into its code what it meets there (PEP 659): a process that is forked from one which has been that way
runs it quicker, and copies fewer pages to write the same into each. What is planned is made nowhere, and nothing is
kept of it.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enforcer.cli import run as command
from enforcer.errors import ExeatError
from enforcer.service import protocol, runs

_TIMES: Final = 3  # by then code has taken the form that it keeps
_RULES: Final = "version: 1\nname: warming\nrules: []\n"


def warm(system: Path) -> bool:
    """Plan a run of `true` a few times; whether that was possible. What is wrong here a run says that comes to it."""
    with contextlib.suppress(ExeatError, OSError), _files() as (rules, workspace):
        _plan(("--rules", str(rules), "--workspace", str(workspace), "--quiet", "--", "true"), system)
        return True
    return False


@contextlib.contextmanager
def _files() -> Iterator[tuple[Path, Path]]:
    """Have a rule file and an empty directory for a moment.

    Not by `tempfile`: with it come random numbers and three ways to compress, and every run would be forked with them.
    """
    place = Path(os.environ.get("TMPDIR") or "/tmp", f"exeat-{os.getpid():x}-{time.time_ns():x}")
    rules, workspace = place / "rules.yaml", place / "work"
    place.mkdir(mode=0o700)  # fails where there is anything of this name
    try:
        rules.write_text(_RULES, encoding="utf-8")
        workspace.mkdir()
        yield rules, workspace
    finally:
        with contextlib.suppress(OSError):
            rules.unlink(missing_ok=True)
            workspace.rmdir()
        place.rmdir()


def _plan(words: tuple[str, ...], system: Path) -> None:
    from enforcer.planning import plan
    from rules.load import read

    loaded = read([Path(words[1])])
    limits = tuple((-1, -1) for _ in range(16))
    request = os.memfd_create("warming", os.MFD_CLOEXEC)
    try:
        os.write(request, protocol.pack(protocol.Run(words, dict(os.environ), 0o22, 0, 0, limits)))
        for _ in range(_TIMES):
            asked = protocol.unpack(request)
            plan(command.wanted_of(runs.parsed(asked), system, lambda _files, _system: loaded))
    finally:
        os.close(request)
