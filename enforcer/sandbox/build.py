"""Have a view built in a fresh mount namespace and made the root, leaving no way back to the host's tree."""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from enforcer import linux, userns
from enforcer.errors import HostError
from enforcer.sandbox import ahead, layers
from enforcer.sandbox.calls import CallFailed
from enforcer.sandbox.devices import Devices
from enforcer.sandbox.player import Here, Player
from enforcer.sandbox.steps import NEW, OLD, STAGE, Cover, Show, Step, mount

# Any directory that exists everywhere serves: it is covered only in this namespace, and only until the pivot.
_BASE = "/tmp"
_BEGINNING = "nothing can be mounted here"


class StepFailedError(OSError):
    """A step that could not be taken, and why."""

    def __init__(self, step: Any, error: OSError) -> None:
        """Keep the errno of `error` and say which step it was, a `Step`."""
        error = why(error) if (why := getattr(step, "why", None)) else error
        super().__init__(error.errno or 0, f"could not {step.describe()}: {error.strerror or error}")


def enter(steps: Iterable[Step]) -> None:
    """Take the steps in the calling process, and pivot into what they made.

    It owns a mount namespace with nothing shared in it. Raises HostError, OSError; then it must end: it is between two
    roots.
    """
    player, mask = Here(), os.umask(0o022)
    try:
        begin(player)
        take(player, steps)
        finish(player)
        player.do()
    except CallFailed as error:
        raise explained(error) from error
    os.umask(mask)


def begin(player: Player) -> None:
    """Have the host's tree moved out of the way of what is to be made: from here on it is between two roots."""
    calls = player.calls
    calls.step(_BEGINNING)
    calls.call("umask", 0o022)
    calls.call("mount", "none", "/", 0, linux.MS_REC | linux.MS_PRIVATE, says="mount none on /")
    mount(calls, "tmpfs", _BASE, linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    for name in (OLD, NEW, STAGE, layers.LAYERS):
        calls.call("mkdirat", linux.AT_FDCWD, _BASE + name, 0o755)
    calls.call("pivot_root", _BASE, _BASE + OLD)
    calls.call("chdir", "/")
    mount(calls, "tmpfs", NEW, linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    layers.prepare(calls)


def begin_with(player: Player, steps: tuple[Step, ...]) -> None:
    """Have a view begun and its first steps taken. Those before the sandbox's own devices are the same for many.

    Not where one has to wait and see: something is mounted inside what it shows.
    """
    first = next((at for at, step in enumerate(steps) if isinstance(step, Devices)), len(steps))

    def write(player: Player) -> None:
        begin(player)
        take(player, steps[:first])

    if layers.has_mounts_below(*(step.source for step in steps if isinstance(step, Show))):
        write(player)
    else:
        ahead.play(player, repr(steps[:first]), write)  # some of them can't be hashed
    take(player, steps[first:])
    player.begin()


def take(player: Player, steps: Iterable[Step]) -> None:
    """Have steps taken. Raises StepFailedError of one that looks at something first and couldn't."""
    for some in pieces(steps):
        if isinstance(some[0], Cover):
            ahead.play(player, some, partial(_take, steps=some))
        else:
            _take(player, some)


def pieces(steps: Iterable[Step]) -> Iterator[tuple[Step, ...]]:
    """Cut steps into those that are taken together: covers of one view are mostly the next one's, too."""
    for covers, some in groupby(steps, lambda step: isinstance(step, Cover)):
        if covers:
            yield tuple(some)
        else:
            yield from ((step,) for step in some)


def _take(player: Player, steps: Sequence[Step]) -> None:
    for step in steps:
        player.calls.step(step)
        try:
            step.take(player)
        except CallFailed:
            raise
        except OSError as error:
            raise StepFailedError(step, error) from error


def finish(player: Player) -> None:
    """Have what was made made the root, and the host's tree let go of."""
    calls = player.calls
    calls.step(None)
    # pivot_root(2), "pivot_root(".", ".")": the new root is mounted on, then the whole old one below is let go.
    calls.call("chdir", NEW)
    calls.call("pivot_root", ".", ".")
    calls.call("umount2", ".", linux.MNT_DETACH)
    calls.call("chdir", "/")


def explained(error: CallFailed) -> OSError | HostError:
    """Say what it means that a call of a view has failed.

    A filter or security module may refuse all of it, as docker's do to who may make namespaces.
    """
    if error.step == _BEGINNING and error.errno in (errno.EPERM, errno.EACCES):
        said = f"{_BEGINNING} ({os.strerror(error.errno)})"
        return HostError(said, userns.permission(error.errno))
    return StepFailedError(error.step, error) if hasattr(error.step, "describe") else error
