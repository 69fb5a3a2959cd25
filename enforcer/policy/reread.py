"""Process that reads changed rule files again for `reload`, and reports what it found.

If they are invalid, root's files are read alone (`rules.loading.layers`), so root's changes always take effect.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from enforcer.policy import rule_files
from enforcer.policy.rule_files import fingerprint, make_absolute
from enforcer.system import linux
from enforcer.system.errors import HostError
from rules.problems import RuleFileError

if TYPE_CHECKING:
    from enforcer.policy.run_request import RunRequest
    from proxy.dialing.proxy_auth import Login
    from rules.matching.policy import Policy

_MOST_PROBLEMS: Final = 20
_LONGEST: Final = 1000  # characters of a problem
_TRIES: Final = 5  # while files change as they are read
PATIENCE: Final = 5.0  # seconds to wait for a file that is being written
_POLL_EVERY: Final = 0.02  # seconds between two checks
_SETTLED_AFTER: Final = 0.5  # seconds without a change, for a file that no lease can be taken on


class RereadRequest(NamedTuple):
    """Input of the reader: the run request, the files read last, the last good policy, and known problems."""

    request: "RunRequest"
    searched_paths: tuple[str, ...]
    last_policy: int
    problems: tuple[str, ...] = ()


def run_reader(parent: int, pipe_end: int, policy: int, before: RereadRequest) -> NoReturn:
    """Read the files, write the policy to its file, report the result, and exit."""
    try:
        try:
            linux.die_with_parent(signal.SIGKILL, parent)
            report = _try_to_read(before, policy)
        except BaseException as error:  # noqa: BLE001 - the rules in force stay
            report = {"problems": [f"the rule files could not be read: {type(error).__name__}: {error}"]}
        with os.fdopen(pipe_end, "wb") as pipe:
            pipe.write(json.dumps(report).encode())
    finally:
        os._exit(0)  # also after an error: this fork must not run the supervisor's loop


def _try_to_read(before: RereadRequest, policy: int) -> dict[str, Any]:
    """Read the files; if they can't be used, put root's files over the policy in force."""
    report: dict[str, Any] = {"problems": list(before.problems)} if before.problems else _read_settled(before, policy)
    if "problems" not in report:
        return report
    try:
        return {**report, **_put_root_rules_over(before, policy, list(map(str, report["problems"])))}
    except (RuleFileError, HostError):
        return report  # root's files are invalid


def _read_settled(before: RereadRequest, policy: int) -> dict[str, Any]:
    """Read until nothing changes during the read, and no file is new."""
    request, searched_paths = before.request, before.searched_paths
    for _ in range(_TRIES):
        if (path := wait_until_written(_files(searched_paths, request.system))) is not None:
            problem = f"`{path}` is still being written; it is read when the writer closes it"
            return {"problems": [problem], "asked": list(searched_paths), "seen": "", "unwritten": True}
        fingerprint_before = fingerprint(searched_paths, request.system)
        report, found = _read_once(request, policy)
        new_fingerprint = fingerprint(found or searched_paths, request.system)
        if set(found) <= set(searched_paths) and fingerprint(searched_paths, request.system) == fingerprint_before:
            return {**report, "asked": list(found or searched_paths), "seen": new_fingerprint}
        searched_paths = tuple(dict.fromkeys((*searched_paths, *found)))
    return {"problems": ["the rule files change faster than they can be read"]}


def _files(searched_paths: Sequence[str], system: Path) -> list[str]:
    directory = rule_files.directory_of(system)
    return [
        *searched_paths,
        *(str(directory / name) for name in rule_files.directory_step(str(directory)).name.split("/") if name),
    ]


def _put_root_rules_over(before: RereadRequest, policy: int, problems: Sequence[str]) -> dict[str, object]:
    """Write the last good policy under root's files, read alone. Without root's files, write nothing.

    Raises RuleFileError and HostError.
    """
    from enforcer.worker import credentials
    from proxy.dialing import proxy_auth
    from proxy.worker import policy_transfer
    from rules.loading.layers import put_over

    last_policy, login = before.request.policy, None
    if before.last_policy >= 0:
        with policy_transfer.DescriptorReader(os.dup(before.last_policy)) as file:
            login, last_policy = proxy_auth.take(file), policy_transfer.receive(file)
    else:
        with contextlib.suppress(HostError):  # then the upstream proxy denies connections
            login = credentials.read_login(last_policy)
    if not rule_files.system_files(before.request.system) and not any(layer.roots for layer in last_policy.layers):
        return {}
    merged = put_over(last_policy, rule_files.parse([], before.request.system).policy, limit_problems(problems))
    _write(merged, login, policy)
    return {"revision": merged.revision, "asks": merged.needs.approvals}


def _write(policy: "Policy", login: "Login | None", descriptor: int) -> None:
    from proxy.dialing import proxy_auth
    from proxy.worker import policy_transfer

    os.ftruncate(descriptor, 0)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.seek(0)
        proxy_auth.send(login, file)
        policy_transfer.send(policy, file)


def _read_once(request: "RunRequest", policy: int) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return the report, and the files that were looked up."""
    from enforcer.worker import credentials

    try:
        loaded = rule_files.load([Path(path) for path in request.rules], request.system)
    except RuleFileError as error:
        return {"problems": list(map(str, error.problems))}, make_absolute(error.searched_paths)
    except HostError as error:
        return {"problems": [str(error)]}, ()
    found = make_absolute(loaded.searched_paths)
    unmasked = rule_files.find_unmasked(found, request.writable, request.masked_files)
    problems = rule_files.find_exposed(found, request.writable) or [describe_replaced(path) for path in unmasked]
    if loaded.policy.settings.dns_pool != request.policy.settings.dns_pool:
        problems.append("`dns_pool` can't change while a task runs; start the task again")
    if loaded.policy.settings.upstream_auth not in (None, request.policy.settings.upstream_auth):
        problems.append("`upstream_auth` can't be another file while a task runs; start the task again")
    if loaded.policy.secrets != request.policy.secrets:
        problems.append("`secrets` can't change while a task runs, which has their placeholders; start the task again")
    if problems:
        return {"problems": problems}, found
    try:
        login = credentials.read_login(loaded.policy)
    except HostError as error:
        return {"problems": [str(error)]}, found
    _write(loaded.policy, login, policy)
    now, previous = loaded.policy, request.policy
    settings_changed = (now.box, now.floor) != (previous.box, previous.floor)
    return {"revision": now.revision, "asks": now.needs.approvals, "outboxed": settings_changed}, found


def wait_until_written(paths: Iterable[str]) -> str | None:
    """Wait until no process writes these files; return one that is still being written after that.

    Half-written rules may lack their last denies. A read lease fails while a file is open for writing (fcntl(2),
    F_SETLEASE, EAGAIN). Without a lease, as for another user's file, the time of the last change counts. Call it in a
    separate process: a lease changes SIGIO.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when a process opens a leased file
    deadline = time.monotonic() + PATIENCE
    waiting = dict.fromkeys(paths)
    while waiting := dict.fromkeys(filter(_is_being_written, waiting)):
        if time.monotonic() >= deadline:
            return next(iter(waiting))
        time.sleep(_POLL_EVERY)
    return None


def _is_being_written(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # it can't be read: reading it reports that
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return False
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN or abs(time.time() - status.st_ctime) < _SETTLED_AFTER
    finally:
        os.close(descriptor)  # and its lease
    return False


def limit_problems(problems: Sequence[str]) -> list[str]:
    """Return the problems that fit into a report."""
    return [problem[:_LONGEST] for problem in problems[:_MOST_PROBLEMS]]


def describe_replaced(path: str) -> str:
    """Describe a file that was replaced by something that can't be read as rules."""
    return (
        f"`{path}` is in a path that the task may write, and was replaced after the task had started: the task may "
        "have changed it; check its content, and keep rules outside of the workspace"
    )
