"""Stopping a merge at every line of it: to kill it there, or to have somebody else be quicker."""

import os
import signal
import sys
from pathlib import Path

_PLACES = tuple(
    str(Path(__file__).parents[3] / "enforcer" / "workspace" / name)
    for name in ("atomic_replace.py", "accept.py", "safe_path.py")
)


def at_line(number, action, run):
    """Call `run`, and `action` before its line of this number. Whether there was one; `run`'s own errors pass."""
    count = 0
    fired = False

    def trace(frame, event, _argument):
        nonlocal count, fired
        if not frame.f_code.co_filename.startswith(_PLACES):
            return None
        if event == "line":
            count += 1
            if count == number:
                fired = True
                sys.settrace(None)
                action()
        return None if fired else trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return fired


def killed_at(number, run):
    """Call `run` in a process of its own that kills itself before its line of this number. Whether there was one."""
    pid = os.fork()
    if pid == 0:
        try:
            at_line(number, lambda: os.kill(os.getpid(), signal.SIGKILL), run)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)
