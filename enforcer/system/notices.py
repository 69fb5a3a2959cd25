"""Prints a notice of a run on its own standard error, on a line of its own, while the task runs."""

import contextlib
import os
import select
from typing import Final

_PATIENCE: Final = 1.0  # seconds
_AT_MOST: Final = 4000  # bytes: less than PIPE_BUF, which there is room for if for anything (pipe(7))


def say(sentence: str) -> None:
    """Say it, spelled out where it would do more to a terminal than to be read.

    Best effort: where nobody reads, as a task has filled what is read late, the run and its limits don't wait for that.
    """
    from proxy.telemetry.visible import visible  # little is ever said

    before, after = (b"\r\n", b"\r\n") if _is_raw() else (b"", b"\n")
    line = f"exeat: {visible(sentence)}".encode("utf-8", "backslashreplace")[:_AT_MOST]
    with contextlib.suppress(OSError):
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if poll.poll(_PATIENCE * 1000):
            os.write(2, before + line + after)


def _is_raw() -> bool:
    """Whether it is a terminal that moves down at the end of a line, and not to its beginning: termios(3), OPOST."""
    if not os.isatty(2):
        return False
    import termios

    try:
        return not termios.tcgetattr(2)[1] & termios.OPOST
    except termios.error:
        return False
