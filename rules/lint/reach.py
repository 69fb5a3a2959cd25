"""Rules that let out further than one owner's hosts: every name, wide networks, wide ranges of ports."""

from typing import TYPE_CHECKING, Final

from rules.addresses import is_within
from rules.lint.codes import EVERY_NAME, WIDE_NETWORK, WIDE_PORTS
from rules.special import BLOCKS
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.addresses import Network
    from rules.lint.finding import Finding, Reporter
    from rules.rule import Rule

_WIDEST: Final = {4: 12, 6: 24}  # shortest prefix that is taken for one owner's
_MOST_PORTS: Final = 1024


def find(own: "list[Rule]", reporter: "Reporter") -> "Iterator[Finding]":
    """Tell of rules that let out far."""
    for rule in own:
        if not rule.lets_out:
            continue
        if any(name.below == "" for name in rule.names) and not (rule.default and rule.action is Verdict.FLAG):
            message = f"`{rule.id}` lets out to every name, those of attackers too"
            yield reporter.about(EVERY_NAME, rule, message, at="to", entry="*")
        for network in rule.networks:
            if _is_wide(network):
                message = f"`{rule.id}` lets out to `{network}`: the task can dial what no name rule would let it reach"
                yield reporter.about(WIDE_NETWORK, rule, message, at="to", entry=str(network))
        for entry in rule.ports or ():
            if entry.high - entry.low >= _MOST_PORTS:
                message = f"`{rule.id}` lets out to {entry.high - entry.low + 1} ports with `{entry}`"
                yield reporter.about(WIDE_PORTS, rule, message, at="ports", entry=str(entry))


def _is_wide(network: "Network") -> bool:
    if network.prefixlen >= _WIDEST[network.version]:
        return False
    return not any(is_within(network, block.network) for block in BLOCKS)
