"""The rules that are in force on this machine: the files that were named, and root's, which nobody can leave out.

Every `/etc/exeat/rules.d/*.yaml` is loaded as a mandatory layer whoever runs the task and whatever was named. Only root
may have written it: what others could change is no word of root's, and what can't be read can't be obeyed, so nothing
starts then. Where this directory lies is an argument for tests, and deliberately nothing that a user can set.
"""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from enforcer.policy.path_resolution import fingerprint as path_fingerprint
from enforcer.policy.path_resolution import listed, trail
from enforcer.system.errors import HostError, UsageError
from rules.files import contents, own_configuration, why
from rules.loading.load import Loaded, failures, read
from rules.matching.policy import Policy
from rules.problems import RuleFileError

SYSTEM: Final = Path("/etc/exeat")
_OTHERS_WRITE: Final = 0o022


class Seen(NamedTuple):
    """Rules as they were read. While the fingerprint of their files is the same, so is what they hold."""

    policy: Policy
    asked: tuple[str, ...]  # all that were looked at for it, absolute
    fingerprint: str  # of those; empty: they changed while they were read, so they are to be read again


def load(files: Sequence[Path], system: Path = SYSTEM, instead: Mapping[Path, bytes] | None = None) -> Loaded:
    """Load the files and root's as one policy, if they are right and their tests pass.

    `instead`: what some of them are taken to hold (`rules.loading.load.read`).

    Raises RuleFileError with every problem, HostError where root's files can't be trusted or read.
    """
    loaded = parse(files, system, instead)
    failed = failures(loaded)
    if failed:
        raise RuleFileError(failed, loaded.asked)
    return loaded


def read_seen(files: Sequence[Path], system: Path) -> Seen:
    """Read these files and root's. Raises as `load`."""
    named = absolute(files)
    before = fingerprint(named, system)
    loaded = load(files, system)
    asked = absolute(loaded.asked)
    after = fingerprint(named, system)
    if after != before:
        return Seen(loaded.policy, asked, "")
    return Seen(loaded.policy, asked, after if asked == named else fingerprint(asked, system))


def parse(files: Sequence[Path], system: Path = SYSTEM, instead: Mapping[Path, bytes] | None = None) -> Loaded:
    """Load the files and root's without trying their tests. Raises as `load`."""
    mandatory = system_files(system)
    if not mandatory:
        return read(files, instead=instead)
    loaded = read(files, mandatory=mandatory, instead=instead)
    from rules.loading.preset_locks import lock_paths

    for path in read([], mandatory=mandatory).asked:  # what root's files include has to be root's as well
        if path not in lock_paths():  # of which root's files are filled in by root's alone
            check_roots(path)
            check_way(path)
    return loaded


def rule_files(named: Sequence[str | Path]) -> tuple[str, ...]:
    """Return the rule files of a command: those that were named, else `rules.yaml` of the caller's configuration.

    No file of the workspace is a default: whoever wrote the checkout would then write its rules. Raises UsageError.
    """
    if named:
        return tuple(map(str, named))
    default = next(iter(own_files()), None)
    if default is None or not default.exists():
        where = f"; or put the rules of your tasks into `{default}`" if default else ""
        raise UsageError(f"no rules: name a rule file with `--rules FILE`{where}")
    try:
        contents(default, trusted=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"`{default}` can't be used: {why(error)}") from error
    return (str(default),)


def own_files() -> tuple[Path, ...]:
    """Return the caller's own files that runs obey without naming them; no task may write them."""
    own = own_configuration()
    return () if own is None else (own / "rules.yaml", own / "presets.lock")


def system_files(system: Path = SYSTEM) -> list[Path]:
    """Return root's rule files. Raises HostError for what is not root's alone, and for what can't be looked at."""
    directory = directory_of(system)
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"root's rules in `{directory}` cannot be read: {error.strerror}; nothing runs then") from error
    files = [directory / name for name in names if name.endswith(".yaml") and not name.startswith(".")]
    for path in (system, directory, *files):
        check_roots(path)
    for path in files:
        check_way(path)
    return files


def directory_of(system: Path = SYSTEM) -> Path:
    """Return where root's rule files lie."""
    return system / "rules.d"


def check_way(path: Path) -> None:
    """Raise HostError unless every directory and link that leads to `path` is root's: others could put another there.

    In a directory with the sticky bit nobody can touch what is root's (unlink(2), EPERM).
    """
    for step in trail(str(path))[:-1]:
        try:
            status = os.lstat(step.path)
        except OSError as error:
            raise HostError(f"`{step.path}` cannot be read: {error.strerror}; nothing runs then") from error
        if status.st_uid != 0:
            raise HostError(
                f"`{path}` is reached through `{step.path}`, which belongs to uid {status.st_uid} and not to root, who "
                "could put another file there",
                "keep it where only root can write",
            )
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
            raise HostError(
                f"`{path}` is reached through `{step.path}`, which can be written by others than root, who could put "
                "another file there",
                "keep it where only root can write",
            )


def check_roots(path: Path) -> None:
    """Raise HostError unless `path` is root's, and nobody else's to write; that of a symbolic link counts too."""
    try:
        found = [os.lstat(path), os.stat(path)]
    except OSError as error:
        raise HostError(f"`{path}` cannot be read: {error.strerror}; nothing runs then") from error
    for status in found:
        if status.st_uid != 0:
            raise HostError(f"`{path}` belongs to uid {status.st_uid} and not to root", f"run `chown root {path}`")
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & _OTHERS_WRITE:
            raise HostError(f"`{path}` can be written by others than root", f"run `chmod go-w {path}`")


def fingerprint(asked: Sequence[str], system: Path) -> str:
    """Return a text that changes with whatever these paths, or root's rules, hold."""
    directory = str(directory_of(system))
    steps = {*path_fingerprint((*asked, directory)), listed(directory)}
    return hashlib.sha256(repr(sorted(map(repr, steps))).encode("utf-8", "surrogateescape")).hexdigest()


def absolute(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return paths that mean the same wherever this process goes; symbolic links on them stay."""
    return tuple(dict.fromkeys(os.path.join(os.getcwd(), path) for path in paths))
