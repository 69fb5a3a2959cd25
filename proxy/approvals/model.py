"""Records of the registry (tasks, approvals, votes, grants), and the scope that a grant has.

A rule's terms give the scope. An approver may narrow it, and never widen the `covers` of a rule, nor go beyond its
`for`. Where a rule says nothing, one use is given, and the approver may give more: at most until the task ends.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.approvals.approval_request import ApprovalRequest, Message, Real, Text, Texts, Whole, narrower
from rules.decision import GrantScope
from rules.loading.fields import parse_count, parse_day, parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.approvals.approval_request import Terms

ONCE: Final = 0.0  # `lasts` of a rule that says `for: once`; one that says nothing has None
_SYNTAX: Final = "`once`, `task`, `1h`, `until 2027-01-31`, `uses 3`, `bytes 2GB`"
_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60))


class ScopeTooWideError(ValueError):
    """An approver offers more than the rule gives."""


class GrantTerms(Message, frozen=True, omit_defaults=True):
    """Terms that an approver sets for a grant; the rule's apply where one is None."""

    width: GrantScope | None = None
    uses: Whole | None = None
    bytes: Whole | None = None
    seconds: Real | None = None
    until: Real | None = None  # seconds since 1970
    task: bool = False  # for as long as the task lives

    @classmethod
    def parse(cls, words: "Iterable[str]", width: str = "") -> "GrantTerms":
        """Read what `--for` says, several times or in one text, and `--scope`. Raises ValueError."""
        found: dict[str, Any] = {}
        left = " ".join(words).replace(",", " ").split()
        while left:
            word = left.pop(0)
            if word in {"until", "uses", "bytes"} and not left:
                raise ValueError(f"`{word}` needs a value: write one of {_SYNTAX}")
            name, value = _read(word, left)
            if name in found:
                raise ValueError(f"`{name}` is said twice")
            found[name] = value
        if sum(name in found for name in ("seconds", "until", "task")) > 1:
            raise ValueError("give one end only: a time, a day, or `task`")
        if width:
            if width not in set(GrantScope):
                raise ValueError(f"`{width}` is no width: it is one of {', '.join(GrantScope)}")
            found["width"] = GrantScope(width)
        return cls(**found)


class GrantBounds(NamedTuple):
    """Bounds of a grant; None: bounded by the task's end alone."""

    width: GrantScope
    uses: int | None
    bytes: int | None
    ends: float | None  # seconds since 1970
    cuts: bool = False  # whether what still passes then is cut; else it only has to begin before


def limit_bounds(terms: "Terms", width: GrantScope, offers: "Sequence[GrantTerms]", now: float) -> GrantBounds:
    """Return the bounds that a rule with these terms gives: of each bound the least of all `offers`.

    `width` is the scope that all rules of the request give. Raises ScopeTooWideError if an offer exceeds the rule.
    """
    extents = [_extent(terms, width, offer, now) for offer in offers] or [_extent(terms, width, GrantTerms(), now)]
    narrowest = extents[0].width
    for extent in extents[1:]:
        narrowest = extent.width if narrower(extent.width, narrowest) else narrowest
    return GrantBounds(
        narrowest,
        _least(extent.uses for extent in extents),
        _least(extent.bytes for extent in extents),
        _least(extent.ends for extent in extents),
        any(extent.cuts for extent in extents),
    )


def describe_bounds(extent: GrantBounds, now: float) -> str:
    """Describe a grant's bounds in words: `this very attempt, once, in the next 24h`."""
    what = {
        GrantScope.ATTEMPT: "this very attempt",
        GrantScope.DESTINATION: "anything this rule asks about at this destination",
        GrantScope.RULE: "anything this rule asks about",
    }[extent.width]
    often = {None: "as often as the task likes", 1: "once"}.get(extent.uses, f"{extent.uses} times")
    much = "" if extent.bytes is None else f", {extent.bytes} {'byte' if extent.bytes == 1 else 'bytes'} in all"
    end = "until the task ends" if extent.ends is None else f"in the next {format_duration(extent.ends - now)}"
    return f"{what}, {often}{much}, {end}"


def format_duration(seconds: float) -> str:
    """Format a duration in its largest whole unit, days from two on: `90m`, `24h`, `3d`."""
    whole = max(round(seconds), 0)
    for unit, length in _UNITS:
        if whole >= 2 * length or (unit != "d" and whole >= length and whole % length == 0):
            return f"{whole // length}{unit}"
    return f"{whole}s"


def _extent(terms: "Terms", width: GrantScope, offer: GrantTerms, now: float) -> GrantBounds:
    if offer.width is not None and narrower(width, offer.width):
        raise ScopeTooWideError(f"the rule covers {_an(width)} and no more: `--scope {offer.width}` is wider")
    ends = now + offer.seconds if offer.seconds is not None else offer.until
    if ends is not None and ends <= now:
        raise ScopeTooWideError("that time has passed")
    uses, fixed = offer.uses, terms.lasts
    if fixed:  # the rule gives a time
        if offer.task or (ends is not None and ends > now + fixed):
            raise ScopeTooWideError(f"the rule gives {format_duration(fixed)} at most")
        ends = now + fixed if ends is None else ends
    elif fixed is not None and (offer.task or (uses is None and ends is not None) or (uses or 1) > 1):
        raise ScopeTooWideError("the rule gives one use and no more")
    elif uses is None and ends is None and not offer.task:
        uses = 1
    cuts = ends is not None
    if ends is None and not offer.task:
        ends = now + terms.open  # what nobody comes for is not kept for ever
    return GrantBounds(offer.width or width, uses, offer.bytes, ends, cuts)


def _read(word: str, left: list[str]) -> tuple[str, object]:
    match word:
        case "once":
            return "uses", 1
        case "task":
            return "task", True
        case "uses":
            return "uses", parse_count(left.pop(0))
        case "bytes":
            text = left.pop(0)
            return "bytes", parse_count(text) if text.isdigit() else parse_size(text)
        case "until":
            return "until", _end_of(left.pop(0))
    try:
        return "seconds", parse_duration(word)
    except ValueError as error:
        raise ValueError(f"`{word}` is none of {_SYNTAX}" if not word[:1].isdigit() else str(error)) from error


def _end_of(text: str) -> float:
    """Return when a day ends that counts itself, in UTC, as `until` of a rule does."""
    return datetime.combine(parse_day(text) + timedelta(days=1), time(), UTC).timestamp()


def _least[N: (int, float)](values: "Iterable[N | None]") -> N | None:
    return min((value for value in values if value is not None), default=None)


def _an(width: GrantScope) -> str:
    return {
        GrantScope.ATTEMPT: "an attempt",
        GrantScope.DESTINATION: "a destination",
        GrantScope.RULE: "all that it asks about",
    }[width]


MERGING: Final = "/changes"  # behind a run's id: what merges its changes, which comes and goes after the run has ended


class ApprovalState(StrEnum):
    """State of an approval request. Only a pending one can change."""

    OVER = "over"  # its task ended
    EXPIRED = "expired"
    SUPERSEDED = "superseded"  # a rule that asked it is not as it was: its approval would open nothing
    REJECTED = "rejected"
    APPROVED = "approved"
    PENDING = "pending"


class PreRequestKind(StrEnum):
    """Kind of pre-request, by what the rules say of the attempt."""

    UNRULED = "unruled"  # no rule says anything: nobody can approve it, a rule can be written
    ASKS = "asks"  # a rule asks
    NONE = ""  # it was tried, and held


class Vote(StrEnum):
    """Vote of one approver."""

    REJECT = "reject"
    PASS = "pass"  # a reviewer leaves it to people
    APPROVE = "approve"


class Task(NamedTuple):
    """Task as the registry stores it."""

    id: str
    sandbox: str
    name: str
    labels: Mapping[Text, Text]
    started_by: str  # a person, as `People` name them
    host: str
    rule_files: Texts
    workspace: str
    introduced: Real
    ended: Real | None = None

    @property
    def run(self) -> str:
        """The id of the run that it is, or whose changes it merges."""
        return self.id.removesuffix(MERGING)

    @property
    def stays(self) -> bool:
        """Whether it goes on when whoever asks leaves: its questions and grants end by their own time alone."""
        return self.id.endswith(MERGING)


class Ballot(NamedTuple):
    """Vote of one approver, as stored."""

    person: str
    vote: Vote
    reviewer: bool
    offer: GrantTerms
    why: str
    at: Real


class Approval(NamedTuple):
    """Approval request and its state, as stored. Times are seconds since 1970."""

    id: str
    task: str
    state: ApprovalState
    wish: PreRequestKind
    key: str  # the same for the same question, of one task; empty: it was rejected, and that was lifted
    question: ApprovalRequest  # its rules are those that were not granted when it was asked
    said: str  # the agent's own words
    asked: Real
    expires: Real
    answered: Real | None = None
    by: Texts = ()
    why: str = ""  # of whoever decided
    times: int = 1  # how often it was asked
    stale: bool = False  # nobody waits for the answer

    @property
    def lifted(self) -> bool:
        """Whether it was rejected and may be asked again all the same."""
        return self.state is ApprovalState.REJECTED and not self.key


class Grant(NamedTuple):
    """Grant, as stored: allows attempts of one task under one rule with one digest. None: no bound of its own."""

    id: str
    approval: str
    task: str
    rule: str
    digest: str
    width: GrantScope
    key: str  # of questions.key
    uses: int | None  # that are left
    bytes: int | None  # that are left
    ends: Real | None  # None: with the task
    cuts: bool  # whether what still passes then is cut
    made: Real
    over: Real | None = None
    ending: str = ""  # why it is over


class DestinationHistory(NamedTuple):
    """Earlier approval requests for a destination, counted."""

    first: float  # when it was first asked about
    times: int  # how often, this time included
    approved: int  # questions about it
    rejected: int
