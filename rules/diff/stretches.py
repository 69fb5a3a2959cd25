"""Ports that stand for all: between the edges that rules name, all ports are decided alike."""

from typing import TYPE_CHECKING, NamedTuple

from rules.attempt import Protocol
from rules.ports import LAST_PORT, could_cover, covers
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rules.rule import Rule


class Stretch(NamedTuple):
    """Ports that no rule at hand tells apart."""

    low: int
    high: int


def stretches(rules: "Iterable[Rule]") -> list[Stretch]:
    """Cut all ports into stretches that no rule tells apart."""
    lists = (ports for rule in rules for ports in (rule.ports, *(exemption.ports for exemption in rule.excepts)))
    edges = {edge for ports in lists for entry in ports or () for edge in (entry.low, entry.high + 1)}
    starts = sorted(edge for edge in edges | {1} if edge <= LAST_PORT)
    return [Stretch(low, high - 1) for low, high in zip(starts, [*starts[1:], LAST_PORT + 1], strict=True)]


def spoken(changed: "Iterable[Rule]", stretch: Stretch) -> list[Protocol]:
    """List the protocols on which a rule that differs could have a say on these ports."""
    changed = tuple(changed)
    return [p for p in Protocol if any(_speaks(rule, stretch.low, p) for rule in changed)]


def _speaks(rule: "Rule", port: int, protocol: Protocol) -> bool:
    """Whether a rule can match: what decides to allow does so for certain or not at all."""
    return (covers if rule.action is Verdict.ALLOW else could_cover)(rule.ports, port, protocol)
