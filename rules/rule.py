"""One rule as it was meant: normalised, with every default filled in. What it says, not yet how it is looked up.

`rules.plain` says what it means that one rule matches; `rules.plan` looks up which of many do.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rules.attempt import Protocol
from rules.ports import Ports
from rules.verdicts import Mode, TlsMode, Verdict

if TYPE_CHECKING:
    from rules.addresses import Network
    from rules.paths import PathPattern
    from rules.patterns import NamePattern


class Http(NamedTuple):
    """What a rule says about requests; None is any method, any path."""

    methods: frozenset[str] | None = None
    paths: "tuple[PathPattern, ...] | None" = None


class Exemption(NamedTuple):
    """What a rule does not cover. Without names and networks: wherever the rule itself applies."""

    names: "tuple[NamePattern, ...]" = ()
    networks: "tuple[Network, ...]" = ()
    ports: tuple[Ports, ...] | None = None
    http: Http | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A rule of the pool, known by its `id`, `file:id`. None in `ports` is every port and protocol."""

    id: str
    action: Verdict
    names: "tuple[NamePattern, ...]" = ()
    networks: "tuple[Network, ...]" = ()
    ports: tuple[Ports, ...] | None = None
    resolves_to: "tuple[Network, ...] | None" = None
    http: Http | None = None
    default: bool = False
    excepts: tuple[Exemption, ...] = ()
    tls: TlsMode = TlsMode.INSPECT
    mode: Mode | None = None  # of a default rule; None: the settings'
    idle_timeout: float | None = None  # seconds; None: the settings'
    why: str = ""

    @property
    def lets_out(self) -> bool:
        """Whether bytes may leave under this rule: allow and flag."""
        return self.action.lets_out

    def splices(self, port: int) -> bool:
        """Whether TLS on `port` is passed on unread: the rule says so, or lets any bytes out there."""
        ports = self.ports or ()
        return self.tls is TlsMode.SPLICE or not any(
            p.protocol is Protocol.TLS and p.low <= port <= p.high for p in ports
        )

    @property
    def looks_at_requests(self) -> bool:
        """Whether a connection alone is not enough to tell if this rule matches."""
        return self.http is not None or any(exemption.http is not None for exemption in self.excepts)

    @property
    def waits_for_address(self) -> bool:
        """Whether the rule holds back only what resolves to certain addresses: asked by `check_address`, not before."""
        return self.resolves_to is not None and not self.lets_out
