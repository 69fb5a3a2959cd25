"""Measures the processor time of each step of a worker's loop: one socket's readiness, or one callback of asyncio's."""

import asyncio
import contextlib
import gc
from time import thread_time

from proxy.event_loop import poller
from tests.support import processor_time


class StepTimer:
    """Records the longest step and how many were measured."""

    def __init__(self):
        self.longest = (0.0, "nothing")
        self.measured = 0

    def check(self, most=processor_time.MOST):
        """Fail if a step took longer than the bound in seconds."""
        assert self.measured > 1
        processor_time.check(*self.longest, most)

    def measure(self, what, function, *arguments):
        before = thread_time()
        try:
            return function(*arguments)
        finally:
            self.longest = max(self.longest, (thread_time() - before, what))
            self.measured += 1


class _Timed:
    def __init__(self, watched, timer):
        self._watched, self._dog = watched, timer

    def ready(self, events):
        self._dog.measure(type(self._watched).__name__, self._watched.ready, events)

    def failed(self, error):
        self._watched.failed(error)


@contextlib.contextmanager
def time_steps(monkeypatch):
    """Time every step of every event loop for sockets watched from now on."""
    timer = StepTimer()
    watch, run = poller.Poller.watch, asyncio.Handle._run
    with monkeypatch.context() as patched:
        patched.setattr(
            poller.Poller, "watch", lambda self, fd, events, one: watch(self, fd, events, _Timed(one, timer))
        )
        patched.setattr(asyncio.Handle, "_run", lambda self: timer.measure(str(self._callback), run, self))
        gc.collect()
        gc.freeze()  # so that a collection in a step does not walk the objects of the tests
        yield timer
