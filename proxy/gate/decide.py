"""Decides on a connection from its destination and the client's first bytes. Pure.

Home of the gate's own checks, which come before any rule and hold under audit mode too: the name is the one that the
sandbox's resolver gave an address for, or the one that the client sends; if there are both, they agree.
"""

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.dialing.address_check import deny_undialable
from proxy.gate.client_hello import ClientHello, HttpHead
from rules.attempt import Attempt, Protocol, alpn_is_readable
from rules.decision import Decision, deny
from rules.values.addresses import parse_host
from rules.values.names import HostName, InvalidNameError
from rules.verdicts import OnBlock, Outcome, Reason

if TYPE_CHECKING:
    from proxy.approvals.leases import Grant
    from proxy.dialing.address_check import DialError
    from proxy.gate.client_hello import Seen
    from proxy.sandbox.sandbox_state import SandboxState
    from rules.matching.policy import Policy
    from rules.values.addresses import Address

_TCP_ONLY: Final = frozenset({Protocol.TCP})
_HTTP_PORT, _TLS_PORT = 80, 443
MOST_REMEMBERED: Final = 1024
_MAX_CACHED_PROTOCOLS: Final = 8
_MAX_LISTED_PROTOCOLS: Final = 3  # in a detail text


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

    NONE = "none"  # its bytes change nothing, and its server may have to send first
    BRIEF = "brief"  # it may wait for its server to send first
    FULL = "full"  # only a protocol in which the client sends first can be allowed


class GateAction(Enum):
    """What the gate does with a connection."""

    RESET = "reset"
    EXPLAIN = "explain"  # inspection serves the page that says why
    INSPECT = "inspect"
    SPLICE = "splice"


class GateDecision(NamedTuple):
    """Decision on one connection, with the attempt that it was made on."""

    attempt: Attempt
    decision: Decision
    action: GateAction
    hello: ClientHello | None = None
    detail: str = ""  # why it can't be dialed, if that is the reason
    advice: str = ""  # what to do about that
    approval: str = ""  # id of its approval request
    grants: "tuple[Grant, ...]" = ()  # that allow it

    @property
    def name(self) -> HostName | None:
        """The host's name, if it has one."""
        target = self.attempt.target
        return target if isinstance(target, HostName) else None


def is_unroutable(sandbox: "SandboxState", destination: OriginalDestination) -> bool:
    """Whether the destination is the sandbox itself, the gate, or a multicast, broadcast or unspecified address."""
    address = destination.address
    if destination.names:
        return not destination.port
    zone = address.version == 6 and address.scope_id is not None
    return (
        not destination.port
        or zone
        or address in sandbox.own_addresses
        or address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and not int(address) >> 24)  # RFC 791: "this network", for connect() this host
    )


def peek_wait(policy: "Policy", destination: OriginalDestination) -> PeekWait:
    """Return how long to wait for the client's first bytes."""
    protocols = policy.protocols(destination.target, destination.port) - {Protocol.UDP}
    if protocols == _TCP_ONLY:
        return PeekWait.NONE
    if Protocol.TCP in protocols or (not protocols and destination.port not in (_HTTP_PORT, _TLS_PORT)):
        return PeekWait.BRIEF  # a client that waits for its server must not wait long for a denial
    return PeekWait.FULL


def decide(
    sandbox: "SandboxState", destination: OriginalDestination, seen: "Seen | None", *, can_inspect: bool
) -> GateDecision:
    """Decide on a connection. `seen` None: the client sent nothing, or nothing recognisable."""
    if isinstance(seen, ClientHello):
        return _decide_tls(sandbox, destination, seen, can_inspect=can_inspect)
    if isinstance(seen, HttpHead):
        return _decide_http(sandbox, destination, seen, can_inspect=can_inspect)
    attempt = make_attempt(sandbox, Protocol.TCP, destination.target, destination.port)
    decision = _decide(sandbox.policy, attempt)
    return GateDecision(attempt, decision, GateAction.SPLICE if decision.outcome.passes else GateAction.RESET)


def decide_again(sandbox: "SandboxState", gate_decision: GateDecision, *, can_inspect: bool) -> GateDecision:
    """Decide again on an allowed connection after the policy or the date has changed.

    The checks that come before the rules are not repeated.
    """
    attempt = gate_decision.attempt._replace(at=sandbox.calendar.today(), tainted=sandbox.tainted)
    decision = _decide(sandbox.policy, attempt)
    if decision.outcome.passes and gate_decision.hello is not None:
        tls_problem = _tls_problem(decision, gate_decision.hello, can_inspect=can_inspect)
        if tls_problem is not None:
            decision = deny(sandbox.policy, tls_problem, decision)
    if not decision.outcome.passes:
        action = GateAction.RESET
    elif attempt.protocol is Protocol.HTTP or (attempt.protocol is Protocol.TLS and decision.inspect):
        action = GateAction.INSPECT
    else:
        action = GateAction.SPLICE
    return gate_decision._replace(attempt=attempt, decision=decision, action=action, detail="", advice="")


def decide_after_approval(sandbox: "SandboxState", gate_decision: GateDecision, *, can_inspect: bool) -> GateDecision:
    """Decide again on a pending connection, with the grants in `gate_decision`."""
    digests = gate_decision.attempt.granted.union(grant.digest for grant in gate_decision.grants)
    gate_decision = gate_decision._replace(attempt=gate_decision.attempt._replace(granted=digests))
    found = decide_again(sandbox, gate_decision, can_inspect=can_inspect)
    return (
        found
        if found.decision.outcome.passes
        else found._replace(action=_denial_action(sandbox.policy, found, can_inspect=can_inspect))
    )


def deny_unanswered(
    sandbox: "SandboxState", gate_decision: GateDecision, reason: Reason, *, can_inspect: bool
) -> GateDecision:
    """Deny a pending connection: the approval was denied, timed out or is unavailable."""
    decision = deny(sandbox.policy, reason, gate_decision.decision)._replace(approval=())
    return gate_decision._replace(
        decision=decision, action=_denial_action(sandbox.policy, gate_decision, can_inspect=can_inspect)
    )


def deny_before_asking(
    sandbox: "SandboxState", gate_decision: GateDecision, failure: "DialError", *, can_inspect: bool
) -> GateDecision:
    """Deny a connection that an approval would not allow."""
    gate_decision = gate_decision._replace(detail=failure.detail, advice=failure.advice)
    action = _denial_action(sandbox.policy, gate_decision, can_inspect=can_inspect)
    return gate_decision._replace(decision=deny_undialable(gate_decision.decision, failure), action=action)


def still_holds(sandbox: "SandboxState", gate_decision: GateDecision, policy: "Policy") -> bool:
    """Whether a decision under `policy` still holds: same policy, same date, same taint."""
    attempt = gate_decision.attempt
    return policy is sandbox.policy and attempt.at == sandbox.calendar.today() and attempt.tainted is sandbox.tainted


def deny_connection(sandbox: "SandboxState", destination: OriginalDestination, reason: Reason) -> GateDecision:
    """Deny a connection before anything is read from it."""
    attempt = make_attempt(sandbox, Protocol.TCP, destination.target, destination.port)
    return GateDecision(attempt, deny(sandbox.policy, reason), GateAction.RESET)


def deny_before_dial(
    policy: "Policy", gate_decision: GateDecision, failure: "DialError", *, can_inspect: bool
) -> GateDecision:
    """Return the decision that replaces an allowed one: the connection can't be dialed, or may not be dialed now.

    `failure` is a lookup without result, an address that may not be dialed, a grant that has ended or a used-up limit.
    """
    gate_decision = gate_decision._replace(detail=failure.detail, advice=failure.advice)
    decision = gate_decision.decision
    if failure.reason in (Reason.UNRESOLVED, Reason.UPSTREAM_FAILED):  # a failure, not a denial
        decision = decision._replace(outcome=Outcome.FAILED, reason=failure.reason)
        return gate_decision._replace(decision=decision, action=GateAction.RESET)
    action = _denial_action(policy, gate_decision, can_inspect=can_inspect)
    decision = deny(policy, failure.reason, decision)._replace(approval=())  # no approval can allow this
    return gate_decision._replace(decision=decision, action=action)


def _decide_tls(
    sandbox: "SandboxState", destination: OriginalDestination, hello: ClientHello, *, can_inspect: bool
) -> GateDecision:
    policy = sandbox.policy
    target, problem = _tls_target(destination, hello)
    attempt = make_attempt(sandbox, Protocol.TLS, target, destination.port)
    decision = _decide(policy, attempt) if problem is None else deny(policy, problem)
    if decision.outcome.passes:
        tls_problem = _tls_problem(decision, hello, can_inspect=can_inspect)
        if tls_problem is None:
            return GateDecision(attempt, decision, GateAction.INSPECT if decision.inspect else GateAction.SPLICE, hello)
        decision = deny(policy, tls_problem, decision)
        if tls_problem is Reason.PROTOCOL_MISMATCH:
            offered = ", ".join(f"`{each}`" for each in hello.alpn[:_MAX_LISTED_PROTOCOLS])
            only = "only HTTP can be inspected: `tls: splice` relays it without inspection"
            detail = f"its client offers {offered} (ALPN), and {only}"
            return GateDecision(attempt, decision, _reset_or_explain(policy, can_explain=False), hello, detail)
    can_explain = can_inspect and _is_readable(hello) and problem is not Reason.INVALID_NAME
    return GateDecision(attempt, decision, _reset_or_explain(policy, can_explain=can_explain), hello)


def _tls_problem(decision: Decision, hello: ClientHello, *, can_inspect: bool) -> Reason | None:
    """Return why a TLS connection can't be spliced or inspected as its rules require; None: it can."""
    if not decision.inspect:
        return Reason.ECH if hello.ech else None
    if not _is_readable(hello):
        return Reason.PROTOCOL_MISMATCH
    return None if can_inspect else Reason.GATE_ERROR


def _is_readable(hello: ClientHello) -> bool:
    """Whether inspection can speak the client's protocol: its ALPN names HTTP, or it has none."""
    return alpn_is_readable(hello.alpn)


def _decide_http(
    sandbox: "SandboxState", destination: OriginalDestination, head: HttpHead, *, can_inspect: bool
) -> GateDecision:
    policy = sandbox.policy
    target, problem = _http_target(destination, head)
    attempt = make_attempt(sandbox, Protocol.HTTP, target, destination.port)
    decision = _decide(policy, attempt) if problem is None else deny(policy, problem)
    if decision.outcome.passes and not can_inspect:
        decision = deny(policy, Reason.GATE_ERROR, decision)
    action = GateAction.INSPECT if decision.outcome.passes else _reset_or_explain(policy, can_explain=can_inspect)
    return GateDecision(attempt, decision, action)


def _tls_target(destination: OriginalDestination, hello: ClientHello) -> "tuple[HostName | Address, Reason | None]":
    """Return the host that a TLS connection is for, or the reason why it has none."""
    if hello.sni is None:
        return destination.target, Reason.SNI_MISSING if destination.names else None
    for name in destination.names:
        if name == hello.sni:
            return name, None
    try:
        name = HostName.parse(hello.sni)
    except InvalidNameError:
        return destination.target, Reason.INVALID_NAME
    if destination.names and name not in destination.names:
        return destination.target, Reason.NAME_MISMATCH
    return name, None


def _http_target(destination: OriginalDestination, head: HttpHead) -> "tuple[HostName | Address, Reason | None]":
    """Return the host of a plaintext HTTP connection. Inspection checks the Host of each request."""
    if head.host is None or len(destination.names) == 1:
        return destination.target, None
    host, colon, port = head.host.rpartition(":")
    host_text = host if colon and port.isdecimal() else head.host
    try:
        requested = parse_host(host_text)
    except InvalidNameError:
        return destination.target, Reason.INVALID_NAME
    if destination.names:
        return (requested, None) if requested in destination.names else (destination.target, Reason.NAME_MISMATCH)
    if not isinstance(requested, HostName) and requested != destination.address:
        return destination.target, Reason.NAME_MISMATCH
    return requested, None


def make_attempt(sandbox: "SandboxState", protocol: Protocol, target: "HostName | Address", port: int) -> Attempt:
    """Return an attempt of the task, with its labels, date and taint as of now."""
    return Attempt(protocol, target, port, None, *sandbox.caller)


def _decide(policy: "Policy", attempt: Attempt) -> Decision:
    decision = policy.decide(attempt)
    if decision.reason is Reason.NO_RULE and not decision.outcome.passes:
        protocols = policy.protocols(attempt.target, attempt.port)
        if protocols and attempt.protocol not in protocols:
            return deny(policy, Reason.PROTOCOL_MISMATCH, decision)
    return decision


def _denial_action(policy: "Policy", gate_decision: GateDecision, *, can_inspect: bool) -> GateAction:
    """Choose how to deny a connection that could have been spliced."""
    hello = gate_decision.hello
    return _reset_or_explain(policy, can_explain=can_inspect and hello is not None and _is_readable(hello))


def _reset_or_explain(policy: "Policy", *, can_explain: bool) -> GateAction:
    """Choose how to deny: with a block page if the client can read one and the rules allow it, else with a reset."""
    return GateAction.EXPLAIN if can_explain and policy.settings.on_block is not OnBlock.RESET else GateAction.RESET


class DecisionCache:
    """Cache of `decide` and `peek_wait` for one sandbox.

    A decision depends on the policy, the day, whether the task is tainted, the destination and what the client says
    first, and on nothing else: each pending connection requests its own grants. A new policy, a new day or a taint
    clears the cache. It is bounded; a missing entry is decided again.
    """

    __slots__ = ("_can_inspect", "_decisions", "_peek_waits", "_policy", "_sandbox", "_tainted", "_today")

    def __init__(self, sandbox: "SandboxState", *, can_inspect: bool) -> None:
        self._sandbox = sandbox
        self._can_inspect = can_inspect
        self._policy = sandbox.policy
        self._today = sandbox.calendar.today()
        self._tainted = sandbox.tainted
        self._peek_waits: dict[tuple[tuple[HostName, ...], int], PeekWait] = {}
        self._decisions: dict[tuple[object, ...], GateDecision] = {}

    def clear(self) -> None:
        """Drop all decisions of an earlier policy or date."""
        sandbox = self._sandbox
        self._policy, self._today, self._tainted = sandbox.policy, sandbox.calendar.today(), sandbox.tainted
        self._peek_waits.clear()
        self._decisions.clear()

    def peek_wait(self, destination: "OriginalDestination") -> "PeekWait":
        """As `peek_wait`, cached."""
        policy = self._sandbox.policy
        if self._policy is not policy:
            self.clear()
        key = destination.names, destination.port
        cached = self._peek_waits.get(key)
        if cached is None:
            cached = peek_wait(policy, destination)
            if destination.names:  # otherwise it depends on the address
                _store(self._peek_waits, key, cached)
        return cached

    def decide(self, destination: "OriginalDestination", seen: "Seen | None") -> "GateDecision":
        """As `decide`, cached."""
        sandbox = self._sandbox
        # The key has text that a task wrote, so it is cached only if it is short.
        if (
            not isinstance(seen, ClientHello)
            or seen.sni not in destination.names
            or len(seen.alpn) > _MAX_CACHED_PROTOCOLS
        ):
            return decide(sandbox, destination, seen, can_inspect=self._can_inspect)
        if (
            self._policy is not sandbox.policy
            or self._tainted is not sandbox.tainted
            or self._today is not sandbox.calendar.today()
        ):
            self.clear()
        key = destination.names, destination.port, seen.sni, seen.alpn, seen.ech
        cached = self._decisions.get(key)
        if cached is None:
            cached = decide(sandbox, destination, seen, can_inspect=self._can_inspect)
            _store(self._decisions, key, cached)
        return cached if cached.hello is seen else cached._replace(hello=seen)


def _store[K, V](cache: dict[K, V], key: K, value: V) -> None:
    if len(cache) >= MOST_REMEMBERED:
        cache.clear()
    cache[key] = value
