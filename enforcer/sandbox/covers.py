"""What lies in something shown and must not be read, or not be written: covered, or the start is refused (invariant 8).

A cover lies on the file or directory that is there when it is made, under whatever name that has later; directories
above it are pinned, so that no task can put another in the way of the next start.
"""

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from enforcer.errors import UsageError
from enforcer.sandbox import credentials
from enforcer.sandbox.places import SYSTEM, Shown, contains, outermost, real
from enforcer.sandbox.steps import Cover, Pin, Step

if TYPE_CHECKING:
    from enforcer.sandbox.view import Wanted


_OWN = ("/dev", "/proc")  # a sandbox has these for itself, and there is something in them


def covers(wanted: "Wanted", read: Collection[str], others: Collection[str]) -> list[Step]:
    """Hide what must not be read in anything shown; make read-only what must not be written. `others`: every home."""
    hidden, protected = _hidden(wanted, read, others), _protected(wanted)
    protected += [path for path in wanted.guarded if not any(contains(other, path) for other in (*hidden, *protected))]
    pins: dict[str, Step] = {}
    for path in (*hidden, *protected):
        for place in wanted.writable:
            if contains(place, path):
                pins.update(_pins(place, path))
    read_only = (Cover(path) for path in protected if path not in hidden)
    return [*pins.values(), *(Cover(path, hide=True) for path in hidden), *read_only]


def _hidden(wanted: "Wanted", read: Collection[str], others: Collection[str]) -> list[str]:
    """State, credentials of whoever runs this, and what is to be hidden besides, as far as it lies in what is shown."""
    shown = Shown((*wanted.writable, *(path for path in SYSTEM if not os.path.islink(path)), *read, *_OWN))
    secret = {*wanted.secret, *wanted.hide, *credentials.places({wanted.identity.home, *others}, shown)}
    for path in secret:
        if place := shown.one_in(path):
            raise UsageError(f"`{place}` cannot be shown to a task: it lies in `{path}`, which stays hidden")
    return outermost(real(filter(shown.hold, secret)))


def _protected(wanted: "Wanted") -> list[str]:
    """Rules and code in what may be written, the outermost tree of each. Raises UsageError where that is all of it."""
    _refuse_other_names(wanted)
    found: set[str] = set()
    for place in wanted.writable:
        for path in wanted.sealed:
            if contains(path, place):
                raise _code_within(path)
        inside = {path for path in (*wanted.sealed, *wanted.protect) if contains(place, path)}
        if place in inside:
            raise _code_within(place)
        found |= inside
    return [path for path in sorted(found) if not any(t != path and contains(t, path) for t in wanted.sealed)]


def _refuse_other_names(wanted: "Wanted") -> None:
    """Raise UsageError for a rule file with a second name, which could lie where a task may write, uncovered."""
    devices = {os.stat(place).st_dev for place in wanted.writable}
    for path in wanted.protect:
        status = os.stat(path) if os.path.isfile(path) else None
        if status is not None and status.st_nlink > 1 and status.st_dev in devices:
            raise UsageError(
                f"`{path}` has {status.st_nlink - 1} more hard links, through which a task could write it; "
                f"give exeat a copy of its own: `cp {path} {path}.new && mv {path}.new {path}`"
            )


def _code_within(path: str) -> UsageError:
    return UsageError(
        f"`{path}` holds exeat's own code or rules, so it cannot be a task's to write; "
        "run from another directory, or name one with --workspace"
    )


def _pins(top: str, path: str) -> dict[str, Step]:
    """Every directory strictly between `top` and `path`, outermost first."""
    parts = os.path.relpath(os.path.dirname(path), top).split("/")
    places = ["/".join((top, *parts[: depth + 1])) for depth in range(len(parts))] if parts != ["."] else []
    return {place: Pin(place) for place in places if os.path.isdir(place)}
