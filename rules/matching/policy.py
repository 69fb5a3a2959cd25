"""Compiled policy: every rule of every file as one pool that decides attempts. Immutable, and pure (invariant 10).

Protocol and address checks come first, then the strictest rule that matches, and audit mode last, over nothing but what
no rule or a default rule decided. Whatever this module doesn't know, it denies.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from rules.attempt import UNKNOWN_CALLER, Attempt, Caller, Protocol
from rules.decision import Decision, RequiredApproval
from rules.matching.index import NO_CALLER_KEY, CallerKey, Candidates, Index, RequestNeeds
from rules.matching.judge import (
    Judge,
    defer_approval,
    describe_nearest,
    hint_for_connection,
    hint_for_name,
    hint_for_request,
)
from rules.matching.layers import Layer, rank_decision, stricter_decision
from rules.matching.needs import Needs
from rules.matching.plan import Hint, Leniency, Plan
from rules.matching.requests import url_length
from rules.matching.revision import digest_of, revision_of
from rules.ports import LAST_PORT, UNSEEN, WELL_KNOWN, Ports
from rules.rule import Rule
from rules.sandbox import NO_SANDBOX_FLOOR, NO_SANDBOX_SETTINGS, Command, SandboxFloor, SandboxSettings
from rules.secrets import Secret
from rules.settings import ProxyDestination, Settings, Upstream
from rules.values.addresses import Address, normalize, why_not_public
from rules.values.names import HostName
from rules.values.paths import readings
from rules.verdicts import LayerKind, Mode, Outcome, Reason, Verdict

_TLS_PORT: Final = 443  # of TLS over TCP, and of QUIC over UDP
_MOST_HINTED: Final = 1024
_ANSWERED: Final = frozenset({"A", "AAAA", "HTTPS", "SVCB"})  # for every allowed name; the last two with no records
_REVERSE: Final = (".in-addr.arpa", ".ip6.arpa")
_SPOKEN: Final = (Protocol.TLS, Protocol.HTTP, Protocol.TCP)
_SILENT: Final = (Reason.NO_RULE, Reason.UDP)  # no rule has decided


class Policy:
    """Compiled policy: decides attempts. Thread-safe: its caches never change an answer."""

    def __init__(
        self,
        rules: Iterable[Rule],
        settings: Settings | None = None,
        sources: Iterable[Path] = (),
        *,
        layers: Iterable[Layer] = (),
        authorities: Mapping[str, bytes] | None = None,
        secrets: Iterable[Secret] = (),
        box: SandboxSettings = NO_SANDBOX_SETTINGS,
        floor: SandboxFloor = NO_SANDBOX_FLOOR,
        commands: Iterable[Command] = (),
        layer_kind: LayerKind | None = None,
        unread: Iterable[str] = (),
    ) -> None:
        """Compile. `authorities` are the certificates (PEM) of rules' `ca`, by path.

        `box` and `commands` are for the caller that runs the task; `decide` doesn't use them. `floor` is what layers
        require of the sandbox. `layer_kind`: this is the policy of one layer of that kind. `unread`: why its rule files
        could not be read (`rules.loading.layers`).
        """
        self.rules = tuple(sorted(rules, key=lambda rule: rule.id))
        self.settings = settings or Settings()
        self.sources = tuple(sources)
        self.layers = tuple(sorted(layers, key=lambda layer: layer.name))  # of equal decisions the first counts
        voting = (rule for layer in self.layers for rule in layer.rules)
        self.rule_ids = tuple(dict.fromkeys(rule.id for rule in (*self.rules, *voting)))
        self.authorities: Mapping[str, bytes] = authorities or {}
        self.secrets = tuple(sorted(secrets, key=lambda secret: secret.id))
        self.box = box
        self.floor = floor
        self.commands = tuple(sorted(commands, key=lambda command: command.cite))
        self.unread = tuple(unread)
        self.needs = Needs(self.rules, self.settings, self.secrets, self.commands, self.layers)
        self._secret_hosts = frozenset(place for secret in self.secrets for place in secret.hosts)
        self.revision = revision_of(
            self.rules, self.settings, self.layers, self.secrets, boxes=(box, floor.box), commands=self.commands
        )
        self._ends = sorted({rule.until for rule in self.rules if rule.until is not None})
        self.for_matters = any(
            rule.selector is not None or any(exemption.selector is not None for exemption in rule.excepts)
            for rule in self.rules
        )
        self._by_digest: dict[str, Rule] | None = None  # asks, once something is granted
        self._index = Index(self.rules, {day: number for number, day in enumerate(self._ends, 1)})
        self._hinted: dict[tuple[object, ...], Decision] = {}  # blocked clients try again and again
        self._judge = Judge(self.settings, self.revision, layer_kind)
        self._layer_policies = tuple(map(self._compile_layer, self.layers))
        self._merged: dict[tuple[int, int], tuple[Decision, Decision, Decision]] = {}  # by ids

    def __getstate__(self) -> dict[str, object]:
        """Pickle without the caches, whose keys are ids of objects of this process."""
        return {**self.__dict__, "_hinted": {}, "_merged": {}}

    def epoch(self, at: date | None) -> int:
        """Count how many of the days that are some rule's last have passed; None, an unknown day: all.

        A cache of decisions must have the epoch in its key.
        """
        return len(self._ends) if at is None else bisect_left(self._ends, at)

    def decide(self, attempt: Attempt) -> Decision:
        """Decide one attempt: a connection, or a request on it."""
        decision = self._decide_without_rules(attempt) or self._decide(self._plan(attempt), attempt)
        if self._layer_policies:
            decision = self._apply_layers(decision, attempt)
            if decision.pattern is not None and self._logs_full_path(attempt):
                decision = decision._replace(pattern=None)
        if not self._secret_hosts or decision.inspect or attempt.protocol is not Protocol.TLS:
            return decision
        if (attempt.target, attempt.port) not in self._secret_hosts:
            return decision
        # The gate puts a secret into requests there, so it must inspect them, even with `tls: splice`
        decision = decision._replace(inspect=True)
        return defer_approval(decision) if decision.needs_approval else decision

    def protocols(self, target: HostName | Address, port: int) -> frozenset[Protocol]:
        """List the protocols that rules which allow or ask expect at `target` on `port`.

        In audit mode anything over TCP may be. An ask about every port expects on each what is usual there.
        """
        found = frozenset[Protocol]()
        for candidate in self._index.candidates(target).rules:
            rule = candidate.rule
            if rule.action is Verdict.ASK and rule.ports is None:
                usual = WELL_KNOWN.get(port)
                found = found.union(_SPOKEN if usual is None else (usual,))
            elif rule.action is not Verdict.DENY or (rule.default and (rule.mode or self.settings.mode) is Mode.AUDIT):
                ports_of_rule = [Ports(port, port, p) for p in _SPOKEN] if rule.ports is None else rule.ports
                found = found.union(ports.protocol for ports in ports_of_rule if ports.low <= port <= ports.high)
        return found.union(_SPOKEN) if self.settings.mode is Mode.AUDIT else found

    def looks_at(self, target: HostName | Address, port: int) -> RequestNeeds:
        """Return which parts of requests the rules for `target` on `port` look at."""
        return self._index.candidates(target).looks_at(port)

    def leniency(self, target: HostName | Address) -> Leniency:
        """Return the function that ranks findings about `target`; higher allows more."""
        return self._judge.leniencies[self._index.candidates(target).not_public]

    def objecting(self, attempt: Attempt) -> list[Layer]:
        """List the layers that don't allow `attempt` by themselves."""
        pairs = zip(self.layers, self._layer_policies, strict=True)
        return [layer for layer, layer_policy in pairs if not layer_policy.decide(attempt).passes]

    def _compile_layer(self, layer: Layer) -> "Policy":
        return Policy(layer.rules, self.settings._replace(mode=layer.mode, tls=layer.tls), layer_kind=layer.kind)

    def _apply_layers(self, decision: Decision, attempt: Attempt) -> Decision:
        """Let each layer decide alone; the strictest decision wins."""
        for layer, layer_policy in zip(self.layers, self._layer_policies, strict=True):
            if not rank_decision(decision):
                break  # nothing is stricter
            other = layer_policy.decide(attempt)
            key = id(decision), id(other)  # ids stay valid because the cache keeps the objects
            cached = self._merged.get(key)
            if cached is None:
                if len(self._merged) >= _MOST_HINTED:
                    self._merged.clear()
                merged = stricter_decision(decision, other)._replace(revision=self.revision)
                if merged.reason is Reason.LAYER and not merged.rules and not merged.why:
                    merged = merged._replace(why=f"the layer `{layer.name}` does not allow this itself")
                cached = self._merged[key] = decision, other, merged
            decision = cached[2]
        return decision

    def _decide_without_rules(self, attempt: Attempt) -> Decision | None:
        """Refuse attempts that no rule can allow."""
        port = attempt.port
        if attempt.protocol is Protocol.UDP and port == _TLS_PORT:
            return self._judge.refusal(Reason.QUIC, inspect=False)
        if not 0 < port <= LAST_PORT or (attempt.protocol in UNSEEN and attempt.request is not None):
            return self._judge.refusal(Reason.PROTOCOL_MISMATCH, inspect=False)
        target = attempt.target
        if isinstance(target, IPv6Address) and target.scope_id is not None:
            return self._judge.refusal(Reason.NON_PUBLIC_ADDRESS, inspect=False)  # another host on every machine
        return None

    def _plan(self, attempt: Attempt, candidates: Candidates | None = None) -> Plan:
        candidates = candidates or self._index.candidates(attempt.target)
        if not candidates.varies and not attempt.granted:
            return candidates.plan(attempt.port, attempt.protocol)
        return candidates.plan(attempt.port, attempt.protocol, self._caller_key(candidates, attempt))

    def _caller_key(self, candidates: Candidates, attempt: Attempt) -> CallerKey:
        granted = self._granted(attempt.granted) if attempt.granted else frozenset[Rule]()
        if not candidates.varies and not granted:
            return NO_CALLER_KEY
        return candidates.caller_key(
            self.epoch(attempt.at), attempt.task, attempt.labels, tainted=attempt.tainted, granted=granted
        )

    def _granted(self, digests: frozenset[str]) -> frozenset[Rule]:
        """Find the asks that are granted, and nothing else: what names a rule as it was yesterday names none."""
        if self._by_digest is None:
            self._by_digest = {digest_of(rule): rule for rule in self.rules if rule.action is Verdict.ASK}
        cached = self._by_digest
        return frozenset(cached[digest] for digest in digests if digest in cached)

    def spells_out(self, target: HostName | Address, asks: Iterable[RequiredApproval]) -> bool:
        """Whether one of the asking rules has the exact target, so that a lookup can't carry data of the task."""
        if not isinstance(target, HostName):
            return True
        asking = self._granted(frozenset(each.digest for each in asks))
        return any(name.below is None and name.text == target for rule in asking for name in rule.names)

    def held_at(self, attempt: Attempt, address: Address) -> Decision | None:
        """Decide a name at one of its addresses if asks hold it there; None if no approval would allow it."""
        if not isinstance(attempt.target, HostName):
            return None
        address, found = normalize(address), None
        for each in (self, *self._layer_policies):
            if not each.decide(attempt).may_send_now:
                return None  # held or denied at any address
            ports_of_rule = each.decide_resolved(attempt.target, address, attempt)
            found = ports_of_rule if found is None else stricter_decision(found, ports_of_rule)
        return found._replace(revision=self.revision) if found is not None and found.needs_approval else None

    def decide_resolved(self, name: HostName, address: Address, attempt: Attempt) -> Decision:
        """Decide by the rules that remain once the address is known. Layers decide separately."""
        return self._decide(self._plan(attempt, self._index.resolved(name, address)), attempt)

    def _decide(self, plan: Plan, attempt: Attempt) -> Decision:
        request = attempt.request
        if request is None:
            return self._decide_connection(plan, attempt)
        paths = readings(request.path)
        if not paths:
            return self._judge.refusal(Reason.AMBIGUOUS_PATH)
        length = url_length(attempt.protocol, attempt.target, attempt.port, request.path) if plan.needs_length else 0
        leniency = self._judge.leniencies[plan.not_public]
        if len(paths) == 1:
            finding = plan.request(request, paths[0], length, leniency)
        else:  # the strictest reading stands
            finding = min((plan.request(request, path, length, leniency) for path in paths), key=leniency)
        cached = plan.decisions.get(finding)
        if cached is None:
            decision = self._judge.on_request(finding, plan)
            hint = hint_for_request(plan, request, paths[0], length) if finding.verdict is None else None
            cached = plan.decisions[finding] = decision, hint
        decision, hint = cached
        if finding.verdict is not None or finding.expired or self._judge.layer is not None:
            return decision
        if hint is None:
            return self._hinted_for((plan, finding, attempt.target), cached, attempt)
        # Not cached: building it is as fast as a lookup, and a task can send endlessly many paths.
        return decision._replace(nearest=describe_nearest(hint, attempt))

    def _decide_connection(self, plan: Plan, attempt: Attempt) -> Decision:
        cached = plan.connection_decision
        if cached is None:
            finding = plan.connection(self._judge.leniencies[plan.not_public])
            decision = self._judge.on_connection(finding, plan, attempt)
            cached = plan.connection_decision = decision, hint_for_connection(plan)
        if cached[0].reason not in _SILENT and (cached[0].rules or not plan.own):
            return cached[0]
        return self._hinted_for((plan, attempt.target, attempt.port), cached, attempt)

    def _hinted_for(
        self, asked: tuple[object, ...], cached: tuple[Decision, Hint | None], attempt: Attempt
    ) -> Decision:
        hinted = self._hinted.get(asked)
        if hinted is None:
            if len(self._hinted) >= _MOST_HINTED:
                self._hinted.clear()
            hinted = self._hinted[asked] = self._with_hint(*cached, attempt)
        return hinted

    def _with_hint(self, decision: Decision, hint: Hint | None, attempt: Attempt) -> Decision:
        """Add the nearest rule to a decision that no rule made."""
        if hint is None and isinstance(attempt.target, HostName):
            hint = hint_for_name(self._index, attempt.target)
        return decision if hint is None else decision._replace(nearest=describe_nearest(hint, attempt))

    def _logs_full_path(self, attempt: Attempt) -> bool:
        """Whether a layer says `log: full` and no layer says `log: pattern`; other files don't count then."""
        decisions = [layer_policy.decide(attempt) for layer_policy in self._layer_policies]
        return any(layer_policy.logs_full_path for layer_policy in decisions) and all(
            layer_policy.pattern is None for layer_policy in decisions
        )

    def decide_name(self, name: HostName, caller: Caller = UNKNOWN_CALLER) -> Decision:
        """Decide a DNS lookup: allow if any connection to `name` could pass, on any port and protocol.

        In audit mode a name that only auditing allows is denied with outcome `would_block`, which passes. If every
        connection would need an approval, the verdict is `ask`, which passes: the gate answers with an address of its
        own, and sends no lookup to a name server.
        """
        usual = Attempt(Protocol.TLS, name, _TLS_PORT, None, *caller)
        candidates = self._index.candidates(name)
        caller_key = self._caller_key(candidates, usual)
        cached = candidates.lookups.get(caller_key)
        if cached is None and candidates.rules:
            tried = [usual._replace(protocol=p, port=port) for port in candidates.starts for p in Protocol]
            cached = max(map(self.decide, (usual, *tried)), key=rank_decision)
            cached = candidates.lookups[caller_key] = defer_approval(cached) if cached.needs_approval else cached
        return cached if cached is not None and cached.passes else self.decide(usual)

    def dns_types(self, name: HostName, caller: Caller = UNKNOWN_CALLER) -> frozenset[str]:
        """List the record types besides addresses that may be looked up for `name`; none unless rules allow it."""
        named = self.decide_name(name, caller)
        if named.outcome is not Outcome.PASSED or not named.may_send_now:
            return frozenset()
        candidates = self._index.candidates(name)
        attempt = Attempt(Protocol.TLS, name, _TLS_PORT, None, *caller)
        found = candidates.dns_types(self._caller_key(candidates, attempt))
        ceilings = [layer_policy for layer_policy in self._layer_policies if layer_policy.is_ceiling]
        return found.intersection(*(layer_policy.dns_types(name, caller) for layer_policy in ceilings))

    @property
    def is_ceiling(self) -> bool:
        """Whether this is the policy of a ceiling layer, which denies what it doesn't allow."""
        return self._judge.layer is LayerKind.CEILING

    def decide_record(self, name: HostName, record: str, caller: Caller = UNKNOWN_CALLER) -> Decision:
        """Decide a lookup of records of a type (`A`, `TXT` ...): only those that a rule lists leave the gate."""
        if name.endswith(_REVERSE):
            return self._judge.refusal(Reason.DNS_TYPE, inspect=False)
        decision = self.decide_name(name, caller)
        if not decision.passes:
            return decision._replace(reason=Reason.DNS_DENIED) if decision.reason is Reason.NO_RULE else decision
        if record in _ANSWERED or record in self.dns_types(name, caller):
            return decision
        if not decision.may_send_now:  # it would leave the gate, and lookups are never held for approval
            return decision._replace(
                verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=Reason.APPROVAL_UNAVAILABLE, approval=()
            )
        return self._judge.refusal(Reason.DNS_TYPE, inspect=False)

    def check_address(  # noqa: PLR0911 - one thing that keeps it from being dialled after another
        self, attempt: Attempt, address: Address | ProxyDestination
    ) -> Reason | None:
        """Return why the gate may not connect to `address` for `attempt`, or None if it may.

        An attempt that goes through a proxy may only be dialled to that proxy: `ProxyDestination`.

        With its request the answer is exact. Without one, where rules look at requests, every rule that could allow one
        must admit the address: which of them will is not known yet, and each may have its own `resolves_to`.
        """
        refused = self._decide_without_rules(attempt)
        if refused is not None:
            return refused.reason
        target = attempt.target
        upstream = self.upstream_for(attempt)
        if upstream is not None or isinstance(address, ProxyDestination):
            meant = isinstance(address, ProxyDestination) and upstream is not None and address.is_for(attempt, upstream)
            return self._reason_to_ask(attempt) if meant else Reason.ADDRESS_NOT_LISTED
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return Reason.NON_PUBLIC_ADDRESS  # another host on every machine
        address = normalize(address)
        if isinstance(target, HostName):
            for each in (self, *self._layer_policies):
                reason = each.why_not_resolved(target, address, attempt)
                if reason is not None:
                    return reason
            must_use_proxy = self._keeps_to_upstream(attempt) and why_not_public(address) is None
            return Reason.ADDRESS_NOT_LISTED if must_use_proxy else None
        decision = self.decide(attempt)
        if not decision.may_send_now:
            return _reason_to_wait(decision) if decision.rules else Reason.ADDRESS_NOT_LISTED
        return None if normalize(target) == address else Reason.ADDRESS_NOT_LISTED

    def _reason_to_ask(self, attempt: Attempt) -> Reason | None:
        """Return the reason if `attempt` needs an approval before anything is dialled, wherever it goes."""
        decision = self.decide(attempt)
        return _reason_to_wait(decision) if decision.needs_approval or decision.verdict is Verdict.ASK else None

    def upstream_for(self, attempt: Attempt) -> Upstream | None:
        """Return the proxy that `attempt` goes through; None: it is dialled directly.

        It is dialled directly if any rule about it looks at addresses: only the gate can check those.
        """
        settings = self.settings
        if settings.upstream is None or settings.upstream_except.includes(attempt.target):
            return None
        return None if any(self._looking_at_addresses(attempt)) else settings.upstream

    def _looking_at_addresses(self, attempt: Attempt) -> Iterator[Rule]:
        if isinstance(attempt.target, HostName):
            plan = self._plan(attempt)
            about = (*plan.rules, *plan.possible, *plan.deferred)
            yield from (rule for rule in about if rule.looks_at_addresses)

    def _keeps_to_upstream(self, attempt: Attempt) -> bool:
        """Whether only rules of other files bypass a layer's proxy: those reach no public address directly."""
        settings = self.settings
        if settings.upstream is None or not self.layers or settings.upstream_except.includes(attempt.target):
            return False
        layered = {rule for layer in self.layers for rule in layer.rules}
        return layered.isdisjoint(self._looking_at_addresses(attempt))

    def why_not_resolved(self, name: HostName, address: Address, attempt: Attempt) -> Reason | None:
        """Return why the gate may not connect to an address of a name, by the rules that cover the address."""
        before = self.decide(attempt)
        if not before.may_send_now:
            return _reason_to_wait(before)
        unresolved = self._plan(attempt)
        resolved = self._plan(attempt, self._index.resolved(name, address))
        decision = self._decide(resolved, attempt)
        exact = attempt.request is not None or not unresolved.looks_at_requests
        if decision.may_send_now and exact:
            return None
        allowing = [rule for rule in unresolved.rules if rule.allows or rule in unresolved.granted]
        if decision.may_send_now and set(allowing) <= set(resolved.rules):
            return None
        if decision.rules and not decision.may_send_now:
            return _reason_to_wait(decision)
        listed = any(rule.resolves_to is not None for rule in allowing) or not resolved.not_public
        return Reason.ADDRESS_NOT_LISTED if listed else Reason.NON_PUBLIC_ADDRESS


def _reason_to_wait(decision: Decision) -> Reason:
    """Return the reason why nothing may be dialled; `approval_unavailable` while an approval is pending."""
    return Reason.APPROVAL_UNAVAILABLE if decision.passes else decision.reason
