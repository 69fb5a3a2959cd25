"""Rules that do nothing: those that never decide, and those that add nothing to a wider one.

Removing everything that is found here at once changes no verdict: of two rules that say the same, the first is kept,
and what covers a rule that goes covers what that one covered.
"""

from typing import TYPE_CHECKING, Final

from rules.lint.codes import ONLY_UDP, PART_IDLE, REDUNDANT, SHADOWED
from rules.lint.cover import goes_before, silences
from rules.lint.targets import Targets
from rules.ports import never_leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.lint.cover import Target
    from rules.lint.finding import Finding, Reporter
    from rules.matching.policy import Policy
    from rules.rule import Rule

type _Voting = dict[str, frozenset[int]]

_NOWHERE: Final = frozenset[int]()
_MOST_NAMED: Final = 3
_MOST_ENTRIES: Final = 20  # of one rule's targets that are told one by one


def find(policy: "Policy", own: "list[Rule]", reporter: "Reporter") -> "Iterator[Finding]":
    """Tell of rules, and of single targets of rules, that do nothing."""
    targets, voting = Targets(policy.rules), _voting(policy)
    for rule in own:
        if rule.ports is not None and all(never_leaves(e) and e.low == e.high for e in rule.ports):
            yield reporter.about(ONLY_UDP, rule, f"`{rule.id}` is about UDP alone that never leaves", at="ports")
            continue
        covered = _covered(targets, rule, reporter, voting)
        if covered and not rule.feeds and len(covered) == len(rule.names) + len(rule.networks):
            yield _whole(rule, [by for _, by in covered], reporter)
        else:
            yield from _parts(rule, covered, reporter)


def _whole(rule: "Rule", covering: "list[Rule]", reporter: "Reporter") -> "Finding":
    others = list(dict.fromkeys(covering))
    idents = [other.id for other in others[:_MOST_NAMED]]
    named = ", ".join(f"`{other.id}` ({_kind(other)})" for other in others[:_MOST_NAMED])
    if len(others) > _MOST_NAMED:
        named += f" and {len(others) - _MOST_NAMED} more"
    if any(goes_before(other, rule) for other in others):
        message = f"`{rule.id}` ({_kind(rule)}) never decides: {named} is there before it"
        return reporter.about(SHADOWED, rule, message, *idents)
    return reporter.about(REDUNDANT, rule, f"`{rule.id}` adds nothing to {named}", *idents)


def _parts(rule: "Rule", covered: "list[tuple[Target, Rule]]", reporter: "Reporter") -> "Iterator[Finding]":
    for target, by in covered[:_MOST_ENTRIES]:
        text = target.text if isinstance(target, tuple) else str(target)
        if by is rule:
            message = f"`{text}` adds nothing to the other targets of `{rule.id}`"
        elif goes_before(by, rule):
            message = (
                f"`{text}` never decides in `{rule.id}` ({_kind(rule)}): `{by.id}` ({_kind(by)}) is there before it"
            )
        else:
            message = f"`{text}` in `{rule.id}` adds nothing to `{by.id}`"
        others = () if by is rule else (by.id,)
        yield reporter.about(PART_IDLE, rule, message, *others, at="to", entry=text)
    if len(covered) > _MOST_ENTRIES:
        message = f"so do {len(covered) - _MOST_ENTRIES} more targets of `{rule.id}`"
        yield reporter.about(PART_IDLE, rule, message, at="to")


def _covered(targets: Targets, rule: "Rule", reporter: "Reporter", voting: "_Voting") -> "list[tuple[Target, Rule]]":
    """Pair each target of a rule that does nothing with the rule that sees to that."""
    found: list[tuple[Target, Rule]] = []
    seen: set[Target] = set()
    for target in (*rule.names, *rule.networks):
        over = targets.over_name(target, rule) if isinstance(target, tuple) else targets.over_network(target, rule)
        candidates = ((rule, False),) if target in seen else over
        seen.add(target)
        here = voting.get(rule.id, _NOWHERE)
        there = ((c, same) for c, same in candidates if here <= voting.get(c.id, _NOWHERE))
        by = next((c for c, same in there if _sees_to(c, rule, target, reporter, same_target=same)), None)
        if by is not None:
            found.append((target, by))
    return found


def _sees_to(wide: "Rule", rule: "Rule", target: "Target", reporter: "Reporter", *, same_target: bool) -> bool:
    if wide is rule:
        return not same_target
    if not silences(wide, rule, target):
        return False
    # Of two that say the same of the same the first is kept.
    return (
        goes_before(wide, rule)
        or not silences(rule, wide, target)
        or not same_target
        or reporter.number(wide) < reporter.number(rule)
    )


def _voting(policy: "Policy") -> "_Voting":
    """Say in which layers each rule has a vote of its own: only what votes there too can stand in for it."""
    found: dict[str, frozenset[int]] = {}
    for number, layer in enumerate(policy.layers):
        for rule in layer.rules:
            found[rule.id] = found.get(rule.id, _NOWHERE) | {number}
    return found


def _kind(rule: "Rule") -> str:
    return f"{rule.action}, default" if rule.default else rule.action.value
