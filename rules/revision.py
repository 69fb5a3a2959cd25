"""The policy's fingerprint: the same for the same meaning, whatever the order of rules, files, keys and spellings.

Texts that decide nothing (`why`, comments, tests, where a file lies) are not part of it.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import TYPE_CHECKING

from rules.ports import describe
from rules.rule import Exemption, Http, Rule
from rules.settings import Settings

if TYPE_CHECKING:
    from rules.addresses import Network
    from rules.patterns import NamePattern


def revision_of(rules: Iterable[Rule], settings: Settings) -> str:
    """SHA-256 over everything that a decision depends on, in hexadecimal."""
    lines = sorted(map(_of_rule, rules))
    return sha256("\n".join([repr(settings), *lines]).encode()).hexdigest()


def _of_rule(rule: Rule) -> str:
    return repr((
        rule.id, rule.action.value, _targets(rule.names, rule.networks), _ports(rule), _networks(rule.resolves_to),
        _http(rule.http), rule.default, sorted(map(_of_exemption, rule.excepts)), rule.tls.value,
        rule.mode and rule.mode.value, rule.idle_timeout,
    ))  # fmt: skip


def _of_exemption(exemption: Exemption) -> tuple[object, ...]:
    return _targets(exemption.names, exemption.networks), _ports(exemption), _http(exemption.http)


def _targets(names: "tuple[NamePattern, ...]", networks: "tuple[Network, ...]") -> list[str]:
    return sorted({*(name.text for name in names), *map(str, networks)})


def _networks(networks: "tuple[Network, ...] | None") -> str:
    return "" if networks is None else repr(sorted(set(map(str, networks))))


def _ports(owner: Rule | Exemption) -> str:
    return "" if owner.ports is None else describe(tuple(sorted(set(owner.ports))))


def _http(http: Http | None) -> str:
    if http is None:
        return ""
    methods = None if http.methods is None else sorted(http.methods)
    paths = None if http.paths is None else sorted({path.text for path in http.paths})
    return repr((methods, paths))
