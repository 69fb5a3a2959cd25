"""The process that reads rule files again while their task runs (`reloading`): what it does, and what it says of that.

What can't be used is told, and root's files are read alone then (`rules.matching.unreadable_layer`), so that no other
file can keep them out.
"""

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from enforcer.policy import exposure, path_resolution, rules_in_force
from enforcer.policy.partial_write import unwritten
from enforcer.policy.reload import absolute, bounded, fingerprint, replaced
from enforcer.system import linux
from enforcer.system.errors import HostError
from rules.problems import RuleFileError

if TYPE_CHECKING:
    from enforcer.policy.run_request import Wanted
    from proxy.dialling.proxy_auth import Login
    from rules.matching.policy import Policy

_TRIES: Final = 5  # while files change as they are read


class Before(NamedTuple):
    """What a process that reads goes by: what was read last, where the policy that it made is, and why not to read."""

    wanted: "Wanted"
    asked: tuple[str, ...]
    good: int
    problems: tuple[str, ...] = ()


def be_reader(parent: int, says: int, policy: int, before: Before) -> NoReturn:
    """Read the files, put the policy into its file, and say how it went. The process ends here."""
    try:
        try:
            linux.die_with_parent(signal.SIGKILL, parent)
            said = _try_to_read(before, policy)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the rules in force stay
            said = {"problems": [f"the rule files could not be read: {type(error).__name__}: {error}"]}
        with os.fdopen(says, "wb") as pipe:
            pipe.write(json.dumps(said).encode())
    finally:
        os._exit(0)  # whatever was raised: nothing gets from here to where the supervisor goes on


def _try_to_read(before: Before, policy: int) -> dict[str, Any]:
    """Read; where that can't be used, put what root's files say over what was in force."""
    said: dict[str, Any] = {"problems": list(before.problems)} if before.problems else _settled(before, policy)
    if "problems" not in said:
        return said
    try:
        return {**said, **_raise(before, policy, list(map(str, said["problems"])))}
    except (RuleFileError, HostError):
        return said  # root's files are what is wrong


def _settled(before: Before, policy: int) -> dict[str, Any]:
    """Read until nothing has changed meanwhile, nor was anything read that had not been looked at before."""
    wanted, asked = before.wanted, before.asked
    for _ in range(_TRIES):
        if (path := unwritten(_files(asked, wanted.system))) is not None:
            problem = f"`{path}` is still being written: it is read as soon as whoever writes it closes it"
            return {"problems": [problem], "asked": list(asked), "seen": "", "unwritten": True}
        seen_before = fingerprint(asked, wanted.system)
        said, found = _read_once(wanted, policy)
        seen = fingerprint(found or asked, wanted.system)
        if set(found) <= set(asked) and fingerprint(asked, wanted.system) == seen_before:
            return {**said, "asked": list(found or asked), "seen": seen}
        asked = tuple(dict.fromkeys((*asked, *found)))
    return {"problems": ["the rule files change faster than they can be read"]}


def _files(asked: Sequence[str], system: Path) -> list[str]:
    directory = rules_in_force.directory_of(system)
    return [*asked, *(str(directory / name) for name in path_resolution.listed(str(directory)).name.split("/") if name)]


def _raise(before: Before, policy: int, problems: Sequence[str]) -> dict[str, object]:
    """Write what root's files, read alone, make of the last policy that all files made. Nothing, where there are none.

    Raises RuleFileError and HostError.
    """
    from enforcer.worker import credentials
    from proxy import handover
    from proxy.dialling import proxy_auth
    from rules.matching.unreadable_layer import raised

    good, login = before.wanted.policy, None
    if before.good >= 0:
        with handover.Copy(os.dup(before.good)) as file:
            login, good = proxy_auth.take(file), handover.take(file)
    else:
        with contextlib.suppress(HostError):  # then what goes by the proxy is refused there
            login = credentials.login(good)
    if not rules_in_force.system_files(before.wanted.system) and not any(layer.roots for layer in good.layers):
        return {}
    over = raised(good, rules_in_force.parse([], before.wanted.system).policy, bounded(problems))
    _write(over, login, policy)
    return {"revision": over.revision, "asks": over.needs_approvals}


def _write(policy: "Policy", login: "Login | None", descriptor: int) -> None:
    from proxy import handover
    from proxy.dialling import proxy_auth

    os.ftruncate(descriptor, 0)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.seek(0)
        proxy_auth.send(login, file)
        handover.send(policy, file)


def _read_once(wanted: "Wanted", policy: int) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return what there is to say, and which files were looked for."""
    from enforcer.worker import credentials

    try:
        loaded = rules_in_force.load([Path(path) for path in wanted.rules], wanted.system)
    except RuleFileError as error:
        return {"problems": list(map(str, error.problems))}, absolute(error.asked)
    except HostError as error:
        return {"problems": [str(error)]}, ()
    found = absolute(loaded.asked)
    lost = exposure.uncovered(found, wanted.writable, wanted.covers)
    problems = exposure.exposed(found, wanted.writable) or [replaced(path) for path in lost]
    if loaded.policy.settings.dns_pool != wanted.policy.settings.dns_pool:
        problems.append("`dns_pool` can't change while a task runs: start it anew")
    if loaded.policy.settings.upstream_auth not in (None, wanted.policy.settings.upstream_auth):
        problems.append("`upstream_auth` can't be another file while a task runs, which may be shown it: start it anew")
    if loaded.policy.secrets != wanted.policy.secrets:
        problems.append("`secrets` can't change while a task runs, which has their placeholders: start it anew")
    if problems:
        return {"problems": problems}, found
    try:
        login = credentials.login(loaded.policy)
    except HostError as error:
        return {"problems": [str(error)]}, found
    _write(loaded.policy, login, policy)
    now, then = loaded.policy, wanted.policy
    outboxed = (now.box, now.floor) != (then.box, then.floor)
    return {"revision": now.revision, "asks": now.needs_approvals, "outboxed": outboxed}, found
