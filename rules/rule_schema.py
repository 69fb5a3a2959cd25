"""One rule of a rule file: from a mapping of words to a `Rule`, or to every problem it has.

Whatever the grammar of RULES.md knows and this version doesn't is told as such; nothing is passed over in silence.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from rules.addresses import Network, Opening, parse_address, parse_network
from rules.attempt import Protocol
from rules.document import Mapping, Node
from rules.fields import Reader, duration, slug
from rules.paths import PathPattern
from rules.patterns import NamePattern
from rules.ports import Ports
from rules.problems import Problem, quoted
from rules.rule import Exemption, Http, Rule
from rules.special import BLOCKS
from rules.suffixes import Suffix, suffix_of_wildcard
from rules.verdicts import Mode, TlsMode, Verdict

RULE_KEYS: Final = (
    "id", "to", "ports", "resolves_to", "http", "action", "why", "default", "except", "tls", "mode", "idle_timeout",
)  # fmt: skip
LATER_RULE_KEYS: Final = (
    "for", "git", "credential", "when", "ca", "dns_types", "until", "limits", "approval", "trust", "scan", "log",
)  # fmt: skip
HTTP_KEYS: Final = ("methods", "paths")
LATER_HTTP_KEYS: Final = ("query", "headers", "body", "max_url", "websocket")
EXCEPT_KEYS: Final = ("to", "ports", "http")
LATER_EXCEPT_KEYS: Final = ("resolves_to", "for", "git", "credential", "when")

_DEFAULT_PORTS: Final = (Ports(443, 443, Protocol.TLS),)
_SEEN: Final = (Protocol.TLS, Protocol.HTTP)
_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # RFC 9110 section 5.6.2, upper case


class _Targets(NamedTuple):
    """What a `to` or an `except` is about, and where it is written."""

    names: tuple[NamePattern, ...] = ()
    networks: tuple[Network, ...] = ()
    places: tuple[tuple[NamePattern | Network, Node], ...] = ()


class RuleReader(Reader):
    """Reads rules of one file, whose `name` they are cited with. `tls` is what an allow means that doesn't say."""

    __slots__ = ("name", "tls", "warnings")

    def __init__(self, file: str, problems: list[Problem], warnings: list[Problem], name: str, tls: TlsMode) -> None:
        super().__init__(file, problems)
        self.warnings = warnings
        self.name = name
        self.tls = tls

    def rule(self, node: Node) -> Rule | None:
        """Read one rule; None if anything about it is wrong, which has been told then."""
        before = len(self.problems)
        fields = self.mapping(node, "a rule", RULE_KEYS, LATER_RULE_KEYS)
        if fields is None:
            return None
        for key in ("id", "to", "action"):
            if key not in fields:
                self.complain(node, f"a rule needs `{key}`")
        ident = self.parsed(fields["id"], "id", slug) if "id" in fields else None
        targets = self._targets(fields["to"], "to") if "to" in fields else _Targets()
        action = self.choice(fields["action"], "action", Verdict) if "action" in fields else None
        ports = tuple(self.each(fields["ports"], "ports", Ports.parse)) if "ports" in fields else None
        listed = fields.get("resolves_to")
        tls = self.choice(fields["tls"], "tls", TlsMode) if "tls" in fields else None
        timeout = fields.get("idle_timeout")
        rule = Rule(
            id=f"{self.name}:{ident}",
            action=action or Verdict.DENY,
            names=targets.names,
            networks=targets.networks,
            ports=_DEFAULT_PORTS if ports is None and action is not None and action.lets_out else ports,
            resolves_to=None if listed is None else tuple(self.each(listed, "resolves_to", parse_network)),
            http=self._http(fields["http"]) if "http" in fields else None,
            default=bool(self.boolean(fields["default"], "default")) if "default" in fields else False,
            excepts=tuple(self._exemptions(fields["except"])) if "except" in fields else (),
            tls=tls or self.tls,
            mode=self.choice(fields["mode"], "mode", Mode) if "mode" in fields else None,
            idle_timeout=None if timeout is None else self.parsed(timeout, "idle_timeout", duration),
            why=self.text(fields["why"], "why") or "" if "why" in fields else "",
        )
        if rule.lets_out:
            self._check_reach(rule, fields, targets)
        if len(self.problems) == before:
            self._check(rule, fields)
        return rule if len(self.problems) == before else None

    def _targets(self, node: Node, of: str) -> _Targets:
        """Read names, patterns, addresses and CIDRs."""
        places: list[tuple[NamePattern | Network, Node]] = []
        for item in self.items(node, of):
            if isinstance(item, Mapping) and "list" in item.pairs:
                self.complain(item, "`list` is not supported by this version: write the names here")
                continue
            found = self.parsed(item, of, _target)
            if found is not None:
                places.append((found, item))
        names = tuple(target for target, _ in places if isinstance(target, NamePattern))
        networks = tuple(target for target, _ in places if not isinstance(target, NamePattern))
        return _Targets(names, networks, tuple(places))

    def _http(self, node: Node) -> Http | None:
        fields = self.mapping(node, "`http`", HTTP_KEYS, LATER_HTTP_KEYS)
        if fields is None:
            return None
        if not fields:
            self.complain(node, "`http` says nothing: it needs `methods`, `paths` or both")
        methods = frozenset(self.each(fields["methods"], "methods", _method)) if "methods" in fields else None
        paths = tuple(self.each(fields["paths"], "paths", PathPattern.parse)) if "paths" in fields else None
        return Http(methods, paths)

    def _exemptions(self, node: Node) -> Iterator[Exemption]:
        for item in self.items(node, "except"):
            if not isinstance(item, Mapping):
                targets = self._targets(item, "except")
                yield Exemption(targets.names, targets.networks)
                continue
            fields = self.mapping(item, "an `except`", EXCEPT_KEYS, LATER_EXCEPT_KEYS)
            if fields is None:
                continue
            if not fields:
                self.complain(item, "this `except` says nothing: it needs `to`, `ports` or `http`")
            targets = self._targets(fields["to"], "to") if "to" in fields else _Targets()
            ports = tuple(self.each(fields["ports"], "ports", Ports.parse)) if "ports" in fields else None
            http = self._http(fields["http"]) if "http" in fields else None
            yield Exemption(targets.names, targets.networks, ports, http)

    def _check(self, rule: Rule, fields: dict[str, Node]) -> None:
        """Tell what is right by itself and makes no sense together."""
        if rule.lets_out:
            self._check_letting_out(rule, fields)
        for key in ("tls", "idle_timeout"):
            if key in fields and not rule.lets_out:
                self.complain(fields[key], f"`{key}` belongs to rules that let out, and `{rule.action}` doesn't")
        if rule.mode is not None and not rule.default:
            self.complain(fields["mode"], "`mode` belongs to a rule with `default: true`: any other always acts")
        if rule.resolves_to is not None and not rule.names:
            self.complain(fields["resolves_to"], "`resolves_to` is about names, and this rule has none")
        if rule.http is not None and any(ports.protocol not in _SEEN for ports in rule.ports or ()):
            self.complain(fields["http"], "`http` needs ports on which requests can be seen: `/tls` or `/http`")
        for exemption in rule.excepts:
            if (exemption.names and not rule.names) or (exemption.networks and not rule.networks):
                kind = "names" if exemption.names else "addresses"
                self.complain(fields["except"], f"`except` has {kind}, and this rule is about none")

    def _check_letting_out(self, rule: Rule, fields: dict[str, Node]) -> None:
        ports = rule.ports or ()
        if any(entry.protocol is Protocol.UDP for entry in ports):
            self.complain(fields["ports"], "letting out `/udp` is not supported by this version")
        if "tls" in fields and rule.tls is TlsMode.SPLICE:
            if rule.looks_at_requests:
                self.complain(fields["tls"], "`tls: splice` passes requests on unseen: it can't stand beside `http`")
            if not any(entry.protocol is Protocol.TLS for entry in ports):
                self.complain(fields["tls"], "`tls: splice` is about TLS, and none of the ports has `/tls`")

    def _check_reach(self, rule: Rule, fields: dict[str, Node], targets: _Targets) -> None:
        """Tell what lets out further than it looks, or not as far."""
        for target, node in targets.places:
            if isinstance(target, NamePattern):
                self._check_wildcard(target, node)
            else:
                self._check_opening(target, node)
        for network in rule.resolves_to or ():
            self._check_opening(network, fields["resolves_to"])

    def _check_wildcard(self, name: NamePattern, node: Node) -> None:
        suffix = suffix_of_wildcard(name.below) if name.below else Suffix.NONE
        if suffix is Suffix.PUBLIC:
            self.complain(
                node, f"`{name.text}` lets out to whoever registers a name under the public suffix `{name.below}`"
            )
        elif suffix is Suffix.PRIVATE:
            message = f"`{name.text}` lets out to strangers too: anybody can get a name under `{name.below}`"
            self.warnings.append(Problem(self.file, node.line, node.column, message))

    def _check_opening(self, network: Network, node: Node) -> None:
        """Tell what a CIDR can't open, though it looks as if it did (addresses.opens)."""
        blocks = [block for block in BLOCKS if block.network.version == network.version]
        block = next((block for block in blocks if network.subnet_of(block.network)), None)  # type: ignore[arg-type]
        touched = next((block.network for block in blocks if block.network.overlaps(network)), None)
        if block is None and touched is not None:
            message = f"`{network}` lets out to its public addresses only: list `{touched}` by itself if it is meant"
            self.warnings.append(Problem(self.file, node.line, node.column, message))
        elif block is not None and block.opening is Opening.NEVER:
            self.complain(node, f"`{network}` is {block.name}: no rule can let anything out to it")
        elif block is not None and block.opening is Opening.SINGLE and network.num_addresses > 1:
            self.complain(node, f"`{network}` is {block.name}: list the single addresses that are meant")


def _target(text: str) -> NamePattern | Network:
    if "/" in text or ":" in text or parse_address(text) is not None:
        return parse_network(text)
    return NamePattern.parse(text)


def _method(text: str) -> str:
    if not _TOKEN.issuperset(text):
        raise ValueError(f"{quoted(text)} is not a method; methods are written like `{text.upper()[:20]}`")
    return text
