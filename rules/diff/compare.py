"""Compares two policies: decides one attempt of each kind under both.

Only attempts covered by a rule that one policy alone has are compared; all others are decided alike. Settings are
compared separately: what no rule decides follows from `mode`, and is not listed by attempt.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from rules.attempt import INSPECTABLE, Attempt, Protocol, Request
from rules.decision import Decision
from rules.diff.regions import (
    EVERYWHERE,
    AddressRegion,
    Atoms,
    Owner,
    PolicySide,
    PortRange,
    SettingChange,
    address_regions,
    changed_protocols,
    describe_layers,
    describe_terms,
    find_atoms,
    port_ranges,
    setting_changes,
)
from rules.diff.sample_attempts import OF_REQUESTS, CallerKind, SampleRequests, sample_callers
from rules.matching.policy import Policy
from rules.matching.signatures import LABELS, Signatures, TooManyError
from rules.ports import ports_could_cover
from rules.rule import Rule
from rules.values.addresses import Address, Network
from rules.values.names import HostName, InvalidNameError
from rules.values.patterns import NamePattern
from rules.verdicts import Mode, Outcome, Reason, Scan, Trust, Verdict

MOST_COMPARED: Final = 250_000  # attempts; the diff says so if it stops here
_ADDRESS_COSTS: Final = 5  # attempts: one with an address is not cached
_UNDECIDED: Final = frozenset({
    Reason.NO_RULE, Reason.DEFAULT_RULE, Reason.APPROVAL_UNAVAILABLE, Reason.UDP, Reason.QUIC,
})  # fmt: skip
_EVERY_NAME: Final = NamePattern.parse("*")
_BY_ADDRESS: Final = frozenset({Reason.RULE, Reason.DEFAULT_RULE, Reason.APPROVAL_UNAVAILABLE})
_COUNTED: Final = ("connections", "requests", "bytes_up", "bytes_down")
AUDITED: Final = "audit"  # allowed and recorded because the mode is audit


class Effect(NamedTuple):
    """What a policy decides on an attempt. `verdict` may also be AUDITED: allowed only by audit mode."""

    verdict: str
    unread: bool = False  # TLS that passes without its requests being seen
    terms: tuple[str, ...] = ()  # what a passing attempt is bound to
    reason: Reason = Reason.GATE_ERROR
    rules: tuple[str, ...] = ()
    by_default: bool = False  # only rules with `default: true` decide, or none

    @property
    def essence(self) -> tuple[object, ...]:
        """What must be equal for two policies to decide alike; for audited attempts also the decision without audit."""
        held_by_ask = self.verdict == AUDITED and self.is_held_by_ask
        return self.verdict, self.unread, self.terms, held_by_ask

    @property
    def is_held_by_ask(self) -> bool:
        """Whether an ask holds it, or would without audit mode."""
        return self.reason is Reason.APPROVAL_UNAVAILABLE

    @property
    def passes(self) -> bool:
        """Whether bytes leave."""
        return self.verdict not in {Verdict.DENY, Verdict.ASK}


class DiffRow(NamedTuple):
    """A kind of attempt that the two policies decide differently. `where` names the kind, by facet."""

    target: frozenset[str] | Network  # the names' patterns that cover it, or the smallest network
    where: dict[str, Any]
    was: Effect
    now: Effect
    attempt: Attempt
    among: dict[str, tuple[Any, ...]]  # all kinds that the rules distinguish, by facet
    address: Address | None = None  # that its name resolves to, where that makes the difference


class PolicyDiff(NamedTuple):
    """All differences between two policies. `complete`: nothing was left out.

    `names` are the kinds of names that were looked at, `whole` the patterns of which every kind was.
    """

    settings: tuple[SettingChange, ...]
    rows: tuple[DiffRow, ...]
    names: tuple[frozenset[str], ...]
    whole: frozenset[str]
    complete: bool

    @property
    def is_empty(self) -> bool:
        """Whether the policies decide alike for certain."""
        return not self.settings and not self.rows and self.complete


def compare(old: Policy, new: Policy, most: int = MOST_COMPARED) -> PolicyDiff:
    """Find what `new` decides otherwise than `old`, with at most so many attempts tried."""
    comparison = _Comparison(old, new, most)
    try:
        comparison.run()
        complete = comparison.whole_lists
    except TooManyError:
        complete = False
    return PolicyDiff(
        setting_changes(old, new), tuple(comparison.rows), tuple(comparison.seen), comparison.whole, complete
    )


class _Comparison:
    def __init__(self, old: Policy, new: Policy, most: int) -> None:
        self.old, self.new = old, new
        self.rows: list[DiffRow] = []
        self.seen: list[frozenset[str]] = []
        self.whole: frozenset[str] = frozenset()
        self._remaining = most
        self._cached_samples: tuple[tuple[Rule, ...], tuple[SampleRequests, list[CallerKind]]] = (
            (),
            (SampleRequests(()), sample_callers(())),
        )
        self._depends_on_taint = old.needs.taint or new.needs.taint
        self._timeouts = old.settings.idle_timeout == new.settings.idle_timeout
        self._defaults = {policy: {rule.id for rule in policy.rules if rule.default} for policy in (old, new)}
        ceilings = describe_layers(old) != describe_layers(new)
        self._atoms: Atoms = find_atoms(old, new, all_changed=ceilings)
        self.whole_lists = not self._atoms.left_out
        self._audited = Mode.AUDIT in {old.settings.mode, new.settings.mode}
        self._holding = [
            network
            for network, owners in self._atoms.networks.items()
            if any(owner.changed and not owner.rule.allows for owner in owners)
        ]
        if self._audited and self._holding:  # names that no rule is about pass, and may have such an address
            self._atoms.names.setdefault(_EVERY_NAME, [])

    def run(self) -> None:
        changed = self._atoms.changed_names
        self.whole = frozenset(name.text for name in changed)
        for names, target in self._names(changed):
            self.seen.append(frozenset(name.text for name in names))
            owners = [owner for name in names for owner in self._atoms.names[name]]
            self._compare_at(self.seen[-1], target, owners)
        for place in address_regions(self._atoms.changed_networks, self._atoms.networks):
            owners = self._about(place.address)
            self._compare_at(place.network, place.address, owners)
        self._dialled()

    def _names(self, required: list[NamePattern] | None) -> Iterator[tuple[list[NamePattern], HostName]]:
        """Yield a name for each combination of patterns; with `required`, only combinations with one of these."""
        patterns, among = list(self._atoms.names), set(required or ())
        numbers = None if required is None else {number for number, name in enumerate(patterns) if name in among}
        if numbers is not None and not numbers:
            return
        walk = Signatures([name.parts for name in patterns], LABELS, numbers)
        for found in walk.find(_is_name):
            yield [patterns[number] for number in found.signature], HostName(".".join(reversed(found.parts)))

    def _about(self, address: Address) -> list[Owner]:
        return [owner for network, owners in self._atoms.networks.items() if address in network for owner in owners]

    def _compare_at(
        self, target_kind: frozenset[str] | Network, target: HostName | Address, owners: Iterable[Owner]
    ) -> None:
        """Compare all kinds of attempts at one target, which exactly the `owners` are about."""
        ruling = [owner for owner in owners if not owner.exempts]
        changed = list(dict.fromkeys(owner.rule for owner in ruling if owner.changed))
        rules = list(dict.fromkeys(owner.rule for owner in ruling))
        listed = isinstance(target, HostName) and any(rule.resolves_to is not None for rule in rules)
        regions = self._resolving(rules) if listed else ()
        # Where defaults alone differ and look at no request, one attempt that they decide stands for all.
        alike = all(rule.default for rule in changed) and not any(r.default and r.looks_at_requests for r in rules)
        for stretch in port_ranges(rules):
            for protocol in changed_protocols(changed, stretch):
                covering = [rule for rule in rules if ports_could_cover(rule.ports, stretch.low, protocol)]
                samples, callers = self._samples_for(tuple(covering))
                among = {**samples.among, **_describe_caller(callers)}
                for caller_kind in callers:
                    where = {"ports": stretch, "protocol": protocol, **dict(caller_kind.where)}
                    before = len(self.rows)
                    if samples.asks and protocol in INSPECTABLE:
                        for more, request in samples.within(changed, protocol, target, stretch.low):
                            attempt = _attempt(target, stretch, protocol, caller_kind, request)
                            self._compare(target_kind, {**where, **more}, attempt, regions, among)
                            if alike and len(self.rows) > before:
                                break
                    if len(self.rows) == before:
                        self._compare(
                            target_kind, where, _attempt(target, stretch, protocol, caller_kind), regions, among
                        )

    def _samples_for(self, rules: tuple[Rule, ...]) -> tuple[SampleRequests, list[CallerKind]]:
        """Return sample requests and callers for all that these rules distinguish; the last result is cached."""
        if self._cached_samples[0] != rules:
            self._cached_samples = rules, (SampleRequests(rules), sample_callers(rules))
        return self._cached_samples[1]

    def _compare(
        self,
        target_kind: frozenset[str] | Network,
        where: dict[str, Any],
        attempt: Attempt,
        regions: Iterable[AddressRegion],
        among: dict[str, tuple[Any, ...]],
    ) -> None:
        self._spend()
        was, now = self._standing(self.old, attempt), self._standing(self.new, attempt)
        if was.essence != now.essence:
            if not self._follows_from_settings(was, now):
                self._add_row(DiffRow(target_kind, where, was, now, attempt, among))
        elif was.passes:
            self._compare_dialled(target_kind, where, attempt, regions, (was, now), among)

    def _add_row(self, row: DiffRow) -> None:
        """Record a difference; where only defaults decide, for any request."""
        if row.was.by_default and row.now.by_default:
            about = {key: value for key, value in row.where.items() if key not in OF_REQUESTS}
            row = row._replace(where={"rest": True, **about})
            last = self.rows[-1] if self.rows else None
            if last is not None and (last.target, last.where, last.was, last.now) == (row[:4]):
                return
        self.rows.append(row)

    def _compare_dialled(  # noqa: PLR0917  by position, as its one idea is a row
        self,
        target_kind: frozenset[str] | Network,
        where: dict[str, Any],
        attempt: Attempt,
        regions: Iterable[AddressRegion],
        standings: tuple[Effect, Effect],
        among: dict[str, tuple[Any, ...]],
    ) -> bool:
        """Compare an attempt that both policies allow, for each address that its name may resolve to."""
        found = False
        for place in regions:
            self._spend(_ADDRESS_COSTS)
            was, now = (
                self._dialling(policy, attempt, place.address, standing)
                for policy, standing in zip((self.old, self.new), standings, strict=True)
            )
            if was.passes is not now.passes:
                found = True
                was, now = (
                    self._apply_name_rules(standing, side, place.address)
                    for standing, side in ((was, PolicySide.OLD), (now, PolicySide.NEW))
                )
                self.rows.append(
                    DiffRow(target_kind, {**where, "address": place.network}, was, now, attempt, among, place.address)
                )
        return found

    def _apply_name_rules(self, standing: Effect, side: PolicySide, address: Address) -> Effect:
        """Add the rules that block an address to an effect that they decide."""
        if standing.passes or standing.reason not in _BY_ADDRESS:
            return standing
        about = [owner for owner in self._about(address) if owner.side is side and not owner.exempts]
        return standing._replace(rules=tuple(sorted(o.rule.id for o in about if not o.rule.allows)))

    def _resolving(self, rules: list[Rule]) -> list[AddressRegion]:
        """Find an address for each network that these rules list, and one that no rule lists."""
        listed = {network for rule in rules for network in rule.resolves_to or ()}
        every = [*listed, *self._atoms.networks]
        public = next(address_regions(EVERYWHERE[:1], every), None)
        return [*([public] if public else []), *address_regions(listed, every)]

    def _dialled(self) -> None:
        """Compare the addresses that names may resolve to, where denies or asks about addresses differ."""
        if not self._holding:
            return
        regions = list(address_regions(self._holding, self._atoms.networks))
        self.whole = frozenset(name.text for name in self._atoms.names)
        about = {place: [owner.rule for owner in self._about(place.address)] for place in regions}
        for names, target in self._names(None):
            target_kind = frozenset(name.text for name in names)
            self.seen.append(target_kind)
            rules = [owner.rule for name in names for owner in self._atoms.names[name] if not owner.exempts]
            self._compare_name_addresses(
                target_kind, target, rules, regions, [rule for each in about.values() for rule in each]
            )

    def _compare_name_addresses(
        self,
        target_kind: frozenset[str],
        target: HostName,
        rules: list[Rule],
        regions: list[AddressRegion],
        holding: list[Rule],
    ) -> None:
        everybody = list(dict.fromkeys((*rules, *holding)))
        opening = [rule for rule in rules if rule.allows or rule.default]
        for stretch in port_ranges(everybody):
            may_pass = frozenset(Protocol if self._audited else changed_protocols(opening, stretch))
            for protocol in may_pass.intersection(changed_protocols(holding, stretch)):
                covering = [rule for rule in everybody if ports_could_cover(rule.ports, stretch.low, protocol)]
                samples, callers = self._samples_for(tuple(covering))
                for caller_kind in callers:
                    where = {"ports": stretch, "protocol": protocol, **dict(caller_kind.where)}
                    for request in self._sample_requests(
                        samples, holding, _attempt(target, stretch, protocol, caller_kind)
                    ):
                        attempt = _attempt(target, stretch, protocol, caller_kind, request)
                        standings = self._standing(self.old, attempt), self._standing(self.new, attempt)
                        both = all(standing.passes for standing in standings)
                        if both and self._compare_dialled(
                            target_kind, where, attempt, regions, standings, _describe_caller(callers)
                        ):
                            break

    def _sample_requests(
        self, samples: SampleRequests, holding: list[Rule], attempt: Attempt
    ) -> Iterator[Request | None]:
        yield None
        if samples.asks and attempt.protocol in INSPECTABLE:
            for _, request in samples.within(holding, attempt.protocol, attempt.target, attempt.port):
                yield request

    def _spend(self, attempts: int = 1) -> None:
        self._remaining -= attempts
        if self._remaining < 0:
            raise TooManyError

    def _standing(self, policy: Policy, attempt: Attempt) -> Effect:
        decision = policy.decide(attempt)
        verdict = _verdict_of(decision)
        # Held on the connection or on the request: the same answer
        reason = Reason.APPROVAL_UNAVAILABLE if verdict is Verdict.ASK else decision.reason
        unread = attempt.protocol is Protocol.TLS and attempt.request is None and decision.passes
        return Effect(
            verdict,
            unread and not decision.inspect,
            self._terms(decision) if verdict not in {Verdict.DENY, AUDITED} else (),
            reason,
            decision.rules,
            self._defaults[policy].issuperset(decision.rules) and reason in _UNDECIDED,
        )

    def _dialling(self, policy: Policy, attempt: Attempt, address: Address, standing: Effect) -> Effect:
        reason = policy.check_address(attempt, address)
        return standing if reason is None else Effect(Verdict.DENY, reason=reason)

    def _terms(self, decision: Decision) -> tuple[str, ...]:
        """List the terms of a decision, besides its verdict."""
        terms = [f"idle_timeout {decision.idle_timeout:g}s"] if self._timeouts and decision.may_send_now else []
        for limits in {limits for _, limits in decision.limits}:
            counts = [f"{getattr(limits, key):,} {key}" for key in _COUNTED if getattr(limits, key) is not None]
            window = "" if limits.window is None else f" in {limits.window:g}s"
            terms.append(f"at most {', '.join(counts)}{window} per {limits.per}")
        terms += [f"approval {describe_terms(approval)}" for approval in {asks.terms for asks in decision.approval}]
        terms += [f"ca {path}" for path in decision.ca]
        terms += [f"trust {decision.trust}"] if self._depends_on_taint and decision.trust is Trust.UNTRUSTED else []
        terms += [f"scan {decision.scan}"] if decision.inspect and decision.scan is not Scan.FLAG else []
        return tuple(sorted(terms))

    def _follows_from_settings(self, was: Effect, now: Effect) -> bool:
        """Whether nothing but the mode, or how audited TLS is passed, makes the difference."""
        old, new = self.old.settings, self.new.settings
        if was.verdict == now.verdict:
            return was.verdict == AUDITED and old.tls is not new.tls
        audited = {was.verdict, now.verdict} - {Verdict.DENY, Verdict.ASK} == {AUDITED}
        alike = was.is_held_by_ask is now.is_held_by_ask
        return old.mode is not new.mode and audited and was.by_default and now.by_default and alike


def _attempt(
    target: HostName | Address,
    stretch: PortRange,
    protocol: Protocol,
    caller_kind: CallerKind,
    request: Request | None = None,
) -> Attempt:
    return Attempt(protocol, target, stretch.low, request, *caller_kind.caller)


def _describe_caller(callers: list[CallerKind]) -> dict[str, tuple[Any, ...]]:
    """Return all callers and days that the rules distinguish, by facet."""
    found: dict[str, dict[str, None]] = {}
    for caller_kind in callers:
        for key, value in caller_kind.where:
            found.setdefault(key, {})[value] = None
    return {key: tuple(values) for key, values in found.items()}


def _verdict_of(decision: Decision) -> str:
    if decision.outcome is Outcome.WOULD_BLOCK:
        return AUDITED
    return Verdict.ASK if decision.needs_approval else decision.verdict


def _is_name(parts: tuple[str, ...]) -> bool:
    try:
        return bool(parts) and bool(HostName.parse(".".join(reversed(parts))))
    except InvalidNameError:
        return False
