"""Which rules are about all of a name pattern or network: the candidates for covering another rule.

Of many rules on one target only some are compared, the widest first, and those alike; so that a file of a hundred
thousand rules for one host is no square of them. What is missed by that is a finding less.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from rules.globs import MANY, Trie
from rules.lint.cover import filled, network_covers
from rules.matching.witness import UNNAMED
from rules.rule import Rule
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from rules.addresses import Network
    from rules.globs import Part
    from rules.patterns import NamePattern

_MOST: Final = 8  # rules of one verdict that are compared, a target
_LONGEST_NAME: Final = 256  # parts: no pattern has more, so what covers a name this long ends in MANY

type Group = tuple[Verdict, bool]


class _Slot:
    """The rules about one pattern or network: few that stand for all."""

    __slots__ = ("_alike", "_by_path", "_paths", "_wide")

    def __init__(self) -> None:
        self._wide: dict[Group, list[Rule]] = {}
        self._alike: dict[object, list[Rule]] = {}
        self._paths: Trie | None = None
        self._by_path: list[list[Rule]] = []

    def add(self, rule: Rule) -> None:
        """File a rule; the widest come first."""
        group = rule.action, rule.default
        if rule.http is None or rule.http.paths is None:
            _keep(self._wide.setdefault(group, []), rule)
        else:
            self._paths = self._paths or Trie()
            for path in rule.http.paths:
                slot = self._paths.add(path.parts)
                if slot == len(self._by_path):
                    self._by_path.append([])
                _keep(self._by_path[slot], rule)
        _keep(self._alike.setdefault((*group, rule.ports, rule.http), []), rule)

    def rules(self, like: Rule) -> Iterator[Rule]:
        """Give rules that may cover `like`, those that are alike at the end."""
        for rules in self._wide.values():
            yield from rules
        if self._paths is not None and like.http is not None and like.http.paths:
            parts = like.http.paths[0].parts
            longest = [text for part in parts for text in ((UNNAMED,) * _MOST if part is MANY else (filled(part),))]
            for slot in self._paths.find(longest):
                yield from self._by_path[slot]
        yield from self._alike.get((like.action, like.default, like.ports, like.http), ())


def _keep(rules: list[Rule], rule: Rule) -> None:
    if len(rules) < _MOST:
        rules.append(rule)


class Targets:
    """All rules by their targets."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._names = Trie()
        self._slots: dict[tuple[Part, ...], int] = {}
        self._by_name: list[_Slot] = []
        self._by_network: dict[Network, _Slot] = {}
        self._lengths: dict[int, set[int]] = {4: set(), 6: set()}
        for rule in sorted(rules, key=_narrowness):
            for name in dict.fromkeys(rule.names):
                slot = self._slots[name.parts] = self._names.add(name.parts)
                if slot == len(self._by_name):
                    self._by_name.append(_Slot())
                self._by_name[slot].add(rule)
            for network in dict.fromkeys(rule.networks):
                self._by_network.setdefault(network, _Slot()).add(rule)
                self._lengths[network.version].add(network.prefixlen)

    def over_name(self, name: "NamePattern", rule: Rule) -> Iterator[tuple[Rule, bool]]:
        """Give rules about every name that `name` covers, each with whether it is by that very pattern."""
        own = self._slots.get(name.parts)
        covering = self._names.find([filled(part) for part in name.parts if part is not MANY])
        if MANY in name.parts:
            longer = [
                text
                for part in name.parts
                for text in ((UNNAMED,) * _LONGEST_NAME if part is MANY else (filled(part),))
            ]
            ever = set(self._names.find(longer))
            covering = [slot for slot in covering if slot in ever]
        for slot in covering:
            for candidate in self._by_name[slot].rules(rule):
                yield candidate, slot == own

    def over_network(self, network: "Network", rule: Rule) -> Iterator[tuple[Rule, bool]]:
        """Give rules about every address in `network`, each with whether it is by that very network."""
        for length in sorted(self._lengths[network.version]):
            if length > network.prefixlen:
                return
            wide = network.supernet(new_prefix=length)
            slot = self._by_network.get(wide)
            for candidate in () if slot is None else slot.rules(rule):
                if network_covers(wide, network, opening=candidate.lets_out):
                    yield candidate, wide == network


def _narrowness(rule: Rule) -> tuple[int, int, str]:
    """Order rules by how much keeps them from matching, the widest first."""
    conditions = (rule.http is not None) + (rule.resolves_to is not None) + len(rule.excepts)
    return conditions, 0 if rule.ports is None else 1 + (len(rule.ports) == 1), rule.id
