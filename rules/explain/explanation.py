"""Explains the decision on one attempt, and the rules of one task, in sentences and as values for JSON.

Every rule about the target is shown with whether it matches, by the reference evaluator (`rules.matching.reference`)
and not by the compiled policy: where the two differ, a test fails.

A task sees only what it may do and what it may not. It never sees which secret a rule requires, where files are, or
the rules of other tasks.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from itertools import groupby
from typing import Any, Final, NamedTuple

from rules.attempt import Attempt, Protocol
from rules.decision import ApprovalTerms, Decision, Limits, NearestRule
from rules.explain.reasons import describe_reason
from rules.loading.cases import AttemptText, verdict_of
from rules.matching.layers import Layer
from rules.matching.plan import PASSES, Leniency, is_settled
from rules.matching.policy import Policy
from rules.matching.precedence import Finding, Match, weigh
from rules.matching.reference import ConsideredRule, consider, covers_target, has_ended, is_closed, is_granted
from rules.ports import describe
from rules.problems import escape_unprintable, quote
from rules.rule import GitRule, Http, Rule
from rules.sandbox import Command
from rules.values.addresses import Address
from rules.values.names import HostName, InvalidNameError
from rules.values.paths import Reading, readings
from rules.verdicts import Outcome, Reason, Scan, Trust, Verdict

MOST_RULES: Final = 500  # listed; the others are counted
_MOST_TARGETS: Final = 20  # of one rule
_ORDER: Final = {Verdict.ALLOW: 0, Verdict.FLAG: 1, Verdict.ASK: 2, Verdict.DENY: 3}
_HEADINGS: Final = {
    Verdict.ALLOW: "You may:",
    Verdict.FLAG: "You may, and people review it afterwards:",
    Verdict.ASK: "Only after a person approves it:",
    Verdict.DENY: "You may not, whatever other rules say:",
}
_STARTING: Final = {
    Verdict.FLAG: "Programs that you may start, and people review it afterwards:",
    Verdict.ASK: "Programs that start only after a person approves it:",
    Verdict.DENY: "Programs that you may not start:",
}
_ONCE_TAINTED: Final = "only once the task has read untrusted content"


class Explanation(NamedTuple):
    """A decision and what led to it."""

    question: AttemptText
    attempt: Attempt | None  # None: the host is no name and no address, or it is a program
    decision: Decision
    considered: tuple[ConsideredRule, ...] = ()
    proxied: bool = False  # whether the rules have an upstream proxy, and the attempt may go somewhere
    via: str | None = None  # the proxy that it goes through; None: it is dialled directly
    objecting: tuple[Layer, ...] = ()  # layers that don't allow it, if a layer decides
    depends_on_taint: bool = False  # whether it matters to any rule what a task has read

    def lines(self) -> list[str]:
        """Return the explanation as sentences, one a line, the verdict first."""
        tell = explain_attempt if self.question.run is None else explain_run
        return [escape_unprintable(line) for line in tell(self, verdict_of(self.decision))]

    def value(self) -> dict[str, Any]:
        """Return the explanation as a value for JSON."""
        decision, attempt, caller = self.decision, self.attempt, self.question.caller
        return {
            "attempt": self.question.text,
            "target": None if attempt is None else str(attempt.target),
            "port": self.question.port or None,
            "record": self.question.record,
            "task": caller.task,
            "labels": dict(caller.labels),
            "tainted": caller.tainted,
            "at": None if caller.at is None else caller.at.isoformat(),
            "protocol": None if attempt is None else attempt.protocol.value,
            "verdict": verdict_of(decision).value,
            "outcome": decision.outcome.value,
            "reason": decision.reason.value,
            "meaning": describe_reason(decision.reason, None if attempt is None else attempt.target),
            "rules": list(decision.rules),
            "why": decision.why,
            "inspect": decision.inspect,
            "scan": decision.scan.value if decision.passes and decision.inspect else None,
            "trust": decision.trust.value if decision.may_send_now else None,
            "via": self.via,
            "layers": [layer.name for layer in self.objecting],
            "expires": None if decision.expires is None else decision.expires.isoformat(),
            "limits": [{"rule": rule, **_set_terms(limits)} for rule, limits in decision.limits],
            "approval": [
                {"rule": asks.rule, "digest": asks.digest, **_set_terms(asks.terms)} for asks in decision.approval
            ],
            "revision": decision.revision,
            "near": decision.nearest and decision.nearest._asdict(),
            "considered": [
                {
                    "rule": entry.rule.id,
                    "action": entry.rule.action.value,
                    "default": entry.rule.default,
                    "match": entry.match.value,
                    "field": entry.field,
                    "wanted": entry.wanted,
                    "got": entry.got,
                }
                for entry in self.considered
            ],
        }


def explain(policy: Policy, question: AttemptText) -> Explanation:
    """Decide an attempt and explain the decision."""
    if question.run is not None:
        return Explanation(question, None, question.decide(policy))
    try:
        attempt = question.attempt(policy)
    except InvalidNameError:
        return Explanation(question, None, question.decide(policy))
    decision = question.decide(policy)
    proxied = policy.settings.upstream is not None and decision.passes and question.record is None
    upstream = policy.upstream_for(attempt) if proxied else None
    via = None if upstream is None else str(upstream)
    objecting = tuple(policy.objecting(attempt)) if decision.reason is Reason.LAYER else ()
    entries = tuple(consider_rules(policy, attempt))
    return Explanation(question, attempt, decision, entries, proxied, via, objecting, policy.needs.taint)


def consider_rules(policy: Policy, attempt: Attempt) -> list[ConsideredRule]:
    """Evaluate every rule about the target on its own; the path by the reading with the strictest result."""
    rules = [rule for rule in policy.rules if covers_target(rule, attempt)]
    paths: tuple[Reading | None, ...] = (None,)
    if attempt.request is not None:
        paths = readings(attempt.request.path)
    tried = [[consider(rule, attempt, path) for rule in rules] for path in paths]
    leniency = policy.leniency(attempt.target)
    return min(tried, key=lambda entries: leniency(weigh_considered(entries, attempt, leniency)), default=[])


def weigh_considered(entries: list[ConsideredRule], attempt: Attempt, leniency: Leniency | None = None) -> Finding:
    """Find the winner among rules that were evaluated separately. Without `leniency` audit mode is ignored."""
    rules = [entry.rule for entry in entries]
    expired = {rule for rule in rules if has_ended(rule, attempt.at)}
    granted = {rule for rule in rules if is_granted(rule, attempt)}
    closed = {rule for rule in rules if is_closed(rule, attempt)}

    def weighed(matches: list[Match]) -> Finding:
        matching = [rule for rule, match in zip(rules, matches, strict=True) if match is Match.YES]
        perhaps = [rule for rule, match in zip(rules, matches, strict=True) if match is Match.PERHAPS]
        return weigh(matching, perhaps, expired, granted, closed)

    finding = weighed([Match.NO if entry.field == "resolves_to" else entry.match for entry in entries])
    late = [entry.resolved if entry.field == "resolves_to" else entry.match for entry in entries]
    return finding if is_settled(finding, leniency or _enforced) else weighed(late)


def _enforced(finding: Finding) -> int:
    return PASSES * finding.allows


def _set_terms(terms: Limits | ApprovalTerms) -> dict[str, Any]:
    """Return the terms that are set, by name."""
    return {key: value for key, value in terms._asdict().items() if value is not None}


_DONE: Final = {
    Verdict.ALLOW: "allowed",
    Verdict.FLAG: "flagged",
    Verdict.ASK: "held for approval",
    Verdict.DENY: "denied",
}
_MARKS: Final = {Match.YES: "matches", Match.PERHAPS: "could match", Match.NO: "doesn't match"}
_SCANNED: Final = {
    Scan.STRICT: "scanned: a request with something that looks like a secret is blocked; where no rule and no secret "
    "names the host, also if it is encoded or in its usual place (`scan: strict`)",
    Scan.BLOCK: "scanned: a request with something that looks like a secret is blocked (`scan: block`)",
    Scan.FLAG: "scanned: a request with something that looks like a secret is allowed and recorded (`scan: flag`)",
    Scan.OFF: "not scanned for secrets (`scan: off`)",
}
_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60))
_SIZES: Final = (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10))


def explain_attempt(explanation: "Explanation", verdict: Verdict) -> Iterator[str]:
    """Explain a decision in sentences; `verdict` is that of the rules, independent of the outcome."""
    decision, attempt = explanation.decision, explanation.attempt
    attempt_text = quote(explanation.question.text.partition("?")[0])
    yield _verdict(attempt_text, verdict, decision, None if attempt is None else attempt.target)
    if verdict is Verdict.FLAG:
        yield "it is allowed and marked for review"
    if decision.outcome is Outcome.WOULD_BLOCK:
        yield "it is allowed because of `mode: audit`, and recorded as `would_block`"
    if decision.why:
        yield f"the rule says: {decision.why}"
    connection = attempt is not None and attempt.request is None and explanation.question.record is None
    if connection and decision.passes and decision.inspect:
        yield "the connection is inspected: each request on it is decided by itself"
    elif connection and decision.passes and attempt is not None and attempt.protocol is Protocol.TLS:
        yield "the connection is spliced: the gate does not read the requests on it"
    for layer in explanation.objecting:
        yield f"`{layer.name}` ({layer.kind}) has no rule that allows it, and rules of other files cannot override that"
    if explanation.proxied:
        direct = "it connects directly, without the proxy"
        yield f"it goes through the proxy {explanation.via}" if explanation.via else direct
    request = attempt is not None and attempt.request is not None
    yield from _terms(decision, request=request, depends_on_taint=explanation.depends_on_taint)
    if decision.nearest is not None:
        yield _nearest(decision.nearest)
    if explanation.considered:
        yield "rules about this target:"
        has_request = attempt is not None and attempt.request is not None
        yield from (
            f"  {_line(entry, has_request=has_request)}" for entry in sorted(explanation.considered, key=_sort_key)
        )
    yield from _hints(explanation)


def explain_run(explanation: "Explanation", verdict: Verdict) -> Iterator[str]:
    """Explain a decision on a program in sentences."""
    decision = explanation.decision
    yield _verdict(quote(explanation.question.text), verdict, decision, None)
    if verdict is Verdict.FLAG:
        yield "it runs and is marked for review"
    if decision.why:
        yield f"the rule says: {decision.why}"
    yield from _terms(decision, request=False, depends_on_taint=False)
    yield "commands are a guard rail: a copied, renamed or interpreted program does not match"


def _verdict(attempt_text: str, verdict: Verdict, decision: Decision, target: HostName | Address | None) -> str:
    by = f" by {_names(decision.rules)}" if decision.rules else ""
    if decision.needs_approval:
        return f"{attempt_text} needs an approval{by} (`{decision.reason}` where no approver can be reached)"
    if decision.reason is Reason.APPROVAL_UNAVAILABLE and decision.outcome is Outcome.BLOCKED:
        return f"{attempt_text} is denied{by}: a rule asks, and no approval would allow it (`{decision.reason}`)"
    reason_text = "" if decision.reason is Reason.RULE else f": {describe_reason(decision.reason, target)}"
    return f"{attempt_text} is {_DONE[verdict]}{by}{reason_text} (`{decision.reason}`)"


def _names(rules: tuple[str, ...]) -> str:
    return ", ".join(f"`{rule}`" for rule in rules)


def _nearest(near: NearestRule) -> str:
    rule = f"the nearest rule is `{near.rule}`"
    if not near.wanted:
        return f"{rule}, which exempts `{near.got}` as `{near.field}`"
    return f"{rule}: its `{near.field}` is `{near.wanted}`, and the attempt has `{near.got}`"


def _terms(decision: Decision, *, request: bool, depends_on_taint: bool) -> Iterator[str]:
    """Describe the terms under which an attempt is allowed, or what it needs. `request`: it is a request."""
    if request and decision.passes:
        yield _SCANNED[decision.scan]
    if depends_on_taint and decision.may_send_now and decision.trust is Trust.UNTRUSTED:
        yield "reading from there taints the task (`trust: untrusted`)"
    for rule, limits in decision.limits:
        yield f"`{rule}` allows {describe_limits(limits)}"
    for asks in decision.approval:
        yield f"`{asks.rule}` needs {_describe_approval(asks.terms)}"
    if decision.expires is not None:
        yield f"this decision holds until the end of {decision.expires} (UTC)"


def describe_limits(limits: Limits) -> str:
    """Describe limits: `at most 5 requests in 1h for each task`."""
    parts = [
        f"{count} {what}"
        for count, what in ((limits.connections, "connections"), (limits.requests, "requests"))
        if count is not None
    ]
    parts += [
        f"{_size(size)} {way}"
        for size, way in ((limits.bytes_up, "up"), (limits.bytes_down, "down"))
        if size is not None
    ]
    when = "" if limits.window is None else f" in {_span(limits.window)}"
    return f"at most {' and '.join(parts)}{when} for each {limits.per}"


def _describe_approval(terms: ApprovalTerms) -> str:
    approvers = "any approver" if terms.by is None else f"`{terms.by}`"
    count = "an approval" if terms.needed == 1 else f"{terms.needed} approvals"
    lasts = f"for {_span(terms.lasts)}" if terms.lasts else "once"
    return f"{count} by {approvers}, good {lasts} for the {terms.covers}"


def _span(seconds: float) -> str:
    unit, length = next(((u, n) for u, n in _UNITS if seconds % n == 0), ("s", 1))
    return f"{seconds / length:g}{unit}"


def _size(size: int) -> str:
    unit, length = next(((u, n) for u, n in _SIZES if size % n == 0), ("B", 1))
    return f"{size // length}{unit}"


def _hints(explanation: "Explanation") -> Iterator[str]:
    """Suggest options for `exeat explain` where a missing one made the difference."""
    question, caller = explanation.question, explanation.question.caller
    if not caller.task and not caller.labels and any(entry.field == "for" for entry in explanation.considered):
        yield "rules with `for` match certain tasks: name one with `--task NAME` and `--label NAME=VALUE`"
    if not caller.tainted and any(entry.field == "when" for entry in explanation.considered):
        yield "rules with `when: tainted` match tasks that have read untrusted content: add `--tainted` for such a task"
    if question.corrected_method:
        yield f"methods are upper case, and the gate denies others: did you mean `{question.corrected_method}`?"
    unsaid = question.request is not None and question.request.credential is None
    if unsaid and any(entry.field == "credential" for entry in explanation.considered):
        yield "no credential was given: add `--credential ID` for a request with the placeholder of that secret"


def _sort_key(entry: ConsideredRule) -> tuple[bool, int, str]:
    """Order rules: those that decide first, defaults last."""
    return entry.rule.default, -list(Match).index(entry.match), entry.rule.id


def _line(entry: ConsideredRule, *, has_request: bool) -> str:
    """Describe the result of one rule; `has_request`: the attempt is a request, so nothing is undecided."""
    rule = entry.rule
    line = f"`{rule.id}` ({rule.action}{', default' if rule.default else ''}) "
    if entry.field == "until":
        after = "allows nothing any more" if rule.allows else "denies from then on"
        return f"{line}{after}: its `until` was {entry.wanted}, and this is {entry.got}"
    if has_request and entry.match is Match.PERHAPS and entry.field.startswith(("http", "git", "credential")):
        line += "may not match, so it allows nothing" if rule.allows else "may match, so it counts"
    else:
        line += _MARKS[entry.match]
    if not entry.field:
        return line
    difference = f" needs {entry.wanted}, and this is {entry.got}" if entry.wanted else f" exempts {entry.got}"
    return f"{line}: `{entry.field}`{difference}"


class TaskRules(NamedTuple):
    """Rules and commands that apply to a task, in display order; `more` counts those left out."""

    rules: tuple[Rule, ...]
    more: int
    commands: tuple[Command, ...] = ()


def find_task_rules(policy: Policy, task: str, labels: Mapping[str, str], today: date) -> TaskRules:
    """Find the rules that are about a task today."""
    rules = [rule for rule in policy.rules if _is_about(rule, task, labels, today)]
    rules.sort(key=lambda rule: (_ORDER[rule.action], rule.default, rule.id))
    commands = [each for each in policy.commands if each.for_ is None or each.for_.matches(task, labels)]
    commands.sort(key=lambda command: (_ORDER[command.action], command.cite))
    more = max(0, len(rules) - MOST_RULES) + max(0, len(commands) - MOST_RULES)
    return TaskRules(tuple(rules[:MOST_RULES]), more, tuple(commands[:MOST_RULES]))


def rules_as_json(found: TaskRules) -> list[dict[str, Any]]:
    """Return the rules as values for JSON, without keys that a rule does not set."""
    return [_values(rule) for rule in found.rules]


def commands_as_json(found: TaskRules) -> list[dict[str, Any]]:
    """Return the commands as values for JSON."""
    return [
        {
            "id": each.cite,
            "action": each.action.value,
            "run": list(each.words),
            **({"why": each.why} if each.why else {}),
        }
        for each in found.commands
    ]


def describe_rules(found: TaskRules) -> Iterator[str]:
    """Describe the rules as lines of text."""
    for action, rules in groupby(found.rules, lambda rule: rule.action):
        yield _HEADINGS[action]
        yield from (f"- {_sentence(rule)}" for rule in rules)
    if found.more:
        yield f"- and what {found.more} more rules say"
    if not any(rule.allows for rule in found.rules):
        yield "Nothing may leave."
    for action, commands in groupby(found.commands, lambda command: command.action):
        yield _STARTING[action]
        for command in commands:
            yield f"- {' '.join(command.words)} [{command.cite}]{f': {command.why}' if command.why else ''}"


def _is_about(rule: Rule, task: str, labels: Mapping[str, str], today: date) -> bool:
    if rule.selector is not None and not rule.selector.matches(task, labels):
        return False
    return not (rule.allows and rule.until is not None and today > rule.until)


def _values(rule: Rule) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": rule.id,
        "action": rule.action.value,
        "to": _targets(rule),
        "ports": describe(rule.ports),
    }
    if rule.http is not None:
        values["http"] = _requests(rule.http)
    if rule.git is not None:
        values["git"] = _git(rule.git)
    if rule.default:
        values["default"] = True
    if rule.when_tainted:
        values["when"] = "tainted"
    if rule.excepts:
        values["exceptions"] = len(rule.excepts)
    if rule.credential is not None:
        values["credential"] = "only with the placeholder that you were given"
    if rule.limits is not None:
        values["limits"] = describe_limits(rule.limits)
    if rule.until is not None:
        values["until"] = rule.until.isoformat()
    if rule.why:
        values["why"] = rule.why
    return values


def _sentence(rule: Rule) -> str:
    values = _values(rule)
    parts = [f"{', '.join(values['to'])} ({values['ports']})"]
    for name, value in (*values.get("http", {}).items(), *values.get("git", {}).items()):
        parts.append(f"{name} {', '.join(value) if isinstance(value, list) else value}")
    if rule.when_tainted:
        parts.append(_ONCE_TAINTED)
    if rule.default:
        parts.append("where no other rule matches")
    if rule.excepts:
        parts.append(f"with {len(rule.excepts)} exception{'s' if len(rule.excepts) > 1 else ''}")
    parts += [values[name] for name in ("credential", "limits") if name in values]
    if rule.until is not None:
        parts.append(f"until {values['until']}")
    return f"{'; '.join(parts)} [{rule.id}]{f': {rule.why}' if rule.why else ''}"


def _targets(rule: Rule) -> list[str]:
    texts = [pattern.text for pattern in rule.names] + [str(network) for network in rule.networks]
    texts += ["the names of a list"] if rule.feeds else []
    return texts if len(texts) <= _MOST_TARGETS else [*texts[:_MOST_TARGETS], f"and {len(texts) - _MOST_TARGETS} more"]


def _requests(http: Http) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if http.methods is not None:
        values["methods"] = sorted(http.methods)
    if http.paths is not None:
        values["paths"] = [path.text for path in http.paths]
    if http.query:
        values["parameters"] = [name for name, _ in http.query]
    if http.headers:
        values["headers"] = [name for name, _ in http.headers]
    if http.websocket:
        values["websocket"] = "allowed"
    return values


def _git(git: GitRule) -> dict[str, Any]:
    values: dict[str, Any] = {"repositories": [repo.text for repo in git.repos]}
    if git.fetch:
        values["fetch"] = "yes"
    if git.push is not None:
        values["push"] = [ref.text for ref in git.push]
        values["changes"] = sorted(change.value for change in git.changes)
    return values
