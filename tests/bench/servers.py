"""Programs that the bench starts: on a core of their own, up once they listen, gone with the bench."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from enforcer.system import linux

_CORES = sorted(os.sched_getaffinity(0))
CLIENT_CORE, PROXY_CORE = _CORES[0], _CORES[-1]
_UNTIL_UP = 30.0  # seconds


class MissingError(Exception):
    """A program isn't on this machine, or doesn't start."""


def find(name: str) -> str:
    """Where a program lies; servers live in /usr/sbin, which isn't on everybody's PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise MissingError(f"`{name}` is missing; `make bench` installs it where apt is")
    return found


def start(argv, *, core: int | None, log: Path, **more) -> subprocess.Popen:
    """Start a program on one core (None: on any); it is killed when the bench ends."""
    parent = os.getpid()

    def prepare():
        linux.die_with_parent(signal.SIGKILL, parent)
        os.sched_setaffinity(0, _CORES if core is None else {core})

    with log.open("ab") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, **more}
        return subprocess.Popen([str(word) for word in argv], preexec_fn=prepare, **streams)  # noqa: PLW1509


@contextlib.contextmanager
def on_any_core(processes: Sequence[int], core: int) -> Iterator[None]:
    """Let processes that were started on one core run on any for a while."""
    try:
        for pid in processes:
            os.sched_setaffinity(pid, _CORES)
        yield
    finally:
        for pid in processes:
            os.sched_setaffinity(pid, {core})


def wait_for(process: subprocess.Popen, address: tuple[str, int], log: Path) -> None:
    """Wait until something listens; raises MissingError with what the program said if it never does."""
    ends = time.monotonic() + _UNTIL_UP
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return
        time.sleep(0.02)
    raise MissingError(f"{process.args[0]} doesn't listen on {address}: {log.read_text(errors='replace')[-2000:]}")


def stop(process: subprocess.Popen) -> None:
    """End a program. Idempotent."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
