"""Whether one request may pass: its head is read, held against the name its connection was made for, and decided.

Pure. The name comes from the gate, never from the request, which may only repeat it (invariant 3). The checks that come
before the rules hold under audit mode too.
"""

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from proxy.inspection import heads
from rules.attempt import Attempt, Protocol, Request
from rules.decision import Decision
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from proxy.inspection.heads import Asked, Head
    from proxy.tenant import Tenant
    from rules.addresses import Address
    from rules.names import HostName

LONGEST_SHOWN = 2000  # bytes of an unreadable head that are worth decoding for the page


@dataclass(frozen=True, slots=True)
class Place:
    """Where a connection was made to, as the gate decided it: the one host that may be asked on it."""

    target: "HostName | Address"
    port: int
    tls: bool

    @property
    def protocol(self) -> Protocol:
        """What rules call what is spoken here."""
        return Protocol.TLS if self.tls else Protocol.HTTP

    @property
    def authority(self) -> bytes:
        """How a forwarded request spells this place."""
        return heads.authority(self.target, self.port, tls=self.tls)

    def __str__(self) -> str:
        """Return it as the start of a URL."""
        return f"{'https' if self.tls else 'http'}://{self.authority.decode()}"


@dataclass(frozen=True, slots=True)
class Ruling:
    """The decision on one request, with what its event and its refusal need."""

    decision: Decision
    method: str
    path: str
    asked: "Asked | None" = None  # None: the head can't be read, or asks for another host
    attempt: Attempt | None = None  # what the rules were asked
    detail: str = ""
    status: HTTPStatus | None = None


def judge(tenant: "Tenant", place: Place, head: "Head") -> Ruling:
    """Decide on one request. Whatever can't be read, or names another place, is denied before any rule is asked."""
    policy = tenant.policy
    try:
        asked = heads.read(head, tls=place.tls)
    except heads.Unclear as problem:
        return unclear(tenant, head, problem)
    if asked.host != place.target or asked.port != place.port:
        # RFC 9110 section 15.5.20: an HTTP/2 client that coalesced two names asks again on a connection of its own
        http2 = head.version == b"HTTP/2.0"
        status = HTTPStatus.MISDIRECTED_REQUEST if http2 else None
        asked_for = heads.authority(asked.host, asked.port, tls=place.tls).decode()
        detail = f"this connection was made to `{place.authority.decode()}`, and the request asks for `{asked_for}`"
        return _denied(tenant, head, Reason.NAME_MISMATCH, detail, status)
    if asked.websocket:
        return _denied(tenant, head, Reason.PROTOCOL_MISMATCH, "the rules allow no WebSocket here")
    if asked.overrides and policy.needs_request(place.target, place.port):
        return _denied(tenant, head, Reason.AMBIGUOUS_REQUEST, "a header names another method than the request line")
    task = tenant.task
    request = Request(asked.method, asked.path)
    attempt = Attempt(place.protocol, place.target, place.port, request, task.name, task.labels)
    return Ruling(policy.decide(attempt), asked.method, asked.path, asked, attempt)


def unclear(tenant: "Tenant", head: "Head", problem: heads.Unclear) -> Ruling:
    """Return the ruling on what can't be read."""
    return _denied(tenant, head, problem.reason, str(problem))


def shown(head: "Head") -> tuple[str, str]:
    """Return the method and the path of an unjudged head for people to read."""
    method, path = (part[:LONGEST_SHOWN].decode("utf-8", "replace") for part in (head.method, head.path))
    return method, path


def undialled(ruling: Ruling, reason: Reason, detail: str) -> Ruling:
    """Return the ruling on what the rules let out, and that can't be dialled, or may not after all (invariant 9)."""
    if reason in (Reason.UNRESOLVED, Reason.UPSTREAM_FAILED):  # nobody's refusal
        decision = replace(ruling.decision, outcome=Outcome.FAILED, reason=reason)
    else:
        decision = replace(ruling.decision, verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason)
    return replace(ruling, decision=decision, detail=detail)


def denied(tenant: "Tenant", reason: Reason) -> Decision:
    """Return the decision of a check that comes before the rules."""
    return Decision(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason, revision=tenant.policy.revision)


def _denied(tenant: "Tenant", head: "Head", reason: Reason, detail: str, status: HTTPStatus | None = None) -> Ruling:
    return Ruling(denied(tenant, reason), *shown(head), detail=detail, status=status)
