"""What box a task runs in and which programs need leave to start: `sandbox` and `commands`, as values.

Nothing here acts. Paths are as they were written: `~` is the home of whoever runs Exeat in what is shown, written and
hidden, and the task's own in caches. What several files make together is in `rules.loading.sandbox_layers`.
"""

from enum import StrEnum
from typing import NamedTuple

from rules.itself import Itself
from rules.limits import ApprovalTerms
from rules.selectors import For
from rules.verdicts import Verdict


class WorkspaceMode(StrEnum):
    """How what a task changes in its workspace gets there, strictest first."""

    REVIEW = "review"  # its changes are kept apart until somebody accepts them
    DIRECT = "direct"


class BoxUser(StrEnum):
    """Who a task sees itself as, strictest first. Neither has any rights that the other hasn't."""

    TASK = "task"
    ROOT = "root"  # uid 0 inside, the same unprivileged id to the kernel


class MergeTerms(NamedTuple):
    """What one file wants before protected changes are merged: the `approval` of its `sandbox`."""

    cite: str  # `file:sandbox.approval`, which no rule is called
    terms: ApprovalTerms

    def __str__(self) -> str:
        """Say it for people."""
        whom = f" of {self.terms.by}" if self.terms.by is not None else ""
        own = ", also by whoever started the task" if self.terms.by_self else ""
        return f"{self.cite} wants {self.terms.needed}{whom}{own}, held {self.terms.hold:g}s, open {self.terms.open:g}s"


class Box(NamedTuple):
    """The `sandbox:` of a policy. None, or an empty tuple, where nothing was said."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()  # paths, and `**/` before globs of names
    workspace: WorkspaceMode | None = None
    protected: tuple[str, ...] = ()  # globs relative to the workspace
    approval: tuple[MergeTerms, ...] = ()  # all of which merging what is protected takes; none: whoever accepts it
    caches: tuple[tuple[str, str], ...] = ()  # name and where it lies in the sandbox, in the order of names
    devices: tuple[str, ...] = ()  # names below /dev of `rules.devices`
    keep: tuple[str, ...] = ()  # globs over names of the caller's variables
    variables: tuple[tuple[str, str], ...] = ()  # the file says `set`; in the order of names
    user: BoxUser | None = None
    hostname: str | None = None
    timeout: float | None = None  # seconds of wall time
    memory: int | None = None  # bytes
    cpu: float | None = None  # cores
    processes: int | None = None
    files: int | None = None  # open at the same time, a process
    disk: int | None = None  # bytes in all that is writable and not the host's


NO_BOX = Box()


class Floor(NamedTuple):
    """What layers say of the box: nobody else, nor any option of `exeat run`, gets past it."""

    box: Box = NO_BOX
    said: frozenset[str] = frozenset()  # fields of it that a layer says something of, were it that there be nothing
    by: tuple[tuple[str, str], ...] = ()  # which file does, by field


NO_FLOOR = Floor()


class _Command(NamedTuple):
    id: str
    cite: str  # `file:id`
    words: tuple[str, ...]  # globs: the program's name or path, then its arguments
    action: Verdict
    why: str = ""
    for_: For | None = None
    approval: ApprovalTerms | None = None  # of an ask


class Command(Itself, _Command):
    """One entry of `commands:`. `action` is deny, ask or flag."""

    __slots__ = ()
