"""Limits and approval terms of a rule: numbers that the gate counts against."""

from enum import StrEnum
from typing import NamedTuple


class Per(StrEnum):
    """Who shares one count; the first is the tightest: everybody does."""

    RULE = "rule"
    SANDBOX = "sandbox"
    TASK = "task"


class Limits(NamedTuple):
    """The `limits:` of a rule; None is no limit. Bytes are those of bodies and payloads, counted at the gate."""

    connections: int | None = None  # within the window; of a lifetime: open at the same time
    requests: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    window: float | None = None  # seconds; None: for as long as the one that is counted lives
    per: Per = Per.RULE


class Covers(StrEnum):
    """What one approval is good for."""

    ATTEMPT = "attempt"
    DESTINATION = "destination"
    RULE = "rule"


class ApprovalTerms(NamedTuple):
    """The `approval:` of an ask rule: who approves, how many of them, and what that is good for."""

    by: str | None = None  # a group; None: whoever may approve at all
    needed: int = 1  # how many people; the file says `count`
    by_self: bool = False  # whether the one who started the task may; the file says `self`
    hold: float = 120.0  # seconds that the attempt is held while somebody is asked
    open: float = 86400.0  # seconds that the question stays open after that
    covers: Covers = Covers.ATTEMPT
    lasts: float | None = None  # seconds, the file says `for`; 0: once; None: it says nothing, which is once at first


USUAL_TERMS = ApprovalTerms(by_self=True)  # of an ask that says nothing of its approval
