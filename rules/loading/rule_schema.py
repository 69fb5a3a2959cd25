"""Reads one rule of a rule file: from a YAML mapping to a `Rule`, or to all of its problems.

Nothing is ignored silently. `rules.loading.conditions` reads `for`, `http`, `git`, `limits` and `approval`. The checks
for contradictory keys come first.
"""

import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from rules.attempt import INSPECTABLE, Protocol
from rules.feeds import Feed
from rules.files import Suffix, suffix_of_wildcard
from rules.loading.conditions import (
    APPROVAL,
    FOR,
    GIT,
    HTTP,
    LIMITS,
    read_approval,
    read_for,
    read_git,
    read_http,
    read_limits,
)
from rules.loading.document import Mapping, Node
from rules.loading.fields import (
    RECORD_TYPES,
    TEXT,
    WORD,
    Key,
    Reader,
    Section,
    choice,
    flag,
    many,
    one,
    one_or_more,
    parse_day,
    parse_duration,
    parse_record_type,
    parse_slug,
    part,
    ref,
    text,
    unread,
)
from rules.ports import Ports, never_leaves
from rules.problems import Problem, quote
from rules.rule import Exemption, Rule
from rules.values.addresses import BLOCKS, Network, Opening, is_within, parse_address, parse_network
from rules.values.names import HOST, InvalidNameError, is_exeat_name, is_localhost
from rules.values.patterns import NamePattern
from rules.verdicts import Log, Mode, Scan, TlsMode, Trust, Verdict

# “x” and the like: quotes of word processors, which YAML takes for letters
_TYPESET: Final = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a"


def parse_target(text: str) -> NamePattern | Network:
    """Read an entry. Raises ValueError with what belongs there, and where the rest of it belongs."""
    if text.strip(_TYPESET) != text:
        raise ValueError(f"{quote(text)} has typographic quotes: write `{text.strip(_TYPESET)}`")
    if "/" in text or ":" in text or parse_address(text) is not None:
        try:
            return parse_network(text)
        except ValueError as error:
            raise ValueError(_suggest_target(text) or str(error)) from None
    if text[:1] == "." and _is_target(text[1:]):
        raise ValueError(f"{quote(text)} begins with a dot: write `**{text}` for the name and all below it")
    return NamePattern.parse(text)


def _suggest_target(text: str) -> str:
    """Suggest a correction for a URL, or a host with a port or path; empty if there is none."""
    scheme, separator, rest = text.partition("://")
    host, slash, path = (rest if separator else scheme).partition("/")
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    bare = name.strip("[]") if name.startswith("[") else name
    if not _is_target(bare) or not all("0" <= digit <= "9" for digit in port):
        return ""
    if not separator and not port and (not path or parse_address(bare) is not None):
        return ""  # a CIDR that is wrong
    also = [f"the port under `ports`, as in `{port}/tls`"] if port and port not in {"80", "443"} else []
    also += ["the port under `ports`"] if port in {"80", "443"} else []
    also += [f"the path under `http`, as in `{{paths: [/{path}]}}`"] if slash and path and path.isprintable() else []
    return f"{quote(text)}: `to` takes a name or an address; write {' and '.join([quote(bare), *also])}"


def _is_target(text: str) -> bool:
    if parse_address(text) is not None:
        return True
    try:
        NamePattern.parse(text)
    except InvalidNameError:
        return False
    return True


_LETTING_OUT: Final = (Verdict.FLAG, Verdict.ALLOW)
_BUT_DENY: Final = (Verdict.ASK, *_LETTING_OUT)
_ONLY_ON: Final = {  # keys that make no sense with every action
    "tls": _BUT_DENY, "idle_timeout": _BUT_DENY, "ca": _BUT_DENY, "dns_types": _LETTING_OUT,
    "until": _BUT_DENY, "limits": _BUT_DENY, "trust": _BUT_DENY, "scan": _BUT_DENY,
    "approval": (Verdict.ASK,), "when": (Verdict.DENY, Verdict.ASK, Verdict.FLAG),
}  # fmt: skip
_WHY_NEVER: Final = {
    "QUIC": "QUIC is never allowed, because the gate can't inspect it; clients fall back to TLS over TCP",
    "DNS": "the gate answers DNS lookups itself, for every server; see `dns_types`",
}


def check_together(reader: Reader, rule: Rule, fields: dict[str, Node]) -> None:
    """Report combinations of keys that make no sense."""
    if rule.allows:
        _check_allowing_rule(reader, rule, fields)
    if rule.action is not Verdict.DENY:
        _check_udp(reader, rule, fields)
    _check_places(reader, rule, fields)
    if rule.mode is not None and not rule.default:
        reader.complain(fields["mode"], "`mode` belongs to a rule with `default: true`: any other always acts")
    if rule.resolves_to is not None and not (rule.names or rule.feeds):
        reader.complain(fields["resolves_to"], "`resolves_to` needs names, and this rule has none")
    if rule.dns_types and not rule.names:
        reader.complain(fields["dns_types"], "`dns_types` needs names, and this rule has none")
    for exemption in rule.excepts:
        _check_exemption(reader, rule, exemption, fields["except"])


def _check_udp(reader: Reader, rule: Rule, fields: dict[str, Node]) -> None:
    """Report protocols over UDP that never leave, so that no listed port is ignored silently."""
    for entry in rule.ports or ():
        never = never_leaves(entry)
        if never is not None:
            port, spoken = never
            why = f"`{entry}` has port {port} in it: {_WHY_NEVER[spoken]}"
            reader.complain(fields["ports"], why)


def _check_places(reader: Reader, rule: Rule, fields: dict[str, Node]) -> None:
    for key, actions in _ONLY_ON.items():
        if key in fields and rule.action not in actions:
            reader.complain(fields[key], _misplaced_message(key, rule.action))
    for key in ("http", "git", "credential"):
        if key in fields and any(ports.protocol not in INSPECTABLE for ports in rule.ports or ()):
            reader.complain(fields[key], f"`{key}` needs a port with `/tls` or `/http`, where requests are inspected")
    unseen = [ports for ports in rule.ports or () if ports.protocol not in INSPECTABLE]
    if unseen and (
        (rule.scan is not None and rule.scan.blocks)
        or (rule.scan is Scan.FLAG and len(unseen) == len(rule.ports or ()))
    ):
        listed = ", ".join(map(str, unseen))
        reader.complain(fields["scan"], f"`scan: {rule.scan}` looks at requests, and {listed} isn't read")


def _check_exemption(reader: Reader, rule: Rule, exemption: Exemption, node: Node) -> None:
    named = rule.names or rule.feeds
    if (exemption.names and not named) or (exemption.networks and not rule.networks):
        kind = "names" if exemption.names else "addresses"
        reader.complain(node, f"`except` has {kind}, and this rule is about none")
    if exemption.resolves_to is not None and not named:
        reader.complain(node, "`resolves_to` needs names, and this rule has none")


def _check_allowing_rule(reader: Reader, rule: Rule, fields: dict[str, Node]) -> None:
    ports = rule.ports or ()
    if rule.feeds:
        reader.complain(fields["to"], f"only `deny` and `ask` can use a list, and this is `{rule.action}`")
    if "tls" in fields and rule.tls is TlsMode.SPLICE:
        beside = next((key for key in ("http", "git", "credential", "ca", "scan") if key in fields), None)
        if beside or rule.looks_at_requests:
            message = f"`tls: splice` hides requests from the gate: it can't be combined with `{beside or 'http'}`"
            reader.complain(fields["tls"], message)
        if not any(entry.protocol is Protocol.TLS for entry in ports):
            reader.complain(fields["tls"], "`tls: splice` needs a port with `/tls`")


def check_reach(
    reader: Reader, rule: Rule, fields: dict[str, Node], places: tuple[tuple[NamePattern | Network, Node], ...]
) -> None:
    """Report targets that allow more, or less, than they seem to."""
    for target, node in places:
        if isinstance(target, NamePattern):
            problem = objection(target, has_ports="ports" in fields, has_addresses="resolves_to" in fields)
            if problem:
                reader.complain(node, problem)
            _check_wildcard(reader, target, node)
        else:
            _check_opening(reader, target, node)
    for network in rule.resolves_to or ():
        _check_opening(reader, network, fields["resolves_to"])


def _check_wildcard(reader: Reader, name: NamePattern, node: Node) -> None:
    suffix = suffix_of_wildcard(name.below) if name.below else Suffix.NONE
    if suffix is Suffix.PUBLIC:
        reader.complain(
            node, f"`{name.text}` allows everyone who registers a name under the public suffix `{name.below}`"
        )
    elif suffix is Suffix.PRIVATE:
        message = f"`{name.text}` also allows strangers: anyone can get a name under `{name.below}`"
        reader.warn(node, message, "EX021")


def _check_opening(reader: Reader, network: Network, node: Node) -> None:
    """Report CIDRs that can't open the addresses they seem to (rules.values.addresses.network_opens)."""
    blocks = [block for block in BLOCKS if block.network.version == network.version]
    block = next((block for block in blocks if is_within(network, block.network)), None)
    touched = next((block.network for block in blocks if block.network.overlaps(network)), None)
    if block is None and touched is not None:
        message = f"`{network}` allows only its public addresses: list `{touched}` by itself if you mean it"
        reader.warn(node, message, "EX024")
    elif block is not None and block.opening is Opening.NEVER:
        instead = f"; services of this machine are `to: {HOST}`" if block.name == "loopback" else ""
        reader.complain(node, f"`{network}` is {block.name}, and no rule can allow it{instead}")
    elif block is not None and block.opening is Opening.SINGLE and network.num_addresses > 1:
        reader.complain(node, f"`{network}` is {block.name}: list the single addresses that you mean")


def _misplaced_message(key: str, action: Verdict) -> str:
    if key == "until" and action is Verdict.DENY:
        return "`deny` can't have `until`: a rule never allows more because time has passed"
    if key == "approval":
        return f"`approval` is for rules with `action: ask`, and this is `{action}`"
    if key == "when":
        return "`when: tainted` is for `deny`, `ask` and `flag`, and this is `allow`"
    return f"`{key}` is for rules that allow or flag, and this is `{action}`"


def objection(pattern: "NamePattern", *, has_ports: bool, has_addresses: bool) -> str:
    """Return why a rule can't allow a name, or an empty text."""
    if pattern.text == HOST:
        if not has_ports:
            return f"`{HOST}` is this machine: list the `ports` of the services that you mean, as in `ports: 8080/http`"
        return f"`{HOST}` is this machine's loopback: remove `resolves_to`" if has_addresses else ""
    bare = pattern.text.lstrip("*.")
    if is_localhost(bare):
        instead = f"services of this machine are `to: {HOST}`"
        return f"`{pattern.text}` is loopback, and no rule can allow it; {instead}"
    if is_exeat_name(bare):
        return f"`{pattern.text}` is in a zone of Exeat's own: a rule can allow only `{HOST}`, by that exact name"
    return ""


_DEFAULT_PORTS: Final = (Ports(443, 443, Protocol.TLS),)


class _Targets(NamedTuple):
    """What a `to` or an `except` is about, and where it is written."""

    names: tuple[NamePattern, ...] = ()
    networks: tuple[Network, ...] = ()
    feeds: tuple[Feed, ...] = ()
    places: tuple[tuple[NamePattern | Network, Node], ...] = ()


class RuleReader(Reader):
    """Reads the rules of one file; `name` is the first part of their ids. `tls` is the default for allow and flag.

    `feed` reads a list by its path, or raises ValueError; relative paths start at `directory`.
    """

    __slots__ = ("allows", "directory", "feed", "name", "tls")

    def __init__(  # noqa: PLR0917
        self,
        file: str,
        problems: list[Problem],
        warnings: list[Problem],
        name: str,
        tls: TlsMode,
        feed: Callable[[str], Feed],
        directory: str = "",
    ) -> None:
        super().__init__(file, problems, warnings)
        self.name = name
        self.tls = tls
        self.feed = feed
        self.directory = directory
        self.allows = False  # whether the section being read allows, or exempts from a deny or ask

    def rule(self, node: Node) -> Rule | None:
        """Read a rule; None if it has a problem, which is recorded."""
        before = len(self.problems)
        fields = RULE.fields(self, node)
        if fields is None:
            return None
        action = self.choice(fields["action"], "action", Verdict) if "action" in fields else None
        self.allows = action is not None and action.allows
        values = RULE.values(self, {key: value for key, value in fields.items() if key not in {"action", "except"}})
        if "except" in fields:
            self.allows = action is not None and not self.allows  # an exemption from a deny or ask can allow
            values["excepts"] = tuple(self._exemptions(fields["except"]))
        targets: _Targets = values.pop("to", _Targets())
        values["id"] = f"{self.name}:{values.get('id')}"
        values.setdefault("tls", self.tls)
        if action is not None and action.allows:
            values.setdefault("ports", _DEFAULT_PORTS)
        rule = Rule(
            action=action or Verdict.DENY, names=targets.names, networks=targets.networks, feeds=targets.feeds, **values
        )
        if rule.allows:
            check_reach(self, rule, fields, targets.places)
        if len(self.problems) == before:
            check_together(self, rule, fields)
        return rule if len(self.problems) == before else None

    def when(self, node: Node, key: str) -> bool:
        """Read `when`."""
        text = self.text(node, key)
        if text is not None and text != "tainted":
            self.complain(node, f"{quote(text)} is not a value of `when`: write `tainted`")
        return True

    def path(self, node: Node, key: str) -> str | None:
        """Read a path that begins where the file lies."""
        text = self.text(node, key)
        return None if text is None else os.path.join(self.directory, text)

    def targets(self, node: Node, of: str) -> _Targets:
        """Read names, patterns, addresses and CIDRs."""
        places: list[tuple[NamePattern | Network, Node]] = []
        feeds: list[Feed] = []
        for item in self.items(node, of):
            if isinstance(item, Mapping) and "list" in item.pairs:
                feeds += self._feed(item)
                continue
            if isinstance(item, Mapping):
                self.complain(item, f"`{of}` takes names and addresses, and lists of names as `{{list: FILE}}`")
                continue
            found = self.parse(item, of, parse_target)
            if found is not None:
                places.append((found, item))
        names = tuple(target for target, _ in places if isinstance(target, NamePattern))
        networks = tuple(target for target, _ in places if not isinstance(target, NamePattern))
        return _Targets(names, networks, tuple(feeds), tuple(places))

    def _feed(self, node: Mapping) -> Iterator[Feed]:
        feed = (LIST.read(self, node) or {}).get("list")
        if feed is not None:
            if feed.bad:
                self.warn(node, feed.problem())
            yield feed

    def _exemptions(self, node: Node) -> Iterator[Exemption]:
        for item in self.items(node, "except"):
            if isinstance(item, Mapping):
                values = EXCEPT.read(self, item) or {}
                targets: _Targets = values.pop("to", _Targets())
            else:
                values, targets = {}, self.targets(item, "except")
            if targets.feeds:
                self.complain(item, "a list belongs to the `to` of a rule: write the names here")
            yield Exemption(targets.names, targets.networks, **values)


_PORTS: Final = {
    "anyOf": [
        {"enum": [443, 80]},
        {"type": "string", "pattern": "^(443|80|[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?/(tls|http|tcp|udp))$"},
    ]
}
_CONDITIONS: Final[dict[str, Key]] = {
    "to": Key("Names, patterns, addresses, CIDRs.", RuleReader.targets, one_or_more(WORD)),
    "ports": many("Ports with their protocol: `443`, `80`, `5432/tcp`, `8000-8100/tls`.", Ports.parse, _PORTS),
    "resolves_to": many("Addresses and CIDRs to which the name may resolve.", parse_network, WORD),
    "for": part("For which tasks.", FOR, read_for, "selector"),
    "http": part("Which requests.", HTTP, lambda reader, node, _: read_http(reader, node, is_allow=reader.allows)),
    "git": part(
        "Which repositories and refs.", GIT, lambda reader, node, _: read_git(reader, node, is_allow=reader.allows)
    ),
    "credential": one("The secret whose placeholder is the request's one credential.", parse_slug),
    "when": Key(
        "Only for tasks that have read untrusted content.", RuleReader.when, {"enum": ["tainted"]}, "when_tainted"
    ),
}
EXCEPT: Final = Section(
    "except",
    "an `except`",
    _CONDITIONS,
    empty="this `except` is empty: it needs `to`, `ports`, `http` or another of its keys",
)
LIST: Final = Section("list", "a list", {
    "list": Key("A file of names: a hosts file, or a name a line; they and all names below them.",
        lambda reader, node, key: reader.parse(node, key, reader.feed), TEXT),
})  # fmt: skip
RULE: Final = Section("rule", "a rule", {
    "id": one("The id of the rule, unique in the file.", parse_slug),
    **_CONDITIONS,
    "to": Key("Names, patterns, addresses, CIDRs, lists. `*` is every name, `**.a.example` a name and all below it.",
        RuleReader.targets, one_or_more({"anyOf": [WORD, ref("list")]})),
    "action": choice("What to do: `flag` allows and marks for review, `ask` holds for approval.", Verdict),
    "why": text("A sentence that block pages, explanations and reviews show."),
    "default": flag("Makes the rule decide only where no other rule matches."),
    "except": Key("What the rule doesn't cover.", unread, one_or_more({"anyOf": [WORD, ref("except")]})),
    "mode": choice("The mode of a default rule, instead of the settings'.", Mode),
    "tls": choice("`splice` forwards connections without inspection.", TlsMode),
    "ca": Key("A file of certificates, trusted for this destination.", RuleReader.path, TEXT),
    "dns_types": many("Record types that are answered for the name.",
        parse_record_type, {"enum": [*RECORD_TYPES]}, frozenset),
    "idle_timeout": one("How long a connection may be silent, up to 7d.", parse_duration),
    "until": one("The last day (UTC) on which the rule allows or asks.", parse_day),
    "limits": part("How much the rule allows.", LIMITS, read_limits),
    "approval": part("Who approves, and what an approval covers.",
        APPROVAL, read_approval),
    "trust": choice("Whether content that is read there is trusted; reading untrusted content taints the task.", Trust),
    "scan": choice("What to do when a request contains a secret.", Scan),
    "log": choice("How much of a request's path is recorded.", Log),
}, needed=("id", "to", "action"))  # fmt: skip
