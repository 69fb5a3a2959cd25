"""The rules that cover one target, and the plans made of them: one a stretch of ports, and a task and day that differ.

What a rule says of the asking task (`for`, `when: tainted`) and of the day (`until`) is settled here before anything is
planned, and so is what is granted; where no rule here says so, and nothing is granted, none of them costs anything.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from rules.matching.plan import Candidate, Plan
from rules.ports import LAST_PORT

if TYPE_CHECKING:
    from datetime import date

    from rules.attempt import Protocol
    from rules.decision import Decision
    from rules.rule import Exemption, Rule
    from rules.selectors import For

# The epoch, which of the selectors match, whether the task is tainted, and which of the rules are granted
type Standing = tuple[int, tuple[bool, ...], bool, frozenset[Rule]]

_NONE: Final["frozenset[Rule]"] = frozenset()
NOBODY: Final[Standing] = (0, (), False, _NONE)
_MOST_TASKS: Final = 256
_MOST_GRANTED: Final = 256  # plans of attempts under grants
_NO_ENDS: Final["Mapping[date, int]"] = {}


class Candidates:
    """The rules that cover a target, most specific first.

    `ends` says in which epoch (see `Policy.epoch`) a day that is some rule's last has passed.
    """

    __slots__ = ("_dated", "_granted", "_plans", "_selectors", "_standings", "_tainting", "closed", "ends", "lookups",
                 "not_public", "resolved", "rules", "starts", "varies")  # fmt: skip

    def __init__(
        self,
        rules: tuple[Candidate, ...],
        *,
        not_public: bool = False,
        resolved: bool = False,
        ends: "Mapping[date, int]" = _NO_ENDS,
        closed: "frozenset[Rule]" = _NONE,
    ) -> None:
        self.rules = rules
        self.not_public = not_public  # whether the target is, or was resolved to, an address that is not public
        self.resolved = resolved  # whether the address that is to be dialled is known
        self.ends = ends
        self.closed = closed  # asks that, granted, don't open this address
        self.lookups: dict[Standing, Decision] = {}  # the policy's, about the name alone
        self._standings: dict[tuple[object, ...], Standing] = {}
        self._plans: dict[tuple[int, Protocol, Standing], Plan] = {}
        self._granted: dict[tuple[int, Protocol, Standing], Plan] = {}
        edges: set[int] = set()
        selectors: dict[For, None] = {}
        self._tainting = False
        for candidate in rules:
            parts: tuple[Rule | Exemption, ...] = (candidate.rule, *candidate.exemptions)
            for part in parts:
                edges.update(edge for entry in part.ports or () for edge in (entry.low, entry.high + 1))
                if part.selector is not None:
                    selectors[part.selector] = None
                self._tainting |= part.when_tainted
        # ports at which what the rules say may change, ascending
        self.starts = sorted(edge for edge in edges | {1} if edge <= LAST_PORT)
        self._selectors = tuple(selectors)
        self._dated = any(candidate.rule.until is not None for candidate in rules)
        # whether it matters who asks, what that has read, or when
        self.varies = self._dated or bool(selectors) or self._tainting

    def standing(
        self, epoch: int, task: str, labels: Mapping[str, str], *, tainted: bool, granted: "frozenset[Rule]" = _NONE
    ) -> Standing:
        """Say what of the asking task, the day and what is granted matters here."""
        standing = self._standing_of(epoch, task, labels, tainted=tainted) if self.varies else NOBODY
        if granted:
            here = granted.intersection(candidate.rule for candidate in self.rules)
            return (*standing[:3], here)
        return standing

    def _standing_of(self, epoch: int, task: str, labels: Mapping[str, str], *, tainted: bool) -> Standing:
        key = (epoch, tainted, task, *labels.items())
        standing = self._standings.get(key)
        if standing is None:
            if len(self._standings) >= _MOST_TASKS:
                self._standings.clear()
            matching = tuple(selector.matches(task, labels) for selector in self._selectors)
            standing = (epoch if self._dated else 0), matching, tainted and self._tainting, _NONE
            self._standings[key] = standing
        return standing

    def plan(self, port: int, protocol: "Protocol", standing: Standing = NOBODY) -> Plan:
        """Give the plan for one port and protocol."""
        key = bisect_right(self.starts, port), protocol, standing
        plans = self._granted if standing[3] else self._plans
        plan = plans.get(key)
        if plan is None:
            if len(self._granted) >= _MOST_GRANTED:
                self._granted.clear()
            plan = plans[key] = Plan(
                self._meant(standing),
                port,
                protocol,
                not_public=self.not_public,
                resolved=self.resolved,
                expired=self._expired(standing[0]),
                granted=standing[3],
                closed=self.closed,
            )
        return plan

    def dns_types(self, standing: Standing) -> frozenset[str]:
        """List the types of records that rules which still let out give to the asking task."""
        expired = self._expired(standing[0])
        rules = (candidate.rule for candidate in self._meant(standing))
        return frozenset[str]().union(*(r.dns_types for r in rules if r.lets_out and r not in expired))

    def _meant(self, standing: Standing) -> tuple[Candidate, ...]:
        """Leave out what is for other tasks, or for tainted ones and this isn't: rules and exemptions."""
        if not self._selectors and not self._tainting:
            return self.rules
        _, matching, tainted, _ = standing
        selected: dict[For | None, bool] = {**dict(zip(self._selectors, matching, strict=True)), None: True}

        def meant(part: "Rule | Exemption") -> bool:
            return selected[part.selector] and (tainted or not part.when_tainted)

        return tuple(
            Candidate(candidate.rule, tuple(e for e in candidate.exemptions if meant(e)))
            for candidate in self.rules
            if meant(candidate.rule)
        )

    def _expired(self, epoch: int) -> "frozenset[Rule]":
        if not self._dated:
            return frozenset()
        dated = (candidate.rule for candidate in self.rules if candidate.rule.until is not None)
        return frozenset(rule for rule in dated if rule.until is not None and self.ends.get(rule.until, 0) <= epoch)
