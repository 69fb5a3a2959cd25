"""Gate for the mitmproxy addon (`proxy/addon.py`): policy, recorder, lookups and client connections.

There is no gate in front, so a connection's origin comes from its client: the host of a CONNECT, the SNI, the Host of a
plain request. Each later request is checked against that origin (invariant 3). mitmproxy's hooks are in the addon.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, cast

from mitmproxy.net.http.http1 import expected_http_body_size
from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage

from proxy.dialing.address_check import DialError
from proxy.dialing.dialer import Dialer
from proxy.dns.lookup import Lookup
from proxy.event_loop.poller import Poller
from proxy.event_loop.turn import run_at_once
from proxy.gate.block_page import page_head
from proxy.inspection.pipeline import Pipeline
from proxy.inspection.session import Session
from proxy.inspection.stages.request_context import RequestContext
from proxy.inspection.stages.stage import RequestStoppedError
from proxy.request.messages import WebOrigin
from proxy.request.mitmproxy_messages import head_of, response_of
from proxy.request.request_head import UnclearError
from proxy.sandbox.recorder import Recorder
from proxy.sandbox.sandbox_state import SandboxState, Task
from proxy.telemetry.events import Kind, Tls
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.prometheus.metrics import Metrics
from rules.attempt import Attempt, Protocol
from rules.decision import deny
from rules.loading.load import load
from rules.sandbox import NO_SANDBOX_SETTINGS
from rules.values.addresses import parse_host
from rules.values.names import HostName, InvalidNameError
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from mitmproxy.flow import Flow
    from mitmproxy.http import HTTPFlow, Request

    from proxy.inspection.pipeline import Found
    from rules.decision import Decision
    from rules.values.addresses import Address


MOST_KEPT_BODY: Final = 1 << 20  # bytes: mitmproxy reads a refused request's body before it answers
_NOTHING: Final[list[bytes]] = []  # an empty piece would be sent, and end a body that is sent in chunks
_BODILESS: Final = ("GET", "HEAD", "OPTIONS", "DELETE")

log = logging.getLogger("exeat")


class _Logged:
    """Journal that writes events to mitmproxy's log."""

    def append(self, line: bytes, now: int) -> int:
        """Log an event."""
        del now
        log.info(line.decode("ascii").rstrip())
        return 0


class StandaloneGate:
    """Policy in force and client connections of the addon. For one thread."""

    def __init__(self, rules: "Sequence[Path]", journal: "Path | None") -> None:
        """Load the rules. Raises RuleFileError, or OSError for a journal that can't be written."""
        policy = load(rules)
        if policy.secrets:
            raise OSError("rule files with `secrets` need `exeat run`: mitmproxy by itself has nowhere to keep them")
        if policy.authorities:
            key = "upstream_ca" if policy.settings.upstream_ca is not None else "ca"
            raise OSError(
                f"rule files with `{key}` need `exeat run`: mitmproxy verifies servers itself; take `{key}` out, and "
                "name a file of certificates with `--set ssl_verify_upstream_trusted_ca=FILE`"
            )
        if policy.commands or policy.box != NO_SANDBOX_SETTINGS:
            log.warning("`sandbox` and `commands` of the rule files have no effect here: mitmproxy starts no tasks")
        self.sandbox = SandboxState("mitmproxy", Task("mitmproxy", "mitmproxy"), policy)
        self.sandbox.has_info_api = False
        self.recorder = Recorder(self.sandbox, Journal(journal) if journal else cast("Journal", _Logged()), Metrics())
        self._dialer: Dialer | None = None

    def decide(self, host: "HostName | Address", port: int, tls: Tls | None) -> "tuple[Decision, str]":
        """Decide on a connection whose protocol may be unknown, and record that; returns the event's id."""
        task, policy = self.sandbox.task, self.sandbox.policy
        attempts = [Attempt(protocol, host, port, None, task.name, task.labels) for protocol in _READ]
        protocol, decision = Protocol.TLS, policy.decide(attempts[0])
        if not decision.passes and tls is None:
            plain = policy.decide(attempts[1])
            if plain.passes:
                protocol, decision = Protocol.HTTP, plain
        return decision, self._record(decision, host, port, protocol, tls)

    def refuse(
        self, reason: "Reason", host: "HostName | Address | None", port: int, tls: Tls | None = None
    ) -> "Decision":
        """Record a connection that is denied before any rule."""
        decision = deny(self.sandbox.policy, reason)
        self._record(decision, host, port, Protocol.TLS, tls)
        return decision

    def addresses(self, attempt: Attempt) -> "Found | Awaitable[Found]":
        """Look up the addresses to dial for an attempt, or the error."""
        if (upstream := self.sandbox.policy.upstream_for(attempt)) is not None:
            why = f"this has to go through the proxy `{upstream}`, which mitmproxy by itself can't do"
            return DialError(Reason.UPSTREAM_FAILED, why)
        if self._dialer is None:
            self._dialer = Dialer(Lookup(), Poller())
        try:
            known = self._dialer.known(self.sandbox.policy, attempt)
        except DialError as failure:
            return failure
        if known is not None:
            return known
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._dialer.find(self.sandbox.policy, attempt, answer.set_result)
        return answer

    def _record(
        self, decision: "Decision", host: "HostName | Address | None", port: int, protocol: Protocol, tls: Tls | None
    ) -> str:
        name = host if isinstance(host, HostName) else None
        address = None if name or host is None else str(host)
        return self.recorder.decided(
            Kind.CONNECTION_DECIDED, decision, name=name, address=address, port=port, protocol=protocol, tls=tls
        )


_READ: Final = (Protocol.TLS, Protocol.HTTP)


def kill(flow: "Flow") -> None:
    """End a flow, if it hasn't ended."""
    anything: Any = flow
    if anything.killable:
        anything.kill()


def too_long_to_refuse(flow: "HTTPFlow") -> None:
    """End a denied request whose body mitmproxy would buffer before it answers."""
    if flow.response is None:
        return
    size = expected_http_body_size(flow.request)
    if flow.request.is_http2 and "content-length" not in flow.request.headers:
        size = 0 if flow.request.method in _BODILESS else None  # HTTP/2 ends a body by itself
    if size is None or size > MOST_KEPT_BODY:
        kill(flow)


def announces_body(request: "Request") -> bool:
    """Whether the head says that a body follows; mitmproxy doesn't tell for HTTP/2."""
    if request.is_http2 and "content-length" not in request.headers:
        return request.method not in _BODILESS
    return expected_http_body_size(request) != 0


def not_any(size: int) -> bool:
    """Block every byte of a body that the request was decided without."""
    return not size


def streaming(
    may_pass: "Callable[[int], bool]", cut: "Callable[[], object]"
) -> "Callable[[bytes], bytes | list[bytes]]":
    """Return mitmproxy's stream function for a response; the first piece over a limit ends it with `cut`."""

    def passed(data: bytes) -> bytes | list[bytes]:
        if may_pass(len(data)):
            return data
        cut()
        return _NOTHING

    return passed


def passing(
    session: Session, request: RequestContext, cut: "Callable[[], object]"
) -> "Callable[[bytes], bytes | list[bytes]]":
    """Return what mitmproxy passes the pieces of a request's body through: its stages. `cut` ends what they stop.

    The last piece is empty: mitmproxy says so that nothing more comes.
    """
    over = False

    def passed(data: bytes) -> bytes | list[bytes]:
        nonlocal over
        if not over and (not data or request.may_send(len(data))):
            try:
                parts = run_at_once(request.parts_to_send(RequestData(0, data) if data else RequestEndOfMessage(0)))
                return [part.data for part in parts if isinstance(part, RequestData)]
            except RequestStoppedError as stopped:
                session.stop(request, stopped)
        over = True
        cut()
        return _NOTHING

    return passed


class ClientConnection:
    """One client connection."""

    def __init__(self, gate: StandaloneGate, sever: "Callable[[], object]") -> None:
        """`sever` ends the connection, and all that were made for it."""
        self._gate = gate
        self._sever = sever
        self.tunnel: tuple[HostName | Address, int] | None = None  # where a CONNECT or the SNI leads, for good
        self.cause = ""  # the event that let it there
        self.shut = False  # nothing passes any more
        self._sessions: dict[WebOrigin, Session] = {}
        self._requests: dict[str, tuple[Session, RequestContext]] = {}  # under way, by their flows
        self._dialled: dict[tuple[str, int], WebOrigin] = {}  # what may be dialled, and for which origin

    def enter(self, host: str, port: int, tls: Tls | None = None) -> "Decision":
        """Decide on the target of a CONNECT or ClientHello; later requests must name it."""
        target = parse_host(host)
        decision, self.cause = self._gate.decide(target, port, tls)
        if decision.passes:
            self.tunnel = target, port
        return decision

    def ask(self, flow: "HTTPFlow", host: str, port: int, *, tls: bool) -> "Awaitable[None] | None":
        """Decide on a request to `host`, as mitmproxy parsed it."""
        try:
            target, at = self.tunnel or (parse_host(host), port)
        except InvalidNameError:
            target, at = HostName("invalid.invalid"), port  # no rule's; the head itself says why it is refused
        origin = WebOrigin(target, at, tls=tls)
        session = self._sessions.get(origin)
        if session is None:
            session = self._sessions[origin] = Session(self._gate.recorder, origin, self.cause)
        if flow.error:
            session.misread(head_of(flow.request), UnclearError(flow.error.msg))
            return None
        request = RequestContext(flow.id, head_of(flow.request), body=announces_body(flow.request))
        self._requests[flow.id] = session, request
        pending = Pipeline(session, self._gate.addresses, can_buffer=False).decide(request)
        if pending is None:
            self._pin(flow, session, request)
            return None
        return self._later(flow, session, request, pending)

    def leads_to(self, address: tuple[str, int]) -> WebOrigin | None:
        """Return the origin that an address may be dialed for; None: none."""
        return None if self.shut else self._dialled.get((address[0], address[1]))

    def request(self, flow: "HTTPFlow") -> tuple[Session, RequestContext] | None:
        """Return a decided request, with its session."""
        return self._requests.get(flow.id)

    def finish(self, flow: "HTTPFlow") -> tuple[Session, RequestContext] | None:
        """Return a decided request, with its session, and forget it."""
        return self._requests.pop(flow.id, None)

    def leave(self) -> None:
        """Record the end."""
        self.shut = True
        for session in self._sessions.values():
            session.end()
        if self.tunnel is not None:
            target, port = self.tunnel
            self._gate.recorder.closed(
                self.cause, name=str(target), address=None, port=port, protocol=None, up=0, down=0, seconds=0.0
            )

    async def _later(
        self, flow: "HTTPFlow", session: Session, request: RequestContext, pending: "Awaitable[None]"
    ) -> None:
        await pending
        self._pin(flow, session, request)

    def _pin(self, flow: "HTTPFlow", session: Session, request: RequestContext) -> None:
        """Have mitmproxy dial an address checked for this request."""
        if request.refusal is not None:
            page, last = request.refusal, request.is_last
            flow.response = response_of(page_head(page, last=last), page.body)
        if not request.is_open:
            return
        assert request.addresses  # let out to nowhere: a fault of ours, which ends the flow
        text = str(request.addresses[0])
        self._dialled[text, session.origin.port] = session.origin
        head, data = request.head, flow.request.data
        data.host, data.port = text, session.origin.port
        data.authority, data.path, data.headers.fields = head.authority, head.path, head.fields
        if not request.body:
            flow.request.stream = streaming(not_any, self._sever)
            return
        # What mitmproxy streams it goes on with when the flow is killed: what was cut would end as if it were whole
        flow.request.stream = passing(session, request, self._sever)
