"""Decides on a connection from its destination and the client's first bytes. Pure.

Home of the gate's own checks, which come before any rule and hold under audit mode too: the name is the one that the
sandbox's resolver gave an address for, or the one that the connection says itself; where both are there they agree.
"""

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.dialing.address_check import deny_undialable
from proxy.gate.client_hello import ClientHello, HttpHead
from rules.addresses import parse_host
from rules.attempt import Attempt, Protocol, alpn_is_readable
from rules.decision import Decision, deny
from rules.names import HostName, InvalidNameError
from rules.verdicts import OnBlock, Outcome, Reason

if TYPE_CHECKING:
    from proxy.approvals.leases import Grant
    from proxy.dialing.address_check import DialError
    from proxy.gate.client_hello import Seen
    from proxy.sandbox.sandbox_state import SandboxState
    from rules.addresses import Address
    from rules.matching.policy import Policy

_TCP_ONLY: Final = frozenset({Protocol.TCP})
_HTTP_PORT, _TLS_PORT = 80, 443
MOST_REMEMBERED: Final = 1024
_MOST_PROTOCOLS: Final = 8
_MOST_OFFERS: Final = 3  # that are named


class OriginalDestination(NamedTuple):
    """Address and port that a connection was made to; `names`: those that the sandbox resolved to it, latest last."""

    address: "Address"
    port: int
    names: tuple[HostName, ...] = ()

    @property
    def target(self) -> "HostName | Address":
        """The requested host, as far as the address tells."""
        return self.names[-1] if self.names else self.address


class PeekWait(Enum):
    """How long to wait for a client's first bytes."""

    NONE = "none"  # what it says changes nothing, and its server may have to speak first
    BRIEF = "brief"  # it may be waiting for its server
    FULL = "full"  # only what a client begins can pass


class GateAction(Enum):
    """What the gate does with a connection."""

    RESET = "reset"
    EXPLAIN = "explain"  # inspection serves the page that says why
    INSPECT = "inspect"
    SPLICE = "splice"


class ConnectionDecision(NamedTuple):
    """Decision on one connection, with the attempt that it was made on."""

    attempt: Attempt
    decision: Decision
    way: GateAction
    hello: ClientHello | None = None
    detail: str = ""  # why it can't be dialed, where that decides
    advice: str = ""  # ... and what can be done about it
    approval: str = ""  # id of what people were asked about it
    grants: "tuple[Grant, ...]" = ()  # under which it passes

    @property
    def name(self) -> HostName | None:
        """The host's name, if it has one."""
        target = self.attempt.target
        return target if isinstance(target, HostName) else None


def is_unroutable(sandbox: "SandboxState", wanted: OriginalDestination) -> bool:
    """Whether the destination is the sandbox itself, the gate, or a multicast, broadcast or unspecified address."""
    address = wanted.address
    if wanted.names:
        return not wanted.port
    zone = address.version == 6 and address.scope_id is not None
    return (
        not wanted.port
        or zone
        or address in sandbox.own_addresses
        or address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and not int(address) >> 24)  # RFC 791: "this network", which connect() takes for us
    )


def peek_wait(policy: "Policy", wanted: OriginalDestination) -> PeekWait:
    """Return how long to wait for the client's first bytes."""
    spoken = policy.protocols(wanted.target, wanted.port) - {Protocol.UDP}
    if spoken == _TCP_ONLY:
        return PeekWait.NONE
    if Protocol.TCP in spoken or (not spoken and wanted.port not in (_HTTP_PORT, _TLS_PORT)):
        return PeekWait.BRIEF  # a refusal, too, must not keep a client waiting that waits for its server
    return PeekWait.FULL


def decide(
    sandbox: "SandboxState", wanted: OriginalDestination, seen: "Seen | None", *, can_inspect: bool
) -> ConnectionDecision:
    """Decide on a connection. `seen` None: the client sent nothing, or nothing recognisable."""
    if isinstance(seen, ClientHello):
        return _decide_tls(sandbox, wanted, seen, can_inspect=can_inspect)
    if isinstance(seen, HttpHead):
        return _decide_http(sandbox, wanted, seen, can_inspect=can_inspect)
    attempt = make_attempt(sandbox, Protocol.TCP, wanted.target, wanted.port)
    decision = _decide(sandbox.policy, attempt)
    return ConnectionDecision(attempt, decision, GateAction.SPLICE if decision.outcome.passes else GateAction.RESET)


def decide_again(sandbox: "SandboxState", judgement: ConnectionDecision, *, can_inspect: bool) -> ConnectionDecision:
    """Decide again on an allowed connection after the policy or the date has changed.

    The checks that come before the rules are not repeated.
    """
    attempt = judgement.attempt._replace(at=sandbox.calendar.today(), tainted=sandbox.tainted)
    decision = _decide(sandbox.policy, attempt)
    if decision.outcome.passes and judgement.hello is not None:
        objection = _objection(decision, judgement.hello, can_inspect=can_inspect)
        if objection is not None:
            decision = deny(sandbox.policy, objection, decision)
    if not decision.outcome.passes:
        way = GateAction.RESET
    elif attempt.protocol is Protocol.HTTP or (attempt.protocol is Protocol.TLS and decision.inspect):
        way = GateAction.INSPECT
    else:
        way = GateAction.SPLICE
    return judgement._replace(attempt=attempt, decision=decision, way=way, detail="", advice="")


def decide_after_approval(
    sandbox: "SandboxState", judgement: ConnectionDecision, *, can_inspect: bool
) -> ConnectionDecision:
    """Decide again on a pending connection, with the grants in `judgement`."""
    digests = judgement.attempt.granted.union(grant.digest for grant in judgement.grants)
    judgement = judgement._replace(attempt=judgement.attempt._replace(granted=digests))
    found = decide_again(sandbox, judgement, can_inspect=can_inspect)
    return (
        found
        if found.decision.outcome.passes
        else found._replace(way=_way_out(sandbox.policy, found, can_inspect=can_inspect))
    )


def deny_unanswered(
    sandbox: "SandboxState", judgement: ConnectionDecision, reason: Reason, *, can_inspect: bool
) -> ConnectionDecision:
    """Deny a pending connection: the approval was denied, timed out or is unavailable."""
    decision = deny(sandbox.policy, reason, judgement.decision)._replace(approval=())
    return judgement._replace(decision=decision, way=_way_out(sandbox.policy, judgement, can_inspect=can_inspect))


def deny_before_asking(
    sandbox: "SandboxState", judgement: ConnectionDecision, failure: "DialError", *, can_inspect: bool
) -> ConnectionDecision:
    """Deny a connection that an approval would not allow."""
    judgement = judgement._replace(detail=failure.detail, advice=failure.advice)
    way = _way_out(sandbox.policy, judgement, can_inspect=can_inspect)
    return judgement._replace(decision=deny_undialable(judgement.decision, failure), way=way)


def still_holds(sandbox: "SandboxState", judgement: ConnectionDecision, policy: "Policy") -> bool:
    """Whether a decision under `policy` still holds: same policy, same date, same taint."""
    attempt = judgement.attempt
    return policy is sandbox.policy and attempt.at == sandbox.calendar.today() and attempt.tainted is sandbox.tainted


def deny_connection(sandbox: "SandboxState", wanted: OriginalDestination, reason: Reason) -> ConnectionDecision:
    """Deny a connection before anything is read from it."""
    attempt = make_attempt(sandbox, Protocol.TCP, wanted.target, wanted.port)
    return ConnectionDecision(attempt, deny(sandbox.policy, reason), GateAction.RESET)


def deny_after_dial(
    policy: "Policy", judgement: ConnectionDecision, failure: "DialError", *, can_inspect: bool
) -> ConnectionDecision:
    """Decide on an allowed connection that can't be dialed, or whose address may not be dialed."""
    judgement = judgement._replace(detail=failure.detail, advice=failure.advice)
    decision = judgement.decision
    if failure.reason in (Reason.UNRESOLVED, Reason.UPSTREAM_FAILED):  # nobody's refusal
        decision = decision._replace(outcome=Outcome.FAILED, reason=failure.reason)
        return judgement._replace(decision=decision, way=GateAction.RESET)
    way = _way_out(policy, judgement, can_inspect=can_inspect)
    decision = deny(policy, failure.reason, decision)._replace(approval=())  # nobody is asked about this
    return judgement._replace(decision=decision, way=way)


def _decide_tls(
    sandbox: "SandboxState", wanted: OriginalDestination, hello: ClientHello, *, can_inspect: bool
) -> ConnectionDecision:
    policy = sandbox.policy
    target, problem = _tls_target(wanted, hello)
    attempt = make_attempt(sandbox, Protocol.TLS, target, wanted.port)
    decision = _decide(policy, attempt) if problem is None else deny(policy, problem)
    if decision.outcome.passes:
        objection = _objection(decision, hello, can_inspect=can_inspect)
        if objection is None:
            return ConnectionDecision(
                attempt, decision, GateAction.INSPECT if decision.inspect else GateAction.SPLICE, hello
            )
        decision = deny(policy, objection, decision)
        if objection is Reason.PROTOCOL_MISMATCH:
            offers = ", ".join(f"`{each}`" for each in hello.alpn[:_MOST_OFFERS])
            only = "only HTTP can be inspected: `tls: splice` relays it without inspection"
            detail = f"its client offers {offers} (ALPN), and {only}"
            return ConnectionDecision(attempt, decision, _refusal(policy, can_explain=False), hello, detail)
    can_explain = can_inspect and _is_readable(hello) and problem is not Reason.INVALID_NAME
    return ConnectionDecision(attempt, decision, _refusal(policy, can_explain=can_explain), hello)


def _objection(decision: Decision, hello: ClientHello, *, can_inspect: bool) -> Reason | None:
    """Return the reason why a TLS connection can't be handled as the rules that allow it want; None: it can."""
    if not decision.inspect:
        return Reason.ECH if hello.ech else None
    if not _is_readable(hello):
        return Reason.PROTOCOL_MISMATCH
    return None if can_inspect else Reason.GATE_ERROR


def _is_readable(hello: ClientHello) -> bool:
    """Whether inspection can speak the client's protocol: its ALPN names HTTP, or it has none."""
    return alpn_is_readable(hello.alpn)


def _decide_http(
    sandbox: "SandboxState", wanted: OriginalDestination, head: HttpHead, *, can_inspect: bool
) -> ConnectionDecision:
    policy = sandbox.policy
    target, problem = _http_target(wanted, head)
    attempt = make_attempt(sandbox, Protocol.HTTP, target, wanted.port)
    decision = _decide(policy, attempt) if problem is None else deny(policy, problem)
    if decision.outcome.passes and not can_inspect:
        decision = deny(policy, Reason.GATE_ERROR, decision)
    way = GateAction.INSPECT if decision.outcome.passes else _refusal(policy, can_explain=can_inspect)
    return ConnectionDecision(attempt, decision, way)


def _tls_target(wanted: OriginalDestination, hello: ClientHello) -> "tuple[HostName | Address, Reason | None]":
    """Return the host that a TLS connection is for, or the reason why it has none."""
    if hello.sni is None:
        return wanted.target, Reason.SNI_MISSING if wanted.names else None
    for name in wanted.names:
        if name == hello.sni:
            return name, None
    try:
        name = HostName.parse(hello.sni)
    except InvalidNameError:
        return wanted.target, Reason.INVALID_NAME
    if wanted.names and name not in wanted.names:
        return wanted.target, Reason.NAME_MISMATCH
    return name, None


def _http_target(wanted: OriginalDestination, head: HttpHead) -> "tuple[HostName | Address, Reason | None]":
    """Return the host of a plaintext HTTP connection. Inspection checks the Host of each request."""
    if head.host is None or len(wanted.names) == 1:
        return wanted.target, None
    host, colon, port = head.host.rpartition(":")
    spelled = host if colon and port.isdecimal() else head.host
    try:
        asked = parse_host(spelled)
    except InvalidNameError:
        return wanted.target, Reason.INVALID_NAME
    if wanted.names:
        return (asked, None) if asked in wanted.names else (wanted.target, Reason.NAME_MISMATCH)
    if not isinstance(asked, HostName) and asked != wanted.address:
        return wanted.target, Reason.NAME_MISMATCH
    return asked, None


def make_attempt(sandbox: "SandboxState", protocol: Protocol, target: "HostName | Address", port: int) -> Attempt:
    """Return an attempt of the task, with its labels, date and taint as of now."""
    return Attempt(protocol, target, port, None, *sandbox.caller)


def _decide(policy: "Policy", attempt: Attempt) -> Decision:
    decision = policy.decide(attempt)
    if decision.reason is Reason.NO_RULE and not decision.outcome.passes:
        spoken = policy.protocols(attempt.target, attempt.port)
        if spoken and attempt.protocol not in spoken:
            return deny(policy, Reason.PROTOCOL_MISMATCH, decision)
    return decision


def _way_out(policy: "Policy", judgement: ConnectionDecision, *, can_inspect: bool) -> GateAction:
    """Choose how to deny a connection that could have been spliced."""
    hello = judgement.hello
    return _refusal(policy, can_explain=can_inspect and hello is not None and _is_readable(hello))


def _refusal(policy: "Policy", *, can_explain: bool) -> GateAction:
    """Choose how to deny: with a block page where the client can read one and the rules want it, else with a reset."""
    return GateAction.EXPLAIN if can_explain and policy.settings.on_block is not OnBlock.RESET else GateAction.RESET


class DecisionCache:
    """Cache of `decide` and `peek_wait` for one sandbox.

    A decision depends on the policy, the day, whether the task is tainted, the destination and what the client says
    first, and on nothing else: each pending connection asks for its own grants. Another policy, another day or a taint
    begins with an empty memory. It is bounded; what it doesn't have is decided anew.
    """

    __slots__ = ("_can_inspect", "_judged", "_patience", "_policy", "_sandbox", "_tainted", "_today")

    def __init__(self, sandbox: "SandboxState", *, can_inspect: bool) -> None:
        self._sandbox = sandbox
        self._can_inspect = can_inspect
        self._policy = sandbox.policy
        self._today = sandbox.calendar.today()
        self._tainted = sandbox.tainted
        self._patience: dict[tuple[tuple[HostName, ...], int], PeekWait] = {}
        self._judged: dict[tuple[object, ...], ConnectionDecision] = {}

    def clear(self) -> None:
        """Drop all decisions of an earlier policy or date."""
        sandbox = self._sandbox
        self._policy, self._today, self._tainted = sandbox.policy, sandbox.calendar.today(), sandbox.tainted
        self._patience.clear()
        self._judged.clear()

    def peek_wait(self, wanted: "OriginalDestination") -> "PeekWait":
        """As `peek_wait`, cached."""
        policy = self._sandbox.policy
        if self._policy is not policy:
            self.clear()
        key = wanted.names, wanted.port
        known = self._patience.get(key)
        if known is None:
            known = peek_wait(policy, wanted)
            if wanted.names:  # else it hangs on the address
                _keep(self._patience, key, known)
        return known

    def decide(self, wanted: "OriginalDestination", seen: "Seen | None") -> "ConnectionDecision":
        """As `decide`, cached."""
        sandbox = self._sandbox
        # What a task writes itself is part of what is kept only where it is short.
        if not isinstance(seen, ClientHello) or seen.sni not in wanted.names or len(seen.alpn) > _MOST_PROTOCOLS:
            return decide(sandbox, wanted, seen, can_inspect=self._can_inspect)
        if (
            self._policy is not sandbox.policy
            or self._tainted is not sandbox.tainted
            or self._today is not sandbox.calendar.today()
        ):
            self.clear()
        key = wanted.names, wanted.port, seen.sni, seen.alpn, seen.ech
        known = self._judged.get(key)
        if known is None:
            known = decide(sandbox, wanted, seen, can_inspect=self._can_inspect)
            _keep(self._judged, key, known)
        return known if known.hello is seen else known._replace(hello=seen)


def _keep[K, V](memory: dict[K, V], key: K, value: V) -> None:
    if len(memory) >= MOST_REMEMBERED:
        memory.clear()
    memory[key] = value
