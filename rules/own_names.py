"""Names that are Exeat's own: `exeat.internal` answers a task's questions, `host.` below it is this machine's loopback.

The rest of the zone is nobody's.

Home of the loopback half of invariant 9: services of the host are reached by this name, by rules that say exactly it,
and by no other name or address (`rules.special` opens no loopback). A wildcard never means it: who writes `*` thinks of
the internet. What holds back may say it in any way.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from rules.addresses import Opening, block_of, normal
from rules.names import HostName

if TYPE_CHECKING:
    from rules.addresses import Address
    from rules.patterns import NamePattern
    from rules.rule import Rule

ZONE: Final = "exeat.internal"
HOST: Final = HostName.parse(f"host.{ZONE}")
DESK: Final = HostName.parse(ZONE)  # where a task asks about itself; no rule is about it, and it leads nowhere else
_LOCAL: Final = "localhost"  # with all below it, whatever a resolver says (RFC 6761 section 6.3)
LOOPBACK: "Final[tuple[Address, ...]]" = (IPv4Address("127.0.0.1"), IPv6Address("::1"))  # in the order of dialling


NEEDED: Final = f"a rule `to: {HOST}` with its `ports`"  # by whoever wants a service of this machine


def is_own(name: str) -> bool:
    """Whether a normal name is of our zone, and so never looked up anywhere."""
    return name.endswith(ZONE) and (len(name) == len(ZONE) or name[-len(ZONE) - 1] == ".")


def is_local(name: str) -> bool:
    """Whether a normal name stands for whoever asks for it: for a sandbox its own loopback."""
    return name == _LOCAL or name.endswith(f".{_LOCAL}")


def is_meant(rule: "Rule", name: HostName) -> bool:
    """Whether a rule that covers one of our names counts for it: what lets out has to say exactly the host's."""
    return not rule.lets_out or says(rule, name)


def says(rule: "Rule", name: HostName) -> bool:
    """Whether a rule is about one of our names by that very name, and it is one that leads anywhere: the host's."""
    return name == HOST and any(pattern.text == HOST for pattern in rule.names)


def opened_otherwise(target: "HostName | Address") -> str:
    """Say what lets out to a target that no `resolves_to` and no address in `to` opens; empty: those do."""
    if isinstance(target, HostName):
        if target == HOST:
            return f"`{HOST}` is this machine: it needs {NEEDED}"
        return f"the zone `{ZONE}` is exeat's own, and only `{HOST}` leads anywhere" if is_own(target) else ""
    block = None if target.version == 6 and target.scope_id is not None else block_of(normal(target))
    if block is None or block.opening is not Opening.NEVER:
        return ""
    if block.name == "loopback":
        return f"that is the sandbox's own loopback: a service of this machine has the name `{HOST}` and needs {NEEDED}"
    return f"that is {block.name}, and no rule can let anything out to it"


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
