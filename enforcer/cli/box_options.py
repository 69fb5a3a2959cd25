"""The options of `exeat run` that say what box a task gets: each stands for a key of `sandbox` in a rule file."""

import argparse
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from enforcer.policy.run_request import ANYWHERE, OPTIONS, Places, lets, places, settle
from enforcer.system.errors import UsageError
from rules.matching.policy import Policy
from rules.problems import quoted
from rules.sandbox import Box, BoxUser, WorkspaceMode

if TYPE_CHECKING:
    from collections.abc import Callable

_LISTS: Final = ("hide", "protected", "caches", "devices")
_WORDS: Final = ("hostname", "timeout", "memory", "cpu", "processes", "files", "disk")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group("the box (see `sandbox` in docs/rules.md)")
    several = partial(group.add_argument, action="append", default=[])
    several("--read", metavar="PATH", help="show one more file or directory, read-only; may be given again")
    several("--write", metavar="PATH", help="let the task write one more file or directory; may be given again")
    several("--hide", metavar="PATH", help="hide one more path, or `**/NAME` wherever it lies; may be given again")
    several(
        "--protect", dest="protected", metavar="GLOB", help="files of the workspace that need an approval to change"
    )
    several("--cache", dest="caches", metavar="NAME=PATH", help="keep PATH of the sandbox between tasks, by this name")
    several(
        "--device", dest="devices", metavar="NAME", help="give the task a device: `kvm`, `gpu`, or one node of a card"
    )
    how = group.add_mutually_exclusive_group()
    for mode, says in (
        (WorkspaceMode.REVIEW, "keep what the task changes in its workspace apart until it is accepted"),
        (WorkspaceMode.DIRECT, "let the task change its workspace at once"),
    ):
        how.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, help=says)
    add = group.add_argument
    add("--user", choices=[user.value for user in BoxUser], help="who the task sees itself as; no rights come with it")
    add("--hostname", metavar="NAME", help="what its host is called")
    add("--timeout", metavar="DURATION", help="end the task after this time: `90s`, `10m`, `2h`")
    add("--memory", metavar="SIZE", help="how much memory all of it may use: `2GB`")
    add("--cpu", metavar="CORES", help="how many cores it may use: `1.5`")
    add("--processes", metavar="N", help="how many processes and threads it may have")
    add("--files", metavar="N", help="how many files each of its processes may have open")
    add("--disk", metavar="SIZE", help="how much it may write outside of its workspace")


def box_of(arguments: argparse.Namespace, policy: Policy) -> tuple[Box, Places]:
    """Give the box and its places on this host. Raises UsageError for what can't be, or is past a layer."""
    asked = _asked(arguments)
    box = settle(policy, Box(**asked), asked)
    if box.devices:
        from enforcer.sandbox.devices import found  # few tasks are given any

        box = box._replace(devices=found(box.devices))
    return box, places(box, policy.floor, map(os.path.abspath, arguments.read), map(os.path.abspath, arguments.write))


def with_repository(workspace: str, box: Box, policy: Policy, shown: Places) -> Places:
    """Show the repository of a workspace that is a worktree of one elsewhere; what is written directly may commit."""
    if not os.path.isfile(f"{workspace}/.git"):
        return shown
    from enforcer.workspace.linked_worktree import linked  # few workspaces are

    found = linked(workspace, partial(lets, policy.floor))
    written = () if box.workspace is WorkspaceMode.REVIEW else found.written
    write = {*shown.write, *written}
    return shown._replace(read=tuple(sorted({*shown.read, *found.shown} - write)), write=tuple(sorted(write)))


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the options into fields of a `Box`: those that were given."""
    found: dict[str, Any] = {}
    if arguments.mode is not None:
        found["workspace"] = arguments.mode
    if arguments.user is not None:
        found["user"] = BoxUser(arguments.user)
    if taken := [entry for entry in arguments.env if "=" not in entry]:
        found["keep"] = tuple(taken)
    if given := [entry.partition("=")[::2] for entry in arguments.env if "=" in entry]:
        found["variables"] = tuple(given)
    for name in _LISTS:
        if entries := getattr(arguments, name):
            found[name] = tuple(sorted({_read(name, entry) for entry in entries}))
    for name in _WORDS:
        if (text := getattr(arguments, name)) is not None:
            found[name] = _read(name, text)
    return found


def _read(name: str, text: str) -> Any:
    """Read one option's value as rule files have it. Raises UsageError."""
    from rules.devices import device
    from rules.loading import sandbox_schema as grammar  # few starts have such an option
    from rules.loading.fields import duration

    parsers: dict[str, Callable[[str], Any]] = {
        "hide": lambda path: grammar.hidden(path if path.startswith(ANYWHERE) else os.path.abspath(path)),
        "protected": grammar.protected,
        "caches": _cache,
        "devices": device,
        "hostname": grammar.hostname,
        "timeout": duration,
        **grammar.LIMITS,
    }
    if not text:
        raise UsageError(f"{OPTIONS[name]} has no value")
    try:
        return parsers[name](text)
    except ValueError as error:
        raise UsageError(f"{OPTIONS[name]}: {error}") from None


def _cache(text: str) -> tuple[str, str]:
    from rules.loading.fields import slug
    from rules.loading.sandbox_schema import cache_place

    name, _, path = text.partition("=")
    home = os.path.expanduser("~")
    if path.startswith(f"{home}/"):
        path = "~" + path.removeprefix(home)  # a shell has written it out, and the task's own home is meant
    if not name or not path:
        raise ValueError(f"{quoted(text)} is no name and place; write it like `pip=~/.cache/pip`")
    return slug(name), cache_place(path)
