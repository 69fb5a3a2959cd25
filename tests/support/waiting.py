"""Waiting for what must happen, up to a bound."""

import select


def readable(source, seconds):
    """Wait until there is something to read, or an end; whether there is. select(2) knows no descriptor from 1024 on."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(max(seconds, 0) * 1000))
