"""What a run says at its own standard error while its task runs: a line by itself, whatever the task does there."""

import contextlib
import os


def say(sentence: str) -> None:
    """Say it, spelled out where it would do more to a terminal than to be read. Best effort: nothing waits for it."""
    from proxy.telemetry.visible import visible  # little is ever said

    before, after = ("\r\n", "\r\n") if _is_raw() else ("", "\n")
    with contextlib.suppress(OSError):
        os.write(2, f"{before}exeat: {visible(sentence)}{after}".encode("utf-8", "backslashreplace"))


def _is_raw() -> bool:
    """Whether it is a terminal that moves down at the end of a line, and not to its beginning: termios(3), OPOST."""
    if not os.isatty(2):
        return False
    import termios

    try:
        return not termios.tcgetattr(2)[1] & termios.OPOST
    except termios.error:
        return False
