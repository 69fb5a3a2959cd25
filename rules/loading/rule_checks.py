"""Checks of one rule after it is read: targets, ports."""

from typing import Final

from rules.addresses import BLOCKS, Network, Opening, is_within, parse_address, parse_network
from rules.attempt import INSPECTABLE, Protocol
from rules.loading.document import Node
from rules.loading.fields import Reader
from rules.names import HOST, InvalidName, is_local, is_own
from rules.patterns import NamePattern
from rules.ports import never_leaves
from rules.problems import quoted
from rules.public_suffixes import Suffix, suffix_of_wildcard
from rules.rule import Exemption, Rule
from rules.verdicts import Scan, TlsMode, Verdict

# “x” and the like: quotes that word processors make, and YAML takes for letters
_TYPESET: Final = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a"


def parse_target(text: str) -> NamePattern | Network:
    """Read an entry. Raises ValueError with what belongs there, and where the rest of it belongs."""
    if text.strip(_TYPESET) != text:
        raise ValueError(f"{quoted(text)} stands between typographic quotes: write `{text.strip(_TYPESET)}`")
    if "/" in text or ":" in text or parse_address(text) is not None:
        try:
            return parse_network(text)
        except ValueError as error:
            raise ValueError(_instead(text) or str(error)) from None
    if text[:1] == "." and _is_target(text[1:]):
        raise ValueError(f"{quoted(text)} begins with a dot: write `**{text}` for the name and all below it")
    return NamePattern.parse(text)


def _instead(text: str) -> str:
    """Take apart what looks like a URL, or has a port or a path; empty if that doesn't help."""
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
    return f"{quoted(text)}: `to` takes a name or an address; write {' and '.join([quoted(bare), *also])}"


def _is_target(text: str) -> bool:
    if parse_address(text) is not None:
        return True
    try:
        NamePattern.parse(text)
    except InvalidName:
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
    "QUIC": "QUIC never leaves, because its requests can't be read; clients fall back to TLS over TCP",
    "DNS": "lookups are answered by the gate, whatever server they are for; see `dns_types`",
}


def check_together(reader: Reader, rule: Rule, fields: dict[str, Node]) -> None:
    """Tell what is right by itself and makes no sense together."""
    if rule.lets_out:
        _check_letting_out(reader, rule, fields)
    if rule.action is not Verdict.DENY:
        _check_udp(reader, rule, fields)
    _check_places(reader, rule, fields)
    if rule.mode is not None and not rule.default:
        reader.complain(fields["mode"], "`mode` belongs to a rule with `default: true`: any other always acts")
    if rule.resolves_to is not None and not (rule.names or rule.feeds):
        reader.complain(fields["resolves_to"], "`resolves_to` is about names, and this rule has none")
    if rule.dns_types and not rule.names:
        reader.complain(fields["dns_types"], "`dns_types` are of names, and this rule has none")
    for exemption in rule.excepts:
        _check_exemption(reader, rule, exemption, fields["except"])


def _check_udp(reader: Reader, rule: Rule, fields: dict[str, Node]) -> None:
    """Tell what is spoken over UDP and never leaves, so that nothing of a list is passed over in silence."""
    for entry in rule.ports or ():
        never = never_leaves(entry)
        if never is not None:
            port, spoken = never
            why = f"`{entry}` has port {port} in it: {_WHY_NEVER[spoken]}"
            reader.complain(fields["ports"], why)


def _check_places(reader: Reader, rule: Rule, fields: dict[str, Node]) -> None:
    for key, actions in _ONLY_ON.items():
        if key in fields and rule.action not in actions:
            reader.complain(fields[key], _misplaced(key, rule.action))
    for key in ("http", "git", "credential"):
        if key in fields and any(ports.protocol not in INSPECTABLE for ports in rule.ports or ()):
            reader.complain(fields[key], f"`{key}` needs ports on which requests can be seen: `/tls` or `/http`")
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
        reader.complain(node, "`resolves_to` is about names, and this rule has none")


def _check_letting_out(reader: Reader, rule: Rule, fields: dict[str, Node]) -> None:
    ports = rule.ports or ()
    if rule.feeds:
        reader.complain(fields["to"], f"a list can deny or ask, and this is `{rule.action}`: others write it")
    if "tls" in fields and rule.tls is TlsMode.SPLICE:
        beside = next((key for key in ("http", "git", "credential", "ca", "scan") if key in fields), None)
        if beside or rule.looks_at_requests:
            message = f"`tls: splice` passes requests on unseen: it can't stand beside `{beside or 'http'}`"
            reader.complain(fields["tls"], message)
        if not any(entry.protocol is Protocol.TLS for entry in ports):
            reader.complain(fields["tls"], "`tls: splice` is about TLS, and none of the ports has `/tls`")


def check_reach(
    reader: Reader, rule: Rule, fields: dict[str, Node], places: tuple[tuple[NamePattern | Network, Node], ...]
) -> None:
    """Tell what lets out further than it looks, or not as far."""
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
            node, f"`{name.text}` lets out to whoever registers a name under the public suffix `{name.below}`"
        )
    elif suffix is Suffix.PRIVATE:
        message = f"`{name.text}` lets out to strangers too: anybody can get a name under `{name.below}`"
        reader.warn(node, message, "EX021")


def _check_opening(reader: Reader, network: Network, node: Node) -> None:
    """Tell what a CIDR can't open, though it looks as if it did (addresses.opens)."""
    blocks = [block for block in BLOCKS if block.network.version == network.version]
    block = next((block for block in blocks if is_within(network, block.network)), None)
    touched = next((block.network for block in blocks if block.network.overlaps(network)), None)
    if block is None and touched is not None:
        message = f"`{network}` lets out to its public addresses only: list `{touched}` by itself if it is meant"
        reader.warn(node, message, "EX024")
    elif block is not None and block.opening is Opening.NEVER:
        instead = f"; services of this machine are `to: {HOST}`" if block.name == "loopback" else ""
        reader.complain(node, f"`{network}` is {block.name}: no rule can let anything out to it{instead}")
    elif block is not None and block.opening is Opening.SINGLE and network.num_addresses > 1:
        reader.complain(node, f"`{network}` is {block.name}: list the single addresses that are meant")


def _misplaced(key: str, action: Verdict) -> str:
    if key == "until" and action is Verdict.DENY:
        return "`until` can't be on a `deny`: nothing opens because time has passed"
    if key == "approval":
        return f"`approval` belongs to rules that ask, and this is `{action}`"
    if key == "when":
        return "`when: tainted` can hold back or flag, and `allow` does neither"
    return f"`{key}` belongs to rules that let out, and `{action}` doesn't"


def objection(pattern: "NamePattern", *, has_ports: bool, has_addresses: bool) -> str:
    """Say what is wrong with a name that a rule lets out to, or nothing."""
    if pattern.text == HOST:
        if not has_ports:
            return f"`{HOST}` is this machine: list the `ports` of the services that are meant, as `ports: 8080/http`"
        return f"`{HOST}` is this machine's loopback: it takes no `resolves_to`" if has_addresses else ""
    bare = pattern.text.lstrip("*.")
    if is_local(bare):
        instead = f"services of this machine are `to: {HOST}`"
        return f"`{pattern.text}` is loopback: no rule can let anything out to it; {instead}"
    if is_own(bare):
        return f"`{pattern.text}` is of a zone that is exeat's own: only `{HOST}` can be let out to, by that very name"
    return ""
