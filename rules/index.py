"""From a target to the rules whose names or networks cover it: a trie of reversed labels, and a table of prefixes.

Names are found among names and addresses among networks, never one in the other (a name rule never allows an address).
What is kept of lookups is filed under the patterns that were found, not under what was asked for: a task that asks for
a million names makes nothing grow.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rules.addresses import Address, Block, Network, block_of, normal, opens
from rules.attempt import Protocol
from rules.decision import Decision
from rules.names import HostName
from rules.plan import Candidate, Plan
from rules.ports import LAST_PORT
from rules.rule import Exemption, Rule
from rules.trie import Trie

_MOST_KEPT: Final = 65536  # sets of candidates; only patterns with `*` inside names can combine into more


@dataclass(slots=True, eq=False)
class Candidates:
    """The rules that cover a target, most specific first, and a plan for each stretch of ports that differs."""

    rules: tuple[Candidate, ...]
    not_public: bool = False  # whether the target is, or was resolved to, an address that is not public
    resolved: bool = False  # whether the address that is to be dialled is known
    starts: list[int] = field(init=False)  # ports at which what the rules say may change, ascending
    lookup: Decision | None = None  # the policy's, about the name alone; kept where it is found
    _plans: dict[tuple[int, Protocol], Plan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        edges: set[int] = set()
        for candidate in self.rules:
            for ports in (candidate.rule.ports, *(exemption.ports for exemption in candidate.exemptions)):
                edges.update(edge for entry in ports or () for edge in (entry.low, entry.high + 1))
        self.starts = sorted(edge for edge in edges | {1} if edge <= LAST_PORT)

    def plan(self, port: int, protocol: Protocol) -> Plan:
        """Give the plan for one port and protocol."""
        key = (bisect_right(self.starts, port), protocol)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = Plan(
                self.rules, port, protocol, not_public=self.not_public, resolved=self.resolved
            )
        return plan


class _Entry(NamedTuple):
    """A rule, or an exemption of one, filed under one of its names or networks."""

    rule: Rule
    text: str
    exemption: Exemption | None = None
    network: Network | None = None


class Index:
    """All rules, by what they are about."""

    __slots__ = ("_by_name", "_by_network", "_found", "_lengths", "_names", "_prefixes")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._names = Trie()
        self._by_name: list[list[_Entry]] = []  # by slot of `_names`
        self._by_network: list[list[_Entry]] = []
        self._prefixes: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}  # version, host bits, prefix: number
        self._found: dict[tuple[object, ...], Candidates] = {}
        for rule in sorted(rules, key=_specificity):
            self._file(rule, rule, None)
            for exemption in rule.excepts:
                self._file(rule, exemption, exemption)
        self._lengths = {version: sorted(lengths.items()) for version, lengths in self._prefixes.items()}

    def _file(self, rule: Rule, owner: Rule | Exemption, exemption: Exemption | None) -> None:
        for name in owner.names:
            slot = self._names.add(name.parts)
            if slot == len(self._by_name):
                self._by_name.append([])
            self._by_name[slot].append(_Entry(rule, name.text, exemption))
        for network in owner.networks:
            host_bits = network.max_prefixlen - network.prefixlen
            numbers = self._prefixes[network.version].setdefault(host_bits, {})
            number = numbers.setdefault(int(network.network_address) >> host_bits, len(self._by_network))
            if number == len(self._by_network):
                self._by_network.append([])
            self._by_network[number].append(_Entry(rule, str(network), exemption, network))

    def candidates(self, target: HostName | Address) -> Candidates:
        """Find the rules that cover `target`; the same object for whatever the same patterns cover."""
        if isinstance(target, HostName):
            slots = self._names.find(target.split(".")[::-1])
            found = self._found.get(tuple(slots))
            if found is None:
                found = Candidates(_candidates(entry for slot in reversed(slots) for entry in self._by_name[slot]))
                self._keep(tuple(slots), found)
            return found
        return self._of_address(normal(target))

    def _of_address(self, address: Address) -> Candidates:
        bits = int(address)
        numbers = [prefixes.get(bits >> host_bits) for host_bits, prefixes in self._lengths[address.version]]
        block = block_of(address)  # a wide network opens addresses of some blocks and not of others
        key: tuple[Block | int | None, ...] = (block, *(number for number in numbers if number is not None))
        found = self._found.get(key)
        if found is None:
            entries = (entry for number in numbers if number is not None for entry in self._by_network[number])
            candidates = _candidates(entry for entry in entries if _applies(entry, address))
            found = Candidates(candidates, not_public=block is not None, resolved=True)
            self._keep(key, found)
        return found

    def resolved(self, name: HostName, address: Address) -> Candidates:
        """Find the rules that cover `name` once it has been resolved to `address`, which is to be dialled.

        What lets the name out must admit the address; what holds the address back counts too, for whatever name.
        """
        by_name, by_address = self.candidates(name), self._of_address(address)
        admitting = tuple(admits(candidate.rule, address) for candidate in by_name.rules)
        key = (by_name, by_address, admitting)
        found = self._found.get(key)
        if found is None:
            rules = [candidate for candidate, admitted in zip(by_name.rules, admitting, strict=True) if admitted]
            by_both = {candidate.rule for candidate in rules}  # what such a rule exempts is the name's affair
            rules += [c for c in by_address.rules if not c.rule.lets_out and c.rule not in by_both]
            found = Candidates(tuple(rules), not_public=by_address.not_public, resolved=True)
            self._keep(key, found)
        return found

    def _keep(self, key: tuple[object, ...], found: Candidates) -> None:
        if len(self._found) >= _MOST_KEPT:
            self._found.clear()
        self._found[key] = found

    def nearest(self, name: HostName) -> tuple[Rule, str] | None:
        """Find a rule that lets out a name close to one that no rule covers: a neighbour, parent or child of it."""
        slot = self._names.nearest(name.split(".")[::-1])
        entries = [] if slot is None else self._by_name[slot]
        return next(((e.rule, e.text) for e in entries if e.rule.lets_out and e.exemption is None), None)


def _specificity(rule: Rule) -> tuple[bool, str]:
    """Order rules under one pattern: those that look at requests first, then by id, so that files' order is nothing."""
    return not rule.looks_at_requests, rule.id


def _applies(entry: _Entry, address: Address) -> bool:
    """Whether an entry whose network holds `address` counts for it: what lets out must open it (invariant 9)."""
    if entry.network is None or entry.exemption is not None or not entry.rule.lets_out:
        return True
    return opens(entry.network, address)


def admits(rule: Rule, address: Address) -> bool:
    """Whether a rule about a name covers it when it resolves to `address`.

    Without `resolves_to`, what lets out covers public addresses and what holds back covers all.
    """
    if rule.lets_out:
        listed = rule.resolves_to
        return block_of(address) is None if listed is None else any(opens(network, address) for network in listed)
    return rule.resolves_to is None or any(address in network for network in rule.resolves_to)


def _candidates(entries: Iterable[_Entry]) -> tuple[Candidate, ...]:
    exemptions: dict[Rule, list[Exemption]] = {}
    rules: dict[Rule, None] = {}
    for entry in entries:
        if entry.exemption is None:
            rules[entry.rule] = None
        else:
            exemptions.setdefault(entry.rule, []).append(entry.exemption)
    everywhere = {rule: [e for e in rule.excepts if not e.names and not e.networks] for rule in rules}
    return tuple(Candidate(rule, (*everywhere[rule], *exemptions.get(rule, ()))) for rule in rules)
