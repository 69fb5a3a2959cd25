"""Decision on one attempt: verdict, rules, reason, how it is carried out, and the limits and approvals it is under.

NamedTuples, because every denied attempt makes a new one, and making a frozen dataclass takes four times as long.
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

    by: str | None = None  # a group; None: any approver
    needed: int = 1  # number of approvers; `count` in a rule file
    by_self: bool = False  # whether the user who started the task may approve; `self` in a rule file
    hold: float = 120.0  # seconds that the gate holds the attempt
    open: float = 86400.0  # seconds that the question stays open after that
    covers: GrantScope = GrantScope.ATTEMPT
    lasts: float | None = None  # seconds; `for` in a rule file. 0: once; None: not set, the first grant is for once


DEFAULT_APPROVAL_TERMS = ApprovalTerms(by_self=True)  # terms of an ask without `approval`


class NearestRule(NamedTuple):
    """Rule that came nearest to allowing an attempt, and the condition that the attempt failed."""

    rule: str
    field: str
    wanted: str
    got: str


class RequiredApproval(NamedTuple):
    """Approval that a rule requires before it allows the attempt."""

    rule: str  # `file:id`
    digest: str  # digest that a grant must name too: `Attempt.granted`
    terms: "ApprovalTerms"
    why: str = ""  # the rule's own `why:`


class Decision(NamedTuple):
    """Decision on an attempt, with its reason and terms.

    For a connection (an attempt without a request) `allow` with `inspect` means that some request on it may pass:
    each is decided separately. `deny` means that none could. Its `limits` are those of rules that match every request
    on it; a request has those of every rule that matches it.

    Verdict ASK never means that the attempt itself is held. It marks an inspected connection, or the lookup of its
    name, whose requests each need their own approval: it proceeds, and the gate dials nothing for it. An attempt that
    is itself held has verdict DENY and `needs_approval`.
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
    approval: tuple[RequiredApproval, ...] = ()  # of a held attempt: every rule that requires a grant first
    expires: "date | None" = None  # the earliest `until` of the matching rules: the last day that this holds
    ca: tuple[str, ...] = ()  # certificate files trusted for this destination in addition to the host's
    pattern: str | None = None  # what events record in place of the request's path, under `log: pattern`
    scan: Scan = Scan.BLOCK  # action when a secret is found: the strictest of the matching rules
    trust: Trust = Trust.UNTRUSTED  # trust in the content read there: trusted only if every rule that allows it says so
    logs_full_path: bool = False  # of a layer's decision: one of its rules says `log: full`
    nearest: NearestRule | None = None

    @property
    def passes(self) -> bool:
        """Whether the attempt proceeds: allowed, flagged, only audited, or to where each request needs an approval."""
        return self.outcome.passes

    @property
    def may_send_now(self) -> bool:
        """Whether bytes may leave for the attempt now: it passes, and not only because its requests can be approved.

        In audit mode this holds for verdict DENY, too: the attempt would have been blocked.
        """
        return self.verdict is not Verdict.ASK and self.outcome.passes

    @property
    def needs_approval(self) -> bool:
        """Whether the attempt is held, and is allowed once everything in `approval` is granted."""
        return bool(self.approval) and self.outcome is Outcome.BLOCKED


class HasRevision(Protocol):
    """Anything with a revision, such as a policy."""

    @property
    def revision(self) -> str:
        """Return the digest of all its rules."""


def deny(policy: HasRevision, reason: Reason, like: Decision | None = None) -> Decision:
    """Return a denial for a reason of the gate's own; `like` is the decision that it replaces."""
    if like is None:
        return Decision(Verdict.DENY, Outcome.BLOCKED, reason, revision=policy.revision)
    return like._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason)
