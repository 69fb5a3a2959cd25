"""How long a program takes, from before it is started to its end."""

import os
import select
import subprocess
import time


def run(argv, *, seconds: float, **more) -> float:
    """Run a program to its end and return how long that took, in ms; RuntimeError if it fails, or takes longer.

    The end is waited for by a descriptor (pidfd_open(2)): `subprocess.run` with a timeout looks whether there is one
    after pauses of 0.5, 1, 2, 4 … 50 ms, so 64 ms would be told as 116. What it says has to fit a pipe.
    """
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    began = time.perf_counter()
    with subprocess.Popen(argv, **streams) as process:
        descriptor = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        ended = poll.poll(seconds * 1000)
        took = (time.perf_counter() - began) * 1e3
        os.close(descriptor)
        if not ended:
            process.kill()
        said = process.communicate()[1] or b""
    if process.returncode:
        how = said.decode(errors="replace")[-500:] if ended else f"not done after {seconds:.0f} seconds"
        raise RuntimeError(f"{' '.join(map(str, argv))}: {how}")
    return took
