"""Sizes, and sending until something comes back."""

import contextlib

MIB = 1 << 20


def send_until(error, connection, most):
    """Send until that is raised, or so much was sent; returns how much."""
    sent = 0
    with contextlib.suppress(error):
        while sent < most:
            sent += connection.send(b"x" * 65536)
    return sent
