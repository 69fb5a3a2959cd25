"""Settings of a policy, with the upstream proxy."""

from enum import StrEnum
from ipaddress import IPv4Network
from typing import Final, NamedTuple

from rules.attempt import Attempt, Protocol
from rules.ports import LAST_PORT
from rules.problems import quote
from rules.values.addresses import Address, Network, bracket_host, parse_host, why_not_public
from rules.values.names import HostName, is_exeat_name
from rules.values.patterns import NamePattern
from rules.verdicts import DnsMode, Mode, OnBlock, OnJournalFailure, TlsMode

_SPELLINGS = "`http://proxy.corp.example:3128` or `socks5://proxy.corp.example:1080`"


class Scheme(StrEnum):
    """Protocol of a proxy."""

    HTTP = "http"  # CONNECT, RFC 9110 section 9.3.6; HTTP in the clear by absolute-form
    SOCKS5 = "socks5"  # RFC 1928; names are always the proxy's to look up, as curl's `socks5h` has it


class Upstream(NamedTuple):
    """URL of a proxy."""

    scheme: Scheme
    host: HostName | Address
    port: int

    @classmethod
    def parse(cls, text: str) -> "Upstream":
        """Read the URL of a proxy. Raises ValueError with what was probably meant."""
        scheme, colon, rest = text.partition("://")
        if "@" in rest:  # it isn't shown: what stands before the @ is a secret
            raise ValueError("`upstream` has a user in it: put `user:password` into a file named by `upstream_auth`")
        if scheme == "https":
            raise ValueError(f"{quote(text)}: TLS to the proxy itself is not supported; write {_SPELLINGS}")
        host, _, port = rest.removesuffix("/").rpartition(":")
        known = {**{each.value: each for each in Scheme}, "socks5h": Scheme.SOCKS5}
        digits = port.isascii() and port.isdigit() and len(port) <= len(str(LAST_PORT))
        if not colon or scheme not in known or not host or "/" in host or not digits or not 0 < int(port) <= LAST_PORT:
            raise ValueError(f"{quote(text)} is no proxy; one is written like {_SPELLINGS}")
        return cls(known[scheme], parse_host(host), int(port))

    def __str__(self) -> str:
        """Return it as a URL."""
        return f"{self.scheme}://{bracket_host(self.host)}:{self.port}"


class ProxyDestination(NamedTuple):
    """Destination by way of the proxy, instead of an address: the `target` as sent to the proxy.

    `relayed`: not for a connection, but in each request, as HTTP in the clear has it (RFC 9112 section 3.2.2).
    """

    upstream: Upstream
    target: HostName | Address
    relayed: bool = False

    def is_for(self, attempt: Attempt, upstream: Upstream) -> bool:
        """Whether this is the destination for an attempt that must go through `upstream`."""
        in_clear = attempt.protocol is Protocol.HTTP and upstream.scheme is Scheme.HTTP
        return (self.upstream, self.target) == (upstream, attempt.target) and (in_clear or not self.relayed)

    def __str__(self) -> str:
        """Return the proxy's URL."""
        return str(self.upstream)


class UpstreamExceptions(NamedTuple):
    """Names and networks to reach without the proxy: `upstream_except`."""

    names: tuple[NamePattern, ...] = ()
    networks: tuple[Network, ...] = ()

    def includes(self, target: HostName | Address) -> bool:
        """Whether the gate connects to `target` directly. Networks apply to address literals, not to names."""
        if isinstance(target, HostName):
            return is_exeat_name(target) or any(name.matches(target) for name in self.names)
        return why_not_public(target) is not None or any(target in network for network in self.networks)

    def __str__(self) -> str:
        """Return the value as written in a rule file."""
        return ", ".join([*(name.text for name in self.names), *map(str, self.networks)]) or "nothing"


_NOTHING_PAST: Final = UpstreamExceptions()
DEFAULT_DNS_POOL: Final = IPv4Network("198.18.0.0/15")  # RFC 2544: never routed on the internet


class Settings(NamedTuple):
    """The `settings:` of a rule file."""

    mode: Mode = Mode.ENFORCE
    tls: TlsMode = TlsMode.INSPECT
    dns: DnsMode = DnsMode.SYNTHETIC
    dns_pool: IPv4Network = DEFAULT_DNS_POOL
    on_block: OnBlock = OnBlock.EXPLAIN
    on_journal_failure: OnJournalFailure = OnJournalFailure.BLOCK
    idle_timeout: float = 600.0  # seconds
    upstream: Upstream | None = None  # the proxy that everything goes through
    upstream_auth: str | None = None  # path of a file with the proxy's credentials: `user:password`
    upstream_except: UpstreamExceptions = _NOTHING_PAST  # what goes past it
    upstream_ca: str | None = None  # path of a certificate file, trusted in addition to the host's store
