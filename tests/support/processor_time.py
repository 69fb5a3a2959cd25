"""The bound of processor time for one step of a worker's loop. A test measures again before it fails."""

import contextlib
import functools

MOST = 0.01  # seconds of processor time that a step may take
TRIES = 5


class TooLongError(AssertionError):
    """A step took longer than it may."""


def check(seconds, what="a step"):
    """Fail if a step took longer than it may."""
    if seconds >= MOST:
        raise TooLongError(what, seconds)


def measured_again(test):
    """Repeat a test in which a step took too long: what costs too much does so each time, a busy machine doesn't."""

    @functools.wraps(test)
    def repeated(*args, **more):
        for _ in range(TRIES - 1):
            with contextlib.suppress(TooLongError):
                return test(*args, **more)
        return test(*args, **more)

    return repeated
