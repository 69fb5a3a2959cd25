"""What is measured of the service: the start of a task beside bubblewrap's, and many sandboxes at once."""

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import figures, gate, timed
from tests.bench.figures import Figure, Values
from tests.bench.servers import MissingError

_RULES = "version: 1\nname: bench\nrules:\n  - {id: passed-on, to: splice.bench.test, tls: splice, action: allow}\n"
_ROUNDS = 3
_LEFT = 20  # children of a service without a task: workers, keepers, and runs that wait for one
_EACH = 18_000  # KB of memory that a whole sandbox may take, the kernel's part included: as many are made as fit
_PATIENCE = 180.0  # seconds
_SETTLING = 3.0  # seconds in which a service that has just begun does what it does once


@contextlib.contextmanager
def _service(work: Path) -> Iterator[tuple[dict[str, str], int]]:
    """A service of its own; gives the environment to ask it with, and its pid."""
    environment = {**os.environ, "XDG_STATE_HOME": str(work / "state"), "EXEAT_CONTROL": str(work / "service/control")}
    up = subprocess.Popen(gate.exeat("up"), env=environment, stderr=subprocess.PIPE, text=True)
    try:
        said = up.stderr.readline()
        if "serving" not in said:
            raise RuntimeError(said)
        yield environment, up.pid
    finally:
        up.terminate()
        up.communicate()


def start(work: Path, times: int) -> dict[str, Figure]:
    """How long a task takes under the service, all of it, beside the smallest sandbox of bubblewrap's."""
    if shutil.which("bwrap") is None:
        raise MissingError("bwrap is missing: apt-get install bubblewrap")
    directory, rules = work / "served", work / "served.yaml"
    directory.mkdir()
    rules.write_text(_RULES)
    ways = {
        "exeat run -- true, in the service": gate.exeat("run", "--rules", rules, "--quiet", "--", "true"),
        "bwrap --unshare-all": ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"],
    }
    with _service(work) as (environment, _):

        def once(name: str) -> dict[str, float]:
            null = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            return {"start": timed.run(ways[name], seconds=30, env=environment, cwd=directory, **null)}

        once("exeat run -- true, in the service")  # reads the rules, as a first run does
        time.sleep(_SETTLING)
        found = figures.in_turns(list(ways), max(times, 5), once, name=lambda way: way)["start"]
    return {"start": Figure("from the command to its end", "ms", 1, found)}


def many(work: Path, wanted: int) -> dict[str, Figure]:
    """Have as many sandboxes at once as there is room for: how quickly they come, and what they take."""
    from enforcer.service import protocol

    count = min(wanted, _available() // _EACH)
    directory, rules = work / "many", work / "many.yaml"
    directory.mkdir()
    rules.write_text(_RULES)
    with _service(work) as (environment, service):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limits = tuple(resource.getrlimit(number) for number in range(16))
        begun = directory / "begun"
        begun.touch()
        words = ("--rules", str(rules), "--quiet", "--", "sh", "-c", "printf . >>begun; kill -STOP $$")
        given = [os.open("/dev/null", os.O_RDWR), os.open(directory, os.O_PATH), os.memfd_create("run")]
        os.write(given[2], protocol.pack(protocol.Run(words, environment, 0o22, 0, 0, limits)))
        once = gate.exeat("run", "--rules", rules, "--quiet", "--", "true")
        timed.run(once, seconds=30, env=environment, cwd=directory)  # reads the rules, as a first run does
        before, rates = _pss([service, *_children(service)]), []
        for each in range(_ROUNDS):
            begun.write_bytes(b"")
            with contextlib.ExitStack() as closing:
                began = time.perf_counter()
                for _ in range(count):
                    connection = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                    connection.connect(environment["EXEAT_CONTROL"])
                    fds = [given[0], given[0], given[0], given[1], given[2]]
                    socket.send_fds(connection, [protocol.packet_head(protocol.RUN)], fds)
                rates.append(count / (_until(begun, count) - began))
                if not each:
                    every = _below(service)
                    runs = [pid for pid in _children(service) if _children(pid)]
                    workers = [pid for pid in _children(service) if pid not in runs]
                    ours, whole = _pss([service, *workers]), _pss([service, *every])
            _until_ended(service, count)
        for descriptor in given:
            os.close(descriptor)
    way = f"{count} sandboxes at once"
    return {
        "rate": Figure("made", "1/s", 0, {way: Values(tuple(rates))}),
        "each": Figure("memory of workers and service, each", "KB", 0, {way: Values((ours / count,))}),
        "whole": Figure("memory of all processes, each", "KB", 0, {way: Values(((whole - before) / count,))}),
    }


def _available() -> int:
    return next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line
    )


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


def _below(pid: int) -> list[int]:
    found = []
    for child in _children(pid):
        found += [child, *_below(child)]
    return found


def _until(begun: Path, count: int) -> float:
    """Wait until so many tasks have said that they run, a byte each in a file of theirs, and return when that was.

    Looking for them among thousands of processes took a fifth of the machine while it was measured.
    """
    ends = time.perf_counter() + _PATIENCE
    while (found := begun.stat().st_size) < count:
        if time.perf_counter() > ends:
            raise RuntimeError(f"{found} of {count} sandboxes within {_PATIENCE:.0f} seconds")
        time.sleep(0.01)
    return time.perf_counter()


def _until_ended(service: int, count: int) -> None:
    """Wait until what was made is gone, but for the empty sandboxes that a service has ready."""
    ends = time.perf_counter() + _PATIENCE
    while (left := len(_children(service))) > _LEFT:
        if time.perf_counter() > ends:
            raise RuntimeError(f"{left} processes of {count} sandboxes are left after {_PATIENCE:.0f} seconds")
        time.sleep(0.1)


def _pss(pids: list[int]) -> float:
    """Memory in KB, with what is shared divided among those who share it (proc_pid_smaps(5))."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
