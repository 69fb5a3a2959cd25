"""What a task is called and labelled, and whether whoever starts it may say so.

Rules may be for certain tasks and labels only, so a name is a claim. Root's `identities.yaml` says which user may claim
what; where it exists, nothing else may be claimed, the name that is made from the command included. Where it doesn't,
anything may.
"""

import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enforcer.policy.rules_in_force import SYSTEM, check_roots, check_way
from enforcer.system.errors import HostError, UsageError
from rules.loading.fields import slug, slugged

if TYPE_CHECKING:
    from rules.loading.identities import Identities

_LONGEST_VALUE: Final = 63
_VALUE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def task_name(given: str | None, command: str) -> str:
    """Return the task's name: the one that was given, or one made from the command's. Raises UsageError."""
    if given is None:
        return slugged(os.path.basename(command)) if os.path.basename(command) else "task"
    try:
        return slug(given)
    except (ValueError, IndexError) as error:
        raise UsageError(f"--task: {error or 'a name is needed'}") from error


def task_labels(given: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VALUE` words. Raises UsageError."""
    labels: dict[str, str] = {}
    for word in given:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise UsageError(f"--label: `{word}` is not a label; write NAME=VALUE, as in `--label team=data`")
        try:
            slug(name)
        except ValueError as error:
            raise UsageError(f"--label: {error}") from error
        if not 0 < len(value) <= _LONGEST_VALUE or not _VALUE.issuperset(value):
            raise UsageError(
                f"--label: the value of `{name}` must be letters, digits, `.`, `_` and `-`, at most {_LONGEST_VALUE}"
            )
        if labels.setdefault(name, value) != value:
            raise UsageError(f"--label: `{name}` is given twice, as `{labels[name]}` and as `{value}`")
    return labels


def check(name: str, labels: Mapping[str, str], system: Path = SYSTEM) -> None:
    """Raise HostError unless the user who runs this may start a task of this name with these labels."""
    identities = known(system)
    problem = identities.refuse(_user(), name, labels, _groups()) if identities is not None else ""
    if problem:
        raise HostError(f"`{path_of(system)}` refuses this: {problem}")


def path_of(system: Path = SYSTEM) -> Path:
    """Return where root's identities lie."""
    return system / "identities.yaml"


def known(system: Path = SYSTEM) -> "Identities | None":
    """Read who may claim what; None: root says nothing of it. Raises HostError where it can't be read or trusted."""
    path = path_of(system)
    try:
        os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:  # it may well be there
        raise HostError(f"nothing runs while `{path}` can't be used: {error.strerror}") from error
    for place in (system, path):
        check_roots(place)
    check_way(path)
    from rules.loading.identities import read_identities  # only where there is such a file
    from rules.problems import RuleFileError

    try:
        return read_identities(path)
    except (RuleFileError, OSError) as error:
        raise HostError(f"nothing runs while `{path}` can't be used: {error}") from error


def _user() -> str:
    """Return the name of the user who runs this, or its number where it has none."""
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups() -> list[str]:
    """Return the names of the groups that this process has, or their numbers where they have none."""
    import grp

    found = []
    for gid in {os.getgid(), *os.getgroups()}:
        try:
            found.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            found.append(str(gid))
    return found
