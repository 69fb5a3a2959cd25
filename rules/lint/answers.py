"""Rules that wait for what never comes: a task that has read something, an approval that opens anything."""

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from rules.addresses import block_of
from rules.lint.codes import NEVER_TAINTED, UNASKED
from rules.matching.requests import trust_of
from rules.own_names import is_own
from rules.verdicts import Mode, Trust, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rules.lint.finding import Finding, Reporter
    from rules.matching.policy import Policy
    from rules.rule import Rule


# Names that no public server has: RFC 6762 appendix G, RFC 8375, and `internal` by ICANN's resolution of 2024-07-29
_INSIDE: Final = ("internal", "intranet", "private", "corp", "home", "lan", "local", "home.arpa")


def find(policy: "Policy", own: "list[Rule]", reporter: "Reporter") -> "Iterator[Finding]":
    """Report rules for tainted tasks where none can become one, and asks that are asked in vain."""
    if not _taints(policy):
        for rule in own:
            if rule.minds_taint:
                message = f"`{rule.id}` ({rule.action}) has `when: tainted`, and whatever rules let out they trust"
                yield reporter.about(NEVER_TAINTED, rule, message, at="when" if rule.when_tainted else "except")
    opening: dict[str, list[Rule]] = defaultdict(list)  # by name, what lets out to addresses inside
    for rule in policy.rules:
        if rule.lets_out and _is_inside(rule):
            for name in rule.names:
                opening[name.text].append(rule)
    for rule in own:
        if rule.action is Verdict.ASK and rule.resolves_to is None:
            for text in _inside(rule, opening):
                message = (
                    f"`{rule.id}` asks about `{text}`, and without `resolves_to` an approval opens no address inside"
                )
                yield reporter.about(UNASKED, rule, message, at="to")
                break


def _inside(rule: "Rule", opening: "Mapping[str, list[Rule]]") -> "Iterator[str]":
    """List names of an ask that other rules, or the names themselves, say are inside, and that no rule opens there."""
    for pattern in rule.names:
        if is_own(pattern.text):
            continue
        beside = opening.get(pattern.text, [])
        opened = any(not each.asks_of_requests for each in beside)
        if not opened and (beside or any(pattern.text.endswith(f".{zone}") for zone in _INSIDE)):
            yield pattern.text


def _is_inside(rule: "Rule") -> bool:
    """Whether the addresses that a rule's names may have include some that are not public."""
    return any(block_of(network.network_address) is not None for network in rule.resolves_to or ())


def _taints(policy: "Policy") -> bool:
    if policy.settings.mode is Mode.AUDIT or any(rule.mode is Mode.AUDIT for rule in policy.rules):
        return True  # nobody vouches for what no rule lets out
    return any(trust_of(rule) is Trust.UNTRUSTED for rule in policy.rules if rule.action is not Verdict.DENY)
