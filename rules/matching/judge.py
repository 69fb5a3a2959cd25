"""Makes a decision from the verdict of the rules: outcome, reason, how a connection is carried out, and a hint.

The hint in a refusal names the rule that came nearest to allowing the attempt. Nothing decides by it, and it looks at a
bounded number of rules. What depends on the rules alone is a `Hint` and worked out once; what the attempt had instead
is added each time. Queries are never shown: they hold secrets.
"""

from itertools import islice
from typing import Final

from rules.attempt import Attempt, Protocol, Request
from rules.decision import DEFAULT_APPROVAL_TERMS, Decision, NearestRule, RequiredApproval
from rules.matching.index import Index
from rules.matching.plan import Hint, Leniency, Plan
from rules.matching.precedence import Finding, Match
from rules.matching.requests import Condition, describe_credential, describe_git_request, trust_of, url_length
from rules.matching.revision import digest_of
from rules.ports import describe
from rules.rule import Rule, covers_exeat_name
from rules.settings import Settings
from rules.values.names import HostName, is_exeat_name
from rules.values.paths import Reading
from rules.verdicts import LayerKind, Log, Mode, Outcome, Reason, Scan, TlsMode, Trust, Verdict

UDP_IDLE_TIMEOUT: Final = 120.0  # seconds: RFC 4787 section 4.3; a rule's own `idle_timeout` replaces it


class Judge:
    """Makes decisions under one policy's settings and revision."""

    __slots__ = ("_silence", "layer", "leniencies", "revision", "settings")

    def __init__(self, settings: Settings, revision: str, layer: LayerKind | None = None) -> None:
        self.settings = settings
        self.revision = revision
        self.layer = layer
        # Functions that rank findings for public and for non-public targets: higher allows more.
        self.leniencies: tuple[Leniency, Leniency] = (self.leniency, self.leniency_inside)
        # A mandatory layer without a matching rule abstains: nothing is laxer than this.
        self._silence = Decision(
            Verdict.ALLOW, Outcome.PASSED, Reason.LAYER, (), revision, inspect=False,
            idle_timeout=settings.idle_timeout, scan=Scan.OFF, trust=Trust.TRUSTED,
        )  # fmt: skip

    def audits(self, finding: Finding, *, not_public: bool = False) -> bool:
        """Whether audit mode allows what `finding` blocks: only where no rule or a default rule decided.

        Never an address that is not public, nor this host: those need a rule that allows them.
        """
        if not_public:
            return False
        if finding.verdict is None:
            return self.settings.mode is Mode.AUDIT
        held_by_default = finding.by_default and finding.denies_or_asks
        return held_by_default and all((rule.mode or self.settings.mode) is Mode.AUDIT for rule in finding.rules)

    def leniency_inside(self, finding: Finding) -> int:
        """Rank a finding for a target that is not public, as `leniency` does."""
        return self.leniency(finding, not_public=True)

    def leniency(self, finding: Finding, *, not_public: bool = False) -> int:
        """Rank a finding; higher allows more. Public, because `policy_transfer` sends references to it."""
        if finding.verdict is None and self.layer is LayerKind.MANDATORY:
            return 6
        if finding.allows:
            return 5 if finding.verdict is Verdict.ALLOW else 4
        if self.audits(finding, not_public=not_public):
            return 3
        if finding.answerable:
            return 2
        return 1 if finding.denies_or_asks else 0

    def on_connection(self, finding: Finding, plan: Plan, attempt: Attempt) -> Decision:
        """Decide a connection. If it is inspected and only asks hold it, each request is decided on its own."""
        decision = self._decision(finding, plan, inspect=self._inspects(finding, plan, attempt))
        if attempt.protocol is Protocol.UDP:
            return self._over_udp(decision, finding)
        return defer_approval(decision) if decision.needs_approval and decision.inspect else decision

    def on_request(self, finding: Finding, plan: Plan) -> Decision:
        """Decide a request; that it was seen means that its connection is inspected."""
        return self._decision(finding, plan, inspect=True)

    def refusal(self, reason: Reason, rules: tuple[str, ...] = (), *, inspect: bool = True) -> Decision:
        """Deny for a reason that is not the rules'; `rules` are those that deny it as well."""
        return Decision(
            Verdict.DENY, Outcome.BLOCKED, reason, rules, self.revision, inspect, self.settings.idle_timeout
        )

    def _over_udp(self, decision: Decision, finding: Finding) -> Decision:
        """Decide UDP: audit mode allows none, its default denial has a reason of its own, and flows time out sooner."""
        if decision is self._silence:
            return decision
        if decision.reason is Reason.NO_RULE:
            decision = decision._replace(reason=Reason.UDP)
        if all(rule.idle_timeout is None for rule in finding.tightening):
            decision = decision._replace(idle_timeout=min(self.settings.idle_timeout, UDP_IDLE_TIMEOUT))
        return decision._replace(outcome=Outcome.PASSED if finding.allows else Outcome.BLOCKED)

    def _inspects(self, finding: Finding, plan: Plan, attempt: Attempt) -> bool:
        """Whether the connection's requests are to be read, or, if it is refused, whether a page may say why."""
        if attempt.protocol is not Protocol.TLS:
            return attempt.protocol is Protocol.HTTP
        if plan.looks_at_requests:
            return True
        if finding.allows or finding.answerable:
            asks = (*finding.granted, *(finding.rules if finding.answerable else ()))
            return not all(rule.splices(attempt.port) for rule in (*finding.tightening, *asks))
        audited = self.audits(finding, not_public=plan.not_public)
        return not (audited and self.settings.tls is TlsMode.SPLICE)

    def _decision(self, finding: Finding, plan: Plan, *, inspect: bool) -> Decision:
        if finding.verdict is None and self.layer is LayerKind.MANDATORY:
            return self._silence
        if plan.not_public and not finding.allows and not finding.answerable:
            return self._not_public(finding, plan, inspect=inspect)
        tightening = finding.tightening
        timeouts = [rule.idle_timeout for rule in tightening if rule.idle_timeout is not None]
        ends = [rule.until for rule in finding.matching if rule.until is not None and rule not in plan.expired]
        outcome = self._outcome(finding, plan)
        approvable = finding.rules if finding.answerable and outcome is Outcome.BLOCKED else ()
        return Decision(
            verdict=finding.verdict if finding.verdict is not None and finding.allows else Verdict.DENY,
            outcome=outcome,
            reason=self._reason(finding),
            rules=tuple(rule.id for rule in finding.rules),
            revision=self.revision,
            inspect=inspect,
            idle_timeout=min(timeouts, default=self.settings.idle_timeout),
            why=_why(finding),
            limits=tuple((rule.id, rule.limits) for rule in finding.matching if rule.limits is not None),
            approval=tuple(
                RequiredApproval(r.id, digest_of(r), r.approval or DEFAULT_APPROVAL_TERMS, r.why) for r in approvable
            ),
            expires=min(ends, default=None),
            ca=tuple(sorted({rule.ca for rule in finding.allowing if rule.ca is not None})),
            pattern=_pattern(finding),
            scan=Scan.strictest(rule.scan for rule in finding.matching),
            trust=_trust(finding),
            logs_full_path=self.layer is not None and any(rule.log is Log.FULL for rule in finding.matching),
        )

    def _not_public(self, finding: Finding, plan: Plan, *, inspect: bool) -> Decision:
        """Refuse a non-public address that no rule allows here; audit mode covers public ones only.

        A deny of an exeat name gives the rule as the reason, and not the kind of address.
        """
        held = plan.own and finding.verdict is Verdict.DENY and not (finding.by_default or finding.expired)
        reason = self._reason(finding) if plan.opened or held else Reason.NON_PUBLIC_ADDRESS
        refusal = self.refusal(reason, tuple(rule.id for rule in finding.rules), inspect=inspect)
        return refusal._replace(why=_why(finding), pattern=_pattern(finding)) if finding.rules else refusal

    def _reason(self, finding: Finding) -> Reason:
        reason = _reason(finding)
        layered = self.layer is not None and reason in (Reason.NO_RULE, Reason.DEFAULT_RULE)
        return Reason.LAYER if layered else reason

    def _outcome(self, finding: Finding, plan: Plan) -> Outcome:
        if finding.allows:
            return Outcome.PASSED
        return Outcome.WOULD_BLOCK if self.audits(finding, not_public=plan.not_public) else Outcome.BLOCKED


def defer_approval(decision: Decision) -> Decision:
    """Allow a held connection so that each request gets its own approval; nothing leaves before that."""
    return decision._replace(verdict=Verdict.ASK, outcome=Outcome.PASSED, reason=Reason.RULE)


def _trust(finding: Finding) -> Trust:
    """Return the least trust of the rules that allow it."""
    trusts = map(trust_of, finding.tightening)
    return Trust.TRUSTED if finding.allows and all(trust is Trust.TRUSTED for trust in trusts) else Trust.UNTRUSTED


def _reason(finding: Finding) -> Reason:
    if finding.expired:
        return Reason.EXPIRED
    if finding.granted:
        return Reason.APPROVAL_GRANTED
    if finding.verdict is None:
        return finding.blame or Reason.NO_RULE
    if finding.verdict is Verdict.ASK:
        return Reason.APPROVAL_UNAVAILABLE
    if finding.verdict is Verdict.DENY and all(rule.when_tainted for rule in finding.rules):
        return Reason.TAINTED
    return Reason.DEFAULT_RULE if finding.by_default else Reason.RULE


def _why(finding: Finding) -> str:
    return next((rule.why for rule in finding.rules if rule.why), "")


def _pattern(finding: Finding) -> str | None:
    """Return what may be recorded of a request's path: None for all of it, else only the rules' own patterns."""
    discreet = [rule for rule in finding.matching if rule.log is Log.PATTERN]
    if not discreet:
        return None
    paths = {path.text for rule in discreet if rule.http is not None for path in rule.http.paths or ()}
    return ", ".join(sorted(paths)) or "/**"


_MOST: Final = 16  # rules that are looked at: a task that makes up methods asks for a new hint each time


def hint_for_connection(plan: Plan) -> Hint | None:
    """Find a rule about the same target that allows other ports, or has an exemption here."""
    if plan.missed is None:
        return None
    rule, field = plan.missed
    return Hint(rule.id, field, describe(rule.ports) if field == "ports" else "")


def hint_for_request(plan: Plan, request: Request, reading: Reading, length: int) -> Hint | None:
    """Find a rule that allows other requests here; preferably one that lacks only a credential or a method."""
    allowing = islice((rule for rule in plan.rules if rule.allows), _MOST)
    hints = [_kept_out(rule, request, reading, length) for rule in allowing]
    if not hints:
        return hint_for_connection(plan)
    first = {hint.field: hint for hint in reversed(hints)}
    return first.get("credential") or first.get("http.methods") or hints[0]


def hint_for_name(index: Index, name: HostName) -> Hint | None:
    """Find a rule about a similar name, or about the same name for other tasks."""
    found = index.nearest(name)
    if found is None:
        return None
    rule, wanted = found
    if is_exeat_name(name) and (rule.selector is None or not covers_exeat_name(rule, name)):
        return None  # rules that allow an exeat name spell it out
    if rule.selector is not None and any(pattern.matches(name) for pattern in rule.names):
        return Hint(rule.id, "for", str(rule.selector))
    return Hint(rule.id, "to", wanted)


def describe_nearest(hint: Hint, attempt: Attempt) -> NearestRule:
    """Combine what the rule requires with what the attempt has."""
    return NearestRule(*hint, _got(hint.field, attempt))


def _got(field: str, attempt: Attempt) -> str:  # noqa: PLR0911 - a table
    if field == "to":
        return str(attempt.target)
    if field == "for":
        return "another task"  # a hint is cached for all tasks that no rule distinguishes
    request = attempt.request
    if request is None or field == "ports":
        return f"{attempt.port}/{attempt.protocol.value}"
    if field == "http.methods":
        return request.method
    path = request.path.partition("?")[0]
    if field == "http.paths":
        return path
    if field == "git" and request.git is not None:
        return describe_git_request(request)
    values_of = {
        "http.body": "a body" if request.body else "no body",
        "http.websocket": "a WebSocket",
        "credential": describe_credential(request),
    }
    if field in values_of:
        return values_of[field]
    if field == "http.max_url":
        return f"{url_length(attempt.protocol, attempt.target, attempt.port, request.path)} bytes"
    if field.startswith(("http.query", "http.headers")):
        return "another"  # they hold secrets
    return f"{request.method} {path}"


def _kept_out(rule: Rule, request: Request, reading: Reading, length: int) -> Hint:
    for part in Condition.of_rule(rule).parts(request, reading, length):
        if part.match is not Match.YES:
            return Hint(rule.id, part.field, part.wanted)
    return Hint(rule.id, "except", "")
