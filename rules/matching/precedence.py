"""Precedence: which of the matching rules wins. All of "strictest wins" (invariant 5) is here.

    what matches                                          the verdict
    an explicit deny, for certain or possibly             deny
    else an explicit ask, for certain or possibly         ask
    else an explicit flag for certain, or an explicit     flag
      allow for certain and a flag possibly
    else an explicit allow for certain                    allow
    else the same four rows among default rules,          (an explicit flag that is possible counts there as well)
    else nothing                                          none: denied, `no_rule`

"Possibly" is what a rule does that looks at what nobody sees or knows: a rule about requests on a raw TCP connection,
whose bytes could be the very request that the rule forbids; a rule about headers that weren't given. A rule never lets
out possibly. The order of rules never matters: the rows ask whether there is one, not where it stands.

Time takes away and never gives. Once a rule's `until` has passed, an ask is a deny, and a flag or allow matches
possibly at most: it lets nothing out, and what it held tighter than others (a review, limits, inspection) stays so.

A grant answers one ask and nothing else. An ask that is granted holds nothing back any more, and where it matches for
certain it is an allow in the rows above: a deny, another ask, and a flag beside it say what they said before.

`Match` is what came of holding a rule, or a part of one, against an attempt. A `PERHAPS` never allows anything.
"""

from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from rules.rule import ByIdentity, Rule
from rules.verdicts import Reason, Verdict


class Match(Enum):
    """Whether a rule, or a part of it, matches an attempt."""

    NO = "no"
    PERHAPS = "perhaps"  # it hangs on a request that isn't there yet, on what nobody reads or knows, or on the address
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
    letting_out: tuple[Rule, ...] = ()
    matching: tuple[Rule, ...] = ()
    expired: bool = False  # what decides is that an `until` has passed
    blame: Reason | None = None
    granted: tuple[Rule, ...] = ()  # asks that would have held it, and are granted
    answerable: bool = False  # asks hold it, and granting them, and those that come up then, lets it out


class Finding(ByIdentity, _FindingFields):
    """What the rules say about an attempt. `verdict` None: no rule matches.

    `rules` are those of the verdict, `letting_out` all that let out where it was decided (among explicit rules or
    among defaults), `matching` all that match there, for certain or possibly. `blame`: why none does, if one nearly
    did.
    """

    __slots__ = ()

    @property
    def allows(self) -> bool:
        """Whether the rules allow it, without audit mode."""
        return self.verdict is not None and self.verdict.allows

    @property
    def tightening(self) -> tuple[Rule, ...]:
        """Those that let out, or would if something about them weren't over or unknown: the tightest of each counts."""
        return (*self.letting_out, *(rule for rule in self.matching if rule.allows))

    @property
    def holds_back(self) -> bool:
        """Whether a rule denies or asks."""
        return self.verdict is not None and not self.verdict.allows


def weigh(
    certain: Iterable[Rule],
    possible: Iterable[Rule] = (),
    expired: Collection[Rule] = (),
    granted: Collection[Rule] = (),
    closed: Collection[Rule] = (),
) -> Finding:
    """Let the strictest of the `certain` rules win; `possible` ones tighten and never loosen.

    `expired` are those of both whose `until` has passed, `granted` the asks among them that are granted. Of those, the
    ones that are `closed` let nothing out themselves.
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
        letting_out = tuple(rule for rule in matching if _decides(rule, expired, granted).allows)
        if letting_out:
            earlier = tuple(possible) if by_default else tuple(perhaps)
            flags = tuple(rule for rule in (*letting_out, *earlier) if rule.action is Verdict.FLAG)
            verdict = Verdict.FLAG if flags else Verdict.ALLOW
            decided = flags or letting_out
            opened = tuple(rule for rule in answered if by_default or not rule.default)
            aside = tuple(rule for rule in opened if rule not in letting_out)  # what they hold tighter stays so
            return Finding(
                verdict,
                (*decided, *(rule for rule in opened if rule not in decided)),
                by_default,
                letting_out,
                (*letting_out, *earlier, *aside),
                granted=opened,
            )
    over = tuple(rule for rule in possible if rule in expired)
    return Finding(rules=over, matching=over, expired=bool(over))


def _decides(rule: Rule, expired: Collection[Rule], granted: Collection[Rule]) -> Verdict:
    if rule.action is Verdict.ASK and rule in expired:
        return Verdict.DENY
    return Verdict.ALLOW if rule in granted else rule.action
