"""What it means that a rule matches, read off the rule itself: slow, plain, one rule at a time.

Nothing decides by this. `explain` shows it to people, and the tests hold the compiled policy (`rules.plan`) against it.
"""

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from rules.addresses import opens
from rules.attempt import Attempt, Protocol
from rules.names import HostName
from rules.ports import could_cover, covers, describe
from rules.rule import Exemption, Http, Rule
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from rules.paths import Reading


class Match(Enum):
    """Whether a rule matches an attempt."""

    NO = "no"
    PERHAPS = "perhaps"  # it depends on a request that isn't there yet, on bytes that nobody reads, or on the address
    YES = "yes"


class Considered(NamedTuple):
    """One rule beside one attempt; where it doesn't surely match, the field that keeps it out and why."""

    rule: Rule
    match: Match
    field: str = ""
    wanted: str = ""
    got: str = ""


def covers_target(rule: Rule, attempt: Attempt) -> bool:
    """Whether a rule is about the attempt's name or address; what lets out must open the address too."""
    target = attempt.target
    if isinstance(target, HostName):
        return any(name.matches(target) for name in rule.names)
    return any(opens(n, target) if rule.lets_out else target in n for n in rule.networks)


def consider(rule: Rule, attempt: Attempt, reading: "Reading | None") -> Considered:
    """Hold a rule that covers the target against an attempt, its path by one reading."""
    spoken = f"{attempt.port}/{attempt.protocol}"
    if not _reaches(rule, attempt):
        return Considered(rule, Match.NO, "ports", describe(rule.ports), spoken)
    if rule.waits_for_address and isinstance(attempt.target, HostName):
        return Considered(rule, Match.PERHAPS, "resolves_to", ", ".join(map(str, rule.resolves_to or ())), "unresolved")
    found = _by_requests(rule, attempt, reading)
    if found.match is Match.NO or covers(rule.ports, attempt.port, attempt.protocol):
        return found
    return Considered(rule, Match.PERHAPS, "ports", describe(rule.ports), spoken)


def _reaches(rule: Rule, attempt: Attempt) -> bool:
    if rule.action is Verdict.ALLOW:
        return covers(rule.ports, attempt.port, attempt.protocol)
    return could_cover(rule.ports, attempt.port, attempt.protocol)


def _by_requests(rule: Rule, attempt: Attempt, reading: "Reading | None") -> Considered:
    """Ask `http` and `except`; on raw TCP what can't be seen counts against letting out."""
    own = (
        Match.YES
        if rule.http is None
        else _http(rule.http, attempt, reading, tightens=rule.action is not Verdict.ALLOW)
    )
    exempt = max(
        (_exemption(exemption, attempt, reading, tightens=rule.lets_out) for exemption in rule.excepts),
        key=list(Match).index,
        default=Match.NO,
    )
    unseen = attempt.protocol is Protocol.TCP and rule.action is Verdict.ALLOW
    if own is Match.NO or (own is Match.PERHAPS and unseen):
        return Considered(rule, Match.NO, *_why_not(rule.http, attempt, reading))
    if exempt is Match.YES or (exempt is Match.PERHAPS and unseen):
        return Considered(rule, Match.NO, "except", "", _shown(attempt))
    if own is Match.PERHAPS:
        return Considered(rule, Match.PERHAPS, "http", _wanted(rule.http), "no request yet")
    if exempt is Match.PERHAPS:
        return Considered(rule, Match.PERHAPS, "except", "", "no request yet")
    return Considered(rule, Match.YES)


def _http(http: Http, attempt: Attempt, reading: "Reading | None", *, tightens: bool) -> Match:
    request = attempt.request
    if request is None or reading is None:
        return Match.PERHAPS
    method = request.method.upper() if tightens else request.method
    if http.methods is not None and method not in http.methods:
        return Match.NO
    return Match.YES if http.paths is None or any(path.matches(reading) for path in http.paths) else Match.NO


def _exemption(exemption: Exemption, attempt: Attempt, reading: "Reading | None", *, tightens: bool) -> Match:
    target = attempt.target
    named = exemption.names or exemption.networks
    if isinstance(target, HostName):
        about = any(name.matches(target) for name in exemption.names)
    else:
        about = any(target in network for network in exemption.networks)
    if (named and not about) or not could_cover(exemption.ports, attempt.port, attempt.protocol):
        return Match.NO
    found = Match.YES if exemption.http is None else _http(exemption.http, attempt, reading, tightens=tightens)
    sure = covers(exemption.ports, attempt.port, attempt.protocol)
    return Match.PERHAPS if found is Match.YES and not sure else found


def _why_not(http: Http | None, attempt: Attempt, reading: "Reading | None") -> tuple[str, str, str]:
    request = attempt.request
    if http is None or request is None or reading is None:
        return "http", _wanted(http), "bytes that nobody reads"
    if http.paths is not None and not any(path.matches(reading) for path in http.paths):
        return "http.paths", ", ".join(path.text for path in http.paths), "/" + "/".join(reading)
    return "http.methods", ", ".join(sorted(http.methods or ())), request.method


def _wanted(http: Http | None) -> str:
    if http is None:
        return ""
    return " ".join(filter(None, (",".join(sorted(http.methods or ())), " ".join(p.text for p in http.paths or ()))))


def _shown(attempt: Attempt) -> str:
    request = attempt.request
    return (
        f"{attempt.port}/{attempt.protocol}"
        if request is None
        else f"{request.method} {request.path.partition('?')[0]}"
    )
