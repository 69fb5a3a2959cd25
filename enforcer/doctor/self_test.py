"""Self-test of `exeat run`: makes a whole sandbox, as for any task, and runs `true` in it.

It is a real start, so it fails with any error that a start would have. It uses temporary state: no journal records it,
and its CA is never used again.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from enforcer.policy.rule_files import load_with_fingerprint
from enforcer.policy.run_request import RunRequest
from enforcer.run import task
from enforcer.run.host import StandaloneHost
from enforcer.system.errors import HostError

_PREFIX = "self-test-"
_RULES = "version: 1\nname: self-test\nrules: []\n"


def run_self_test(directory: Path, system: Path) -> str:
    """Run `true` in a sandbox and describe the result. `directory` holds the temporary state.

    Call it in a process with one thread that ends after it: it changes standard streams and environment. Raises what a
    start raises, and HostError when the task fails.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    with _temporary_state(directory) as place:
        os.environ["XDG_STATE_HOME"] = place
        workspace, file = Path(place) / "work", Path(place) / "rules.yaml"
        workspace.mkdir()
        file.write_text(_RULES, encoding="utf-8")
        result = task.run(_make_request(file, workspace, system), StandaloneHost())
    if result.status:
        raise HostError(f"`true` ended with status {os.waitstatus_to_exitcode(result.status)} in a sandbox")
    if result.summary is None:
        raise HostError("the gate ended while the task ran")
    return "a task ran in one"


@contextlib.contextmanager
def _temporary_state(directory: Path) -> Iterator[str]:
    """Make a directory and remove it afterwards, with those of self-tests that were killed.

    A directory is in use while its self-test holds a lock on it.
    """
    parent = _lock(directory)
    try:
        for path in directory.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):  # in use
                descriptor = _lock(path, fcntl.LOCK_NB)
                try:
                    shutil.rmtree(path)
                finally:
                    os.close(descriptor)
        made = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=directory)
        lock = _lock(Path(made.name))
    finally:
        os.close(parent)
    with made as place:
        yield place
        os.close(lock)


def _lock(directory: Path, flags: int = 0) -> int:
    """Lock a directory until the descriptor that this returns is closed. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _make_request(file: Path, workspace: Path, system: Path) -> RunRequest:
    policy, asked, seen = load_with_fingerprint([file], system)
    return RunRequest(
        argv=("true",),
        name="self-test",
        policy=policy,
        rules=(str(file),),
        workspace=str(workspace.resolve()),
        system=system,
        searched_paths=asked,
        fingerprint=seen,
    )
