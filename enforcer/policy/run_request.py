"""Run request: the task's name and labels, checked against identities, and the settings of its sandbox.

Checked as far as possible before anything is made. Rules may be for certain tasks and labels, so a name is a claim:
root's `identities.yaml` says which user may claim what. Layers are compared as written by
`rules.loading.layers`, and here with symbolic links followed.
"""

import os
import pwd
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from enforcer.policy.rule_files import SYSTEM, check_path, check_root_owned
from enforcer.system.errors import HostError, UsageError
from rules.loading.fields import make_slug, parse_slug
from rules.loading.layers import NUMBERS, apply_floor
from rules.matching.policy import Policy
from rules.problems import quote
from rules.sandbox import NO_SANDBOX_SETTINGS, SandboxFloor, SandboxSettings, parse_device

if TYPE_CHECKING:
    from enforcer.policy.rule_files import FileIdentity
    from rules.loading.identities import Identities

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_LONGEST_VALUE: Final = 63
_VALUE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
ANYWHERE: Final = "**/"
OPTIONS: Final = {
    "hide": "--hide", "workspace": "--direct", "protected": "--protect", "caches": "--cache", "devices": "--device",
    "keep": "--env", "variables": "--env", "user": "--user", "hostname": "--hostname", "timeout": "--timeout",
    "memory": "--memory", "cpu": "--cpu", "processes": "--processes", "files": "--files", "disk": "--disk",
}  # fmt: skip
_ADDED: Final = ("hide", "protected", "devices")


class RunRequest(NamedTuple):
    """Request of one run: command, task, policy and sandbox. Paths are real and absolute, except `rules`."""

    argv: tuple[str, ...]
    name: str
    policy: Policy
    rules: tuple[str, ...]  # the rule files as they were named
    workspace: str
    read: tuple[str, ...] = ()
    settings: SandboxSettings = NO_SANDBOX_SETTINGS  # of files and options, as the layers allow
    write: tuple[str, ...] = ()  # beside the workspace
    hide: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()  # globs of names to hide anywhere, one below the other
    env: tuple[str, ...] = ()
    journal: Path | None = None
    metrics: socket.socket | None = None  # already listening
    labels: Mapping[str, str] = _NOTHING
    system: Path = SYSTEM  # where root's rules are
    searched_paths: tuple[str, ...] = ()  # every path looked up for a rule file: absolute, links not followed
    fingerprint: str = ""  # of these paths when they were read; empty: they changed meanwhile
    masked_files: "Mapping[str, FileIdentity]" = _NOTHING  # rule files that the sandbox masks, by path
    homes: frozenset[str] | None = None  # every home of this host; None: not searched yet

    @property
    def writable(self) -> tuple[str, ...]:
        """Paths of the host that the task may write."""
        return (self.workspace, *self.write)

    @property
    def shown(self) -> tuple[str, ...]:
        """Paths of the host that the task sees in addition to the system directories."""
        return (self.workspace, *self.write, *self.read)


def task_name(given: str | None, command: str) -> str:
    """Return the task's name, by default made from the command. Raises UsageError."""
    if given is None:
        return make_slug(os.path.basename(command)) if os.path.basename(command) else "task"
    try:
        return parse_slug(given)
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
            parse_slug(name)
        except ValueError as error:
            raise UsageError(f"--label: {error}") from error
        if not 0 < len(value) <= _LONGEST_VALUE or not _VALUE.issuperset(value):
            raise UsageError(
                f"--label: the value of `{name}` must be letters, digits, `.`, `_` and `-`, at most {_LONGEST_VALUE}"
            )
        if labels.setdefault(name, value) != value:
            raise UsageError(f"--label: `{name}` is given twice, as `{labels[name]}` and as `{value}`")
    return labels


def check_claims(name: str, labels: Mapping[str, str], system: Path = SYSTEM) -> None:
    """Raise HostError unless this user may start a task with this name and these labels."""
    identities = read_identities(system)
    problem = identities.refuse(_user(), name, labels, _groups()) if identities is not None else ""
    if problem:
        raise HostError(f"`{identities_file(system)}` refuses this: {problem}")


def identities_file(system: Path = SYSTEM) -> Path:
    """Return the path of root's `identities.yaml`."""
    return system / "identities.yaml"


def read_identities(system: Path = SYSTEM) -> "Identities | None":
    """Read `identities.yaml`; None: it does not exist. Raises HostError if it can't be read or trusted."""
    path = identities_file(system)
    try:
        os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:  # it may well be there
        raise HostError(f"nothing runs while `{path}` can't be used: {error.strerror}") from error
    for place in (system, path):
        check_root_owned(place)
    check_path(path)
    from rules.loading.identities import read_identities  # only where there is such a file
    from rules.problems import RuleFileError

    try:
        return read_identities(path)
    except (RuleFileError, OSError) as error:
        raise HostError(f"nothing runs while `{path}` can't be used: {error}") from error


def _user() -> str:
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups() -> list[str]:
    import grp

    found = []
    for gid in {os.getgid(), *os.getgroups()}:
        try:
            found.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            found.append(str(gid))
    return found


class HostPaths(NamedTuple):
    """Paths of the host to show, write and hide: real paths, sorted."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()  # whether they are there or not
    names: tuple[tuple[str, ...], ...] = ()  # globs of names one below the other, wherever they lie


def merge_settings(
    policy: Policy, asked: SandboxSettings = NO_SANDBOX_SETTINGS, said: Iterable[str] = ()
) -> SandboxSettings:
    """Merge the policy's sandbox settings with those of options. Raises UsageError for an option that a layer denies.

    `said`: the fields of `searched_paths` that options name. `resolve_paths` handles `read` and `write`.
    """
    said, by = tuple(said), dict(policy.floor.by)
    for name in NUMBERS:
        mine, most = getattr(asked, name), getattr(policy.floor.box, name)
        if name in said and most is not None and mine > most:
            raise UsageError(f"{OPTIONS[name]}: `{by[name]}`, a layer, lets a task have no more than {most:g}")
    _, objections = apply_floor(asked, said, policy.floor)
    for name, message in objections:
        raise UsageError(f"{OPTIONS[name]}: {message}")
    found: dict[str, Any] = {}
    for name in said:
        mine, other = getattr(asked, name), getattr(policy.box, name)
        if name in _ADDED:
            found[name] = tuple(sorted({*mine, *other}))
        elif name == "caches":
            found[name] = tuple(sorted({**dict(other), **dict(mine)}.items()))
        elif name not in {"keep", "variables"}:  # options say these for themselves: `enforcer.run.environment`
            found[name] = mine
    return policy.box._replace(**found)


def resolve_paths(
    box: SandboxSettings, floor: SandboxFloor, read: Iterable[str] = (), write: Iterable[str] = ()
) -> HostPaths:
    """Resolve the paths of the settings on this host; `read` and `write` are those of options.

    Raises UsageError for a path that does not exist, is no file or directory, or that a layer does not allow.
    """
    hidden = {expand_home(path) for path in box.hide if not path.startswith(ANYWHERE)}
    hidden.update(_at_home(path) for path in floor.box.hide if not path.startswith(ANYWHERE))
    return HostPaths(
        _real("read", (*box.read, *read), floor),
        _real("write", (*box.write, *write), floor),
        tuple(sorted({*hidden, *map(os.path.realpath, hidden)})),
        tuple(tuple(path.split("/")[1:]) for path in box.hide if path.startswith(ANYWHERE)),
    )


def expand_home(path: str) -> str:
    """Replace `~` by the home of this user. Raises UsageError if there is none."""
    if not path.startswith("~"):
        return path
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or home == "/":
        raise UsageError(f"`{path}`: you have no home here; write the whole path")
    return os.path.normpath(home) + path[1:]


def is_allowed_by_layers(floor: SandboxFloor, what: str, path: str) -> bool:
    """Whether layers allow a real path to be shown (`read`) or written (`write`)."""
    if what not in floor.stated:
        return True
    return any(_holds(os.path.realpath(_at_home(place)), path) for place in getattr(floor.box, what))


def _at_home(path: str) -> str:
    """Replace `~` as a layer means it: by the home of this user in the user database, whatever `HOME` says."""
    if not path.startswith("~"):
        return path
    import pwd  # few layers name homes

    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return expand_home(path)
    return os.path.normpath(home) + path[1:]


def _real(what: str, paths: Iterable[str], floor: SandboxFloor) -> tuple[str, ...]:
    found: dict[str, None] = {}
    allowed: list[str] | None = None
    if what in floor.stated:
        allowed = [os.path.realpath(_at_home(path)) for path in getattr(floor.box, what)]
    for path in paths:
        real = os.path.realpath(_at_home(path) if path in getattr(floor.box, what) else expand_home(path))
        try:
            mode = os.stat(real).st_mode
        except OSError as error:
            raise UsageError(f"{what}: `{path}` can't be shown: {(error.strerror or 'error').lower()}") from error
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise UsageError(f"{what}: {_device(real)}")
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise UsageError(f"{what}: `{path}` is neither a file nor a directory")
        if allowed is not None and not any(_holds(place, real) for place in allowed):
            layer = dict(floor.by)[what]
            raise UsageError(f"{what}: {quote(path)} leads to {quote(real)}, not in the `{what}` of `{layer}`, a layer")
        found[real] = None
    return tuple(sorted(found))


def _device(path: str) -> str:
    try:
        name = parse_device(path)
    except ValueError as error:
        return str(error)
    return f"{quote(path)} is a device; write `--device {name}`, or `devices: [{name}]` in a rule file"


def _holds(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")
