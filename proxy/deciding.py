"""What becomes of a connection, from where it was made to and what it says first. Pure: it reads values and makes one.

Home of the gate's own checks, which come before any rule and hold under audit mode too: the name is the one that the
sandbox's resolver gave an address for, or the one that the connection says itself; where both are there they agree.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.hello import ClientHello
from proxy.peek import HttpHead
from rules.addresses import parse_host
from rules.attempt import Attempt, Protocol
from rules.decision import Decision
from rules.names import HostName, InvalidName
from rules.verdicts import OnBlock, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from proxy.connecting import DialFailed
    from proxy.peek import Seen
    from proxy.tenant import Tenant
    from rules.addresses import Address
    from rules.policy import Policy

_TCP_ONLY: Final = frozenset({Protocol.TCP})
_HTTP_PORT, _TLS_PORT = 80, 443
_HTTP_OVER_TLS: Final = frozenset({"h2", "http/1.1", "http/1.0"})  # ALPN ids of what inspection can read


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where a connection was made to; `names` are those that this sandbox was told the address for, latest last."""

    address: "Address"
    port: int
    names: tuple[HostName, ...] = ()

    @property
    def target(self) -> "HostName | Address":
        """The host that was asked for, as far as the address says."""
        return self.names[-1] if self.names else self.address


class Patience(Enum):
    """How long a client's first words are waited for."""

    NONE = "none"  # what it says changes nothing, and its server may have to speak first
    BRIEF = "brief"  # it may be waiting for its server
    FULL = "full"  # only what a client begins can pass


class Way(Enum):
    """What is done with a connection."""

    RESET = "reset"
    EXPLAIN = "explain"  # inspection serves the page that says why
    INSPECT = "inspect"
    SPLICE = "splice"


@dataclass(frozen=True, slots=True)
class Judgement:
    """One connection's decision, and what it was made about."""

    target: "HostName | Address"
    protocol: Protocol
    decision: Decision
    way: Way
    hello: ClientHello | None = None


def denied(policy: "Policy", reason: Reason, like: Decision | None = None) -> Decision:
    """Return a refusal for a reason of the gate's own; `like` is the decision that it takes the place of."""
    if like is None:
        return Decision(Verdict.DENY, Outcome.BLOCKED, reason, revision=policy.revision)
    return replace(like, verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason)


def nowhere(tenant: "Tenant", wanted: Wanted) -> bool:
    """Whether this is no place outside: the sandbox itself, the gate, nobody or everybody."""
    address = wanted.address
    zone = address.version == 6 and address.scope_id is not None
    return (
        not wanted.port
        or zone
        or address in tenant.own_addresses
        or address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and not int(address) >> 24)  # RFC 791: "this network", which connect() takes for us
    )


def patience(policy: "Policy", wanted: Wanted) -> Patience:
    """Say how long it is worth waiting for the first words."""
    spoken = policy.protocols(wanted.target, wanted.port)
    if spoken == _TCP_ONLY:
        return Patience.NONE
    if Protocol.TCP in spoken or (not spoken and wanted.port not in (_HTTP_PORT, _TLS_PORT)):
        return Patience.BRIEF  # a refusal too must not keep one waiting who waits for a server
    return Patience.FULL


def judge(tenant: "Tenant", wanted: Wanted, seen: "Seen | None", *, can_inspect: bool) -> Judgement:
    """Decide. `seen` None: nothing was said, or nothing that could be made out."""
    policy = tenant.policy
    if isinstance(seen, ClientHello):
        return _judge_tls(tenant, policy, wanted, seen, can_inspect=can_inspect)
    if isinstance(seen, HttpHead):
        return _judge_http(tenant, policy, wanted, seen, can_inspect=can_inspect)
    decision = _decide(tenant, policy, wanted.target, wanted.port, Protocol.TCP)
    return Judgement(wanted.target, Protocol.TCP, decision, Way.SPLICE if decision.passes else Way.RESET)


def refuse(tenant: "Tenant", wanted: Wanted, reason: Reason) -> Judgement:
    """Deny before anything is read."""
    return Judgement(wanted.target, Protocol.TCP, denied(tenant.policy, reason), Way.RESET)


def _judge_tls(
    tenant: "Tenant", policy: "Policy", wanted: Wanted, hello: ClientHello, *, can_inspect: bool
) -> Judgement:
    target, problem = _tls_target(wanted, hello)
    if problem is not None:
        decision = denied(policy, problem)
    else:
        decision = _decide(tenant, policy, target, wanted.port, Protocol.TLS)
    readable = _is_readable(hello)
    if decision.passes:
        if not decision.inspect and hello.ech:
            decision = denied(policy, Reason.ECH, decision)
        elif decision.inspect and not readable:
            decision = denied(policy, Reason.PROTOCOL_MISMATCH, decision)
        elif decision.inspect and not can_inspect:
            decision = denied(policy, Reason.GATE_ERROR, decision)
    if decision.passes:
        way = Way.INSPECT if decision.inspect else Way.SPLICE
    else:
        way = _refusal(policy, can_explain=can_inspect and readable and problem is not Reason.INVALID_NAME)
    return Judgement(target, Protocol.TLS, decision, way, hello)


def _judge_http(tenant: "Tenant", policy: "Policy", wanted: Wanted, head: HttpHead, *, can_inspect: bool) -> Judgement:
    target, problem = _http_target(wanted, head)
    if problem is not None:
        decision = denied(policy, problem)
    else:
        decision = _decide(tenant, policy, target, wanted.port, Protocol.HTTP)
        if decision.passes and not can_inspect:
            decision = denied(policy, Reason.GATE_ERROR, decision)
    way = Way.INSPECT if decision.passes else _refusal(policy, can_explain=can_inspect)
    return Judgement(target, Protocol.HTTP, decision, way)


def _tls_target(wanted: Wanted, hello: ClientHello) -> "tuple[HostName | Address, Reason | None]":
    """Find the one host that a TLS connection is for, or why it has none."""
    if hello.sni is None:
        return wanted.target, Reason.SNI_MISSING if wanted.names else None
    for name in wanted.names:
        if name == hello.sni:
            return name, None
    try:
        name = HostName.parse(hello.sni)
    except InvalidName:
        return wanted.target, Reason.INVALID_NAME
    if wanted.names and name not in wanted.names:
        return wanted.target, Reason.NAME_MISMATCH
    return name, None


def _http_target(wanted: Wanted, head: HttpHead) -> "tuple[HostName | Address, Reason | None]":
    """Find the host that a connection in the clear is for. Each request's own Host is inspection's to check."""
    if head.host is None or len(wanted.names) == 1:
        return wanted.target, None
    host, colon, port = head.host.rpartition(":")
    spelled = host if colon and port.isdecimal() else head.host
    try:
        asked = parse_host(spelled)
    except InvalidName:
        return wanted.target, Reason.INVALID_NAME
    if wanted.names:
        return (asked, None) if asked in wanted.names else (wanted.target, Reason.NAME_MISMATCH)
    if not isinstance(asked, HostName) and asked != wanted.address:
        return wanted.target, Reason.NAME_MISMATCH
    return asked, None


def _decide(
    tenant: "Tenant", policy: "Policy", target: "HostName | Address", port: int, protocol: Protocol
) -> Decision:
    task = tenant.task
    decision = policy.decide(Attempt(protocol, target, port, None, task.name, task.labels))
    if decision.reason is Reason.NO_RULE and not decision.passes:
        spoken = policy.protocols(target, port)
        if spoken and protocol not in spoken:
            return denied(policy, Reason.PROTOCOL_MISMATCH, decision)
    return decision


def _refusal(policy: "Policy", *, can_explain: bool) -> Way:
    """Choose how to say no: with a page where the client can read one and the rules don't want it short."""
    return Way.EXPLAIN if can_explain and policy.settings.on_block is not OnBlock.RESET else Way.RESET


def failing(policy: "Policy", judgement: Judgement, failure: "DialFailed", *, can_inspect: bool) -> Judgement:
    """Return what becomes of a connection that was to be let out and can't be made, or may not after all."""
    decision = judgement.decision
    if failure.reason in (Reason.UNRESOLVED, Reason.UPSTREAM_FAILED):  # nobody's refusal
        decision = replace(decision, outcome=Outcome.FAILED, reason=failure.reason)
        return replace(judgement, decision=decision, way=Way.RESET)
    readable = judgement.hello is not None and _is_readable(judgement.hello)
    way = _refusal(policy, can_explain=can_inspect and readable)
    return replace(judgement, decision=denied(policy, failure.reason, decision), way=way)


def _is_readable(hello: ClientHello) -> bool:
    """Whether inspection can speak what the client wants to: HTTP, or it doesn't say."""
    return not hello.alpn or not _HTTP_OVER_TLS.isdisjoint(hello.alpn)
