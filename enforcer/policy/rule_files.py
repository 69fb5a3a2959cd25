"""Rule files in force on this host, and whether a task could change them or a path that leads to them."""

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from enforcer.sandbox.system_paths import contains
from enforcer.system.control_socket import VARIABLE
from enforcer.system.errors import HostError, UsageError
from rules.files import describe_error, read_file, user_configuration
from rules.loading.load import Loaded, failures, read
from rules.matching.policy import Policy
from rules.problems import RuleFileError

SYSTEM: Final = Path("/etc/exeat")
_OTHERS_WRITE: Final = 0o022


class LoadedRules(NamedTuple):
    """Policy with the fingerprint of its files: the same fingerprint means the same content."""

    policy: Policy
    searched_paths: tuple[str, ...]  # every path looked up for a rule file, absolute
    fingerprint: str  # of these paths; empty: they changed while they were read, so read them again


def load(files: Sequence[Path], system: Path = SYSTEM, instead: Mapping[Path, bytes] | None = None) -> Loaded:
    """Load the files and root's as one policy, and run their tests.

    `instead`: content that replaces that of some files (`rules.loading.load.read`).

    Raises RuleFileError with every problem, HostError where root's files can't be trusted or read.
    """
    loaded = parse(files, system, instead)
    failed = failures(loaded)
    if failed:
        raise RuleFileError(failed, loaded.searched_paths)
    return loaded


def load_with_fingerprint(files: Sequence[Path], system: Path) -> LoadedRules:
    """Load these files and root's, with their fingerprint. Raises as `load`."""
    named = make_absolute(files)
    before = fingerprint(named, system)
    loaded = load(files, system)
    searched_paths = make_absolute(loaded.searched_paths)
    after = fingerprint(named, system)
    if after != before:
        return LoadedRules(loaded.policy, searched_paths, "")
    return LoadedRules(
        loaded.policy, searched_paths, after if searched_paths == named else fingerprint(searched_paths, system)
    )


def parse(files: Sequence[Path], system: Path = SYSTEM, instead: Mapping[Path, bytes] | None = None) -> Loaded:
    """Load the files and root's without running their tests. Raises as `load`."""
    mandatory = system_files(system)
    if not mandatory:
        return read(files, instead=instead)
    loaded = read(files, mandatory=mandatory, instead=instead)
    from rules.loading.preset_locks import lock_paths

    for path in read([], mandatory=mandatory).searched_paths:  # files that root's files include must be root's, too
        if path not in lock_paths():  # root's files use only root's lock
            check_root_owned(path)
            check_path(path)
    return loaded


def rule_files(named: Sequence[str | Path]) -> tuple[str, ...]:
    """Return the rule files of a command: the named ones, or `rules.yaml` in the caller's configuration.

    No file of the workspace is a default: the author of a checkout would then write its rules. Raises UsageError.
    """
    if named:
        return tuple(map(str, named))
    default = next(iter(own_files()), None)
    if default is None or not default.exists():
        where = f"; or put the rules of your tasks into `{default}`" if default else ""
        raise UsageError(f"no rules: name a rule file with `--rules FILE`{where}")
    try:
        read_file(default, trusted=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"`{default}` can't be used: {describe_error(error)}") from error
    return (str(default),)


def own_files() -> tuple[Path, ...]:
    """Return the caller's default rule files; no task may write them."""
    configuration = user_configuration()
    return () if configuration is None else (configuration / "rules.yaml", configuration / "presets.lock")


def system_files(system: Path = SYSTEM) -> list[Path]:
    """Return root's rule files. Raises HostError for one that others can write, or that can't be read."""
    directory = directory_of(system)
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"root's rules in `{directory}` cannot be read: {error.strerror}; nothing runs then") from error
    files = [directory / name for name in names if name.endswith(".yaml") and not name.startswith(".")]
    for path in (system, directory, *files):
        check_root_owned(path)
    for path in files:
        check_path(path)
    return files


def directory_of(system: Path = SYSTEM) -> Path:
    """Return the directory of root's rule files."""
    return system / "rules.d"


def check_path(path: Path) -> None:
    """Raise HostError unless root owns every directory and link on the way to `path`: others could replace it.

    In a sticky directory nobody else can replace root's files (unlink(2), EPERM).
    """
    for step in list_steps(str(path))[:-1]:
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


def check_root_owned(path: Path) -> None:
    """Raise HostError unless root owns `path` and only root can write it; a symbolic link itself counts too."""
    try:
        found = [os.lstat(path), os.stat(path)]
    except OSError as error:
        raise HostError(f"`{path}` cannot be read: {error.strerror}; nothing runs then") from error
    for status in found:
        if status.st_uid != 0:
            raise HostError(f"`{path}` belongs to uid {status.st_uid} and not to root", f"run `chown root {path}`")
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & _OTHERS_WRITE:
            raise HostError(f"`{path}` can be written by others than root", f"run `chmod go-w {path}`")


def fingerprint(searched_paths: Sequence[str], system: Path) -> str:
    """Return a text that changes with the content of these paths and of root's rules."""
    directory = str(directory_of(system))
    steps = {*all_steps((*searched_paths, directory)), directory_step(directory)}
    return hashlib.sha256(repr(sorted(map(repr, steps))).encode("utf-8", "surrogateescape")).hexdigest()


def make_absolute(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return absolute paths; symbolic links on them stay."""
    return tuple(dict.fromkeys(os.path.join(os.getcwd(), path) for path in paths))


_held_descriptors: Final[list[int]] = []  # descriptors of masked files, until this process ends
_MOST_LINKS: Final = 40  # symbolic links on one path, as the kernel has it


class PathStep(NamedTuple):
    """One lookup of a name in a directory (a real path); `identity` is None if the name does not exist."""

    directory: str
    name: str
    identity: "FileIdentity | None"

    @property
    def path(self) -> str:
        """Path of the name."""
        return os.path.join(self.directory, self.name)


class FileIdentity(NamedTuple):
    """Fingerprint of a file. For a directory only its identity: other names in it don't matter."""

    device: int
    inode: int
    kind: int
    size: int = 0
    modified: int = 0  # ns since 1970
    changed: int = 0  # ns since 1970; set by the kernel at every write, whatever tools do to `modified`

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return self.kind == stat.S_IFLNK

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == stat.S_IFDIR

    def is_same(self, other: "FileIdentity | None") -> bool:
        """Whether it is the same file or directory, whatever its content."""
        return other is not None and self[:3] == other[:3]


def list_steps(path: str) -> tuple[PathStep, ...]:
    """Resolve a path: return every lookup on the way; the last one has no `identity` if the path does not exist."""
    steps: list[PathStep] = []
    current, links = "/", 0
    pending = os.path.join(os.getcwd(), path).split("/")[::-1]
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            current = os.path.dirname(current)
            continue
        step = PathStep(current, name, _identify(os.path.join(current, name)))
        steps.append(step)
        if step.identity is None:
            break
        if step.identity.is_link:
            links += 1
            try:
                to = os.readlink(step.path)
            except OSError:
                break
            if links > _MOST_LINKS:
                break
            if to.startswith("/"):
                current = "/"
            pending += to.split("/")[::-1]
        else:
            current = step.path
    return tuple(steps)


def all_steps(paths: Iterable[str]) -> frozenset[PathStep]:
    """Return every lookup for every path: while these are the same, so is the content of the paths."""
    return frozenset(step for path in paths for step in list_steps(path))


def directory_step(directory: str) -> PathStep:
    """Return the names in a directory as a step, for directories of which every file counts."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return PathStep(directory, "", None)
    return PathStep(directory, "/".join(names), None)


def _identify(path: str) -> FileIdentity | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        return FileIdentity(status.st_dev, status.st_ino, kind)
    return FileIdentity(status.st_dev, status.st_ino, kind, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def find_exposed(paths: Iterable[str], writable: Collection[str]) -> list[str]:
    """Return problems of rule files that a task could replace; none, if they can be masked."""
    problems: dict[str, None] = {}
    for path in paths:
        steps = list_steps(path)
        end = steps[-1].path if steps else "/"
        for step in steps:
            tree = _find_containing(writable, step.directory)
            if tree is None:
                continue
            if step.identity is None:
                problems[
                    f"`{step.path}` is not there, and a task that may write `{tree}` could make it; "
                    "let the task write a directory that does not hold that path"
                ] = None
            elif step.identity.is_link:
                problems[
                    f"`{path}` is reached through the symbolic link `{step.path}`, which a task that may write "
                    f"`{tree}` could change; name the file itself, or keep rules elsewhere"
                ] = None
            elif not contains(step.path, end):
                problems[
                    f"`{path}` is reached by way of `{step.path}`, which a task that may write `{tree}` could "
                    "replace; spell it without `..`"
                ] = None
    return list(problems)


def refuse_service(path: str, writable: Iterable[str]) -> None:
    """Raise UsageError if a task could write the control socket's path (empty: there is none).

    `exeat run` sends its environment and its directory to the listener there.
    """
    places = list(writable)
    for step in list_steps(path) if path else ():
        if (tree := _find_containing(places, step.directory)) is not None:
            raise UsageError(
                f"the service's socket `{path}` is reached through `{tree}`, which the task may write: it could "
                f"listen there itself; name another place with {VARIABLE}"
            )


def hold_masked(paths: Iterable[str], writable: Collection[str]) -> dict[str, FileIdentity]:
    """Return what a new sandbox masks: every file and directory on these paths that a task may write.

    Each stays open while this process lives: otherwise its replacement could get the same inode number. Files that were
    replaced already are left out, and so count as unmasked.
    """
    found: dict[str, FileIdentity] = {}
    for path in paths:
        for step in list_steps(path):
            within = _find_containing(writable, step.directory) is not None
            if within and step.identity is not None and _hold_open(step.path, step.identity):
                found[step.path] = step.identity
    return found


def _find_containing(writable: Collection[str], directory: str) -> str | None:
    return next((tree for tree in writable if contains(tree, directory)), None)


def _hold_open(path: str, identity: FileIdentity) -> bool:
    """Keep a file or directory open, if it is unchanged; return whether."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) != (identity.device, identity.inode):
        os.close(descriptor)
        return False
    _held_descriptors.append(descriptor)
    return True


def find_unmasked(
    paths: Iterable[str], writable: Collection[str], masked_files: Mapping[str, FileIdentity]
) -> tuple[str, ...]:
    """Return paths that a task may write now, because their mask is gone or never existed; outermost first.

    A mask lies on the file that was there when it was made. A replaced file has no mask, nor has anything below it.
    """
    unmasked: dict[str, None] = {}
    for path in paths:
        for step in list_steps(path):
            if step.identity is None or _find_containing(writable, step.directory) is None:
                continue
            before = masked_files.get(step.path)
            below = any(contains(other, step.path) for other in unmasked)
            if below or before is None or not before.is_same(step.identity):
                unmasked[step.path] = None
    return tuple(sorted(unmasked))
