"""Replaces placeholders with secrets just before a request is sent, and masks secrets in its response.

It is the last stage before sending and the only one that receives, so nothing else sees a value: pages, events and
later decisions are made of what the task wrote. A value leaves only on verified TLS to the origin that it belongs to;
otherwise the request ends.
"""

from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseTrailers,
)

from proxy.inspection.stages.stage import RequestStoppedError, Stage
from proxy.request.messages import ResponseHead
from proxy.request.mitmproxy_messages import ResponseHeaders
from proxy.request.override_headers import alike
from rules.decision import deny
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mitmproxy.proxy.layers.http._base import HttpEvent

    from proxy.event_loop.turn import Sliced
    from proxy.inspection.stages.request_context import RequestContext
    from proxy.inspection.stages.stage import Needs, RequestPart, Session
    from proxy.request.request_head import Field, Head

# By which an answer may come packed, or in other characters: RFC 9110 sections 12.5.2, 12.5.3 and 10.1.4 (`TE`),
# RFC 3229 section 10.5.3, RFC 6455 section 9.1
_ASKS_FOR_PACKED: Final = frozenset({b"accept-encoding", b"accept-charset", b"a-im", b"sec-websocket-extensions"})


class SecretInjection(Stage):
    """Injection for one request and its response, of a task that has secrets."""

    __slots__ = ("_body", "_credential", "_form", "_injector", "_mask")

    sends = receives = True

    def __init__(self, session: "Session", request: "RequestContext") -> None:
        super().__init__(session, request)
        origin, injector = session.origin, session.recorder.sandbox.secret_injector
        assert injector is not None
        self._injector = injector
        self._body = injector.body()
        self._mask = injector.mask(origin.target, origin.port, tls=origin.tls)
        self._form: bytes | None = None  # what goes in place of the body, once
        self._credential = ""  # the id of the request's one credential, if it is a secret

    @staticmethod
    def needed(needs: "Needs") -> bool:
        """Only for a task with secrets; then for every request, as responses are masked, too."""
        return needs.secrets

    def request_head(self, head: "Head") -> "Head":
        """Return a head with secrets in place of placeholders."""
        origin, pending_body = self.session.origin, self.request.pending_body
        content = b"" if pending_body is None or pending_body.content is None else pending_body.content
        carried = self._injector.read(head, origin.target, origin.port, tls=origin.tls, content=content)
        if carried.misused or carried.withheld or carried.flaw:  # refused before it came here
            raise RuntimeError("a placeholder came where it doesn't belong, undecided")
        if not carried.uses and carried.signed is None:
            return head
        self._credential = carried.credential
        if not (origin.tls and self.request.server_proven):
            raise RuntimeError("a secret was about to leave without TLS")
        if pending_body is not None:
            pending_body.content = None  # a response may take long, and a connection have many requests
        path, fields = self._injector.fill_in(head, carried)
        fields = _plainly(fields)
        self._form = self._injector.form(carried)
        if self._form is not None:
            size = b"%d" % len(self._form)
            fields = tuple((name, size if name.lower() == b"content-length" else value) for name, value in fields)
        if carried.signed is not None:  # last: it is about all the rest
            path, fields, signature = self._injector.sign(head, path, fields, carried.signed)
            if self._mask is not None:  # good for days in a presigned URL, which a redirect would show
                self._mask.also(signature, carried.signed.claim.signature)
        return replace(head, path=path, fields=fields)

    def send(self, part: "RequestPart") -> "Sliced[list[RequestPart]]":
        """Return parts with secrets in place of placeholders."""
        yield from ()
        if isinstance(part, RequestData):
            if self._form is None:
                self._check(part.data, "the body")
                return [part]
            part.data, self._form = self._form, b""
            return [part] if part.data else []
        if isinstance(part, RequestTrailers):
            self._check(b"\n".join(text for field in part.trailers.fields for text in field), "the trailers")
        return [part]

    def _check(self, data: bytes, where: str) -> None:
        """Raise RequestStoppedError for a misplaced placeholder, and record that."""
        if not (secret := self._body.misused(data)):
            return
        origin, request = self.session.origin, self.request
        detail = self._injector.wrong(secret, where, origin.target, origin.port, tls=origin.tls)
        if request.is_open:
            self.session.record.record_tampering(request.event, detail)
        raise RequestStoppedError(deny(self.session.recorder.sandbox.policy, Reason.SECRET_MISUSE), detail)

    def receive(self, event: "HttpEvent") -> "Iterator[HttpEvent]":
        """Yield a part of the response with every secret masked."""
        mask = self._mask
        if mask is None:
            yield event
            return
        if isinstance(event, ResponseHeaders):
            response = event.response
            fields = mask.fields(response.fields)
            if self._credential:
                self._injector.answered(self._credential, fields)
            # What comes then has no end that would be waited for, and no piece of it may wait for the next
            mask.holds = response.status != HTTPStatus.SWITCHING_PROTOCOLS
            masked = ResponseHead(response.version, response.status, mask.line(response.reason), fields)
            event = ResponseHeaders(event.stream_id, masked, event.end_stream)
        elif isinstance(event, ResponseData):
            event.data = mask.take(event.data)
            if not event.data:
                return
        elif isinstance(event, ResponseTrailers | ResponseEndOfMessage):
            if rest := mask.rest():
                yield ResponseData(event.stream_id, rest)
            if isinstance(event, ResponseTrailers):
                event.trailers.fields = mask.fields(event.trailers.fields)
        yield event


def _plainly(fields: "tuple[Field, ...]") -> "tuple[Field, ...]":
    """Request a response without content coding (RFC 9110 section 12.5.3), which could not be masked."""
    return (*(field for field in fields if not _asks_for_packed(*field)), (b"accept-encoding", b"identity"))


def _asks_for_packed(name: bytes, value: bytes) -> bool:
    """Whether a server may send another coding for this field, however its name spells `-`."""
    name = alike(name.lower())
    return name in _ASKS_FOR_PACKED or (name == b"te" and value.lower() != b"trailers")
