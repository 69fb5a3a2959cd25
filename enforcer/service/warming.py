"""Planning done in the service before anybody asks for a run, for the sake of what the interpreter learns by it.

CPython writes into its code what it meets there (PEP 659): a process that is forked from one which has been that way
runs it quicker, and copies fewer pages to write the same into each. What is planned is made nowhere, and nothing is
kept of it.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Final

from enforcer.cli import run as command
from enforcer.errors import ExeatError
from enforcer.service import protocol, runs

_TIMES: Final = 3  # by then code has taken the form that it keeps
_RULES: Final = "version: 1\nname: warming\nrules: []\n"


def warm(system: Path) -> bool:
    """Plan a run of `true` a few times; whether that was possible. What is wrong here a run says that comes to it."""
    with (
        contextlib.suppress(ExeatError, OSError),
        tempfile.TemporaryDirectory(prefix="exeat-") as place,
    ):
        rules, workspace = Path(place, "rules.yaml"), Path(place, "work")
        rules.write_text(_RULES, encoding="utf-8")
        workspace.mkdir()
        _plan(("--rules", str(rules), "--workspace", str(workspace), "--quiet", "--", "true"), system)
        return True
    return False


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
