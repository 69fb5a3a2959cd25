"""Whether a task could decide what its own rules are: by writing a rule file, or by making its path lead elsewhere.

What a task may write is its workspace, and what `write` names. A rule file in there is covered for it, and every
directory between is pinned (`sandbox.view`); that holds for the very files and directories that were there at the
start, and for no symbolic link.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from enforcer.policy.path_resolution import What, trail
from enforcer.sandbox.system_paths import contains
from enforcer.system.control_socket import VARIABLE
from enforcer.system.errors import UsageError

_held: Final[list[int]] = []  # descriptors of what is covered, until this process ends


def exposed(paths: Iterable[str], writable: Collection[str]) -> list[str]:
    """Say what is wrong with paths that lead through what a task may write; nothing, if they can be covered."""
    problems: dict[str, None] = {}
    for path in paths:
        steps = trail(path)
        end = steps[-1].path if steps else "/"
        for step in steps:
            place = _holding(writable, step.directory)
            if place is None:
                continue
            if step.what is None:
                problems[
                    f"`{step.path}` is not there, and a task that may write `{place}` could make it; "
                    "let the task write a directory that does not hold that path"
                ] = None
            elif step.what.is_link:
                problems[
                    f"`{path}` is reached through the symbolic link `{step.path}`, which a task that may write "
                    f"`{place}` could change; name the file itself, or keep rules elsewhere"
                ] = None
            elif not contains(step.path, end):
                problems[
                    f"`{path}` is reached by way of `{step.path}`, which a task that may write `{place}` could "
                    "replace; spell it without `..`"
                ] = None
    return list(problems)


def refuse_service(path: str, writable: Iterable[str]) -> None:
    """Refuse a task that could listen where the service does (`place.control`; empty: nowhere). Raises UsageError.

    What `exeat run` says to who listens there is its environment, and where it is.
    """
    places = list(writable)
    for step in trail(path) if path else ():
        if (place := _holding(places, step.directory)) is not None:
            raise UsageError(
                f"the service's socket `{path}` is reached through `{place}`, which the task may write: it could "
                f"listen there itself; name another place with {VARIABLE}"
            )


def covered(paths: Iterable[str], writable: Collection[str]) -> dict[str, What]:
    """Return what a sandbox that is made now covers: every file and directory on these paths that a task may write.

    Each is held open for as long as this process lives: else its inode's number could be given to the file that takes
    its place, and the two would look the same. What was replaced already is left out, and so counts as uncovered.
    """
    found: dict[str, What] = {}
    for path in paths:
        for step in trail(path):
            within = _holding(writable, step.directory) is not None
            if within and step.what is not None and _hold(step.path, step.what):
                found[step.path] = step.what
    return found


def _holding(writable: Collection[str], directory: str) -> str | None:
    return next((place for place in writable if contains(place, directory)), None)


def _hold(path: str, what: What) -> bool:
    """Hold a file or directory open, if it is still what it was."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) != (what.device, what.inode):
        os.close(descriptor)
        return False
    _held.append(descriptor)
    return True


def uncovered(paths: Iterable[str], writable: Collection[str], covers: Mapping[str, What]) -> tuple[str, ...]:
    """Return what a task may write by now although it was covered, or was never covered; outermost first.

    A cover lies on what was there when it was made. Where something else stands now, nothing is covered any more, nor
    is anything below.
    """
    lost: dict[str, None] = {}
    for path in paths:
        for step in trail(path):
            if step.what is None or _holding(writable, step.directory) is None:
                continue
            before = covers.get(step.path)
            below = any(contains(other, step.path) for other in lost)
            if below or before is None or not before.is_same(step.what):
                lost[step.path] = None
    return tuple(sorted(lost))
