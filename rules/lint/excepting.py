"""Exemptions that exempt nothing: a mistyped `except` of a rule that lets out lets out what it was to keep in."""

from typing import TYPE_CHECKING, Final

from rules.lint.codes import IDLE_EXCEPT
from rules.loading.includes import overlap
from rules.names import HostName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.addresses import Network
    from rules.lint.finding import Finding, Reporter
    from rules.patterns import NamePattern
    from rules.rule import Rule

_MOST_COMPARED: Final = 100_000  # pairs in one rule; of longer ones nothing is said


def find(own: "list[Rule]", reporter: "Reporter") -> "Iterator[Finding]":
    """Tell of names and networks under `except` that the rule covers none of.

    Only of names where the rule is about names alone, and of networks where it is about networks alone: a name that
    is exempted from a rule about networks has addresses, and the other way round.
    """
    for rule in own:
        listed = len(rule.names) + len(rule.networks)
        excepted = sum(len(exemption.names) + len(exemption.networks) for exemption in rule.excepts)
        if listed * excepted > _MOST_COMPARED:
            continue
        for exemption in rule.excepts:
            idle: list[NamePattern | Network] = []
            if not rule.networks:
                idle += [name for name in exemption.names if not _covers_some_of(rule, name)]
            elif not rule.names:
                idle += [network for network in exemption.networks if not any(map(network.overlaps, rule.networks))]
            for target in idle:
                text = str(getattr(target, "text", target))
                message = f"`{text}` under `except` is nothing that `{rule.id}` ({rule.action}) covers"
                yield reporter.about(IDLE_EXCEPT, rule, message, at="except", entry=text)


def _covers_some_of(rule: "Rule", name: "NamePattern") -> bool:
    if any(overlap(name, own) for own in rule.names):
        return True
    # Which of a list's names lie under a wildcard isn't looked for
    return any(name.below is not None or feed.covers(HostName.parse(name.text)) for feed in rule.feeds)
