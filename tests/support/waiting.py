"""Wait until a condition holds, with a bound in seconds: `wait_until`, and `wait_until_async` inside an event loop."""

import asyncio
import select
import time

PATIENCE = 60.0  # seconds: a bound for a test that has failed, not a measurement


def wait_until(condition, what="the condition", *, seconds=PATIENCE, pause=0.02):
    """Return the first true value of `condition()`; fail with `what` when `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(pause)
    return value


async def wait_until_async(condition, what="the condition", *, seconds=PATIENCE, pause=0.01):
    """Like `wait_until`, without blocking the event loop."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        await asyncio.sleep(pause)
    return value


def readable(source, seconds):
    """Wait until there is something to read, or an end; whether there is. select(2) knows no descriptor from 1024 on."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(max(seconds, 0) * 1000))
