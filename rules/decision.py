"""Decision on one attempt: verdict, rules, reason, how it is carried out, and the limits and approvals it is under.

Tuples, because refusals are made for every attempt anew and a frozen dataclass takes four times as long to make.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rules.verdicts import Outcome, Reason, Scan, Trust, Verdict

if TYPE_CHECKING:
    from datetime import date


class LimitScope(StrEnum):
    """What shares one count, strictest first."""

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
    per: LimitScope = LimitScope.RULE


class GrantScope(StrEnum):
    """What one approval covers."""

    ATTEMPT = "attempt"
    DESTINATION = "destination"
    RULE = "rule"


class ApprovalTerms(NamedTuple):
    """The `approval:` of an ask rule: who approves, how many people, and what an approval covers."""

    by: str | None = None  # a group; None: whoever may approve at all
    needed: int = 1  # how many people; the file says `count`
    by_self: bool = False  # whether the one who started the task may; the file says `self`
    hold: float = 120.0  # seconds that the attempt is held while somebody is asked
    open: float = 86400.0  # seconds that the question stays open after that
    covers: GrantScope = GrantScope.ATTEMPT
    lasts: float | None = None  # seconds, the file says `for`; 0: once; None: it says nothing, which is once at first


DEFAULT_APPROVAL_TERMS = ApprovalTerms(by_self=True)  # of an ask that says nothing of its approval


class NearestRule(NamedTuple):
    """The rule that came nearest to allowing an attempt, and what kept it out."""

    rule: str
    field: str
    wanted: str
    got: str


class RequiredApproval(NamedTuple):
    """Approval that a rule requires before it allows the attempt."""

    rule: str  # `file:id`
    digest: str  # what a grant has to name beside that: `Attempt.granted`
    terms: "ApprovalTerms"
    why: str = ""  # the rule's own `why:`


class Decision(NamedTuple):
    """Decision on an attempt, with its reason and terms.

    For a connection (an attempt without a request) `allow` with `inspect` means that some request on it may pass:
    each is decided by itself. `deny` means that none could. Its `limits` are those of rules that match whatever is
    asked on it; a request has those of every rule that matches it.

    `ask` is said of what is not held itself: a connection that is inspected, so that its requests are asked about, each
    by itself, and the lookup of its name. Nothing may be dialled for it and nothing spliced. What *is* held is denied,
    and `needs_approval`.
    """

    verdict: Verdict = Verdict.DENY
    outcome: Outcome = Outcome.BLOCKED
    reason: Reason = Reason.GATE_ERROR
    rules: tuple[str, ...] = ()  # `file:id` of every rule of the winning verdict, most specific first
    revision: str = ""
    inspect: bool = True
    idle_timeout: float = 600.0  # seconds
    why: str = ""  # the winning rule's own `why:`
    limits: "tuple[tuple[str, Limits], ...]" = ()  # rule id and limits, of every matching rule that has some
    approval: tuple[RequiredApproval, ...] = ()  # of a held attempt: every rule that needs a grant first
    expires: "date | None" = None  # the earliest `until` of the matching rules: the last day that this holds
    ca: tuple[str, ...] = ()  # files of certificates that are trusted for this destination beside the host's
    pattern: str | None = None  # what is told of a request's path, where a rule says `log: pattern`
    scan: Scan = Scan.BLOCK  # what is done where a secret is found in it: the strictest that a matching rule says
    trust: Trust = Trust.UNTRUSTED  # of what is read there: trusted if every rule that lets it out says so
    logs_full_path: bool = False  # of a layer's vote: one of its rules says `log: full`
    nearest: NearestRule | None = None

    @property
    def passes(self) -> bool:
        """Whether the attempt proceeds: allowed, flagged, only audited, or to where each request needs an approval."""
        return self.outcome.passes

    @property
    def allows(self) -> bool:
        """Whether bytes may leave for the attempt now: it passes, and not only to where requests need an approval."""
        return self.verdict is not Verdict.ASK and self.outcome.passes

    @property
    def needs_approval(self) -> bool:
        """Whether the attempt is held, and may pass once everything in `approval` is granted."""
        return bool(self.approval) and self.outcome is Outcome.BLOCKED


class HasRevision(Protocol):
    """What has a revision: a policy, or what stands for it."""

    @property
    def revision(self) -> str:
        """Return the digest of all its rules."""


def deny(policy: HasRevision, reason: Reason, like: Decision | None = None) -> Decision:
    """Return a denial for a reason of the gate's own; `like` is the decision that it replaces."""
    if like is None:
        return Decision(Verdict.DENY, Outcome.BLOCKED, reason, revision=policy.revision)
    return like._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason)
