"""What a rule file settles for all of its rules; the defaults are those of RULES.md."""

from ipaddress import IPv4Network
from typing import Final, NamedTuple

from rules.upstream import Past, Upstream
from rules.verdicts import DnsMode, Mode, OnBlock, OnJournalFailure, TlsMode

_NOTHING_PAST: Final = Past()
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
    upstream_auth: str | None = None  # the path of a file that holds what the proxy is told: `user:password`
    upstream_except: Past = _NOTHING_PAST  # what goes past it
    upstream_ca: str | None = None  # the path of a file of certificates, trusted beside the host's store
