"""The compiled policy: every rule of every file as one pool that answers attempts. Immutable, and pure (invariant 10).

Protocol and address checks come first, then the strictest rule that matches, and audit mode last, over nothing but what
no rule or a default rule decided. Whatever this module doesn't know, it denies.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from rules.addresses import Address, normal
from rules.attempt import Attempt, Protocol, Request
from rules.decision import Decision
from rules.index import Index, admits
from rules.judge import Judge
from rules.names import HostName
from rules.near import Hint, about_connection, about_name, about_request, near
from rules.paths import Reading, readings
from rules.plan import Plan
from rules.ports import LAST_PORT, Ports
from rules.precedence import Finding
from rules.revision import revision_of
from rules.rule import Rule
from rules.settings import Settings
from rules.verdicts import Mode, Outcome, Reason, TlsMode

_TLS_PORT: Final = 443  # of TLS over TCP, and of QUIC over UDP
_MOST_HINTED: Final = 1024
_SPOKEN: Final = (Protocol.TLS, Protocol.HTTP, Protocol.TCP)
_NO_LABELS: Final[Mapping[str, str]] = {}


class Policy:
    """What may leave. Safe to ask from several threads: what is remembered only ever saves work."""

    def __init__(self, rules: Iterable[Rule], settings: Settings | None = None, sources: Iterable[Path] = ()) -> None:
        self.rules = tuple(sorted(rules, key=lambda rule: rule.id))
        self.settings = settings or Settings()
        self.sources = tuple(sources)
        self.rule_ids = tuple(rule.id for rule in self.rules)
        self.revision = revision_of(self.rules, self.settings)
        self._index = Index(self.rules)
        self._hinted: dict[tuple[Plan, HostName | Address, int], Decision] = {}  # blocked clients try again and again
        self._judge = Judge(self.settings, self.revision)
        self.leniency = self._judge.leniency  # ranks findings; see there

    @property
    def needs_inspection(self) -> bool:
        """Whether anything this policy lets out is read on its way; if not, the gate needs no inspection at all."""
        if self.settings.mode is Mode.AUDIT or any(rule.looks_at_requests for rule in self.rules):
            return True
        spoken = [(rule, ports) for rule in self.rules if rule.lets_out for ports in rule.ports or ()]
        return any(
            ports.protocol is Protocol.HTTP or (ports.protocol is Protocol.TLS and rule.tls is TlsMode.INSPECT)
            for rule, ports in spoken
        )

    def decide(self, attempt: Attempt) -> Decision:
        """Decide one attempt: a connection, or a request on it."""
        return self._before_rules(attempt) or self._decide(self._plan(attempt), attempt)

    def _before_rules(self, attempt: Attempt) -> Decision | None:
        """Refuse what no rule is asked about."""
        port = attempt.port
        if attempt.protocol is Protocol.UDP:
            return self._judge.refusal(Reason.QUIC if port == _TLS_PORT else Reason.UDP, inspect=False)
        if not 0 < port <= LAST_PORT or (attempt.protocol is Protocol.TCP and attempt.request is not None):
            return self._judge.refusal(Reason.PROTOCOL_MISMATCH, inspect=False)
        target = attempt.target
        if isinstance(target, IPv6Address) and target.scope_id is not None:
            return self._judge.refusal(Reason.NON_PUBLIC_ADDRESS, inspect=False)  # another host on every machine
        return None

    def _plan(self, attempt: Attempt) -> Plan:
        return self._index.candidates(attempt.target).plan(attempt.port, attempt.protocol)

    def _decide(self, plan: Plan, attempt: Attempt) -> Decision:
        if attempt.request is not None:
            return self._decide_request(plan, attempt, attempt.request)
        known = plan.on_connection
        if known is None:
            finding = plan.connection(self._judge.leniency)
            decision = self._judge.on_connection(finding, plan, attempt)
            known = plan.on_connection = decision, about_connection(plan)
        if known[0].reason is not Reason.NO_RULE:
            return known[0]
        asked = plan, attempt.target, attempt.port
        hinted = self._hinted.get(asked)
        if hinted is None:
            if len(self._hinted) >= _MOST_HINTED:
                self._hinted.clear()
            hinted = self._hinted[asked] = self._with_hint(*known, attempt)
        return hinted

    def _decide_request(self, plan: Plan, attempt: Attempt, request: Request) -> Decision:
        paths = readings(request.path)
        if not paths:
            return self._judge.refusal(Reason.AMBIGUOUS_PATH)
        finding = self._strictest(plan, request, paths)
        known = plan.judged.get(finding)
        if known is None:
            decision = self._judge.on_request(finding, plan)
            hint = about_request(plan, request.method, paths[0]) if finding.verdict is None else None
            known = plan.judged[finding] = decision, hint
        return known[0] if finding.verdict is not None else self._with_hint(*known, attempt)

    def _with_hint(self, decision: Decision, hint: Hint | None, attempt: Attempt) -> Decision:
        """Give what no rule decides the rule that came nearest."""
        if hint is None and isinstance(attempt.target, HostName):
            hint = about_name(self._index, attempt.target)
        return decision if hint is None else self._judge.with_near(decision, near(hint, attempt))

    def _strictest(self, plan: Plan, request: Request, paths: tuple[Reading, ...]) -> Finding:
        """Decide a request by every reading of its path, and let the strictest stand."""
        findings = [plan.request(request.method, path) for path in paths]
        return findings[0] if len(findings) == 1 else min(findings, key=self._judge.leniency)

    def decide_name(self, name: HostName, task: str = "", labels: Mapping[str, str] = _NO_LABELS) -> Decision:
        """Decide a lookup: allow if any connection to `name` could pass, on whatever port and protocol.

        In audit mode a name that only auditing lets out is denied with outcome `would_block`, which passes.
        """
        usual = Attempt(Protocol.TLS, name, _TLS_PORT, task=task, labels=labels)
        candidates = self._index.candidates(name)
        if candidates.lookup is None and candidates.rules:
            tried = [replace(usual, protocol=p, port=port) for port in candidates.starts for p in _SPOKEN]
            candidates.lookup = max(map(self.decide, (usual, *tried)), key=_openness)
        known = candidates.lookup
        return known if known is not None and known.passes else self.decide(usual)

    def check_address(
        self,
        target: HostName | Address,
        port: int,
        protocol: Protocol,
        address: Address,
        request: Request | None = None,
    ) -> Reason | None:
        """Say why `address` may not be dialled for an attempt at `target`, or None: it may.

        With `request` the answer is exact. Without it, where rules look at requests, every rule that could let one out
        has to admit the address: which of them will is not known, and each may have its own `resolves_to`.
        """
        attempt = Attempt(protocol, target, port, request)
        refused = self._before_rules(attempt) or self._before_rules(Attempt(protocol, address, port, request))
        if refused is not None:
            return refused.reason
        address = normal(address)
        if isinstance(target, HostName):
            return self._why_not_resolved(target, address, attempt)
        decision = self.decide(attempt)
        if decision.passes and normal(target) == address:
            return None
        return Reason.ADDRESS_NOT_LISTED if decision.passes or not decision.rules else decision.reason

    def _why_not_resolved(self, name: HostName, address: Address, attempt: Attempt) -> Reason | None:
        """Decide again with the rules that remain once the address is known; what they let out may be dialled."""
        unresolved = self._plan(attempt)
        resolved = self._index.resolved(name, address).plan(attempt.port, attempt.protocol)
        decision = self._decide(resolved, attempt)
        letting_out = [rule for rule in unresolved.rules if rule.lets_out]
        exact = attempt.request is not None or not unresolved.looks_at_requests
        if decision.passes and (exact or all(admits(rule, address) for rule in letting_out)):
            return None
        before = self.decide(attempt)
        if not before.passes:
            return before.reason
        if decision.rules and not decision.passes:
            return decision.reason
        listed = any(rule.resolves_to is not None for rule in letting_out) or not resolved.not_public
        return Reason.ADDRESS_NOT_LISTED if listed else Reason.NON_PUBLIC_ADDRESS

    def protocols(self, target: HostName | Address, port: int) -> frozenset[Protocol]:
        """List what rules that let out say is spoken at `target` on `port`; in audit mode anything may be."""
        found: set[Protocol] = set()
        for candidate in self._index.candidates(target).rules:
            rule = candidate.rule
            if rule.lets_out or (rule.default and (rule.mode or self.settings.mode) is Mode.AUDIT):
                here = [Ports(port, port, p) for p in _SPOKEN] if rule.ports is None else rule.ports
                found.update(ports.protocol for ports in here if ports.low <= port <= ports.high)
        return frozenset(_SPOKEN if self.settings.mode is Mode.AUDIT else found)

    def needs_request(self, target: HostName | Address, port: int) -> bool:
        """Whether a rule that can match `target` on `port` looks at requests."""
        return any(
            candidate.rule.looks_at_requests
            and (candidate.rule.ports is None or any(p.low <= port <= p.high for p in candidate.rule.ports))
            for candidate in self._index.candidates(target).rules
        )


def _openness(decision: Decision) -> int:
    """Rank decisions: what passes above what would only pass while audited, and both above what is blocked."""
    return 2 * (decision.outcome is Outcome.PASSED) + (decision.outcome is Outcome.WOULD_BLOCK)
