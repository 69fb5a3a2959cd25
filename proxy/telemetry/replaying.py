"""Every recorded attempt decided again by other rules: what would newly pass, and what would break.

Pure but for what it is fed. An attempt is decided as the gate would: the rules, then what the ClientHello hides or
offers, then the address that was dialled. What the journal doesn't keep and the new rules look at makes the answer
uncertain, and is counted as such.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.deciding import alpn_is_readable
from proxy.telemetry.events import Kind
from proxy.telemetry.recorded import Fate, Recorded, fate_of, recorded
from rules.attempt import Protocol
from rules.names import HostName
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from datetime import date

    from proxy.telemetry.events import Event
    from rules.attempt import Attempt
    from rules.policy import Policy
    from rules.rule import Rule

_MOST_EXAMPLES: Final = 3
_USUAL_TYPES: Final = frozenset({"A", "AAAA", "HTTPS", "SVCB"})  # resolver.py: answered where the name is let out


class Effect(StrEnum):
    """What other rules would change for an attempt."""

    BREAKS = "breaks"
    OPENS = "opens"
    OTHERWISE = "otherwise"  # let out or held back as before, and yet not alike: flagged, asked, audited


class Said(NamedTuple):
    """What rules say to an attempt."""

    fate: Fate
    reason: Reason | None
    rules: tuple[str, ...] = ()


class Group(NamedTuple):
    """Attempts of one task at one place that are decided alike then, and alike now."""

    effect: Effect
    place: str  # may hold text that a sandbox made up
    task: str
    was: Said
    now: Said


@dataclass(slots=True)
class Tally:
    """How many attempts of which kind are in a group, and a few of them."""

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
        self.settled = 0  # let out by audit mode alone then, and by a rule now
        self.groups: dict[Group, Tally] = {}
        self.fixed: Counter[str] = Counter()  # decided before any rule is asked, and so again
        self.skipped: Counter[str] = Counter()  # attempts that can't be decided again, by why
        self.uncertain: Counter[str] = Counter()  # decided, but by rules that look at what the journal doesn't keep
        self._at = at
        self._blind = [(rule, fields) for rule in policy.rules if (fields := _unkept(rule))]

    @property
    def changes(self) -> int:
        """How many attempts would be decided otherwise."""
        return sum(tally.counts.total() for tally in self.groups.values())

    def take(self, event: "Event") -> None:
        """Decide one event's attempt again."""
        attempt = recorded(event, self._at)
        if attempt is None:
            return
        self.attempts += 1
        if attempt.problem:
            (self.fixed if attempt.fixed else self.skipped)[attempt.problem] += 1
            return
        was = Said(attempt.fate, event.reason, event.rules)
        now = self._decided(attempt)
        if was.fate is Fate.AUDITED and now.fate in {Fate.ALLOWED, Fate.FLAGGED}:
            self.settled += 1
        elif was.fate is now.fate:
            self.unchanged += 1
        else:
            effect = Effect.OTHERWISE if was.fate.passes is now.fate.passes else _effect(now.fate)
            group = Group(effect, place_of(attempt), event.origin.name or event.origin.task, was, now)
            self.groups.setdefault(group, Tally()).add(event.kind, example_of(attempt))

    def _decided(self, recorded: Recorded) -> Said:
        attempt, event = recorded.attempt, recorded.event
        if attempt is None:
            assert recorded.lookup is not None
            return self._looked_up(recorded.lookup, event)
        decision = self.policy.decide(attempt)
        said = Said(fate_of(decision.outcome, decision.verdict, decision.reason), decision.reason, decision.rules)
        for looks_at in self._blind_at(attempt):
            self.uncertain[looks_at] += 1
        if not said.fate.passes:
            return said
        objection = None
        if attempt.protocol is Protocol.UDP and self.policy.upstream_for(attempt) is not None:
            objection = Reason.UDP  # which goes through no proxy
        if attempt.protocol is Protocol.TLS and attempt.request is None and event.tls is not None:
            if not decision.inspect and event.tls.ech:
                objection = Reason.ECH
            elif decision.inspect and not alpn_is_readable(event.tls.alpn):
                objection = Reason.PROTOCOL_MISMATCH
            elif decision.inspect and recorded.address is not None:
                self.uncertain["an inspected connection's requests, which passed unread when this was recorded"] += 1
        if objection is None and recorded.address is not None and self.policy.upstream_for(attempt) is None:
            objection = self.policy.check_address(attempt, recorded.address)
        return said if objection is None else Said(Fate.BLOCKED, objection)

    def _looked_up(self, name: HostName, event: "Event") -> Said:
        policy, origin = self.policy, event.origin
        decision = policy.decide_name(name, origin.name, origin.labels, self._at)
        kind = "" if event.dns is None else event.dns.type
        known = decision.passes and kind not in _USUAL_TYPES
        if known and kind not in policy.dns_types(name, origin.name, origin.labels, self._at):
            return Said(Fate.BLOCKED, Reason.DNS_TYPE, decision.rules)
        reason = Reason.DNS_DENIED if decision.outcome is Outcome.BLOCKED and not decision.rules else decision.reason
        return Said(fate_of(decision.outcome, decision.verdict, decision.reason), reason, decision.rules)

    def _blind_at(self, attempt: "Attempt") -> set[str]:
        """Say what rules about this target look at that no event keeps."""
        if attempt.request is None or not self._blind:
            return set()
        return {looks_at for rule, fields in self._blind if _is_about(rule, attempt) for looks_at in fields}


def _effect(now: Fate) -> Effect:
    return Effect.OPENS if now.passes else Effect.BREAKS


def _unkept(rule: "Rule") -> tuple[str, ...]:
    """Name what a rule asks of requests that events don't tell."""
    conditions = [rule.http, *(exemption.http for exemption in rule.excepts)]
    asked = {
        name
        for http in conditions
        if http is not None
        for name in ("query", "headers", "body", "max_url", "websocket")
        if getattr(http, name) not in {None, ()}
    }
    if rule.git is not None or any(exemption.git is not None for exemption in rule.excepts):
        asked.add("git")
    if rule.credential is not None or any(exemption.credential is not None for exemption in rule.excepts):
        asked.add("credential")
    return tuple(sorted(f"`{name}` of requests, which the journal doesn't keep" for name in asked))


def _is_about(rule: "Rule", attempt: "Attempt") -> bool:
    target = attempt.target
    if isinstance(target, HostName):
        return any(name.matches(target) for name in rule.names)
    return any(target in network for network in rule.networks)


def place_of(recorded: Recorded) -> str:
    """Write where an attempt went: `https://host`, `tcp host:22`, `host` for a lookup."""
    attempt = recorded.attempt
    if attempt is None:
        return f"the lookup of {recorded.lookup}"
    target = str(attempt.target)
    host = f"[{target}]" if ":" in target else target
    scheme, usual = {Protocol.TLS: ("https://", 443), Protocol.HTTP: ("http://", 80)}.get(
        attempt.protocol, (f"{attempt.protocol} ", None)
    )
    return f"{scheme}{host}" + ("" if attempt.port == usual else f":{attempt.port}")


def example_of(recorded: Recorded) -> str:
    """Write what a request wanted; nothing for a connection."""
    request = recorded.attempt.request if recorded.attempt is not None else None
    return "" if request is None else f"{request.method} {request.path}"
