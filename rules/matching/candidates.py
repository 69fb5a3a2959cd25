"""The rules that cover one target, and the plans made of them: one a stretch of ports, and a task and day that differ.

What a rule says of the asking task (`for`) and of the day (`until`) is settled here, before anything is planned; where
no rule here says either, neither costs anything.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rules.matching.plan import Candidate, Plan
from rules.ports import LAST_PORT

if TYPE_CHECKING:
    from datetime import date

    from rules.attempt import Protocol
    from rules.decision import Decision
    from rules.rule import Exemption, Rule
    from rules.selectors import For

type Standing = tuple[int, tuple[bool, ...]]  # the epoch, and which of the selectors match

_NOBODY: Final[Standing] = (0, ())
_MOST_TASKS: Final = 256
_NO_ENDS: Final["Mapping[date, int]"] = {}


@dataclass(slots=True, eq=False)
class Candidates:
    """The rules that cover a target, most specific first.

    `ends` says in which epoch (see `Policy.epoch`) a day that is some rule's last has passed.
    """

    rules: tuple[Candidate, ...]
    not_public: bool = False  # whether the target is, or was resolved to, an address that is not public
    resolved: bool = False  # whether the address that is to be dialled is known
    ends: "Mapping[date, int]" = field(default_factory=lambda: _NO_ENDS)
    starts: list[int] = field(init=False)  # ports at which what the rules say may change, ascending
    lookups: "dict[Standing, Decision]" = field(default_factory=dict)  # the policy's, about the name alone
    varies: bool = field(init=False)  # whether it matters who asks, or when
    _dated: bool = field(init=False)
    _selectors: "tuple[For, ...]" = field(init=False)
    _standings: dict[tuple[object, ...], Standing] = field(default_factory=dict)
    _plans: "dict[tuple[int, Protocol, Standing], Plan]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        edges: set[int] = set()
        selectors: dict[For, None] = {}
        for candidate in self.rules:
            parts: tuple[Rule | Exemption, ...] = (candidate.rule, *candidate.exemptions)
            for part in parts:
                edges.update(edge for entry in part.ports or () for edge in (entry.low, entry.high + 1))
                if part.selector is not None:
                    selectors[part.selector] = None
        self.starts = sorted(edge for edge in edges | {1} if edge <= LAST_PORT)
        self._selectors = tuple(selectors)
        self._dated = any(candidate.rule.until is not None for candidate in self.rules)
        self.varies = self._dated or bool(selectors)

    def standing(self, epoch: int, task: str, labels: Mapping[str, str]) -> Standing:
        """Say what of the asking task and the day matters here."""
        if not self.varies:
            return _NOBODY
        key = (epoch, task, *labels.items())
        standing = self._standings.get(key)
        if standing is None:
            if len(self._standings) >= _MOST_TASKS:
                self._standings.clear()
            matching = tuple(selector.matches(task, labels) for selector in self._selectors)
            standing = self._standings[key] = (epoch if self._dated else 0), matching
        return standing

    def plan(self, port: int, protocol: "Protocol", standing: Standing = _NOBODY) -> Plan:
        """Give the plan for one port and protocol."""
        key = bisect_right(self.starts, port), protocol, standing
        plan = self._plans.get(key)
        if plan is None:
            epoch, matching = standing
            plan = self._plans[key] = Plan(
                self._standing(matching),
                port,
                protocol,
                not_public=self.not_public,
                resolved=self.resolved,
                expired=self._expired(epoch),
            )
        return plan

    def dns_types(self, standing: Standing) -> frozenset[str]:
        """List the types of records that rules which still let out give to the asking task."""
        epoch, matching = standing
        expired = self._expired(epoch)
        rules = (candidate.rule for candidate in self._standing(matching))
        return frozenset[str]().union(*(r.dns_types for r in rules if r.lets_out and r not in expired))

    def _standing(self, matching: tuple[bool, ...]) -> tuple[Candidate, ...]:
        """Leave out what is for other tasks, rules and exemptions."""
        if not self._selectors:
            return self.rules
        meant: dict[For | None, bool] = {**dict(zip(self._selectors, matching, strict=True)), None: True}
        return tuple(
            Candidate(candidate.rule, tuple(e for e in candidate.exemptions if meant[e.selector]))
            for candidate in self.rules
            if meant[candidate.rule.selector]
        )

    def _expired(self, epoch: int) -> "frozenset[Rule]":
        if not self._dated:
            return frozenset()
        dated = (candidate.rule for candidate in self.rules if candidate.rule.until is not None)
        return frozenset(rule for rule in dated if rule.until is not None and self.ends.get(rule.until, 0) <= epoch)
