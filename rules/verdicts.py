"""Vocabulary of decisions: verdicts, outcomes, reasons and modes.

Every enum's first member is the closed one, so that an unset value denies.
"""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Verdict(StrEnum):
    """Verdict of the rules, strictest first."""

    allows: bool  # whether bytes may leave under it

    DENY = "deny"
    ASK = "ask"
    FLAG = "flag"
    ALLOW = "allow"

    def __init__(self, value: str) -> None:
        self.allows = value in {"flag", "allow"}  # precomputed: read several times per request


STRICTEST_FIRST = (Verdict.DENY, Verdict.ASK, Verdict.FLAG, Verdict.ALLOW)


class Outcome(StrEnum):
    """Outcome of an attempt."""

    passes: bool  # whether it proceeds: allowed, flagged, only audited, or to where each request needs its own approval

    BLOCKED = "blocked"
    WOULD_BLOCK = "would_block"  # audit mode: it passed, and enforce would have blocked it
    PASSED = "passed"
    FAILED = "failed"  # allowed, then failed at the host, the network or the other end

    def __init__(self, value: str) -> None:
        self.passes = value in {"passed", "would_block"}


class Reason(StrEnum):
    """Why; a closed list. Each is documented in docs/reference/rules.md with what an admin can do about it."""

    GATE_ERROR = "gate_error"
    RULE = "rule"
    NO_RULE = "no_rule"
    NO_COMMAND = "no_command"
    DEFAULT_RULE = "default_rule"
    LAYER = "layer"
    EXPIRED = "expired"
    TAINTED = "tainted"
    INVALID_NAME = "invalid_name"
    NAME_MISMATCH = "name_mismatch"
    SNI_MISSING = "sni_missing"
    ECH = "ech"
    PROTOCOL_MISMATCH = "protocol_mismatch"
    NON_PUBLIC_ADDRESS = "non_public_address"
    ADDRESS_NOT_LISTED = "address_not_listed"
    UNRESOLVED = "unresolved"
    AMBIGUOUS_PATH = "ambiguous_path"
    AMBIGUOUS_REQUEST = "ambiguous_request"
    URL_TOO_LONG = "url_too_long"
    BODY_NOT_ALLOWED = "body_not_allowed"
    TLS_CLIENT_DISTRUST = "tls_client_distrust"
    UPSTREAM_UNTRUSTED = "upstream_untrusted"
    UPSTREAM_FAILED = "upstream_failed"
    CLIENT_CERTIFICATE = "client_certificate"
    LIMIT_EXCEEDED = "limit_exceeded"
    SECRET_MISUSE = "secret_misuse"
    SECRET_NOT_SENT = "secret_not_sent"
    CREDENTIAL_MISMATCH = "credential_mismatch"
    LEAK = "leak"
    UDP = "udp"
    ICMP = "icmp"
    QUIC = "quic"
    DNS_TYPE = "dns_type"
    DNS_DENIED = "dns_denied"
    APPROVAL_GRANTED = "approval_granted"
    APPROVAL_DENIED = "approval_denied"
    APPROVAL_TIMEOUT = "approval_timeout"
    APPROVAL_UNAVAILABLE = "approval_unavailable"
    APPROVAL_FLOOD = "approval_flood"
    JOURNAL_FAILED = "journal_failed"
    MEMORY_LIMIT = "memory_limit"
    PROCESS_LIMIT = "process_limit"
    CPU_LIMIT = "cpu_limit"
    DISK_LIMIT = "disk_limit"
    FILE_LIMIT = "file_limit"
    TIME_LIMIT = "time_limit"
    PROTECTED_PATH = "protected_path"


class Mode(StrEnum):
    """Whether an attempt that no rule allows is blocked, or allowed and recorded."""

    ENFORCE = "enforce"
    AUDIT = "audit"


class TlsMode(StrEnum):
    """Whether requests on an allowed TLS connection are inspected."""

    INSPECT = "inspect"
    SPLICE = "splice"


class DnsMode(StrEnum):
    """Kind of answers to a sandbox's lookups."""

    SYNTHETIC = "synthetic"
    REAL = "real"


class OnBlock(StrEnum):
    """How the gate shows a block to the task."""

    RESET = "reset"
    EXPLAIN = "explain"
    DNS_REFUSED = "dns_refused"


class OnJournalFailure(StrEnum):
    """What happens to an attempt while the journal can't be written."""

    BLOCK = "block"
    CONTINUE = "continue"


class Trust(StrEnum):
    """Whether content that is read from a host is trusted."""

    UNTRUSTED = "untrusted"
    TRUSTED = "trusted"


class Scan(StrEnum):
    """What happens to a request with a secret in it, strictest first."""

    STRICT = "strict"  # as `block`, and towards hosts that nothing names also what is encoded or in its usual place
    BLOCK = "block"
    FLAG = "flag"
    OFF = "off"

    @property
    def blocks(self) -> bool:
        """Whether a request with a secret in it is blocked."""
        return self in {Scan.STRICT, Scan.BLOCK}

    @classmethod
    def strictest(cls, values: "Iterable[Scan | None]") -> "Scan":
        """Return the strictest value of several rules; a rule without `scan` counts as `flag`."""
        order = list(cls)
        return min((cls.FLAG if one is None else one for one in values), key=order.index, default=cls.FLAG)


class Log(StrEnum):
    """How much of a request's path is recorded: the rule's pattern, or all of it."""

    PATTERN = "pattern"
    FULL = "full"


class LayerKind(StrEnum):
    """How a layer decides without a matching rule: deny, or abstain."""

    CEILING = "ceiling"
    MANDATORY = "mandatory"
