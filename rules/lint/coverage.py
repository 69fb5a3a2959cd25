"""What a rule covers for lint: names, networks, ports and paths that another rule covers too."""

from collections.abc import Iterable, Iterator
from datetime import date
from typing import Final, NamedTuple

from rules.attempt import Attempt, Protocol, Request
from rules.decision import Decision
from rules.matching.policy import Policy
from rules.matching.requests import UNNAMED, is_wide
from rules.matching.sample_requests import fill_part, sample_paths
from rules.ports import Ports
from rules.rule import Exemption, Http, Rule
from rules.values.addresses import BLOCKS, Network, is_within, network_opens
from rules.values.globs import MANY, Part, Trie, may_overlap, pattern_matches
from rules.values.names import HostName, InvalidNameError
from rules.values.paths import PathPattern
from rules.values.patterns import NamePattern, Pattern, TaskSelector
from rules.verdicts import STRICTEST_FIRST, Verdict

type Target = NamePattern | Network

_STRICTNESS: Final = {verdict: number for number, verdict in enumerate(STRICTEST_FIRST)}
# Compared one by one below, or without effect on decisions.
_KNOWN: Final = frozenset(
    {"id", "action", "names", "networks", "feeds", "ports", "resolves_to", "http", "default", "excepts", "tls", "mode",
     "idle_timeout", "why", "selector", "until", "git", "credential", "when_tainted"}
)  # fmt: skip
_OTHERS: Final = tuple(field for field in Rule._fields if field not in _KNOWN)


def takes_precedence(first: Rule, second: Rule) -> bool:
    """Whether, where both match, `first` alone decides."""
    if first.default is not second.default:
        return second.default
    return _STRICTNESS[first.action] < _STRICTNESS[second.action]


def makes_idle(wide: Rule, narrow: Rule, target: Target) -> bool:
    """Whether removing `narrow` changes no decision on a target of both as long as `wide` is there."""
    before = takes_precedence(wide, narrow)
    same = wide.action is narrow.action and wide.default is narrow.default
    if not before and not (same and wide.mode is narrow.mode):
        return False
    if wide.action is Verdict.ASK and (before or not _opens_as_much(wide, narrow, target)):
        return False  # what is behind it decides once it is granted
    if not isinstance(target, tuple) and wide.allows and not narrow.allows:
        return False  # a deny of an address counts for names too, an allow doesn't
    return (
        _ports_cover(wide, narrow)
        and _addresses_cover(wide, narrow)
        and _http_covers(wide, narrow)
        and wide.selector in {None, narrow.selector}
        and wide.git in {None, narrow.git}
        and wide.credential in {None, narrow.credential}
        and (narrow.when_tainted or not wide.when_tainted)
        and _lasts_as_long(wide, narrow)
        and all(_is_harmless(exemption, wide, narrow, target) for exemption in wide.excepts)
        and (
            (wide.action is Verdict.DENY and not wide.default) or _carries(wide, narrow)
        )  # audit mode allows what defaults block
    )


def _opens_as_much(wide: Rule, narrow: Rule, target: Target) -> bool:
    """Whether an ask, once granted, opens every address that another one does; it depends on where they list them."""
    listed = isinstance(target, tuple) or target in wide.networks
    return listed and narrow.resolves_to in {None, wide.resolves_to}


def _lasts_as_long(wide: Rule, narrow: Rule) -> bool:
    """Whether `wide` acts alike on every day on which `narrow` acts: see `until` in docs/reference/rules.md."""
    if wide.action is Verdict.DENY:
        return True
    if narrow.action is Verdict.ASK and narrow.until is not None:
        return wide.until == narrow.until  # it denies from then on
    if wide.until is None or wide.action is Verdict.ASK:
        return True
    return narrow.until is not None and narrow.until <= wide.until


def _ports_cover(wide: Rule, narrow: Rule) -> bool:
    """Whether `wide` applies on every port where `narrow` does; denies, asks and flags also cover raw TCP."""
    if wide.ports is None:
        return True
    if narrow.ports is None:
        return False
    counts_unseen = not wide.allows or (wide.action is narrow.action and wide.default is narrow.default)
    for entry in narrow.ports:
        for protocol in Protocol:
            if _says(entry, protocol, unseen=narrow.action is not Verdict.ALLOW):
                unseen = counts_unseen and wide.action is not Verdict.ALLOW
                if not _within(entry, [p for p in wide.ports if _says(p, protocol, unseen=unseen)]):
                    return False
    return True


def _says(entry: Ports, protocol: Protocol, *, unseen: bool) -> bool:
    return (entry.could_cover if unseen else entry.covers)(entry.low, protocol)


def _within(entry: Ports, ranges: list[Ports]) -> bool:
    """Whether the ports of `entry` lie in the ranges, which may touch each other."""
    low = entry.low
    for other in sorted(ranges):
        if other.low <= low <= other.high:
            low = other.high + 1
    return low > entry.high


def _addresses_cover(wide: Rule, narrow: Rule) -> bool:
    """Whether `wide` counts for every address that a name may have for `narrow`."""
    if not narrow.names or (wide.resolves_to is None and not wide.allows):
        return True
    if wide.resolves_to is None or narrow.resolves_to is None:
        # Public addresses if it allows; a deny or ask covers all others as well.
        return wide.resolves_to is None and narrow.resolves_to is None and narrow.allows
    if wide.needs_address and not narrow.needs_address:
        return False  # the name is allowed until the address is known
    return all(any(network_covers(w, n, opening=wide.allows) for w in wide.resolves_to) for n in narrow.resolves_to)


def network_covers(wide: Network, narrow: Network, *, opening: bool) -> bool:
    """Whether a network covers another; if `opening`, whether it opens all that the other does (addresses.opens)."""
    if wide == narrow:
        return True
    if not is_within(narrow, wide):
        return False
    if not opening:
        return True
    touched = any(b.network.version == wide.version and b.network.overlaps(wide) for b in BLOCKS)
    return not touched or network_opens(wide, narrow.network_address)


def _http_covers(wide: Rule, narrow: Rule) -> bool:
    """Whether every request that `narrow` covers, `wide` does: see requests.py for what a rule leaves unsaid."""
    if wide.http is None:
        return True
    if narrow.http is None or (wide.allows and not narrow.allows):
        return False
    wide_http, other = wide.http, narrow.http
    if not _methods_cover(wide_http, other, wide, narrow) or not _paths_cover(wide_http.paths, other.paths):
        return False
    if wide.allows and wide_http.paths is None and other.paths is not None and any(map(_may_push, other.paths)):
        return False
    short = wide_http.max_url is not None or not wide.allows or not is_wide(wide) or is_wide(narrow)
    return short and wide_http._replace(methods=None, paths=None) == other._replace(methods=None, paths=None)


def _may_push(pattern: PathPattern) -> bool:
    """Whether a git push could be under a path: a rule without paths allows no push."""
    last = pattern.parts[-1] if pattern.parts else ""
    return not isinstance(last, str) or last in {"git-receive-pack", "refs"}


def _methods_cover(wide: Http, narrow: Http, one: Rule, other: Rule) -> bool:
    if wide.methods is None:
        return True
    if narrow.methods is None:
        return False
    # What tightens takes `delete` for DELETE; what allows doesn't.
    same_reading = one.action is not Verdict.ALLOW or other.action is Verdict.ALLOW
    return same_reading and narrow.methods <= wide.methods


def _paths_cover(wide: tuple[PathPattern, ...] | None, narrow: tuple[PathPattern, ...] | None) -> bool:
    if wide is None:
        return True
    if narrow is None:
        return False
    known = {pattern.parts for pattern in wide}
    return all(n.parts in known or any(pattern_covers(w.parts, n.parts) for w in wide[:64]) for n in narrow[:256]) and (
        len(narrow) <= 256 or all(n.parts in known for n in narrow)
    )


def pattern_covers(wide: tuple[Part, ...], narrow: tuple[Part, ...]) -> bool:
    """Whether all that one pattern covers, another does. Stands in for a proof: texts that no pattern can name."""
    return all(pattern_matches(wide, text) for text in sample_paths(narrow, len(wide)))


def _is_harmless(exemption: Exemption, wide: Rule, narrow: Rule, target: Target) -> bool:
    """Whether what the wider rule exempts is nothing of the narrower one's, on this target."""
    if exemption in narrow.excepts and (wide.action is not Verdict.ALLOW or narrow.action is Verdict.ALLOW):
        return True  # what is exempt from an allow is read wider than what is exempt from anything else
    if not exemption.names and not exemption.networks:
        return False
    if isinstance(target, tuple):
        return not any(may_overlap(name.parts, target.parts) for name in exemption.names)
    return not any(network.overlaps(target) for network in exemption.networks)


def _carries(wide: Rule, narrow: Rule) -> bool:
    """Whether what goes out under both goes out in the same way, and as much of it, without `narrow`."""
    if any(getattr(wide, name) != getattr(narrow, name) for name in _OTHERS):
        return False
    if not narrow.allows:
        return True
    timeout = wide.idle_timeout if wide.allows else None
    if narrow.idle_timeout is not None and (timeout is None or timeout > narrow.idle_timeout):
        return False
    tls = [entry for entry in narrow.ports or () if entry.covers(entry.low, Protocol.TLS)]
    return not any(wide.splices(entry.low) and not narrow.splices(entry.low) for entry in tls)


_MOST: Final = 8  # rules of one verdict that are compared, a target
_LONGEST_NAME: Final = 256  # parts: no pattern has more, so what covers a name this long ends in MANY

type Group = tuple[Verdict, bool]


class _Slot:
    """The rules about one pattern or network: few that stand for all."""

    __slots__ = ("_alike", "_paths", "_wide")

    def __init__(self) -> None:
        self._wide: dict[Group, list[Rule]] = {}
        self._alike: dict[object, list[Rule]] = {}
        self._paths: Trie[Rule] | None = None

    def add(self, rule: Rule) -> None:
        """File a rule; the widest come first."""
        group = rule.action, rule.default
        if rule.http is None or rule.http.paths is None:
            _keep(self._wide.setdefault(group, []), rule)
        else:
            self._paths = self._paths or Trie()
            for path in rule.http.paths:
                _keep(self._paths.values[self._paths.add(path.parts)], rule)
        _keep(self._alike.setdefault((*group, rule.ports, rule.http), []), rule)

    def rules(self, like: Rule) -> Iterator[Rule]:
        """Yield rules that may cover `like`; rules with the same action, ports and `http` last."""
        for rules in self._wide.values():
            yield from rules
        if self._paths is not None and like.http is not None and like.http.paths:
            parts = like.http.paths[0].parts
            longest = [text for part in parts for text in ((UNNAMED,) * _MOST if part is MANY else (fill_part(part),))]
            for slot in self._paths.find(longest):
                yield from self._paths.values[slot]
        yield from self._alike.get((like.action, like.default, like.ports, like.http), ())


def _keep(rules: list[Rule], rule: Rule) -> None:
    if len(rules) < _MOST:
        rules.append(rule)


class TargetIndex:
    """All rules by their targets."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._names: Trie[_Slot] = Trie()
        self._slots: dict[tuple[Part, ...], int] = {}
        self._by_network: dict[Network, _Slot] = {}
        self._lengths: dict[int, set[int]] = {4: set(), 6: set()}
        for rule in sorted(rules, key=_narrowness):
            for name in dict.fromkeys(rule.names):
                slot = self._slots[name.parts] = self._names.add(name.parts)
                filed = self._names.values[slot]
                if not filed:
                    filed.append(_Slot())
                filed[0].add(rule)
            for network in dict.fromkeys(rule.networks):
                self._by_network.setdefault(network, _Slot()).add(rule)
                self._lengths[network.version].add(network.prefixlen)

    def over_name(self, name: NamePattern, rule: Rule) -> Iterator[tuple[Rule, bool]]:
        """Return rules about every name that `name` matches, each with whether it has the same pattern."""
        own = self._slots.get(name.parts)
        covering = self._names.find([fill_part(part) for part in name.parts if part is not MANY])
        if MANY in name.parts:
            longer = [
                text
                for part in name.parts
                for text in ((UNNAMED,) * _LONGEST_NAME if part is MANY else (fill_part(part),))
            ]
            ever = set(self._names.find(longer))
            covering = [slot for slot in covering if slot in ever]
        for slot in covering:
            for candidate in self._names.values[slot][0].rules(rule):
                yield candidate, slot == own

    def over_network(self, network: Network, rule: Rule) -> Iterator[tuple[Rule, bool]]:
        """Return rules about every address in `network`, each with whether it has the same network."""
        for length in sorted(self._lengths[network.version]):
            if length > network.prefixlen:
                return
            wide = network.supernet(new_prefix=length)
            slot = self._by_network.get(wide)
            for candidate in () if slot is None else slot.rules(rule):
                if network_covers(wide, network, opening=candidate.allows):
                    yield candidate, wide == network


def _narrowness(rule: Rule) -> tuple[int, int, str]:
    """Order rules by how much keeps them from matching, the widest first."""
    conditions = (rule.http is not None) + (rule.resolves_to is not None) + len(rule.excepts)
    return conditions, 0 if rule.ports is None else 1 + (len(rule.ports) == 1), rule.id


WORD: Final = "lint-stand-in"


def sample_name(pattern: NamePattern) -> HostName | None:
    """Return a name that the pattern matches, or None if such a name is too long."""
    labels = [WORD if part is MANY else fill_part(part, WORD) for part in pattern.parts]
    if pattern.text.startswith("**."):
        labels.pop()  # the name itself
    try:
        return HostName(".".join(reversed(labels)))
    except InvalidNameError:
        return None


def sample_path(parts: tuple[Part, ...]) -> str:
    """Return a path that a pattern matches, without the leading slash."""
    return "/".join(WORD if part is MANY else fill_part(part, WORD) for part in parts)


class DecisionProbe(NamedTuple):
    """Evaluates sample attempts of a rule's tasks against a policy, as of today."""

    policy: Policy
    today: date

    def decide(
        self, rule: Rule, name: HostName, port: int, protocol: Protocol, request: Request | None = None
    ) -> Decision:
        """Decide a connection or a request of a task, with labels, that the rule is for."""
        selector = rule.selector or TaskSelector()
        task = _text(selector.tasks[0]) if selector.tasks else ""
        labels = {name: _text(values[0]) for name, values in selector.labels}
        return self.policy.decide(Attempt(protocol, name, port, request, task, labels, self.today))


def _text(pattern: Pattern) -> str:
    return pattern.text if pattern.glob is None else fill_part(pattern.glob, WORD)
