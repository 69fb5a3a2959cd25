"""Regions that a diff compares: ranges of ports, networks, names and paths, sandboxes and settings."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from rules.attempt import Protocol
from rules.decision import ApprovalTerms
from rules.feeds import Feed
from rules.loading.layers import differences
from rules.matching.policy import Policy
from rules.matching.revision import content
from rules.ports import LAST_PORT, ports_could_cover, ports_cover
from rules.rule import Exemption, Rule
from rules.sandbox import Command
from rules.settings import Settings
from rules.values.addresses import BLOCKS, Address, Network, find_block, is_within, normalize, parse_network
from rules.values.patterns import NamePattern
from rules.verdicts import Verdict


class PortRange(NamedTuple):
    """Range of ports that no compared rule distinguishes."""

    low: int
    high: int


def port_ranges(rules: Iterable[Rule]) -> list[PortRange]:
    """Split all ports into ranges that no rule distinguishes."""
    lists = (ports for rule in rules for ports in (rule.ports, *(exemption.ports for exemption in rule.excepts)))
    edges = {edge for ports in lists for entry in ports or () for edge in (entry.low, entry.high + 1)}
    starts = sorted(edge for edge in edges | {1} if edge <= LAST_PORT)
    return [PortRange(low, high - 1) for low, high in zip(starts, [*starts[1:], LAST_PORT + 1], strict=True)]


def changed_protocols(changed: Iterable[Rule], stretch: PortRange) -> list[Protocol]:
    """List the protocols on which a changed rule could match these ports."""
    changed = tuple(changed)
    return [p for p in Protocol if any(_speaks(rule, stretch.low, p) for rule in changed)]


def _speaks(rule: Rule, port: int, protocol: Protocol) -> bool:
    """Whether a rule can match: what decides to allow does so for certain or not at all."""
    return (ports_cover if rule.action is Verdict.ALLOW else ports_could_cover)(rule.ports, port, protocol)


EVERYWHERE: Final = (parse_network("0.0.0.0/0"), parse_network("::/0"))


class AddressRegion(NamedTuple):
    """A network, and an address of it that no smaller network at hand has."""

    network: Network
    address: Address


def address_regions(within: Iterable[Network], others: Collection[Network]) -> Iterator[AddressRegion]:
    """Return regions for each network of `within`, and for each smaller one of `others` inside it."""
    required = sorted(set(within), key=_order)
    everything = sorted({*required, *others}, key=_order)
    blocks = sorted((block.network for block in BLOCKS), key=_order)
    yielded: set[Network] = set()
    for network in required:
        for smaller in (network, *_networks_inside(network, everything)):
            if smaller not in yielded:
                yielded.add(smaller)
                yield from _subdivide(
                    smaller, list(_networks_inside(smaller, everything)), list(_networks_inside(smaller, blocks))
                )


def _subdivide(network: Network, smaller: list[Network], blocks: list[Network]) -> Iterator[AddressRegion]:
    """Yield an address outside the smaller networks and blocks, and one in a block but outside the networks."""
    plain = _network_between(network, sorted((*smaller, *blocks), key=_order))
    if plain is not None:
        yield AddressRegion(network, plain)
    for block in blocks:
        if any(block == other or is_within(block, other) for other in smaller):
            continue
        address = _network_between(block, [*_networks_inside(block, smaller)])
        if address is not None and find_block(address) is not None:
            yield AddressRegion(network, address)
            return


def _order(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _networks_inside(network: Network, ordered: list[Network]) -> Iterator[Network]:
    last = network.version, int(network.broadcast_address), 129
    for other in ordered[bisect_right(ordered, _order(network), key=_order) :]:
        if _order(other) > last:
            return
        yield other


def _network_between(network: Network, smaller: list[Network]) -> Address | None:
    """Find the first address of `network` that none of the networks inside it, in order, has."""
    at = int(network.network_address)
    for inside in smaller:
        if int(inside.network_address) > at:
            break
        at = max(at, int(inside.broadcast_address) + 1)
    if at > int(network.broadcast_address):
        return None
    address = type(network.network_address)(at)
    return address if normalize(address) == address else None


class SettingChange(NamedTuple):
    """A setting that differs."""

    key: str
    was: str | None  # None: not set
    now: str | None


def setting_changes(old: Policy, new: Policy) -> tuple[SettingChange, ...]:
    """List what differs of settings, layers, boxes and commands."""
    was, now = (", ".join(describe_layers(policy)) or "none" for policy in (old, new))
    voting = [SettingChange("layer", was, now)] if was != now else []
    pairs = zip(Settings._fields, old.settings, new.settings, strict=True)
    found = [SettingChange(key, _format_value(was), _format_value(now)) for key, was, now in pairs if was != now]
    return (*voting, *found, *_boxes(old, new))


def _boxes(old: Policy, new: Policy) -> list[SettingChange]:
    """Compare the sandbox settings, what layers require of them, and the commands."""
    found = [SettingChange(*each) for each in differences(old.box, new.box)]
    found += [SettingChange(f"layers' {key}", was, now) for key, was, now in differences(old.floor.box, new.floor.box)]
    was, now = ({command.cite: _command(command) for command in policy.commands} for policy in (old, new))
    for cite in sorted({*was, *now}):
        if was.get(cite) != now.get(cite):
            found.append(SettingChange(f"command {cite}", was.get(cite), now.get(cite)))
    return found


def _command(command: Command) -> str:
    scope = f" for {command.for_}" if command.for_ is not None else ""
    asks = "" if command.approval is None else f" with approval {describe_terms(command.approval)}"
    return f"{command.action} {' '.join(command.words)}{scope}{asks}"


def describe_terms(approval: ApprovalTerms) -> str:
    """Describe the terms of an approval that are set, for comparison."""
    return ", ".join(f"{key} {value}" for key, value in approval._asdict().items() if value is not None)


def _format_value(value: object) -> str | None:
    return None if value is None else str(value)


def describe_layers(policy: Policy) -> list[str]:
    """List the layers, which also decide what their rules don't mention."""
    return sorted(f"{layer.kind} {layer.name} ({layer.mode})" for layer in policy.layers)


_NOT_COMPARED: Final = frozenset({"id", "why", "names", "networks", "feeds"})
_MOST_LISTED: Final = 20_000  # names of lists that differ; the diff says so if it stops here


class PolicySide(Enum):
    """Which of the two policies."""

    OLD = 0
    NEW = 1


class Owner(NamedTuple):
    """A rule of one of the policies that a pattern belongs to, or one of its exemptions."""

    side: PolicySide
    rule: Rule
    changed: bool = False  # whether the other policy doesn't have this atom
    exempts: bool = False


@dataclass(slots=True)
class Atoms:
    """All atoms of two policies, by their pattern."""

    names: dict[NamePattern, list[Owner]] = field(default_factory=dict)
    networks: dict[Network, list[Owner]] = field(default_factory=dict)
    left_out: bool = False  # more names of lists differ than are looked at

    @property
    def changed_names(self) -> list[NamePattern]:
        """The patterns at which something may be decided otherwise."""
        return [name for name, owners in self.names.items() if any(owner.changed for owner in owners)]

    @property
    def changed_networks(self) -> list[Network]:
        """The networks at which something may be decided otherwise."""
        return [network for network, owners in self.networks.items() if any(owner.changed for owner in owners)]


def find_atoms(old: Policy, new: Policy, *, all_changed: bool = False) -> Atoms:
    """Split both policies' rules into common and changed ones. `all_changed`: something else that decides differs."""
    contents: dict[PolicySide, list[tuple[object, Rule]]] = {
        side: [((content(rule, _NOT_COMPARED), layers_of(rule)), rule) for rule in policy.rules]
        for side, policy, layers_of in ((PolicySide.OLD, old, _layers_of(old)), (PolicySide.NEW, new, _layers_of(new)))
    }
    having = {
        side: {
            (content_key, target) for content_key, rule in pairs for target in (*map(_text, rule.names), *rule.networks)
        }
        for side, pairs in contents.items()
    }
    atoms = Atoms()
    for side, pairs in contents.items():
        other = having[PolicySide.NEW if side is PolicySide.OLD else PolicySide.OLD]
        for content_key, rule in pairs:
            for name in rule.names:
                changed = all_changed or (content_key, _text(name)) not in other
                atoms.names.setdefault(name, []).append(Owner(side, rule, changed))
            for network in rule.networks:
                changed = all_changed or (content_key, network) not in other
                atoms.networks.setdefault(network, []).append(Owner(side, rule, changed))
            for exemption in rule.excepts:
                _add_exemption(atoms, side, rule, exemption)
    _add_lists(atoms, contents)
    return atoms


def _layers_of(policy: Policy) -> Callable[[Rule], object]:
    """Return a function that gives the layers a rule belongs to."""
    layers: dict[Rule, list[str]] = {}
    for layer in policy.layers:
        for rule in layer.rules:
            layers.setdefault(rule, []).append(f"{layer.kind} {layer.name} {layer.mode}")
    return lambda rule: tuple(sorted(layers.get(rule, ())))


def _add_lists(atoms: Atoms, contents: dict[PolicySide, list[tuple[object, Rule]]]) -> None:
    """Return the names of lists that only one side has; none of lists that are the same on both."""
    by_content: dict[object, dict[PolicySide, list[Rule]]] = {}
    for side, pairs in contents.items():
        for content_key, rule in pairs:
            if rule.feeds:
                by_content.setdefault(content_key, {PolicySide.OLD: [], PolicySide.NEW: []})[side].append(rule)
    for sides in by_content.values():
        feeds = {side: {feed.digest: feed for rule in rules for feed in rule.feeds} for side, rules in sides.items()}
        if feeds[PolicySide.OLD].keys() == feeds[PolicySide.NEW].keys():
            continue
        named = {side: {name for feed in found.values() for name in _names_of(feed)} for side, found in feeds.items()}
        differing = sorted(named[PolicySide.OLD] ^ named[PolicySide.NEW])
        atoms.left_out |= len(differing) > _MOST_LISTED
        for name in differing[:_MOST_LISTED]:
            side = PolicySide.OLD if name in named[PolicySide.OLD] else PolicySide.NEW
            pattern = NamePattern.parse(f"**.{name}")
            owners = atoms.names.setdefault(pattern, [])
            owners += [Owner(side, rule, changed=True) for rule in sides[side]]


def _names_of(feed: Feed) -> Iterator[str]:
    for chunk in feed.names:
        yield from filter(None, chunk.split("\n"))


def _add_exemption(atoms: Atoms, side: PolicySide, rule: Rule, exemption: Exemption) -> None:
    for name in exemption.names:
        atoms.names.setdefault(name, []).append(Owner(side, rule, exempts=True))
    for network in exemption.networks:
        atoms.networks.setdefault(network, []).append(Owner(side, rule, exempts=True))


def _text(name: NamePattern) -> str:
    return name.text
