"""What `exeat run` was asked for, checked as far as that can be done without making anything."""

import socket
from dataclasses import dataclass
from pathlib import Path

from rules.policy import Policy


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `exeat run` was asked for. `workspace` and `read` are real, absolute paths."""

    argv: tuple[str, ...]
    name: str
    policy: Policy
    rules: tuple[str, ...]  # the rule files as they were named
    workspace: str
    read: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    journal: Path | None = None
    metrics: socket.socket | None = None  # already listening
