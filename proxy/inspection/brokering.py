"""What a request and its response go through where a task has placeholders: the last step before each is sent.

Home of the broker in inspection: whatever a stream sends, it sends through here, so that no way past it can be
forgotten. Values are put into a copy of the head that only the wire sees: every page, event and later decision is made
of what the task wrote. A value leaves on verified TLS to the place it belongs to, or what tries to send it breaks.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseTrailers,
)

from proxy.inspection.messages import RequestHeaders, ResponseHead, ResponseHeaders
from proxy.request.override_headers import alike
from proxy.request.request_head import Head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mitmproxy.proxy.layers.http._base import HttpEvent

    from proxy.inspection.context import Far
    from proxy.inspection.judging import Place
    from proxy.request.request_head import Field
    from proxy.secrets import Broker

# By which an answer may come packed, or in other characters: RFC 9110 sections 12.5.2, 12.5.3 and 10.1.4 (`TE`),
# RFC 3229 section 10.5.3, RFC 6455 section 9.1
_ASKS_FOR_PACKED: Final = frozenset({b"accept-encoding", b"accept-charset", b"a-im", b"sec-websocket-extensions"})


class Misused(Exception):  # noqa: N818  (it is no error: it is why the request ends)
    """A placeholder came where no secret belongs: the text says what is wrong."""


class Brokering:
    """One request and its response."""

    def __init__(self, broker: "Broker", place: "Place") -> None:
        self._broker = broker
        self._place = place
        self._body = broker.body()
        self._mask = broker.mask(place.target, place.port, tls=place.tls)
        self.content = b""  # the request's body, where it had to be there
        self._form: bytes | None = None  # ... and what goes in its place, once
        self._credential = ""  # the id of the request's one credential, if it is a secret

    def request(self, event: "HttpEvent", server: "Far | None") -> "HttpEvent | None":
        """Return what is sent to a server in place of `event`; None: nothing. Raises Misused: then nothing is."""
        if isinstance(event, RequestHeaders):
            secure = self._place.tls and server is not None and server.proven
            return RequestHeaders(event.stream_id, self.filled(event.request, secure=secure), event.end_stream)
        if isinstance(event, RequestData):
            if self._form is None:
                self._check(event.data, "the body")
                return event
            event.data, self._form = self._form, b""
            return event if event.data else None
        if isinstance(event, RequestTrailers):
            self._check(b"\n".join(part for field in event.trailers.fields for part in field), "the trailers")
        return event

    def filled(self, head: Head, *, secure: bool) -> Head:
        """Return a request's head with the values in it. `secure`: it goes over TLS that was verified."""
        place = self._place
        carried = self._broker.read(head, place.target, place.port, tls=place.tls, content=self.content)
        if carried.misused or carried.withheld or carried.flaw:  # refused before it came here
            raise RuntimeError("a placeholder came where it doesn't belong, undecided")
        if not carried.uses and carried.signed is None:
            return head
        self._credential = carried.credential
        if not secure:
            raise RuntimeError("a secret was about to leave without TLS")
        self.content = b""  # a response may take long, and a connection have many requests
        path, fields = self._broker.swapped(head, carried)
        fields = _plainly(fields)
        self._form = self._broker.form(carried)
        if self._form is not None:
            size = b"%d" % len(self._form)
            fields = tuple((name, size if name.lower() == b"content-length" else value) for name, value in fields)
        if carried.signed is not None:  # last: it is about all the rest
            path, fields, signature = self._broker.sign(head, path, fields, carried.signed)
            if self._mask is not None:  # good for days in a presigned URL, which a redirect would show
                self._mask.also(signature, carried.signed.claim.signature)
        return Head(head.version, head.method, head.scheme, head.authority, path, fields)

    def _check(self, data: bytes, where: str) -> None:
        if secret := self._body.misused(data):
            place = self._place
            raise Misused(self._broker.wrong(secret, where, place.target, place.port, tls=place.tls))

    def response(self, event: "HttpEvent") -> "Iterator[HttpEvent]":
        """Return what is sent to the client in place of `event`."""
        mask = self._mask
        if mask is None:
            yield event
            return
        if isinstance(event, ResponseHeaders):
            response = event.response
            fields = mask.fields(response.fields)
            if self._credential:
                self._broker.answered(self._credential, fields)
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
    """Ask for an answer that isn't packed (RFC 9110 section 12.5.3): what can't be read can't be masked."""
    return (*(field for field in fields if not _asks_for_packed(*field)), (b"accept-encoding", b"identity"))


def _asks_for_packed(name: bytes, value: bytes) -> bool:
    """Whether a server may answer in another form for this field, whatever sign its name has for `-`."""
    name = alike(name.lower())
    return name in _ASKS_FOR_PACKED or (name == b"te" and value.lower() != b"trailers")
