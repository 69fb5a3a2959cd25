"""The bound of processor time for one step of a worker's loop. A test measures again before it fails.

The bound is for a machine on which `_fixed_work` takes `_USUAL`; a slower one, or one that is slow just now, has more.
"""

import contextlib
import functools
import time

MOST = 0.01  # seconds of processor time that a step may take
TRIES = 5
_USUAL = 0.014  # seconds of processor time


def _fixed_work():
    """Return how long it takes to normalise a fixed text piece by piece, about what the costliest steps do."""
    began = time.thread_time()
    text = "".join(chr(0x1100 + number % 19) for number in range(4000))
    for start in range(0, len(text), 2):
        text[start : start + 40].casefold().encode().decode().translate({0x1100: "a"})
    return time.thread_time() - began


def slowness():
    """Return how many times as long as usual this machine takes just now; 1 at least."""
    return max(1.0, min(_fixed_work() for _ in range(3)) / _USUAL)


class TooLongError(AssertionError):
    """A step took longer than it may."""


def check(seconds, what="a step", most=MOST):
    """Fail if a step took longer than it may."""
    if seconds >= most and seconds >= most * slowness():
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
