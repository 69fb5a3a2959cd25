"""Rules by target: a trie of reversed labels for names, a table of prefixes for networks.

Names are found among names and addresses among networks, never one in the other (a name rule never allows an address).
`Candidates` are the rules that cover one target, with a plan for each port range and each kind of caller and day that
rules distinguish. `for`, `when: tainted`, `until` and grants are evaluated before planning.

Lookups are cached by the matching patterns, not by the target, so a task that uses a million names doesn't fill memory.
Only the last few thousand are cached by name, because clients repeat the same few.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import Protocol
from rules.feeds import Feed, find_covering
from rules.matching.plan import Candidate, Plan
from rules.ports import LAST_PORT
from rules.rule import Exemption, Rule, covers_exeat_name, names_host
from rules.values.addresses import Address, Network, find_block, network_opens, normalize
from rules.values.globs import Trie
from rules.values.names import HOST, LOOPBACK, HostName, is_exeat_name
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from rules.decision import Decision
    from rules.values.patterns import TaskSelector

# Cache key for what plans depend on: the epoch, which selectors match the task, its taint, and the granted rules
type CallerKey = tuple[int, tuple[bool, ...], bool, frozenset[Rule]]

_NONE: Final[frozenset[Rule]] = frozenset()
NO_CALLER_KEY: Final[CallerKey] = (0, (), False, _NONE)
_MOST_TASKS: Final = 256
_MOST_GRANTED: Final = 256  # plans of attempts under grants
_NO_ENDS: Final[Mapping[date, int]] = {}
_MOST_RECENT: Final = 4096  # names
_MOST_KEPT: Final = 65536  # sets of candidates; only patterns with `*` inside names can combine into more


class RequestNeeds(NamedTuple):
    """Parts of a request that the rules for a target and port look at; the gate need not read the others."""

    requests: bool
    headers: bool
    git: bool  # `Request.git`
    people: bool  # a rule asks them, and they see the request


class Candidates:
    """Rules that cover a target, most specific first, and the plans made from them.

    `ends` maps each `until` of a rule to the epoch (see `Policy.epoch`) in which it has passed.
    """

    __slots__ = (
        "_caller_keys",
        "_dated",
        "_granted",
        "_looks",
        "_plans",
        "_selectors",
        "_tainting",
        "asking",
        "closed",
        "ends",
        "lookups",
        "not_public",
        "resolved",
        "rules",
        "starts",
        "varies",
    )  # fmt: skip

    def __init__(
        self,
        rules: tuple[Candidate, ...],
        *,
        not_public: bool = False,
        resolved: bool = False,
        ends: Mapping[date, int] = _NO_ENDS,
        closed: frozenset[Rule] = _NONE,
    ) -> None:
        self.rules = rules
        self.asking = [candidate.rule for candidate in rules if candidate.rule.action is Verdict.ASK]
        self.not_public = not_public  # whether the target is, or was resolved to, an address that is not public
        self.resolved = resolved  # whether the address that is to be dialled is known
        self.ends = ends
        self.closed = closed  # asks that, granted, don't open this address
        self.lookups: dict[CallerKey, Decision] = {}  # the policy's, about the name alone
        self._caller_keys: dict[tuple[object, ...], CallerKey] = {}
        self._looks: dict[int, RequestNeeds] = {}  # by stretch of ports
        self._plans: dict[tuple[int, Protocol, CallerKey], Plan] = {}
        self._granted: dict[tuple[int, Protocol, CallerKey], Plan] = {}
        edges: set[int] = set()
        selectors: dict[TaskSelector, None] = {}
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
        # whether the task, its taint or the day matters
        self.varies = self._dated or bool(selectors) or self._tainting

    def caller_key(
        self, epoch: int, task: str, labels: Mapping[str, str], *, tainted: bool, granted: frozenset[Rule] = _NONE
    ) -> CallerKey:
        """Return the cache key for the calling task, the day, the taint and the grants."""
        caller_key = self._caller_key_of(epoch, task, labels, tainted=tainted) if self.varies else NO_CALLER_KEY
        if granted:
            granted_here = granted.intersection(candidate.rule for candidate in self.rules)
            return (*caller_key[:3], granted_here)
        return caller_key

    def _caller_key_of(self, epoch: int, task: str, labels: Mapping[str, str], *, tainted: bool) -> CallerKey:
        key = (epoch, tainted, task, *labels.items())
        caller_key = self._caller_keys.get(key)
        if caller_key is None:
            if len(self._caller_keys) >= _MOST_TASKS:
                self._caller_keys.clear()
            matching = tuple(selector.matches(task, labels) for selector in self._selectors)
            caller_key = (epoch if self._dated else 0), matching, tainted and self._tainting, _NONE
            self._caller_keys[key] = caller_key
        return caller_key

    def plan(self, port: int, protocol: Protocol, caller_key: CallerKey = NO_CALLER_KEY) -> Plan:
        """Return the plan for one port and protocol."""
        key = bisect_right(self.starts, port), protocol, caller_key
        plans = self._granted if caller_key[3] else self._plans
        plan = plans.get(key)
        if plan is None:
            if len(self._granted) >= _MOST_GRANTED:
                self._granted.clear()
            plan = plans[key] = Plan(
                self._candidates_for(caller_key),
                port,
                protocol,
                not_public=self.not_public,
                resolved=self.resolved,
                expired=self._expired(caller_key[0]),
                granted=caller_key[3],
                closed=self.closed,
            )
        return plan

    def looks_at(self, port: int) -> RequestNeeds:
        """Return which parts of requests the rules look at on a port, for every protocol."""
        port_range = bisect_right(self.starts, port)
        cached = self._looks.get(port_range)
        if cached is None:
            every = [candidate.rule for candidate in self.rules]
            rules = [r for r in every if r.ports is None or any(p.low <= port <= p.high for p in r.ports)]
            cached = self._looks[port_range] = RequestNeeds(
                any(rule.looks_at_requests for rule in rules),
                any(rule.looks_at_headers for rule in rules),
                any(rule.looks_at_git for rule in rules),
                any(rule.action is Verdict.ASK for rule in rules),
            )
        return cached

    def dns_types(self, caller_key: CallerKey) -> frozenset[str]:
        """List the record types that unexpired rules allow for the calling task."""
        expired = self._expired(caller_key[0])
        rules = (candidate.rule for candidate in self._candidates_for(caller_key))
        return frozenset[str]().union(*(r.dns_types for r in rules if r.allows and r not in expired))

    def _candidates_for(self, caller_key: CallerKey) -> tuple[Candidate, ...]:
        """Leave out what is for other tasks, or for tainted ones and this isn't: rules and exemptions."""
        if not self._selectors and not self._tainting:
            return self.rules
        _, matching, tainted, _ = caller_key
        selected: dict[TaskSelector | None, bool] = {**dict(zip(self._selectors, matching, strict=True)), None: True}

        def meant(part: Rule | Exemption) -> bool:
            return selected[part.selector] and (tainted or not part.when_tainted)

        return tuple(
            Candidate(candidate.rule, tuple(e for e in candidate.exemptions if meant(e)))
            for candidate in self.rules
            if meant(candidate.rule)
        )

    def _expired(self, epoch: int) -> frozenset[Rule]:
        if not self._dated:
            return frozenset()
        dated = (candidate.rule for candidate in self.rules if candidate.rule.until is not None)
        return frozenset(rule for rule in dated if rule.until is not None and self.ends.get(rule.until, 0) <= epoch)


class _Entry(NamedTuple):
    """A rule, or an exemption of one, filed under one of its names or networks."""

    rule: Rule
    text: str
    exemption: Exemption | None = None
    network: Network | None = None


class Index:
    """All rules, by what they are about."""

    __slots__ = (
        "_by_feed", "_by_network", "_ends", "_exact", "_feeds", "_found", "_lengths", "_listed", "_names", "_prefixes",
        "_recent", "_wild",
    )  # fmt: skip

    def __init__(self, rules: Iterable[Rule], ends: Mapping[date, int] | None = None) -> None:
        self._ends: Mapping[date, int] = ends or {}  # in which epoch a last day has passed
        self._names: Trie[_Entry] = Trie()  # all of them; looked up for hints alone
        self._exact: dict[str, int] = {}  # slots of names that stand for themselves
        self._wild: Trie[int] = Trie()  # slots of the others
        self._by_network: list[list[_Entry]] = []
        self._feeds: list[Feed] = []
        self._by_feed: list[list[_Entry]] = []  # by the number of one of `_feeds`
        self._prefixes: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}  # version, host bits, prefix: number
        self._listed: dict[Network, None] = {}  # what exemptions say of addresses: it sets apart one from another
        self._found: dict[tuple[object, ...], Candidates] = {}
        self._recent: dict[HostName, Candidates] = {}
        for rule in sorted(rules, key=_specificity):
            self._file(rule, rule, None)
            for feed in rule.feeds:
                self._by_feed[self._number(feed)].append(_Entry(rule, feed.text))
            for exemption in rule.excepts:
                self._file(rule, exemption, exemption)
                self._listed.update(dict.fromkeys(exemption.resolves_to or ()))
        self._lengths = {version: sorted(lengths.items()) for version, lengths in self._prefixes.items()}

    def __getstate__(self) -> tuple[None, dict[str, object]]:
        """Pickle without the caches."""
        return None, {**{name: getattr(self, name) for name in self.__slots__}, "_found": {}, "_recent": {}}

    def _file(self, rule: Rule, owner: Rule | Exemption, exemption: Exemption | None) -> None:
        for name in owner.names:
            slot = self._names.file(name.parts, _Entry(rule, name.text, exemption))
            if len(self._names.values[slot]) == 1:
                if name.below is None:
                    self._exact[name.text] = slot
                else:
                    self._wild.file(name.parts, slot)
        for network in owner.networks:
            host_bits = network.max_prefixlen - network.prefixlen
            numbers = self._prefixes[network.version].setdefault(host_bits, {})
            number = numbers.setdefault(int(network.network_address) >> host_bits, len(self._by_network))
            if number == len(self._by_network):
                self._by_network.append([])
            self._by_network[number].append(_Entry(rule, str(network), exemption, network))

    def _number(self, feed: Feed) -> int:
        """Return the number of a list; identical lists share one."""
        for number, cached in enumerate(self._feeds):
            if cached.digest == feed.digest:
                return number
        self._feeds.append(feed)
        self._by_feed.append([])
        return len(self._feeds) - 1

    def candidates(self, target: HostName | Address) -> Candidates:
        """Find the rules that cover `target`; targets with the same matching patterns share one object."""
        if isinstance(target, HostName):
            recent = self._recent.get(target)
            if recent is not None:
                return recent
            own = is_exeat_name(target)
            slots = self._slots(target)
            listing = find_covering(self._feeds, target) if self._feeds else ()
            key: tuple[object, ...] = (*slots, None, *listing) if listing else tuple(slots)
            if own:
                key = (target == HOST, "own", *key)
            found = self._found.get(key)
            if found is None:
                entries = [self._by_feed[number] for number in listing]
                entries += [self._names.values[slot] for slot in reversed(slots)]
                candidates = _candidates(entry for some in entries for entry in some)
                closed: frozenset[Rule] = frozenset()
                if own:
                    candidates = tuple(c for c in candidates if covers_exeat_name(c.rule, target))
                    closed = frozenset(c.rule for c in candidates if _asks(c) and not names_host(c.rule, target))
                found = Candidates(candidates, not_public=own, ends=self._ends, closed=closed)
                self._keep(key, found)
            if len(self._recent) >= _MOST_RECENT:
                self._recent.clear()
            self._recent[target] = found
            return found
        return self._address_candidates(normalize(target))

    def _slots(self, name: HostName) -> list[int]:
        """Find the slots of all patterns that cover `name`, the most specific last: a name by itself is a probe."""
        slots = [self._wild.values[slot][0] for slot in self._wild.find(name.split(".")[::-1])]
        exact = self._exact.get(name)
        if exact is not None:
            slots.append(exact)
        return slots

    def _address_candidates(self, address: Address) -> Candidates:
        bits = int(address)
        numbers = [prefixes.get(bits >> host_bits) for host_bits, prefixes in self._lengths[address.version]]
        block = find_block(address)  # a wide network opens addresses of some blocks and not of others
        listed = tuple([address in network for network in self._listed])
        key: tuple[object, ...] = (block, listed, *[number for number in numbers if number is not None])
        found = self._found.get(key)
        if found is None:
            entries = (entry for number in numbers if number is not None for entry in self._by_network[number])
            applying = _candidates(entry for entry in entries if _applies(entry, address))
            candidates = tuple(_resolved(candidate, address) for candidate in applying)
            closed = frozenset(c.rule for c in candidates if _asks(c) and not _opens(c.rule, address))
            found = Candidates(candidates, not_public=block is not None, resolved=True, ends=self._ends, closed=closed)
            self._keep(key, found)
        return found

    def resolved(self, name: HostName, address: Address) -> Candidates:
        """Find the rules that cover `name` once it has resolved to `address`.

        A rule that allows the name must admit the address. A deny or ask of the address counts for every name.
        """
        by_name, by_address = self.candidates(name), self._address_candidates(address)
        is_loopback = address in LOOPBACK
        if name == HOST:  # it leads to the loopback and nowhere else
            admitting = tuple([is_loopback if c.rule.allows else admits(c.rule, address) for c in by_name.rules])
        else:
            admitting = tuple([admits(c.rule, address) for c in by_name.rules])
        asking = by_name.asking
        opening = tuple([is_loopback if name == HOST else admits(rule, address, granted=True) for rule in asking])
        key = (by_name, by_address, admitting, opening)
        found = self._found.get(key)
        if found is None:
            rules = [_resolved(c, address) for c, admitted in zip(by_name.rules, admitting, strict=True) if admitted]
            by_both = {candidate.rule for candidate in rules}  # what such a rule exempts is the name's affair
            rules += [c for c in by_address.rules if not c.rule.allows and c.rule not in by_both]
            closed = by_name.closed.union(
                rule for rule, network_opens in zip(asking, opening, strict=True) if not network_opens
            )
            # A rule about the address alone allows no name
            closed = closed.union(c.rule for c in rules if _asks(c) and c.rule not in by_both)
            found = Candidates(
                tuple(rules), not_public=by_address.not_public, resolved=True, ends=self._ends, closed=closed
            )
            self._keep(key, found)
        return found

    def _keep(self, key: tuple[object, ...], found: Candidates) -> None:
        if len(self._found) >= _MOST_KEPT:
            self._found.clear()
        self._found[key] = found

    def nearest(self, name: HostName) -> tuple[Rule, str] | None:
        """Find a rule that allows a name near one that no rule covers: a sibling, parent or child."""
        slot = self._names.nearest(name.split(".")[::-1])
        entries = [] if slot is None else self._names.values[slot]
        return next(((e.rule, e.text) for e in entries if e.rule.allows and e.exemption is None), None)


def _specificity(rule: Rule) -> tuple[bool, str]:
    """Order rules under one pattern: those that look at requests first, then by id, independent of file order."""
    return not rule.looks_at_requests, rule.id


def _applies(entry: _Entry, address: Address) -> bool:
    """Whether an entry whose network holds `address` applies: an allow must open the address (invariant 9)."""
    if entry.network is None or entry.exemption is not None or not entry.rule.allows:
        return True
    return network_opens(entry.network, address)


def _asks(candidate: Candidate) -> bool:
    return candidate.rule.action is Verdict.ASK


def _opens(rule: Rule, address: Address) -> bool:
    """Whether the addresses of a rule that allows or is granted open this one."""
    return any(network_opens(network, address) for network in rule.networks)


def admits(rule: Rule, address: Address, *, granted: bool = False) -> bool:
    """Whether a rule about a name covers it when it resolves to `address`; not used for `host.exeat.internal`.

    Without `resolves_to`, an allow covers public addresses, and a deny or ask covers all. An ask counts as a deny here;
    `_opens` answers what it allows once it is granted.
    """
    if granted or rule.action.allows:
        listed = rule.resolves_to
        return (
            find_block(address) is None
            if listed is None
            else any(network_opens(network, address) for network in listed)
        )
    return rule.resolves_to is None or any(address in network for network in rule.resolves_to)


def _resolved(candidate: Candidate, address: Address) -> Candidate:
    """Leave out what a rule exempts of other addresses."""
    if all(exemption.resolves_to is None for exemption in candidate.exemptions):
        return candidate
    exemptions = candidate.exemptions
    is_loopback = (
        e for e in exemptions if e.resolves_to is None or any(address in network for network in e.resolves_to)
    )
    return Candidate(candidate.rule, tuple(is_loopback))


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
