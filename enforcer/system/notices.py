"""Prints a notice about a run on its own standard error, on a separate line, while the task runs."""

import contextlib
import os
import select
from typing import Final

_PATIENCE: Final = 1.0  # seconds
_AT_MOST: Final = 4000  # bytes: below PIPE_BUF, so that the write is atomic (pipe(7))


def print_notice(sentence: str) -> None:
    """Print a sentence with control characters escaped.

    Best effort: gives up after 1 s if standard error takes no data, so that a full pipe can't stop the run.
    """
    from proxy.telemetry.visible import visible  # notices are rare

    before, after = (b"\r\n", b"\r\n") if _is_raw() else (b"", b"\n")
    line = f"exeat: {visible(sentence)}".encode("utf-8", "backslashreplace")[:_AT_MOST]
    with contextlib.suppress(OSError):
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if poll.poll(_PATIENCE * 1000):
            os.write(2, before + line + after)


def _is_raw() -> bool:
    """Whether standard error is a terminal without output processing, which needs CR LF (termios(3), OPOST)."""
    if not os.isatty(2):
        return False
    import termios

    try:
        return not termios.tcgetattr(2)[1] & termios.OPOST
    except termios.error:
        return False
