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

from rules.addresses import Address, normalize, why_not_public
from rules.attempt import UNKNOWN_CALLER, Attempt, Caller, Protocol
from rules.decision import Decision, RequiredApproval
from rules.matching.index import NO_STANDING, Candidates, Index, RequestNeeds, Standing
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
from rules.names import HostName
from rules.paths import readings
from rules.ports import LAST_PORT, UNSEEN, WELL_KNOWN, Ports
from rules.rule import Rule
from rules.sandbox import NO_SANDBOX_FLOOR, NO_SANDBOX_SETTINGS, Command, SandboxFloor, SandboxSettings
from rules.secrets import Secret
from rules.settings import ProxyDestination, Settings, Upstream
from rules.verdicts import LayerKind, Mode, Outcome, Reason, Verdict

_TLS_PORT: Final = 443  # of TLS over TCP, and of QUIC over UDP
_MOST_HINTED: Final = 1024
_ANSWERED: Final = frozenset({"A", "AAAA", "HTTPS", "SVCB"})  # wherever a name is let out, the last two with nothing
_REVERSE: Final = (".in-addr.arpa", ".ip6.arpa")
_SPOKEN: Final = (Protocol.TLS, Protocol.HTTP, Protocol.TCP)
_SILENT: Final = (Reason.NO_RULE, Reason.UDP)  # no rule has decided


class Policy:
    """What may leave. Safe to ask from several threads: what is remembered only ever saves work."""

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
        votes: LayerKind | None = None,
        unread: Iterable[str] = (),
    ) -> None:
        """Compile. `authorities` are the certificates (PEM) of rules' `ca`, by path.

        `box` and `commands` are for the caller that runs the task, and decide nothing here. `floor` is what layers
        require of the sandbox. `votes`: the policy is the vote of one layer of that kind. `unread`: why its rule files
        could not be read (`rules.loading.layers`).
        """
        self.rules = tuple(sorted(rules, key=lambda rule: rule.id))
        self.settings = settings or Settings()
        self.sources = tuple(sources)
        self.layers = tuple(sorted(layers, key=lambda layer: layer.name))  # of equal votes the first gives its reason
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
        self._judge = Judge(self.settings, self.revision, votes)
        self._votes = tuple(map(self._vote, self.layers))
        self._agreed: dict[tuple[int, int], tuple[Decision, Decision, Decision]] = {}  # two votes, and what they make

    def __getstate__(self) -> dict[str, object]:
        """Give what a copy in another process is made of: nothing remembered, which is filed by where objects lie."""
        return {**self.__dict__, "_hinted": {}, "_agreed": {}}

    def epoch(self, at: date | None) -> int:
        """Count how many of the days that are some rule's last have passed; None, an unknown day: all.

        Whatever remembers decisions has to remember this with them.
        """
        return len(self._ends) if at is None else bisect_left(self._ends, at)

    def decide(self, attempt: Attempt) -> Decision:
        """Decide one attempt: a connection, or a request on it."""
        decision = self._before_rules(attempt) or self._decide(self._plan(attempt), attempt)
        if self._votes:
            decision = self._apply_votes(decision, attempt)
            if decision.pattern is not None and self._logs_full_path(attempt):
                decision = decision._replace(pattern=None)
        if not self._secret_hosts or decision.inspect or attempt.protocol is not Protocol.TLS:
            return decision
        if (attempt.target, attempt.port) not in self._secret_hosts:
            return decision
        # A secret is put into requests there, and whatever rules say of splicing, nobody can who doesn't read them
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
                here = [Ports(port, port, p) for p in _SPOKEN] if rule.ports is None else rule.ports
                found = found.union(ports.protocol for ports in here if ports.low <= port <= ports.high)
        return found.union(_SPOKEN) if self.settings.mode is Mode.AUDIT else found

    def looks_at(self, target: HostName | Address, port: int) -> RequestNeeds:
        """Return which parts of requests the rules for `target` on `port` look at."""
        return self._index.candidates(target).looks_at(port)

    def leniency(self, target: HostName | Address) -> Leniency:
        """Return the function that ranks findings about `target`; higher allows more."""
        return self._judge.leniencies[self._index.candidates(target).not_public]

    def objecting(self, attempt: Attempt) -> list[Layer]:
        """List the layers whose own vote does not allow `attempt`."""
        votes = zip(self.layers, self._votes, strict=True)
        return [layer for layer, vote in votes if not vote.decide(attempt).passes]

    def _vote(self, layer: Layer) -> "Policy":
        return Policy(layer.rules, self.settings._replace(mode=layer.mode, tls=layer.tls), votes=layer.kind)

    def _apply_votes(self, decision: Decision, attempt: Attempt) -> Decision:
        """Let each layer vote alone; the strictest vote wins."""
        for layer, vote in zip(self.layers, self._votes, strict=True):
            if not rank_decision(decision):
                break  # nothing is stricter
            other = vote.decide(attempt)
            key = id(decision), id(other)  # of objects that are kept with it
            known = self._agreed.get(key)
            if known is None:
                if len(self._agreed) >= _MOST_HINTED:
                    self._agreed.clear()
                merged = stricter_decision(decision, other)._replace(revision=self.revision)
                if merged.reason is Reason.LAYER and not merged.rules and not merged.why:
                    merged = merged._replace(why=f"the layer `{layer.name}` doesn't let this out itself")
                known = self._agreed[key] = decision, other, merged
            decision = known[2]
        return decision

    def _before_rules(self, attempt: Attempt) -> Decision | None:
        """Refuse what no rule is asked about."""
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
        return candidates.plan(attempt.port, attempt.protocol, self._standing(candidates, attempt))

    def _standing(self, candidates: Candidates, attempt: Attempt) -> Standing:
        granted = self._granted(attempt.granted) if attempt.granted else frozenset[Rule]()
        if not candidates.varies and not granted:
            return NO_STANDING
        return candidates.standing(
            self.epoch(attempt.at), attempt.task, attempt.labels, tainted=attempt.tainted, granted=granted
        )

    def _granted(self, digests: frozenset[str]) -> frozenset[Rule]:
        """Find the asks that are granted, and nothing else: what names a rule as it was yesterday names none."""
        if self._by_digest is None:
            self._by_digest = {digest_of(rule): rule for rule in self.rules if rule.action is Verdict.ASK}
        known = self._by_digest
        return frozenset(known[digest] for digest in digests if digest in known)

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
        for each in (self, *self._votes):
            if not each.decide(attempt).allows:
                return None  # it is held, or denied, whatever its address
            here = each.decide_resolved(attempt.target, address, attempt)
            found = here if found is None else stricter_decision(found, here)
        return found._replace(revision=self.revision) if found is not None and found.needs_approval else None

    def decide_resolved(self, name: HostName, address: Address, attempt: Attempt) -> Decision:
        """Decide by the rules that remain once the address is known. Layers vote by themselves."""
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
        known = plan.judged.get(finding)
        if known is None:
            decision = self._judge.on_request(finding, plan)
            hint = hint_for_request(plan, request, paths[0], length) if finding.verdict is None else None
            known = plan.judged[finding] = decision, hint
        decision, hint = known
        if finding.verdict is not None or finding.expired or self._judge.layer is not None:
            return decision
        if hint is None:
            return self._hinted_for((plan, finding, attempt.target), known, attempt)
        # Made anew as fast as found again, and each request of a task may have a path of its own: not kept.
        return decision._replace(nearest=describe_nearest(hint, attempt))

    def _decide_connection(self, plan: Plan, attempt: Attempt) -> Decision:
        known = plan.on_connection
        if known is None:
            finding = plan.connection(self._judge.leniencies[plan.not_public])
            decision = self._judge.on_connection(finding, plan, attempt)
            known = plan.on_connection = decision, hint_for_connection(plan)
        if known[0].reason not in _SILENT and (known[0].rules or not plan.own):
            return known[0]
        return self._hinted_for((plan, attempt.target, attempt.port), known, attempt)

    def _hinted_for(self, asked: tuple[object, ...], known: tuple[Decision, Hint | None], attempt: Attempt) -> Decision:
        hinted = self._hinted.get(asked)
        if hinted is None:
            if len(self._hinted) >= _MOST_HINTED:
                self._hinted.clear()
            hinted = self._hinted[asked] = self._with_hint(*known, attempt)
        return hinted

    def _with_hint(self, decision: Decision, hint: Hint | None, attempt: Attempt) -> Decision:
        """Give what no rule decides the rule that came nearest."""
        if hint is None and isinstance(attempt.target, HostName):
            hint = hint_for_name(self._index, attempt.target)
        return decision if hint is None else decision._replace(nearest=describe_nearest(hint, attempt))

    def _logs_full_path(self, attempt: Attempt) -> bool:
        """Whether a layer's rule says so, and none of a layer says less: other files have no say then."""
        votes = [vote.decide(attempt) for vote in self._votes]
        return any(vote.logs_full_path for vote in votes) and all(vote.pattern is None for vote in votes)

    def decide_name(self, name: HostName, caller: Caller = UNKNOWN_CALLER) -> Decision:
        """Decide a DNS lookup: allow if any connection to `name` could pass, on any port and protocol.

        In audit mode a name that only auditing lets out is denied with outcome `would_block`, which passes. If somebody
        would have to be asked about every connection it is `ask`, and passes: the name gets an address that leads to
        the gate, and nobody else learns that it was looked up.
        """
        usual = Attempt(Protocol.TLS, name, _TLS_PORT, None, *caller)
        candidates = self._index.candidates(name)
        standing = self._standing(candidates, usual)
        known = candidates.lookups.get(standing)
        if known is None and candidates.rules:
            tried = [usual._replace(protocol=p, port=port) for port in candidates.starts for p in Protocol]
            known = max(map(self.decide, (usual, *tried)), key=rank_decision)
            known = candidates.lookups[standing] = defer_approval(known) if known.needs_approval else known
        return known if known is not None and known.passes else self.decide(usual)

    def dns_types(self, name: HostName, caller: Caller = UNKNOWN_CALLER) -> frozenset[str]:
        """List the record types besides addresses that may be looked up for `name`; none unless rules allow it."""
        named = self.decide_name(name, caller)
        if named.outcome is not Outcome.PASSED or not named.allows:
            return frozenset()
        candidates = self._index.candidates(name)
        attempt = Attempt(Protocol.TLS, name, _TLS_PORT, None, *caller)
        found = candidates.dns_types(self._standing(candidates, attempt))
        ceilings = [vote for vote in self._votes if vote.is_ceiling]
        return found.intersection(*(vote.dns_types(name, caller) for vote in ceilings))

    @property
    def is_ceiling(self) -> bool:
        """Whether this is the vote of a layer whose silence denies."""
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
        if not decision.allows:  # it would leave the gate, and lookups are nothing that anybody is asked about
            return decision._replace(
                verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=Reason.APPROVAL_UNAVAILABLE, approval=()
            )
        return self._judge.refusal(Reason.DNS_TYPE, inspect=False)

    def check_address(  # noqa: PLR0911 - one thing that keeps it from being dialled after another
        self, attempt: Attempt, address: Address | ProxyDestination
    ) -> Reason | None:
        """Return why the gate may not connect to `address` for `attempt`, or None if it may.

        Where attempts go through a proxy that is the one thing that may be dialled for them: `ProxyDestination`.

        With its request the answer is exact. Without one, where rules look at requests, every rule that could let one
        out has to admit the address: which of them will is not known, and each may have its own `resolves_to`.
        """
        refused = self._before_rules(attempt)
        if refused is not None:
            return refused.reason
        target = attempt.target
        upstream = self.upstream_for(attempt)
        if upstream is not None or isinstance(address, ProxyDestination):
            meant = isinstance(address, ProxyDestination) and upstream is not None and address.is_for(attempt, upstream)
            return self._why_not_yet(attempt) if meant else Reason.ADDRESS_NOT_LISTED
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return Reason.NON_PUBLIC_ADDRESS  # another host on every machine
        address = normalize(address)
        if isinstance(target, HostName):
            for each in (self, *self._votes):
                reason = each.why_not_resolved(target, address, attempt)
                if reason is not None:
                    return reason
            kept = self._keeps_to_upstream(attempt) and why_not_public(address) is None
            return Reason.ADDRESS_NOT_LISTED if kept else None
        decision = self.decide(attempt)
        if not decision.allows:
            return _reason_withheld(decision) if decision.rules else Reason.ADDRESS_NOT_LISTED
        return None if normalize(target) == address else Reason.ADDRESS_NOT_LISTED

    def _why_not_yet(self, attempt: Attempt) -> Reason | None:
        """Say whether somebody has to be asked before anything is dialled for it, wherever it goes."""
        decision = self.decide(attempt)
        return _reason_withheld(decision) if decision.needs_approval or decision.verdict is Verdict.ASK else None

    def upstream_for(self, attempt: Attempt) -> Upstream | None:
        """Return the proxy that `attempt` goes through; None: it is dialled directly.

        Where any rule about it looks at addresses, it is: only here can those be known and checked.
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
        """Whether a layer's proxy is gone past by rules of other files alone: those reach no public address so."""
        settings = self.settings
        if settings.upstream is None or not self.layers or settings.upstream_except.includes(attempt.target):
            return False
        layered = {rule for layer in self.layers for rule in layer.rules}
        return layered.isdisjoint(self._looking_at_addresses(attempt))

    def why_not_resolved(self, name: HostName, address: Address, attempt: Attempt) -> Reason | None:
        """Return why the gate may not connect to an address of a name, by the rules that cover the address."""
        before = self.decide(attempt)
        if not before.allows:
            return _reason_withheld(before)
        unresolved = self._plan(attempt)
        resolved = self._plan(attempt, self._index.resolved(name, address))
        decision = self._decide(resolved, attempt)
        exact = attempt.request is not None or not unresolved.looks_at_requests
        if decision.allows and exact:
            return None
        letting_out = [rule for rule in unresolved.rules if rule.allows or rule in unresolved.granted]
        if decision.allows and set(letting_out) <= set(resolved.rules):
            return None
        if decision.rules and not decision.allows:
            return _reason_withheld(decision)
        listed = any(rule.resolves_to is not None for rule in letting_out) or not resolved.not_public
        return Reason.ADDRESS_NOT_LISTED if listed else Reason.NON_PUBLIC_ADDRESS


def _reason_withheld(decision: Decision) -> Reason:
    """Give the reason for which nothing may be dialled; of what is to be asked about that nobody has answered yet."""
    return Reason.APPROVAL_UNAVAILABLE if decision.passes else decision.reason
