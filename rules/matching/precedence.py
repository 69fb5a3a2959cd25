"""Precedence: which of the matching rules wins. All of "strictest wins" (invariant 5) is here.

    what matches                                          the verdict
    an explicit deny, for certain or possibly             deny
    else an explicit ask, for certain or possibly         ask
    else an explicit flag for certain, or an explicit     flag
      allow for certain and a flag possibly
    else an explicit allow for certain                    allow
    else the same four rows among default rules,          (an explicit flag that is possible counts there as well)
    else nothing                                          none: denied, `no_rule`

A rule matches possibly if it depends on something unknown: a rule about requests on a raw TCP connection, whose bytes
could be the very request that the rule forbids; a rule about headers that weren't given. A possible match never allows.
The order of rules never matters.

An `until` that has passed never allows more. The ask is then a deny, and the flag or allow matches possibly at most: it
allows nothing, and its stricter terms (a review, limits, inspection) still apply.

A grant satisfies one ask and nothing else. A granted ask that matches for certain is an allow in the rows above.
Denies, other asks and flags still apply.

`Match` is the result of comparing a rule, or a part of one, with an attempt. `PERHAPS` never allows anything.
"""

from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from rules.rule import ByIdentity, Rule
from rules.verdicts import Reason, Verdict


class Match(Enum):
    """Whether a rule, or a part of it, matches an attempt."""

    NO = "no"
    PERHAPS = "perhaps"  # depends on a later request, on an address, or on something that is not read or unknown
    YES = "yes"


_RANKS: Final = {Match.NO: 0, Match.PERHAPS: 1, Match.YES: 2}


def weakest_match(matches: Iterable[Match]) -> Match:
    """Combine matches that must all hold; `YES` if there are none."""
    return min(matches, key=_RANKS.__getitem__, default=Match.YES)


def strongest_match(matches: Iterable[Match]) -> Match:
    """Combine matches of which one is enough; `NO` if there are none."""
    return max(matches, key=_RANKS.__getitem__, default=Match.NO)


def subtract_exemption(match: Match, exempt: Match) -> Match:
    """Return a match after an exemption."""
    if exempt is Match.YES:
        return Match.NO
    return weakest_match((match, Match.PERHAPS)) if exempt is Match.PERHAPS else match


def agree_readings(answers: Iterable[bool]) -> Match:
    """Combine the matches of several readings: `PERHAPS` where they differ."""
    found = set(answers)
    if len(found) != 1:
        return Match.PERHAPS
    return Match.YES if found.pop() else Match.NO


class _FindingFields(NamedTuple):
    verdict: Verdict | None = None
    rules: tuple[Rule, ...] = ()
    by_default: bool = False
    allowing: tuple[Rule, ...] = ()
    matching: tuple[Rule, ...] = ()
    expired: bool = False  # what decides is that an `until` has passed
    blame: Reason | None = None
    granted: tuple[Rule, ...] = ()  # asks that would have held it, and are granted
    answerable: bool = False  # asks hold it, and granting all of them allows it


class Finding(ByIdentity, _FindingFields):
    """What the rules say about an attempt. `verdict` None: no rule matches.

    `rules` are those of the verdict. `allowing` are all that allow at the level that decided (explicit rules or
    defaults), `matching` all that match there, for certain or possibly. `blame`: the reason if a rule nearly matched.
    """

    __slots__ = ()

    @property
    def allows(self) -> bool:
        """Whether the rules allow it, without audit mode."""
        return self.verdict is not None and self.verdict.allows

    @property
    def tightening(self) -> tuple[Rule, ...]:
        """Return the rules that allow, or would but for an end or an unknown: the tightest term of each counts."""
        return (*self.allowing, *(rule for rule in self.matching if rule.allows))

    @property
    def denies_or_asks(self) -> bool:
        """Whether a rule denies or asks."""
        return self.verdict is not None and not self.verdict.allows


def weigh(
    certain: Iterable[Rule],
    possible: Iterable[Rule] = (),
    expired: Collection[Rule] = (),
    granted: Collection[Rule] = (),
    closed: Collection[Rule] = (),
) -> Finding:
    """Return the finding of the strictest `certain` rules; `possible` ones tighten and never loosen.

    `expired` are rules of both whose `until` has passed, `granted` the asks that are granted. Granted asks that are
    `closed` allow nothing themselves.
    """
    certain, possible = tuple(certain), tuple(possible)
    if expired:
        ended = tuple(rule for rule in certain if rule in expired and rule.action.allows)
        certain, possible = tuple(rule for rule in certain if rule not in ended), (*possible, *ended)
        granted = frozenset(granted).difference(expired) if granted else ()
    finding = _weigh(certain, possible, expired, granted, closed)
    if finding.verdict is not Verdict.ASK:
        return finding
    answered = finding
    while answered.verdict is Verdict.ASK:
        granted = frozenset((*granted, *answered.rules))
        answered = _weigh(certain, possible, expired, granted, closed)
    return finding._replace(answerable=answered.allows)


def _weigh(
    certain: Sequence[Rule],
    possible: Sequence[Rule],
    expired: Collection[Rule],
    granted: Collection[Rule],
    closed: Collection[Rule],
) -> Finding:
    answered: tuple[Rule, ...] = ()
    if granted:
        answered = tuple(rule for rule in (*certain, *possible) if rule in granted)
        certain = [rule for rule in certain if rule not in granted or rule not in closed]
        possible = [rule for rule in possible if rule not in granted]
    for by_default in (False, True):
        matching = [rule for rule in certain if rule.default is by_default]
        perhaps = [rule for rule in possible if rule.default is by_default]
        for verdict in (Verdict.DENY, Verdict.ASK):
            holding = tuple(rule for rule in (*matching, *perhaps) if _decides(rule, expired, granted) is verdict)
            if holding:
                time = verdict is Verdict.DENY and all(rule in expired for rule in holding)
                return Finding(verdict, holding, by_default, matching=(*matching, *perhaps), expired=time)
        allowing = tuple(rule for rule in matching if _decides(rule, expired, granted).allows)
        if allowing:
            earlier = tuple(possible) if by_default else tuple(perhaps)
            flags = tuple(rule for rule in (*allowing, *earlier) if rule.action is Verdict.FLAG)
            verdict = Verdict.FLAG if flags else Verdict.ALLOW
            decided = flags or allowing
            opened = tuple(rule for rule in answered if by_default or not rule.default)
            stricter = tuple(rule for rule in opened if rule not in allowing)  # their stricter terms still apply
            return Finding(
                verdict,
                (*decided, *(rule for rule in opened if rule not in decided)),
                by_default,
                allowing,
                (*allowing, *earlier, *stricter),
                granted=opened,
            )
    over = tuple(rule for rule in possible if rule in expired)
    return Finding(rules=over, matching=over, expired=bool(over))


def _decides(rule: Rule, expired: Collection[Rule], granted: Collection[Rule]) -> Verdict:
    if rule.action is Verdict.ASK and rule in expired:
        return Verdict.DENY
    return Verdict.ALLOW if rule in granted else rule.action
