"""The policy's fingerprint: the same for the same meaning, whatever the order of rules, files, keys and spellings.

Texts that decide nothing (`why`, comments, tests, where a file lies) are not part of it.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING

from rules.ports import describe
from rules.rule import Exemption, Http, Rule
from rules.sandbox import NO_BOX
from rules.settings import Settings

if TYPE_CHECKING:
    from rules.addresses import Network
    from rules.feeds import Feed
    from rules.matching.layers import Layer
    from rules.patterns import NamePattern
    from rules.rule import GitRule
    from rules.sandbox import Box, Command
    from rules.secrets import Secret


def revision_of(
    rules: Iterable[Rule],
    settings: Settings,
    layers: "Iterable[Layer]" = (),
    secrets: "Iterable[Secret]" = (),
    *,
    boxes: "Iterable[Box]" = (),
    commands: "Iterable[Command]" = (),
) -> str:
    """SHA-256 over everything that a decision, or the box of a task, depends on, in hexadecimal."""
    deciding = [*map(_of_rule, rules), *map(_of_layer, layers), *map(_of_secret, secrets)]
    lines = sorted([*deciding, *_of_boxes(boxes), *map(_of_command, commands)])
    return sha256("\n".join([repr(settings), *lines]).encode()).hexdigest()


def digest_of(rule: "Rule | Command") -> str:
    """SHA-256 over all that one rule or command decides by, in hexadecimal: a grant is good for this alone."""
    return sha256((_of_rule(rule) if isinstance(rule, Rule) else _of_command(rule)).encode()).hexdigest()


def _of_layer(layer: "Layer") -> str:
    return repr(("layer", layer.kind.value, layer.mode.value, sorted(rule.id for rule in layer.rules)))


def _of_secret(secret: "Secret") -> str:
    """Write what a rule file says of it; its value is nowhere near."""
    return repr(("secret", tuple(secret)))


def _of_boxes(boxes: "Iterable[Box]") -> "Iterator[str]":
    """Write the box and what layers say of it; of those that say nothing, nothing."""
    for number, box in enumerate(boxes):
        if box != NO_BOX:
            yield repr(("box", number, tuple(box)))


def _of_command(command: "Command") -> str:
    return repr(("command", command.cite, command.words, command.action.value, command.for_, command.approval))


def _of_rule(rule: Rule) -> str:
    return repr((
        rule.id, rule.action.value, _targets(rule.names, rule.networks, rule.feeds), _asked(rule), rule.default,
        sorted(map(_of_exemption, rule.excepts)), rule.tls.value, rule.mode and rule.mode.value, rule.idle_timeout,
        rule.until and rule.until.isoformat(), rule.limits, rule.approval, rule.ca, sorted(rule.dns_types),
        rule.trust and rule.trust.value, rule.scan and rule.scan.value, rule.log and rule.log.value,
    ))  # fmt: skip


def _of_exemption(exemption: Exemption) -> tuple[object, ...]:
    return _targets(exemption.names, exemption.networks), _asked(exemption)


def _asked(owner: Rule | Exemption) -> str:
    """Write what an attempt has to be besides its target."""
    return repr((
        _ports(owner), _networks(owner.resolves_to), _http(owner.http), _git(owner.git), owner.selector,
        owner.credential, owner.when_tainted,
    ))  # fmt: skip


def _targets(
    names: "tuple[NamePattern, ...]", networks: "tuple[Network, ...]", feeds: "tuple[Feed, ...]" = ()
) -> list[str]:
    return sorted({*(name.text for name in names), *map(str, networks), *(f"list {feed.digest}" for feed in feeds)})


def _networks(networks: "tuple[Network, ...] | None") -> str:
    return "" if networks is None else repr(sorted(set(map(str, networks))))


def _ports(owner: Rule | Exemption) -> str:
    return "" if owner.ports is None else describe(tuple(sorted(set(owner.ports))))


def _http(http: Http | None) -> str:
    if http is None:
        return ""
    methods = None if http.methods is None else sorted(http.methods)
    paths = None if http.paths is None else sorted({path.text for path in http.paths})
    return repr((methods, paths, http.query, http.headers, http.body, http.max_url, http.websocket))


def _git(git: "GitRule | None") -> str:
    if git is None:
        return ""
    push = None if git.push is None else sorted({ref.text for ref in git.push})
    return repr((sorted({repo.text for repo in git.repos}), git.fetch, push, sorted(git.changes)))
