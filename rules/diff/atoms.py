"""Which rules differ, by what they say: each rule taken apart into one atom for each name, pattern or network.

An attempt is decided by the rules that cover it. Where the same atoms cover it in both policies it is decided alike, so
only the atoms that one policy alone has are looked at. Ids, texts and the order of anything are no part of an atom;
every other field of a rule is, also those that are yet to come.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.paths import PathPattern
from rules.patterns import NamePattern

if TYPE_CHECKING:
    from collections.abc import Callable

    from rules.addresses import Network
    from rules.feeds import Feed
    from rules.matching.policy import Policy
    from rules.rule import Exemption, Rule

_SAYS_NOTHING: Final = frozenset({"id", "why", "names", "networks", "feeds"})
_MOST_LISTED: Final = 20_000  # names of lists that differ; what is left out is told


class Side(Enum):
    """Which of the two policies."""

    OLD = 0
    NEW = 1


class Owner(NamedTuple):
    """A rule of one of the policies that a pattern belongs to, or one of its exemptions."""

    side: Side
    rule: "Rule"
    changed: bool = False  # whether the other policy doesn't have this atom
    exempts: bool = False


@dataclass(slots=True)
class Atoms:
    """All atoms of two policies, by their pattern."""

    names: dict[NamePattern, list[Owner]] = field(default_factory=dict)
    networks: "dict[Network, list[Owner]]" = field(default_factory=dict)
    left_out: bool = False  # more names of lists differ than are looked at

    @property
    def changed_names(self) -> list[NamePattern]:
        """The patterns at which something may be decided otherwise."""
        return [name for name, owners in self.names.items() if any(owner.changed for owner in owners)]

    @property
    def changed_networks(self) -> "list[Network]":
        """The networks at which something may be decided otherwise."""
        return [network for network, owners in self.networks.items() if any(owner.changed for owner in owners)]


def atoms_of(old: "Policy", new: "Policy", *, all_changed: bool = False) -> Atoms:
    """Take both policies' rules apart. `all_changed`: what decides beside the rules differs, so each may."""
    contents: dict[Side, list[tuple[object, Rule]]] = {
        side: [((content(rule), votes(rule)), rule) for rule in policy.rules]
        for side, policy, votes in ((Side.OLD, old, _votes(old)), (Side.NEW, new, _votes(new)))
    }
    having = {
        side: {(said, target) for said, rule in pairs for target in (*map(_text, rule.names), *rule.networks)}
        for side, pairs in contents.items()
    }
    atoms = Atoms()
    for side, pairs in contents.items():
        other = having[Side.NEW if side is Side.OLD else Side.OLD]
        for said, rule in pairs:
            for name in rule.names:
                changed = all_changed or (said, _text(name)) not in other
                atoms.names.setdefault(name, []).append(Owner(side, rule, changed))
            for network in rule.networks:
                changed = all_changed or (said, network) not in other
                atoms.networks.setdefault(network, []).append(Owner(side, rule, changed))
            for exemption in rule.excepts:
                _take_exemption(atoms, side, rule, exemption)
    _take_lists(atoms, contents)
    return atoms


def _votes(policy: "Policy") -> "Callable[[Rule], object]":
    """Say in which layers a rule votes as well."""
    layers: dict[Rule, list[str]] = {}
    for layer in policy.layers:
        for rule in layer.rules:
            layers.setdefault(rule, []).append(f"{layer.kind} {layer.name} {layer.mode}")
    return lambda rule: tuple(sorted(layers.get(rule, ())))


def _take_lists(atoms: Atoms, contents: "dict[Side, list[tuple[object, Rule]]]") -> None:
    """Take the names of lists that one side alone has; of a list that is the same on both sides none."""
    by_content: dict[object, dict[Side, list[Rule]]] = {}
    for side, pairs in contents.items():
        for said, rule in pairs:
            if rule.feeds:
                by_content.setdefault(said, {Side.OLD: [], Side.NEW: []})[side].append(rule)
    for sides in by_content.values():
        feeds = {side: {feed.digest: feed for rule in rules for feed in rule.feeds} for side, rules in sides.items()}
        if feeds[Side.OLD].keys() == feeds[Side.NEW].keys():
            continue
        named = {side: {name for feed in found.values() for name in _names_of(feed)} for side, found in feeds.items()}
        differing = sorted(named[Side.OLD] ^ named[Side.NEW])
        atoms.left_out |= len(differing) > _MOST_LISTED
        for name in differing[:_MOST_LISTED]:
            side = Side.OLD if name in named[Side.OLD] else Side.NEW
            pattern = NamePattern.parse(f"**.{name}")
            owners = atoms.names.setdefault(pattern, [])
            owners += [Owner(side, rule, changed=True) for rule in sides[side]]


def _names_of(feed: "Feed") -> "Iterator[str]":
    for chunk in feed.names:
        yield from filter(None, chunk.split("\n"))


def _take_exemption(atoms: Atoms, side: Side, rule: "Rule", exemption: "Exemption") -> None:
    for name in exemption.names:
        atoms.names.setdefault(name, []).append(Owner(side, rule, exempts=True))
    for network in exemption.networks:
        atoms.networks.setdefault(network, []).append(Owner(side, rule, exempts=True))


def _text(name: NamePattern) -> str:
    return name.text


def content(rule: "Rule") -> tuple[object, ...]:
    """Give all that a rule says but for what it is about, in one form for everything that means the same."""
    return tuple(_normal(value) for field, value in rule._asdict().items() if field not in _SAYS_NOTHING)


def _normal(value: object) -> object:
    """Bring a field's value to something hashable. Lists are sets: every list of the grammar is ORed."""
    if value is None or isinstance(value, (str, int, float, Enum)):
        return value
    if isinstance(value, (NamePattern, PathPattern)):
        return value.text
    if isinstance(value, Mapping):
        return frozenset((_normal(key), _normal(each)) for key, each in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return tuple(map(_normal, value))
    if isinstance(value, (tuple, list, frozenset, set)):
        return frozenset(map(_normal, value))
    return value
