"""Which of the rules that match wins. The whole of "strictest wins" (invariant 5) stands here; nothing else decides.

    what matches                                          the verdict
    an explicit deny, for certain or possibly             deny
    else an explicit ask, for certain or possibly         ask
    else an explicit flag for certain, or an explicit     flag
      allow for certain and a flag possibly
    else an explicit allow for certain                    allow
    else the same four rows among default rules,          (an explicit flag that is possible counts there as well)
    else nothing                                          none: denied, `no_rule`

"Possibly" is what a rule does that looks at what nobody sees: a rule about requests on a raw TCP connection, whose
bytes could be the very request that the rule forbids. A rule never lets out possibly. A request that is seen leaves no
possibles. The order of rules never matters: the rows ask whether there is one, not where it stands.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rules.rule import Rule
from rules.verdicts import Verdict


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """What the rules say. `verdict` None: no rule matches. `letting_out`: all that let out in the deciding layer."""

    verdict: Verdict | None = None
    rules: tuple[Rule, ...] = ()
    by_default: bool = False
    letting_out: tuple[Rule, ...] = ()

    @property
    def lets_out(self) -> bool:
        """Whether the rules themselves let it out (audit mode is not asked)."""
        return self.verdict is not None and self.verdict.lets_out

    @property
    def holds_back(self) -> bool:
        """Whether a rule denies or asks."""
        return self.verdict is not None and not self.verdict.lets_out


def weigh(certain: Iterable[Rule], possible: Sequence[Rule] = ()) -> Finding:
    """Let the strictest of the `certain` rules win; `possible` ones tighten and never loosen."""
    certain = tuple(certain)
    for by_default in (False, True):
        matching = [rule for rule in certain if rule.default is by_default]
        perhaps = [rule for rule in possible if rule.default is by_default]
        for verdict in (Verdict.DENY, Verdict.ASK):
            holding = tuple(rule for rule in (*matching, *perhaps) if rule.action is verdict)
            if holding:
                return Finding(verdict, holding, by_default)
        letting_out = tuple(rule for rule in matching if rule.action.lets_out)
        if letting_out:
            earlier = possible if by_default else perhaps
            flags = tuple(rule for rule in (*letting_out, *earlier) if rule.action is Verdict.FLAG)
            return Finding(Verdict.FLAG if flags else Verdict.ALLOW, flags or letting_out, by_default, letting_out)
    return Finding()
