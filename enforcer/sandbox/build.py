"""Build a view in a fresh mount namespace and make it the root, leaving no way back to the host's tree."""

import os
from collections.abc import Iterable

from enforcer import linux, userns
from enforcer.errors import HostError
from enforcer.sandbox import layers
from enforcer.sandbox.steps import NEW, OLD, STAGE, Step

# Any directory that exists everywhere serves: it is covered only in this namespace, and only until the pivot.
_BASE = "/tmp"


class StepFailedError(OSError):
    """A step that could not be taken, and why."""

    def __init__(self, step: Step, error: OSError) -> None:
        """Keep the errno of `error` and say which step it was."""
        super().__init__(error.errno or 0, f"could not {step.describe()}: {error.strerror or error}")


def enter(steps: Iterable[Step]) -> None:
    """Take the steps and pivot into what they made. The caller owns a mount namespace with nothing shared in it.

    Raises HostError, StepFailedError; the caller must then end: it is between two roots.
    """
    begin()
    take(steps)
    finish()


def begin() -> None:
    """Move the host's tree out of the way of what is to be made. From here on the caller is between two roots.

    Raises HostError where a filter or security module refuses that, as docker's do to who may make namespaces.
    """
    try:
        _begin()
    except PermissionError as error:
        what = f"nothing can be mounted here ({error.strerror})"
        raise HostError(what, userns.permission(error.errno)) from error


def _begin() -> None:
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", _BASE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    for name in (OLD, NEW, STAGE, layers.LAYERS):
        os.mkdir(_BASE + name)
    linux.pivot_root(_BASE, _BASE + OLD)
    os.chdir("/")
    linux.mount("tmpfs", NEW, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    layers.prepare()


def take(steps: Iterable[Step]) -> None:
    """Take steps. Raises StepFailedError."""
    mask = os.umask(0o022)
    for step in steps:
        try:
            step.execute()
        except OSError as error:
            raise StepFailedError(step, error) from error
    os.umask(mask)


def finish() -> None:
    """Make what was made the root, and let go of the host's tree."""
    # pivot_root(2), "pivot_root(".", ".")": the new root is mounted on, then the whole old one below is let go.
    os.chdir(NEW)
    linux.pivot_root(".", ".")
    linux.umount(".")
    os.chdir("/")
