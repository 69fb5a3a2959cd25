"""Location, trust check and change check of `approvers.yaml`.

Root's, in /etc/exeat, is for everybody on the host. Without it a user's own counts, in the state directory, which no
task reads or writes. A file that can't be read or trusted lets nobody approve.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enforcer.policy.rule_files import SYSTEM, check_path, check_root_owned
from enforcer.system import state
from enforcer.system.errors import HostError

if TYPE_CHECKING:
    from proxy.approvals.people import People

NAME: Final = "approvers.yaml"


def place(system: Path = SYSTEM) -> Path:
    """Return which file counts, whether it is there or not."""
    roots = system / NAME
    return roots if os.path.lexists(roots) else state.state_directory() / NAME


def read(path: Path, system: Path = SYSTEM) -> "People":
    """Return everybody who may approve. Raises HostError, also with every problem of the file."""
    from proxy.approvals.approvers_file import read_people
    from proxy.approvals.people import People
    from rules.problems import RuleFileError

    if not os.path.lexists(path):
        return People(owner=os.geteuid())
    trust(path, system)
    try:
        return read_people(path)
    except RuleFileError as error:
        raise HostError("; ".join(map(str, error.problems))) from error
    except OSError as error:
        raise HostError(f"`{path}` cannot be read: {error.strerror}") from error


def trust(path: Path, system: Path = SYSTEM) -> None:
    """Raise HostError if it is root's, and not root's alone to write."""
    if path == system / NAME:
        for each in (system, path):
            check_root_owned(each)
        check_path(path)


def looked_at(path: Path) -> tuple[object, ...]:
    """Return what changes when the file does."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (str(path), error.errno)
    return (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
