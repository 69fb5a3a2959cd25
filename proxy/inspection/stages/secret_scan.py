"""Scans requests for secrets where rules want it: heads before they are allowed, bodies as they are sent.

Home of the rule that scanning fails closed. Where it raises, a request under `block` ends with its connection; one
under `flag` goes on, and that is counted. No text of an error leaves this module, as it could show what was scanned.
"""

from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from mitmproxy.proxy.layers.http._events import RequestData, RequestTrailers

from proxy.dlp.body_scan import Body, SecretLeakError
from proxy.dlp.decodings import Messages, has_parts, is_form, make_reader
from proxy.dlp.head_scan import HEAD, shown
from proxy.event_loop.turn import run_at_once
from proxy.inspection.stages.stage import RequestStoppedError, Stage
from proxy.request.request_head import too_costly, values
from proxy.telemetry.events import Component
from rules.decision import deny
from rules.verdicts import Reason, Scan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.event_loop.turn import Sliced
    from proxy.inspection.stages.request_context import RequestContext, RequestDecision, ReviewResult
    from proxy.inspection.stages.stage import Needs, RequestPart, Session
    from proxy.request.request_head import Head
    from proxy.secrets.detection import SecretSearch
    from rules.decision import Decision

LONG_HEAD: Final = 4 << 10  # bytes: what is longer is looked through in slices
_CODINGS: Final = (b"content-encoding", b"grpc-encoding", b"connect-content-encoding")


class HeadScan(NamedTuple):
    """Result of scanning a head. `found`: credentials, and where they are."""

    watch: "SecretSearch | None"  # knows what was found of the values of secrets
    found: tuple[tuple[str, str], ...] = ()
    error: Exception | None = None  # it could not be looked at


def scan_ahead(session: "Session", request: "RequestContext") -> "Sliced[None]":
    """Scan a long head in slices before the decision, as the stage has to finish in one call."""
    head = request.head
    if too_costly(head) or session.refused is not None:  # it will be refused
        return
    strict = session.recorder.sandbox.policy.needs.strict_scan and session.is_unnamed()
    seen = request.seen = {} if request.seen is None else request.seen  # it may have been held since
    for each in {False, strict} - seen.keys():
        seen[each] = yield from _scan_head(session, head, strict=each)


def _scan_head(session: "Session", head: "Head", *, strict: bool) -> "Sliced[HeadScan]":
    """Scan a head."""
    sandbox, watch = session.recorder.sandbox, None
    try:
        watch = None if sandbox.own_secrets is None else sandbox.own_secrets.watch()
        is_placeholder = _never if sandbox.secret_injector is None else sandbox.secret_injector.is_placeholder
        found = yield from session.heads.scan(head, watch, is_placeholder, strict=strict)
    except Exception as error:  # noqa: BLE001  scanning fails closed: `_fail`
        return HeadScan(watch, error=error)
    return HeadScan(watch, tuple(found))


class SecretScan(Stage):
    """Scanner of one request."""

    __slots__ = ("_action", "_body", "_found", "_is_broken", "_watch")

    sends = True

    def __init__(self, session: "Session", request: "RequestContext") -> None:
        self.session = session
        self.request = request
        self._action = Scan.OFF  # what is done about a find; `admit` sets it
        self._is_broken = False  # scanning has raised: nothing is scanned any more
        self._found = ""  # description of what was found in the head
        self._watch: SecretSearch | None = None  # goes on with the body, for the secrets of the task
        self._body: Body | None = None

    @staticmethod
    def needed(needs: "Needs") -> bool:
        """Only where rules want a scan."""
        return needs.scan is not Scan.OFF

    def admit(self, request_decision: "RequestDecision") -> "RequestDecision":
        """Scan the head; deny the request for what must not be sent. Events contain nothing of the secret."""
        session, head, action = self.session, self.request.head, request_decision.decision.scan
        self._action = action
        strict = action is Scan.STRICT and session.is_unnamed()
        seen = None if self.request.seen is None else self.request.seen.get(strict)
        try:
            if seen is None:
                if session.recorder.sandbox.own_secrets is None and not strict and session.heads.is_clean(head):
                    return request_decision
                seen = run_at_once(_scan_head(session, head, strict=strict))
            return self._apply_head_scan(request_decision, seen)
        except Exception as error:  # noqa: BLE001  scanning fails closed: `_fail`
            self._fail(error, session.connection_event)
            return request_decision

    def _apply_head_scan(self, request_decision: "RequestDecision", seen: HeadScan) -> "RequestDecision":
        """Deny or allow by the result of the head's scan. Raises the scan's error."""
        if seen.error is not None:
            raise seen.error
        watch = seen.watch
        known = [] if watch is None else watch.found()
        found = [f"{name} in {where}" for name, where in (*seen.found, *((name, HEAD) for name in known))]
        whole = watch is not None and (watch.saw_some or bool(known))  # it is, or may be, a part of a value
        blocked = bool(found) and self._action.blocks
        if watch is not None and not blocked:
            watch.has_left()
        self._watch, self._found = watch, " and ".join(found)
        if whole or found:
            method, path = shown(request_decision.method, request_decision.path, whole=whole)
            request_decision = replace(request_decision, method=method, path=path)
        if not blocked:
            return request_decision
        decision = self._denial(request_decision.decision.rules)._replace(pattern=request_decision.decision.pattern)
        return replace(request_decision, decision=decision, detail=self._found)

    def recorded(self, request_decision: "RequestDecision") -> None:
        """Record the findings in the head."""
        if self._found:
            self._record(self._found, request_decision.decision.rules, blocked=self._action.blocks)

    def send(self, part: "RequestPart") -> "Sliced[list[RequestPart]]":
        """Return the parts to send in place of `part`. Raises RequestStoppedError if a secret is found."""
        if self._is_broken:
            if self._action.blocks:  # since a reload
                raise RuntimeError("the body can't be scanned, and the rules in force now require it")
            return [part]
        body = self._body = self._body or self._new_body()
        try:
            return (yield from self._scan_part(body, part))
        except SecretLeakError as leak:
            if self.request.is_open:
                self._record(str(leak), self.request.rules, blocked=True)
            raise RequestStoppedError(self._denial(self.request.rules), str(leak)) from None
        except Exception as error:  # noqa: BLE001  scanning fails closed: `_fail`
            self._fail(error, self.request.event)
            return [part]

    def _new_body(self) -> Body:
        """Return the scanner of everything after the head."""
        sandbox, head = self.session.recorder.sandbox, self.request.head
        kind = values(head, b"content-type")
        # Messages of gRPC and Connect are packed each by itself, whatever the body is
        codings = [each for name in _CODINGS for each in values(head, name)]
        websocket = self.request.status == HTTPStatus.SWITCHING_PROTOCOLS
        return Body(
            self._action,
            self._watch,
            _never if sandbox.secret_injector is None else sandbox.secret_injector.is_placeholder,
            reader=Messages() if websocket else make_reader(codings),
            form=bool(kind) and is_form(kind[0]),
            parts=bool(kind) and has_parts(kind[0]),
            longest=0 if sandbox.own_secrets is None else sandbox.own_secrets.longest,
            unnamed=self.session.is_unnamed(),
        )

    def _scan_part(self, body: Body, part: "RequestPart") -> "Sliced[list[RequestPart]]":
        if isinstance(part, RequestData):
            free, found = yield from body.scan(part.data)
            if free is not part.data:
                part = RequestData(part.stream_id, free)
            parts: list[RequestPart] = [part] if free else []
        else:
            free, found = yield from body.finish()
            if isinstance(part, RequestTrailers):
                trailers = b"\n".join(text for field in part.trailers.fields for text in field)
                found += yield from body.scan_aside(trailers)
            parts = [RequestData(part.stream_id, free), part] if free else [part]
        self._flag(found)
        return parts

    def review(self, result: "ReviewResult") -> None:
        """Apply the stricter of the previous and the current rules."""
        self._action = Scan.strictest((self._action, result.scan))
        if self._body is not None and not self._is_broken:
            try:
                found = tuple(self._body.tighten(self._action))
            except Exception as error:  # noqa: BLE001  scanning fails closed: `_fail`
                self._fail(error, self.request.event)
                return
            self._flag(found)

    def end(self) -> None:
        """Scan the rest of what was sent."""
        if self._body is None or self._action.blocks or self._is_broken:
            return
        try:
            _, found = self._body.end()
        except Exception as error:  # noqa: BLE001  scanning fails closed: `_fail`
            self._fail(error, self.request.event)
            return
        self._flag(found)

    def _flag(self, found: "Iterable[str]") -> None:
        """Record findings in data already sent."""
        if said := " and ".join(found):
            self._record(f"{said} in the body", self.request.rules, blocked=False)

    def _record(self, detail: str, rules: tuple[str, ...], *, blocked: bool) -> None:
        request = self.request
        self.session.record.record_secret(request.event, request.http, rules, detail, blocked=blocked)

    def _denial(self, rules: tuple[str, ...]) -> "Decision":
        return deny(self.session.recorder.sandbox.policy, Reason.LEAK)._replace(rules=rules)

    def _fail(self, error: Exception, cause: str) -> None:
        """Stop scanning. Under `flag` record the error; under `block` raise RuntimeError.

        It resets the connection and is recorded as gate.error (`InspectedConnection.crashed`). A request whose head
        could not be scanned then has no decision event of its own.
        """
        self._is_broken = True
        what = f"leaving bytes could not be looked at: {type(error).__name__}"
        if self._action.blocks:
            raise RuntimeError(what) from None
        self.session.recorder.error(Component.INSPECTION, what, cause=cause or None)


def _never(_text: bytes) -> bool:
    return False
