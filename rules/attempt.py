"""Attempt: one thing that a task tries, which `Policy.decide` decides."""

from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rules.values.addresses import Address
    from rules.values.names import HostName

METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)  # RFC 9110 section 9, RFC 5789
METHOD_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # RFC 9110 section 5.6.2
# IANA, Hypertext Transfer Protocol (HTTP) Method Registry, as of 2026-11; and what caches and UPnP devices take.
REGISTERED_METHODS: Final = frozenset({
    "ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "CONNECT", "COPY", "DELETE", "GET", "HEAD", "LABEL",
    "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "OPTIONS",
    "ORDERPATCH", "PATCH", "POST", "PRI", "PROPFIND", "PROPPATCH", "PUT", "QUERY", "REBIND", "REPORT", "SEARCH",
    "TRACE", "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL", "BAN",
    "PURGE", "REFRESH", "M-SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE",
})  # fmt: skip
NO_CREDENTIAL: Final = "-"  # no secret is called so
NO_LABELS: Final[Mapping[str, str]] = {}


class Protocol(StrEnum):
    """Protocol on a connection, as far as rules distinguish protocols."""

    TCP = "tcp"  # any bytes: a server that speaks first, a database, SSH
    TLS = "tls"
    HTTP = "http"
    UDP = "udp"


INSPECTABLE: Final = frozenset({Protocol.TLS, Protocol.HTTP})  # protocols whose requests the gate can read


_HTTP_OVER_TLS: Final = frozenset({"h2", "http/1.1", "http/1.0"})  # ALPN ids of what inspection can read


def alpn_is_readable(alpn: tuple[str, ...]) -> bool:
    """Whether the ALPN offer of a client is empty or has a protocol that inspection can read."""
    return not alpn or not _HTTP_OVER_TLS.isdisjoint(alpn)


class GitService(StrEnum):
    """Service that a git client requests."""

    PUSH = "push"  # git-receive-pack
    FETCH = "fetch"  # git-upload-pack


class RefChange(StrEnum):
    """What a push does to a ref; the first is what can't be taken back."""

    DELETE = "delete"
    UPDATE = "update"
    CREATE = "create"


class GitRequest(NamedTuple):
    """Git request inside an HTTP request (gitprotocol-http(5), gitprotocol-pack(5)).

    `repo` is the path of the URL without its leading slash and `.git`. A push without a `ref` is the service
    advertisement or the empty probe: they are allowed if any push to the repository could be. A push of several refs is
    several attempts.
    """

    service: GitService
    repo: str
    ref: str | None = None
    change: RefChange | None = None


class Request(NamedTuple):
    """One HTTP request inside a connection.

    `path` is the raw request target's path with its query (`/a/b?c=d`), as it will be forwarded. `headers` have
    lower-case names; an empty tuple means unknown, for every request has headers. `body`: one follows.
    `credential` is the id of the secret whose placeholder is its one credential, `NO_CREDENTIAL` if it has none at
    all, or empty if it has another, or several; None: unknown.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bool = False
    websocket: bool = False
    git: GitRequest | None = None
    credential: str | None = None


class Caller(NamedTuple):
    """Caller of an attempt: its task and labels, the day (UTC), and whether the task has read untrusted content.

    `at` None: unknown, so every `until` counts as passed. `Attempt(protocol, target, port, request, *caller)` is
    one of its attempts.
    """

    task: str = ""
    labels: Mapping[str, str] = NO_LABELS
    at: date | None = None
    tainted: bool = False


UNKNOWN_CALLER: Final = Caller()


class Attempt(NamedTuple):
    """A connection (`request` is None) or one request in it.

    `target` is a name or, for address literals, an address; never both: a name rule never allows an address. The
    fields from `task` to `tainted` are its `Caller`. `granted` are the digests (`revision.digest_of`) of asks that are
    approved for this attempt.
    """

    protocol: Protocol
    target: "HostName | Address"
    port: int
    request: Request | None = None
    task: str = ""
    labels: Mapping[str, str] = NO_LABELS
    at: date | None = None
    tainted: bool = False
    granted: frozenset[str] = frozenset()
