"""What `exeat run` was asked for, checked as far as that can be done without making anything."""

import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from enforcer.policy.rules_in_force import SYSTEM
from rules.matching.policy import Policy
from rules.sandbox import NO_BOX, Box

if TYPE_CHECKING:
    from enforcer.policy.path_resolution import What

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Wanted(NamedTuple):
    """What `exeat run` was asked for. Paths are real and absolute, but for `rules`."""

    argv: tuple[str, ...]
    name: str
    policy: Policy
    rules: tuple[str, ...]  # the rule files as they were named
    workspace: str
    read: tuple[str, ...] = ()
    box: Box = NO_BOX  # in force: what files and options say, within what layers let
    write: tuple[str, ...] = ()  # beside the workspace
    hide: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()  # that are hidden wherever they lie: globs, one below the other
    env: tuple[str, ...] = ()
    journal: Path | None = None
    metrics: socket.socket | None = None  # already listening
    labels: Mapping[str, str] = _NOTHING
    system: Path = SYSTEM  # where root's rules are
    asked: tuple[str, ...] = ()  # every rule file that was looked for, absolute, symbolic links as they were named
    seen: str = ""  # what those files were like when they were read
    covers: "Mapping[str, What]" = _NOTHING  # what of them the sandbox will cover
    homes: frozenset[str] | None = None  # every home of this host, if somebody has looked for them already

    @property
    def writable(self) -> tuple[str, ...]:
        """What of the host the task may write."""
        return (self.workspace, *self.write)

    @property
    def shown(self) -> tuple[str, ...]:
        """What of the host the task sees beside the system's directories."""
        return (self.workspace, *self.write, *self.read)
