"""The box that one task gets on this host: what files and options say, held against the floor, with real paths.

`rules.loading.sandbox_layers` compares paths as they are written; this compares them with symbolic links followed, so
that a link that leads out of what a layer shows is no way past it.
"""

import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from enforcer.system.errors import UsageError
from rules.devices import device
from rules.loading.sandbox_layers import NUMBERS, within
from rules.problems import quoted
from rules.sandbox import NO_BOX, Box, Floor

if TYPE_CHECKING:
    from rules.matching.policy import Policy

ANYWHERE: Final = "**/"
OPTIONS: Final = {
    "hide": "--hide", "workspace": "--direct", "protected": "--protect", "caches": "--cache", "devices": "--device",
    "keep": "--env", "variables": "--env", "user": "--user", "hostname": "--hostname", "timeout": "--timeout",
    "memory": "--memory", "cpu": "--cpu", "processes": "--processes", "files": "--files", "disk": "--disk",
}  # fmt: skip
_ADDED: Final = ("hide", "protected", "devices")


class Places(NamedTuple):
    """What of the host is shown, written and hidden: real paths, in the order of their names."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()  # whether they are there or not
    names: tuple[tuple[str, ...], ...] = ()  # globs of names one below the other, wherever they lie


def settle(policy: "Policy", asked: Box = NO_BOX, said: Iterable[str] = ()) -> Box:
    """Give the box in force: the policy's, with what options ask for. Raises UsageError where that is past a layer.

    `said`: the fields of `asked` that options name. `read` and `write` are `places`' affair.
    """
    said, by = tuple(said), dict(policy.floor.by)
    for name in NUMBERS:
        mine, most = getattr(asked, name), getattr(policy.floor.box, name)
        if name in said and most is not None and mine > most:
            raise UsageError(f"{OPTIONS[name]}: `{by[name]}`, a layer, lets a task have no more than {most:g}")
    _, objections = within(asked, said, policy.floor)
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


def places(box: Box, floor: Floor, read: Iterable[str] = (), write: Iterable[str] = ()) -> Places:
    """Find what the box names on this host; `read` and `write` are what options name besides.

    Raises UsageError for what isn't there, is no file or directory, or lies in nothing that a layer lets be shown.
    """
    hidden = {expanded(path) for path in box.hide if not path.startswith(ANYWHERE)}
    hidden.update(_at_home(path) for path in floor.box.hide if not path.startswith(ANYWHERE))
    return Places(
        _real("read", (*box.read, *read), floor),
        _real("write", (*box.write, *write), floor),
        tuple(sorted({*hidden, *map(os.path.realpath, hidden)})),
        tuple(tuple(path.split("/")[1:]) for path in box.hide if path.startswith(ANYWHERE)),
    )


def expanded(path: str) -> str:
    """Write out `~`, the home of whoever runs this. Raises UsageError where there is none."""
    if not path.startswith("~"):
        return path
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or home == "/":
        raise UsageError(f"`{path}`: you have no home here; write the whole path")
    return os.path.normpath(home) + path[1:]


def lets(floor: Floor, what: str, path: str) -> bool:
    """Whether layers let a real path be shown (`read`), or written (`write`)."""
    if what not in floor.said:
        return True
    return any(_holds(os.path.realpath(_at_home(place)), path) for place in getattr(floor.box, what))


def _at_home(path: str) -> str:
    """Write out `~` as a layer means it: the home that whoever runs this has, whatever `HOME` says."""
    if not path.startswith("~"):
        return path
    import pwd  # few layers name homes

    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return expanded(path)
    return os.path.normpath(home) + path[1:]


def _real(what: str, paths: Iterable[str], floor: Floor) -> tuple[str, ...]:
    found: dict[str, None] = {}
    allowed: list[str] | None = None
    if what in floor.said:
        allowed = [os.path.realpath(_at_home(path)) for path in getattr(floor.box, what)]
    for path in paths:
        real = os.path.realpath(_at_home(path) if path in getattr(floor.box, what) else expanded(path))
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
            raise UsageError(
                f"{what}: {quoted(path)} leads to {quoted(real)}, not in the `{what}` of `{layer}`, a layer"
            )
        found[real] = None
    return tuple(sorted(found))


def _device(path: str) -> str:
    """Say how a task gets a device, or why it gets none."""
    try:
        name = device(path)
    except ValueError as error:
        return str(error)
    return f"{quoted(path)} is a device; write `--device {name}`, or `devices: [{name}]` in a rule file"


def _holds(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")
