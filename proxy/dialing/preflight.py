"""Preflight of an approval request: whether an approval would let the attempt go out at all.

A name that a rule spells out is looked up beforehand, and its addresses are checked as if everything were approved. A
name under a wildcard is not: the task chose it, and a lookup would carry it out before anybody has approved.
"""

from typing import TYPE_CHECKING, Final

from proxy.dialing.address_check import DialFailed
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.dialing.dialer import Dialer, Hop
    from rules.attempt import Attempt
    from rules.decision import Decision
    from rules.matching.policy import Policy

_FINAL: Final = frozenset({Reason.NON_PUBLIC_ADDRESS, Reason.ADDRESS_NOT_LISTED, Reason.UNRESOLVED})


def approved(policy: "Policy", attempt: "Attempt", decision: "Decision") -> "Attempt | None":
    """Return the attempt as if all that is asked were granted; None: nothing may be looked up for it yet."""
    if not policy.spells_out(attempt.target, decision.approval):
        return None
    return attempt._replace(granted=attempt.granted.union(asks.digest for asks in decision.approval))


def in_vain(found: "tuple[Hop, ...] | DialFailed") -> DialFailed | None:
    """Return why an approval would open nothing; None: it may."""
    return found if isinstance(found, DialFailed) and found.reason in _FINAL else None


def check(
    dialer: "Dialer",
    policy: "Policy",
    attempt: "Attempt",
    decision: "Decision",
    done: "Callable[[DialFailed | None], None]",
) -> None:
    """Call `done` once, perhaps from within: with why an approval would open nothing, or None."""
    would = approved(policy, attempt, decision)
    if would is None:
        done(None)
        return
    try:
        known = dialer.known(policy, would)
    except DialFailed as failure:
        done(in_vain(failure))
        return
    if known is not None:
        done(None)
    else:
        dialer.find(policy, would, lambda found: done(in_vain(found)))


def refused(decision: "Decision", failure: DialFailed) -> "Decision":
    """Deny what nobody needs to be asked about."""
    return decision._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=failure.reason, approval=())
