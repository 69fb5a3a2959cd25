"""The answer to one attempt: verdict, rules, reason, and how it is to be carried out."""

from dataclasses import dataclass

from rules.verdicts import Outcome, Reason, Verdict


@dataclass(frozen=True, slots=True)
class Near:
    """The rule that came nearest to allowing an attempt, and what kept it out."""

    rule: str
    field: str
    wanted: str
    got: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to happen with an attempt, and why.

    For a connection (an attempt without a request) `allow` with `inspect` means that some request on it may pass:
    each is decided by itself. `deny` means that none could.
    """

    verdict: Verdict = Verdict.DENY
    outcome: Outcome = Outcome.BLOCKED
    reason: Reason = Reason.GATE_ERROR
    rules: tuple[str, ...] = ()  # `file:id` of every rule of the winning verdict, most specific first
    revision: str = ""
    inspect: bool = True
    idle_timeout: float = 600.0  # seconds
    near: Near | None = None
    why: str = ""  # the winning rule's own `why:`

    @property
    def passes(self) -> bool:
        """Whether bytes may leave: allowed or flagged, or only audited."""
        return self.outcome in (Outcome.PASSED, Outcome.WOULD_BLOCK)
