"""Checks a request's head and returns what it requests, or why that is unclear; runs before every decision.

Pure. A request can bypass a gate if the gate and the server read it differently (RFC 9112 section 11.2). So this module
rejects every request that has two readings, before any rule is evaluated. An accepted request has exactly one host, one
length and one spelling. This module must never repair a request into a meaning that its sender might not have had.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, Protocol

from proxy.request.override_headers import LONGEST_NAME, alike, is_override, may_override, names_host, names_method
from rules.attempt import METHODS
from rules.values.addresses import parse_host
from rules.values.names import InvalidNameError
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rules.values.addresses import Address
    from rules.values.names import HostName

type Field = tuple[bytes, bytes]

TLS_PORT: Final = 443
HTTP_PORT: Final = 80
MOST_TARGET: Final = 16 * 1024  # bytes of a path with its query; servers take 8 to 16 KB (RFC 9110 section 4.1: 8000)
MOST_FIELDS: Final = 500  # of a head, and of trailers; Envoy and Apache take 100, a browser has 180 cookies for a site
MOST_ESCAPES: Final = (
    8000  # percent signs of a head: each is decoded several times; the longest path has room for 5,000
)

TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_NON_ASCII: Final = bytes(range(0x80, 0x100))
_TARGET = re.compile(rb"/[!-~\x80-\xff]*")  # bytes above ASCII are no URI (RFC 3986), and clients send them (curl)
_BAD_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110 section 5.5; CR and LF also mean an obs-fold
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")  # some read a leading zero as octal
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.\-]+)(?::([0-9]{1,5}))?")
_CHUNKED = b"chunked"
_FRAMING_SIZES: Final = frozenset({len(b"content-length"), len(b"transfer-encoding")})  # skips most other names quickly
_LONGEST_UPGRADE: Final = 64
_ABOVE_ASCII = re.compile(rb"[\x80-\xff]")

_GRPC = b"application/grpc"
_GRPC_WEB = re.compile(rb"application/grpc-web(?:-text)?(?:\+[a-z0-9.\-]{1,20})?")

_END_TO_END_FIELDS = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"content-type", b"authorization", b"cookie"}
)
_CHECKED_FIELDS = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"})
# Upgrades that are optional: the client continues in HTTP/1.1 without them (RFC 9113 appendix B.1, RFC 2817)
_OPTIONAL_UPGRADE = re.compile(rb"h2c?(?:-[0-9]+)?|http/[0-9.]+|tls/[0-9.]+|websocket(?:/[0-9]+)?", re.IGNORECASE)
_METHODS = frozenset(method.encode() for method in METHODS)


class UnclearError(Exception):
    """A request is denied because it is malformed or ambiguous; `reason` goes to the event, the text to the task.

    `advice`: what to do next, if the table of reasons has nothing more specific.
    """

    def __init__(self, text: str, reason: Reason = Reason.AMBIGUOUS_REQUEST, *, advice: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Head:
    """Parsed request head: HTTP/1 with an empty `authority` unless its target has one, or HTTP/2."""

    version: bytes  # `HTTP/1.0`, `HTTP/1.1`, `HTTP/2.0`
    method: bytes
    scheme: bytes  # of an absolute-form target or :scheme
    authority: bytes  # of an absolute-form target or :authority
    path: bytes  # with the query
    fields: tuple[Field, ...]

    @property
    def size(self) -> int:
        """Bytes of method, target and fields, in HTTP/1 form; the task chooses them."""
        return len(self.method) + len(self.authority) + len(self.path) + size_of(self.fields)


def size_of(fields: "Iterable[Field]") -> int:
    """Return the size of fields in bytes, in HTTP/1 form."""
    return sum([len(name) + len(value) + 4 for name, value in fields])


NOTHING: Final = Head(b"HTTP/1.1", b"", b"", b"", b"", ())  # stands for a head that can't be parsed


@dataclass(frozen=True, slots=True)
class RequestedResource:
    """The resource that a head requests: host, port, method, path, and how they were spelled."""

    host: "HostName | Address"
    port: int
    spelled: bytes  # the host as received; `forwarded()` returns it as sent
    respelled: bool  # Host spells it differently
    recoded: bool  # Transfer-Encoding is `chunked` in another case
    method: str
    path: str  # as it will be forwarded, with bytes above ASCII percent-encoded
    upgrade: bool  # offers another protocol (RFC 9110 section 7.8)
    websocket: bool  # ... and it is WebSocket
    foreign: str  # the protocol that its Upgrade requires; empty: none, or an optional one
    overrides: bool  # names another method, path or host in a header, or a method in a parameter


def read(head: Head, *, tls: bool) -> RequestedResource:
    """Return the resource that `head` requests, received with or without TLS. Raises UnclearError."""
    http1 = head.version.startswith(b"HTTP/1.")
    if not TOKEN.fullmatch(head.method):
        raise UnclearError("the method is not a token")
    if head.method.upper() == b"CONNECT":
        raise UnclearError("a tunnel would hide what goes through it", Reason.PROTOCOL_MISMATCH)
    if head.method not in _METHODS and head.method.upper() in _METHODS:
        raise UnclearError(
            "the method is not written as a method: they are in upper case"
        )  # some servers accept it in lower case
    if why := too_costly(head):
        raise UnclearError(why, Reason.LIMIT_EXCEEDED)
    if not _TARGET.fullmatch(head.path) and (head.path, head.method) != (b"*", b"OPTIONS"):  # RFC 9112 section 3.2.4
        raise UnclearError("the request target is not a path")
    if (head.authority or not http1) and head.scheme.lower() != (b"https" if tls else b"http"):
        raise UnclearError("the scheme is not the connection's")
    if b"#" in head.path:
        raise UnclearError("a request target has no fragment")
    found = _collect(head.fields)
    body_size(head)
    hosts = found.get(b"host", [])
    spelled = _one_authority(head.authority, hosts, http1=http1)
    host, port = read_authority(spelled, TLS_PORT if tls else HTTP_PORT)
    if b"connection" in found:
        _check_connection(found[b"connection"])
    if b"expect" in found:
        _check_expect(found[b"expect"])
    upgrades = found.get(b"upgrade", [])
    return RequestedResource(
        host=host,
        port=port,
        spelled=spelled,
        respelled=bool(hosts) and hosts[0] != spelled,
        recoded=found.get(b"transfer-encoding", [_CHUNKED]) != [_CHUNKED],
        method=head.method.decode("ascii"),
        path=_ABOVE_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], head.path).decode("ascii"),
        upgrade=bool(upgrades),
        websocket=b"websocket" in b",".join(upgrades).lower(),
        foreign=_required_upgrade(upgrades, found.get(b"connection", [])) if upgrades else "",
        overrides=(b"?" in head.path and names_method(head.path)) or _overrides(head.fields, spelled),
    )


def too_costly(head: Head) -> str:
    """Return why a head is too expensive to check; empty: it isn't."""
    above = len(head.path) - len(head.path.translate(None, _NON_ASCII))  # each such byte is forwarded as three
    if len(head.path) + 2 * above > MOST_TARGET:
        return f"the request target is longer than {MOST_TARGET >> 10} KB"
    if head.path.count(b"%") + sum([value.count(b"%") for _, value in head.fields]) > MOST_ESCAPES:
        return f"the head has more than {MOST_ESCAPES} percent signs"
    return ""


def body_size(head: Head) -> int | None:
    """Return the length of a request's body in bytes; None: it is chunked.

    Raises UnclearError if fields give two lengths (RFC 9112 section 6.3). For HTTP/2 the stream's end must agree.
    """
    framing = [(name.lower(), value) for name, value in head.fields if len(name) in _FRAMING_SIZES]
    lengths = [value for name, value in framing if name == b"content-length"]
    codings = [value for name, value in framing if name == b"transfer-encoding"]
    if codings:
        if lengths:
            raise UnclearError("the request has both a Content-Length and a Transfer-Encoding")
        if head.version != b"HTTP/1.1":
            raise UnclearError("only HTTP/1.1 has a Transfer-Encoding")
        if len(codings) > 1 or codings[0].lower() != _CHUNKED:
            raise UnclearError("the Transfer-Encoding is not `chunked`")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise UnclearError("the Content-Length is not one number")
    return int(lengths[0])


def read_authority(text: bytes, default_port: int) -> tuple["HostName | Address", int]:
    """Parse an authority without userinfo to host and port (RFC 9110 section 4.2.4). Raises UnclearError."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise UnclearError("the host is not written as a host")
    host, port = match[1], int(match[2] or default_port)
    if not 0 < port < 1 << 16:
        raise UnclearError("the port is not a port")
    try:
        return parse_host(host.decode("ascii")), port
    except InvalidNameError as error:
        raise UnclearError(str(error), Reason.INVALID_NAME) from error


def authority(host: "HostName | Address", port: int, *, tls: bool) -> bytes:
    """Return the normal spelling of a host and port, as requests are forwarded with it."""
    shown = f"[{host}]" if isinstance(host, IPv6Address) else str(host)
    default = TLS_PORT if tls else HTTP_PORT
    return (shown if port == default else f"{shown}:{port}").encode("ascii")


def forwarded(spelled: bytes, host: "HostName | Address", port: int, *, tls: bool) -> bytes:
    """Return the authority to forward for a host received as `spelled`: unchanged if its spelling is unambiguous.

    Unambiguous is the name in any case, with or without final dot and port. A signature may cover that spelling.
    """
    name = authority(host, TLS_PORT if tls else HTTP_PORT, tls=tls).decode("ascii")
    default = port == (TLS_PORT if tls else HTTP_PORT)
    lower = spelled.decode("latin-1").lower()
    names = (name,) if isinstance(host, IPv4Address | IPv6Address) else (name, name + ".")
    unambiguous = [
        candidate for candidate in names if lower == f"{candidate}:{port}" or (default and lower == candidate)
    ]
    return spelled if unambiguous else authority(host, port, tls=tls)


def without_upgrade(fields: "Iterable[Field]") -> tuple[Field, ...]:
    """Return the fields without an offered upgrade (RFC 9110 section 7.8)."""
    remaining = []
    for name, value in fields:
        lower = name.lower()
        if lower in {b"upgrade", b"http2-settings"}:
            continue
        rest = value
        if lower == b"connection":
            options = [option.strip() for option in value.split(b",")]
            rest = b", ".join(o for o in options if o.lower() not in {b"upgrade", b"http2-settings", b""})
            if not rest:
                continue
        remaining.append((name, rest))
    return tuple(remaining)


def may_trail(name: bytes) -> bool:
    """Whether a field may be a trailer: not one for framing, routing or decisions (RFC 9110 section 6.5.1)."""
    return TOKEN.fullmatch(name) is not None and (
        alike(name.lower()) not in _END_TO_END_FIELDS | _CHECKED_FIELDS and not is_override(name.lower())
    )


def named(head: Head) -> bytes:
    """Return the host of a head, unchecked, for events."""
    if head.authority:
        return head.authority
    return next((value for name, value in head.fields if name.lower() == b"host"), b"")


class HasFields(Protocol):
    """Head of a request or a response."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """Return its fields in their order."""


def values(head: HasFields, name: bytes) -> tuple[str, ...]:
    """Return the values of every field with this lower-case name."""
    return tuple(value.decode("latin-1") for field, value in head.fields if field.lower() == name)


def as_text(fields: tuple[Field, ...]) -> tuple[tuple[str, str], ...]:
    """Return fields as rules compare them: lower-case names, a character for each byte (RFC 9110 section 5.5)."""
    return tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in fields)


def user_agent(head: Head) -> str:
    """Return the value of User-Agent."""
    value = next((value for name, value in head.fields if name.lower() == b"user-agent"), b"")
    return value.decode("latin-1")


def grpc_kind(head: Head) -> bytes:
    """Return the Content-Type for the response to a gRPC call, whose client can't read a page; empty: no gRPC call.

    gRPC requires HTTP/2 ("Requests"); gRPC-Web works in any version and repeats the call's type ("HTTP wire
    protocols").
    """
    kind = next((value.lower() for name, value in head.fields if name.lower() == b"content-type"), b"")
    kind = kind.partition(b";")[0].rstrip(b" \t")
    if _GRPC_WEB.fullmatch(kind):
        return kind
    called = kind == _GRPC or kind.startswith(_GRPC + b"+")
    return _GRPC if called and head.version == b"HTTP/2.0" else b""


def field_of(line: bytes) -> Field:
    """Parse the field on a line without its end (RFC 9112 section 5). Raises UnclearError."""
    name, colon, value = line.partition(b":")
    if not colon or not TOKEN.fullmatch(name):
        raise UnclearError("a header's name is not a token")
    value = value.strip(b" \t")
    if _BAD_IN_VALUE.search(value):
        raise UnclearError("a header's value has a control character or a line break in it")
    return name, value


def _collect(fields: tuple[Field, ...]) -> dict[bytes, list[bytes]]:
    """Check every field's spelling; returns the values of fields for framing and routing."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        if not TOKEN.fullmatch(name):
            raise UnclearError("a header's name is not a token")
        if _BAD_IN_VALUE.search(value):
            raise UnclearError("a header's value has a control character or a line break in it")
        lower = name.lower()
        if lower in _CHECKED_FIELDS:
            found.setdefault(lower, []).append(value)
        elif alike(lower) in _CHECKED_FIELDS or (is_override(lower) and alike(lower) != lower):
            # CGI-like servers can't tell `Content_Length` from `Content-Length`
            raise UnclearError("a header that frames or routes is spelled with another sign than `-`")
    return found


def _required_upgrade(upgrades: list[bytes], connection: list[bytes]) -> str:
    """Return the protocol that a request requires by Upgrade, as kubectl's `SPDY/3.1`; empty: none."""
    offered = [offer.strip() for value in upgrades for offer in value.split(b",") if offer.strip()]
    requires_upgrade = any(option.strip().lower() == b"upgrade" for value in connection for option in value.split(b","))
    if not offered or not requires_upgrade or any(_OPTIONAL_UPGRADE.fullmatch(offer) for offer in offered):
        return ""
    return offered[0][:_LONGEST_UPGRADE].decode("latin-1")


def _overrides(fields: tuple[Field, ...], spelled: bytes) -> bool:
    """Whether a header names another method, path or host than the request line does."""
    override_fields = [
        (name, value) for name, value in fields if len(name) <= LONGEST_NAME and may_override(name.lower())
    ]
    if not override_fields:
        return False
    match = _AUTHORITY.fullmatch(spelled)
    host = match[1].lower() if match else b""
    return any(is_override(name.lower()) or names_host(name.lower(), value, host) for name, value in override_fields)


def _one_authority(target: bytes, hosts: list[bytes], *, http1: bool) -> bytes:
    """Return the authority that request line and Host agree on (RFC 9112 section 3.2, RFC 9113 section 8.3.1)."""
    if len(hosts) > 1:
        raise UnclearError("the request has more than one Host")
    if not hosts and (http1 or not target):
        raise UnclearError("the request has no Host")
    if hosts and target and hosts[0].lower() != target.lower():
        raise UnclearError("the request's target and its Host differ")
    return target or hosts[0]


def _check_connection(values: list[bytes]) -> None:
    """Raise if Connection removes a header that the decision depends on (RFC 9110 section 7.6.1)."""
    for value in values:
        options = [option.strip().lower() for option in value.split(b",", MOST_FIELDS)]
        if len(options) > MOST_FIELDS or [o for o in options if o in _END_TO_END_FIELDS or is_override(o)]:
            raise UnclearError("`Connection` names a header that must arrive, or more than there may be")


def _check_expect(values: list[bytes]) -> None:
    """Raise for an expectation that servers understand in different ways (RFC 9110 section 10.1.1)."""
    if len(values) > 1 or values[0].lower() != b"100-continue":
        raise UnclearError("`Expect` is not `100-continue`")
