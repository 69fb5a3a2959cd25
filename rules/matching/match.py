"""Result of a match: yes, no or perhaps. A `PERHAPS` never allows anything."""

from collections.abc import Iterable
from enum import Enum
from typing import Final


class Match(Enum):
    """Whether a rule, or a part of it, matches an attempt."""

    NO = "no"
    PERHAPS = "perhaps"  # it hangs on a request that isn't there yet, on what nobody reads or knows, or on the address
    YES = "yes"


_RANKS: Final = {Match.NO: 0, Match.PERHAPS: 1, Match.YES: 2}


def least(matches: Iterable[Match]) -> Match:
    """Give what holds where all of them have to match; `YES` where there are none."""
    return min(matches, key=_RANKS.__getitem__, default=Match.YES)


def most(matches: Iterable[Match]) -> Match:
    """Give what holds where one of them is enough; `NO` where there is none."""
    return max(matches, key=_RANKS.__getitem__, default=Match.NO)


def without(match: Match, exempt: Match) -> Match:
    """Give what is left of a match beside an exemption."""
    if exempt is Match.YES:
        return Match.NO
    return least((match, Match.PERHAPS)) if exempt is Match.PERHAPS else match


def agreed(answers: Iterable[bool]) -> Match:
    """Give what several readings of one thing say together: where they differ, nobody knows what a server takes."""
    found = set(answers)
    if len(found) != 1:
        return Match.PERHAPS
    return Match.YES if found.pop() else Match.NO
