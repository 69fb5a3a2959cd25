"""Decides every recorded attempt again by other rules: what they would newly allow, and what they would block.

An attempt is decided as in the gate: the rules, then the ClientHello (ECH, ALPN), then the dialled address. If the new
rules inspect something that the journal doesn't record, the result counts as uncertain. No I/O.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.telemetry.events import Kind
from proxy.telemetry.replay.past_attempts import (
    RESOLVED_TYPES,
    UNRECORDED_REFS,
    PastAttempt,
    RuleOutcome,
    outcome_under_rules,
    rebuild_attempt,
)
from rules.attempt import Caller, Protocol, alpn_is_readable
from rules.matching.layers import rank_decision
from rules.matching.reference import covers_target
from rules.matching.requests import is_wide
from rules.values.names import HostName
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from proxy.telemetry.events import Event
    from rules.attempt import Attempt, Request
    from rules.decision import Decision
    from rules.matching.policy import Policy
    from rules.rule import Rule
    from rules.values.addresses import Address

_MOST_EXAMPLES: Final = 3
_MOST_TARGETS: Final = 4096
_UNRECORDED_ADDRESS: Final = "the address that was dialled for a name, which this journal doesn't record"


class Effect(StrEnum):
    """What other rules would change for an attempt."""

    BREAKS = "breaks"
    OPENS = "opens"
    OTHERWISE = "otherwise"  # allowed or blocked as before, but flagged, held or audited instead


class ReplayedDecision(NamedTuple):
    """Decision on a replayed attempt."""

    fate: RuleOutcome
    reason: Reason | None
    rules: tuple[str, ...] = ()


class Group(NamedTuple):
    """Attempts of one task to one destination with the same old and the same new decision."""

    effect: Effect
    place: str  # may contain text that a sandbox chose
    task: str
    was: ReplayedDecision
    now: ReplayedDecision


@dataclass(slots=True)
class Tally:
    """Attempts of a group by kind, and a few examples."""

    counts: Counter[Kind] = field(default_factory=Counter)
    examples: dict[str, None] = field(default_factory=dict)

    def add(self, kind: Kind, example: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        if example and len(self.examples) < _MOST_EXAMPLES:
            self.examples[example] = None


class Replay:
    """Decides recorded attempts by `policy`, as if they were made on the day `at`."""

    def __init__(self, policy: "Policy", at: "date | None") -> None:
        self.policy = policy
        self.attempts = 0  # decision events
        self.unchanged = 0
        self.settled = 0  # allowed by audit mode before, and by a rule now
        self.groups: dict[Group, Tally] = {}
        self.fixed: Counter[str] = Counter()  # decided before the rules, so unchanged
        self.skipped: Counter[str] = Counter()  # attempts that can't be decided again, by reason
        self.uncertain: Counter[str] = Counter()  # decided by rules that inspect unrecorded parts, by reason
        self.uncertain_attempts = 0  # attempts with at least one such reason
        self._at = at
        self._rules_by_target: dict[HostName | Address, tuple[Rule, ...]] = {}

    @property
    def changes(self) -> int:
        """Number of attempts with another decision."""
        return sum(tally.counts.total() for tally in self.groups.values())

    def take(self, event: "Event") -> None:
        """Decide one event's attempt again."""
        if event.kind is Kind.COMMAND_DECIDED:
            self.attempts += 1
            self.skipped["a program, of which the journal doesn't record all that `commands` look at"] += 1
        elif event.kind is Kind.TASK_STARTED and self.policy.commands:
            self.skipped["what programs a task started, which the journal doesn't record where no `commands` are"] += 1
        attempt = rebuild_attempt(event, self._at)
        if attempt is None:
            return
        self.attempts += 1
        if attempt.problem:
            (self.fixed if attempt.fixed else self.skipped)[attempt.problem] += 1
            return
        was = ReplayedDecision(attempt.fate, event.reason, event.rules)
        now, unknown = self._decide(attempt)
        self.uncertain.update(unknown)
        self.uncertain_attempts += bool(unknown)
        if was.fate is RuleOutcome.AUDITED and now.fate in {RuleOutcome.ALLOWED, RuleOutcome.FLAGGED}:
            self.settled += 1
        elif was.fate is now.fate:
            self.unchanged += 1
        else:
            turned = Effect.OPENS if now.fate.passes else Effect.BREAKS
            effect = Effect.OTHERWISE if was.fate.passes is now.fate.passes else turned
            group = Group(effect, place_of(attempt), event.task.name or event.task.id, was, now)
            self.groups.setdefault(group, Tally()).add(event.kind, example_of(attempt))

    def _decide(self, past: PastAttempt) -> "tuple[ReplayedDecision, set[str]]":
        """Return the new decision, and the unrecorded facts that could change it."""
        attempt, event = past.attempt, past.event
        if attempt is None:
            assert past.lookup is not None
            return self._decide_lookup(past.lookup, event), set()
        attempt, decision = self._decide_strictest(past, attempt)
        decided = ReplayedDecision(
            outcome_under_rules(decision.outcome, decision.verdict, decision.reason), decision.reason, decision.rules
        )
        unknown = self._find_unknowns(past, attempt, decision)
        if not decided.fate.passes:
            return decided, unknown
        objection = None
        proxied = self.policy.upstream_for(attempt) is not None
        if attempt.protocol is Protocol.UDP and proxied:
            objection = Reason.UDP  # a proxy carries no UDP
        if attempt.protocol is Protocol.TLS and attempt.request is None and event.tls is not None:
            if not decision.inspect and event.tls.ech:
                objection = Reason.ECH
            elif decision.inspect and not alpn_is_readable(event.tls.alpn):
                objection = Reason.PROTOCOL_MISMATCH
            elif decision.inspect and past.address is not None:
                unknown.add("an inspected connection's requests, which passed unread when this was recorded")
        if objection is None and past.address is not None and not proxied:
            objection = self.policy.check_address(attempt, past.address)
        if past.address is None and not proxied and _is_dialled(attempt, decision):
            unknown.add(_UNRECORDED_ADDRESS)
        return (decided if objection is None else ReplayedDecision(RuleOutcome.BLOCKED, objection)), unknown

    def _decide_strictest(self, past: PastAttempt, attempt: "Attempt") -> "tuple[Attempt, Decision]":
        """Decide an attempt; of a push every ref, and return the strictest decision."""
        request = attempt.request
        attempts = [attempt]
        if request is not None and len(past.pushed) > 1:
            attempts = [attempt._replace(request=request._replace(git=git)) for git in past.pushed]
        decided = [(each, self.policy.decide(each)) for each in attempts]
        return min(decided, key=lambda each: rank_decision(each[1]))

    def _decide_lookup(self, name: HostName, event: "Event") -> ReplayedDecision:
        policy, caller = self.policy, Caller(event.task.name, event.task.labels, self._at)
        decision = policy.decide_name(name, caller)
        kind = "" if event.dns is None else event.dns.type
        cached = decision.passes and kind not in RESOLVED_TYPES
        if cached and kind not in policy.dns_types(name, caller):
            return ReplayedDecision(RuleOutcome.BLOCKED, Reason.DNS_TYPE, decision.rules)
        reason = Reason.DNS_DENIED if decision.outcome is Outcome.BLOCKED and not decision.rules else decision.reason
        return ReplayedDecision(
            outcome_under_rules(decision.outcome, decision.verdict, decision.reason), reason, decision.rules
        )

    def _find_unknowns(self, past: PastAttempt, attempt: "Attempt", decision: "Decision") -> set[str]:
        """Return the unrecorded facts that the rules about this target inspect."""
        unknown = set[str]()
        target_rules = self._rules_about(attempt)
        if decision.passes and decision.limits:
            unknown.add("`limits`, which depend on what else is sent, and when")
        if any(rule.depends_on_taint for rule in target_rules):
            unknown.add("whether the task was tainted, which the journal doesn't record of an attempt")
        request = attempt.request
        if request is None:
            return unknown
        if decision.passes and decision.inspect and decision.scan.blocks:
            unknown.add("what requests carry, which `scan: block` looks at")
        if any(rule.looks_at_requests for rule in target_rules):
            unknown.update(why for why in past.unrecorded if why != UNRECORDED_REFS)
        for rule in target_rules:
            unknown.update(_unrecorded_conditions(rule, past, request))
        return unknown

    def _rules_about(self, attempt: "Attempt") -> "tuple[Rule, ...]":
        """Return the rules about a target, cached: journals repeat few targets."""
        cached = self._rules_by_target.get(attempt.target)
        if cached is None:
            if len(self._rules_by_target) >= _MOST_TARGETS:
                self._rules_by_target.clear()
            cached = self._rules_by_target[attempt.target] = tuple(
                r for r in self.policy.rules if covers_target(r, attempt)
            )
        return cached


def _is_dialled(attempt: "Attempt", decision: "Decision") -> bool:
    """Whether the address of a name matters: not for a connection whose requests are decided one by one."""
    return isinstance(attempt.target, HostName) and (attempt.request is not None or not decision.inspect)


def _unrecorded_conditions(rule: "Rule", past: PastAttempt, request: "Request") -> "Iterator[str]":
    """Yield the conditions of a rule on unrecorded parts of a request."""
    is_old_event = past.event.http is None or past.event.http.body is None
    https = [http for http in (rule.http, *(each.http for each in rule.excepts)) if http is not None]
    conditions = {
        "query": ("?" in request.path or is_old_event) and any(http.query for http in https),
        "headers": any(http.headers for http in https),
        "body": is_old_event and any(http.body is not None for http in https),
        "websocket": is_old_event and any(http.websocket is not None for http in https),
        "max_url": is_old_event
        and (any(http.max_url is not None for http in https) or (bool(https) and is_wide(rule))),
        "credential": rule.credential is not None or any(each.credential is not None for each in rule.excepts),
        "git": rule.looks_at_git and request.git is None,
    }
    yield from (
        f"`{name}` of requests, which the journal doesn't record" for name, missing in conditions.items() if missing
    )
    if rule.looks_at_git and UNRECORDED_REFS in past.unrecorded and request.git is not None:
        yield UNRECORDED_REFS


def place_of(past: PastAttempt) -> str:
    """Format the destination of an attempt: `https://host`, `tcp host:22`, `host` for a lookup."""
    attempt = past.attempt
    if attempt is None:
        return f"the lookup of {past.lookup}"
    target = str(attempt.target)
    host = f"[{target}]" if ":" in target else target
    scheme, usual = {Protocol.TLS: ("https://", 443), Protocol.HTTP: ("http://", 80)}.get(
        attempt.protocol, (f"{attempt.protocol} ", None)
    )
    return f"{scheme}{host}" + ("" if attempt.port == usual else f":{attempt.port}")


def example_of(past: PastAttempt) -> str:
    """Format the method and path of a request; empty for a connection."""
    request = past.attempt.request if past.attempt is not None else None
    return "" if request is None else f"{request.method} {request.path}"
