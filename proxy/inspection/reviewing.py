"""Deciding again on a request that is under way: other rules are in force, or it is another day.

Pure. What was read of the request (its head, the refs of a push) is decided again, and so is the address that it was
sent to; what was checked before any rule was asked stays so.
"""

from typing import TYPE_CHECKING, NamedTuple

from proxy.inspection.judging import denied
from rules.verdicts import Scan

if TYPE_CHECKING:
    from proxy.dialling.connecting import Hop
    from proxy.inspection.judging import Ruling
    from proxy.slices import Sliced
    from proxy.tenant import Tenant
    from rules.attempt import Attempt
    from rules.decision import Decision
    from rules.limits import Limits


def attempts_of(ruling: "Ruling") -> "tuple[Attempt, ...]":
    """Return all that the rules were asked about a request: one attempt, or one a ref of a push."""
    if ruling.pushed is not None:
        return ruling.pushed.attempts
    return () if ruling.attempt is None else (ruling.attempt,)


class Standing(NamedTuple):
    """How a request stands by now."""

    denial: "Decision | None"  # by which it may not go on
    limits: "tuple[tuple[str, Limits], ...]" = ()  # that it goes on under
    scan: Scan = Scan.BLOCK  # what is done about secrets in what is still to come


def standing(tenant: "Tenant", attempts: "tuple[Attempt, ...]", leads_to: "Hop | None") -> "Sliced[Standing]":
    """Return what the rules say by now to a request, a ref of a push in a slice. `leads_to`: where it was sent."""
    policy, today = tenant.policy, tenant.calendar.today()
    limits: dict[tuple[str, Limits], None] = {}
    scans: list[Scan] = []
    for attempt in attempts:
        attempt = attempt._replace(at=today, tainted=tenant.tainted)  # noqa: PLW2901 - the same one, by now
        decision = policy.decide(attempt)
        if not decision.passes:
            return Standing(decision)
        limits.update(dict.fromkeys(decision.limits))
        scans.append(decision.scan)
        problem = None if leads_to is None else policy.check_address(attempt, leads_to)
        if problem is not None:
            return Standing(denied(tenant, problem))
        yield
    return Standing(None, tuple(limits), Scan.strictest(scans))
