"""What the registry keeps, as values: tasks, questions, votes and grants."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from proxy.approvals.offers import Offer
from proxy.approvals.questions import Question
from rules.limits import Covers

MERGING: Final = "/changes"  # behind a run's id: what merges its changes, which comes and goes after the run has ended


class State(StrEnum):
    """What became of a question; only one that is pending can still become something else."""

    OVER = "over"  # its task ended
    EXPIRED = "expired"
    SUPERSEDED = "superseded"  # a rule that asked it is not as it was: its approval would open nothing
    REJECTED = "rejected"
    APPROVED = "approved"
    PENDING = "pending"


class WishKind(StrEnum):
    """Whether an agent asked by itself, and what the rules say of what it wants."""

    UNRULED = "unruled"  # no rule says anything: nobody can approve it, a rule can be written
    ASKS = "asks"  # a rule asks
    NONE = ""  # it was tried, and held


class Vote(StrEnum):
    """What somebody says to a question."""

    REJECT = "reject"
    PASS = "pass"  # a reviewer leaves it to people
    APPROVE = "approve"


class Task(NamedTuple):
    """A task whose attempts people are asked about."""

    id: str
    sandbox: str
    name: str
    labels: Mapping[str, str]
    started_by: str  # a person, as `People` name them
    host: str
    rule_files: tuple[str, ...]
    workspace: str
    introduced: float
    ended: float | None = None

    @property
    def run(self) -> str:
        """The id of the run that it is, or whose changes it merges."""
        return self.id.removesuffix(MERGING)

    @property
    def stays(self) -> bool:
        """Whether it goes on when whoever asks leaves: its questions and grants end by their own time alone."""
        return self.id.endswith(MERGING)


class Ballot(NamedTuple):
    """What one approver said."""

    person: str
    vote: Vote
    reviewer: bool
    offer: Offer
    why: str
    at: float


class Approval(NamedTuple):
    """One question and what became of it. Times are seconds since 1970."""

    id: str
    task: str
    state: State
    wish: WishKind
    key: str  # the same for the same question, of one task; empty: it was rejected, and that was lifted
    question: Question  # its rules are those that were not granted when it was asked
    said: str  # the agent's own words
    asked: float
    expires: float
    answered: float | None = None
    by: tuple[str, ...] = ()
    why: str = ""  # of whoever decided
    times: int = 1  # how often it was asked
    stale: bool = False  # nobody waits for the answer

    @property
    def lifted(self) -> bool:
        """Whether it was rejected and may be asked again all the same."""
        return self.state is State.REJECTED and not self.key


class Grant(NamedTuple):
    """What an approval lets through: for one task and one rule of one content. None is no bound of its own."""

    id: str
    approval: str
    task: str
    rule: str
    digest: str
    width: Covers
    key: str  # of questions.key
    uses: int | None  # that are left
    bytes: int | None  # that are left
    ends: float | None  # None: with the task
    cuts: bool  # whether what still passes then is cut
    made: float
    over: float | None = None
    ending: str = ""  # why it is over


class Place(NamedTuple):
    """What the store knows of a destination."""

    first: float  # when it was first asked about
    times: int  # how often, this time included
    approved: int  # questions about it
    rejected: int
