"""Reference evaluator: matches one rule at a time, slowly and plainly.

Nothing decides by this. `explain` shows it to people, and the tests hold the compiled policy (`rules.matching.plan`)
against it.
"""

from datetime import date
from typing import NamedTuple

from rules.attempt import Attempt
from rules.matching.precedence import Match, strongest_match, weakest_match
from rules.matching.requests import Condition, describe_git, describe_values, url_length
from rules.matching.revision import digest_of
from rules.ports import UNSEEN, describe, ports_could_cover, ports_cover
from rules.rule import Exemption, Rule, covers_exeat_name, names_host
from rules.values.addresses import network_opens
from rules.values.names import HostName, is_exeat_name
from rules.values.paths import Reading
from rules.verdicts import Verdict


class ConsideredRule(NamedTuple):
    """A rule evaluated for an attempt; if it does not surely match, with the field that failed and why."""

    rule: Rule
    match: Match
    field: str = ""
    wanted: str = ""
    got: str = ""
    resolved: Match = Match.NO  # of an ask that waits for an address: whether it matches at one that it is about


def covers_target(rule: Rule, attempt: Attempt) -> bool:
    """Whether a rule is about the attempt's name or address; an allow must open the address too."""
    target = attempt.target
    if isinstance(target, HostName):
        if is_exeat_name(target) and not covers_exeat_name(rule, target):
            return False
        return any(name.matches(target) for name in rule.names) or any(feed.covers(target) for feed in rule.feeds)
    return any(network_opens(n, target) if rule.allows else target in n for n in rule.networks)


def has_ended(rule: Rule, at: date | None) -> bool:
    """Whether the rule's `until` has passed; on an unknown day it has."""
    return rule.until is not None and (at is None or at > rule.until)


def is_granted(rule: Rule, attempt: Attempt) -> bool:
    """Whether the rule asks and a grant for this attempt names it."""
    return bool(attempt.granted) and rule.action is Verdict.ASK and digest_of(rule) in attempt.granted


def is_closed(rule: Rule, attempt: Attempt) -> bool:
    """Whether the rule, if it asks and is granted, steps aside without allowing the attempt itself."""
    target = attempt.target
    if rule.when_tainted:
        return True
    if isinstance(target, HostName):
        return is_exeat_name(target) and not names_host(rule, target)
    return not any(network_opens(network, target) for network in rule.networks)


def consider(rule: Rule, attempt: Attempt, reading: Reading | None) -> ConsideredRule:
    """Evaluate a rule that covers the target for an attempt, its path by one reading."""
    found = _consider(rule, attempt, reading)
    waits = rule.needs_address and isinstance(attempt.target, HostName) and not is_granted(rule, attempt)
    if found.match is Match.NO or not waits:
        return found
    listed = ", ".join(map(str, rule.resolves_to or ())) or "another address than it exempts"
    asks = found.match if rule.asks_before_lookup and not has_ended(rule, attempt.at) else Match.NO
    return ConsideredRule(rule, Match.PERHAPS, "resolves_to", listed, "unresolved", asks)


def _consider(rule: Rule, attempt: Attempt, reading: Reading | None) -> ConsideredRule:  # noqa: PLR0911 - a table
    spoken = f"{attempt.port}/{attempt.protocol}"
    if rule.selector is not None and not rule.selector.matches(attempt.task, attempt.labels):
        return ConsideredRule(rule, Match.NO, "for", str(rule.selector), _describe_caller(attempt))
    if rule.when_tainted and not attempt.tainted:
        return ConsideredRule(rule, Match.NO, "when", "a tainted task", "one that has read nothing of the kind")
    if not _reaches(rule, attempt):
        return ConsideredRule(rule, Match.NO, "ports", describe(rule.ports), spoken)
    found = _by_requests(rule, attempt, reading)
    if found.match is Match.NO:
        return found
    if has_ended(rule, attempt.at):
        if rule.allows:
            return ConsideredRule(rule, Match.PERHAPS, "until", str(rule.until), str(attempt.at or "an unknown day"))
        return found._replace(
            field=found.field or "until", wanted=str(rule.until), got=str(attempt.at or "an unknown day")
        )
    if not ports_cover(rule.ports, attempt.port, attempt.protocol):
        return ConsideredRule(rule, Match.PERHAPS, "ports", describe(rule.ports), spoken)
    if rule.when_tainted and rule.allows:
        return ConsideredRule(rule, Match.PERHAPS, "when", "another rule that allows it", "a tainted task")
    return found


def _describe_caller(attempt: Attempt) -> str:
    parts = [f"task {attempt.task}"] if attempt.task else []
    return (
        ", ".join([*parts, *(f"{name}={value}" for name, value in sorted(attempt.labels.items()))]) or "an unnamed task"
    )


def _reaches(rule: Rule, attempt: Attempt) -> bool:
    if rule.action is Verdict.ALLOW:
        return ports_cover(rule.ports, attempt.port, attempt.protocol)
    return ports_could_cover(rule.ports, attempt.port, attempt.protocol)


def _by_requests(rule: Rule, attempt: Attempt, reading: Reading | None) -> ConsideredRule:
    """Evaluate `http`, `git`, `credential` and `except`; conditions that can't be checked never allow."""
    own = _evaluate_condition(Condition.of_rule(rule), attempt, reading)
    exemptions = [_exemption(rule, exemption, attempt, reading) for exemption in rule.excepts]
    exempt = strongest_match(exemptions)
    unseen = attempt.protocol in UNSEEN and rule.action is Verdict.ALLOW
    if own.match is Match.NO or (own.match is Match.PERHAPS and unseen):
        return ConsideredRule(rule, Match.NO, *own[1:])
    if exempt is Match.YES or (exempt is Match.PERHAPS and unseen):
        return ConsideredRule(rule, Match.NO, "except", "", _describe_attempt(attempt))
    if own.match is Match.PERHAPS:
        return ConsideredRule(rule, Match.PERHAPS, *own[1:])
    if exempt is Match.PERHAPS:
        return ConsideredRule(
            rule,
            Match.PERHAPS,
            "except",
            "",
            "no request yet" if attempt.request is None else _describe_attempt(attempt),
        )
    return ConsideredRule(rule, Match.YES)


class _ConditionResult(NamedTuple):
    match: Match
    field: str = ""
    wanted: str = ""
    got: str = ""


def _evaluate_condition(condition: Condition, attempt: Attempt, reading: Reading | None) -> _ConditionResult:
    """Compare the conditions with the request, and name the first that fails."""
    request = attempt.request
    if request is None or reading is None:
        kinds = {"http": condition.http, "git": condition.git, "credential": condition.credential}
        field = next((name for name, said in kinds.items() if said is not None), "")
        if not field:
            return _ConditionResult(Match.YES)
        got = "bytes that the gate does not read" if attempt.protocol in UNSEEN else "no request yet"
        return _ConditionResult(Match.PERHAPS, field, _describe_condition(condition), got)
    length = url_length(attempt.protocol, attempt.target, attempt.port, request.path)
    parts = [part for part in condition.parts(request, reading, length) if part.match is not Match.YES]
    if not parts:
        return _ConditionResult(Match.YES)
    first = next((part for part in parts if part.match is Match.NO), parts[0])
    return _ConditionResult(first.match, first.field, first.wanted, first.got)


def _exemption(rule: Rule, exemption: Exemption, attempt: Attempt, reading: Reading | None) -> Match:
    target = attempt.target
    named = exemption.names or exemption.networks
    if isinstance(target, HostName):
        about = any(name.matches(target) for name in exemption.names)
    else:
        about = any(target in network for network in exemption.networks)
    meant = exemption.selector is None or exemption.selector.matches(attempt.task, attempt.labels)
    if exemption.when_tainted and not attempt.tainted:
        return Match.NO
    if (named and not about) or not meant or not ports_could_cover(exemption.ports, attempt.port, attempt.protocol):
        return Match.NO
    listed = exemption.resolves_to
    # A name has no address yet: an exemption by address doesn't apply, and a deny or ask waits for the address.
    if listed is not None and (isinstance(target, HostName) or not any(target in network for network in listed)):
        return Match.NO
    found = _evaluate_condition(Condition.of_exemption(rule, exemption), attempt, reading).match
    known = ports_cover(exemption.ports, attempt.port, attempt.protocol) and not exemption.when_tainted
    return weakest_match((found, Match.YES if known else Match.PERHAPS))


def _describe_condition(condition: Condition) -> str:
    http = condition.http
    parts = [] if condition.git is None else [describe_git(condition.git)]
    if http is not None:
        parts = [",".join(sorted(http.methods or ())), " ".join(path.text for path in http.paths or ()), *parts]
        parts += [f"{name}: {describe_values(expected)}" for name, expected in (*http.query, *http.headers)]
    return " ".join(filter(None, parts))


def _describe_attempt(attempt: Attempt) -> str:
    request = attempt.request
    if request is None:
        return f"{attempt.port}/{attempt.protocol}"
    return f"{request.method} {request.path.partition('?')[0]}"
