"""States of a request and of its response, and the handler of each event in each state. Pure."""

from enum import Enum
from typing import Final

from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseProtocolError,
    ResponseTrailers,
)

from proxy.inspection.connection_ends import RequestsRevoked
from proxy.inspection.http1 import ClientEnded
from proxy.request.mitmproxy_messages import RequestHeaders, ResponseHeaders


class RequestState(Enum):
    """State of a request: the part of it that is expected next."""

    HEAD = 1
    HOLD = 2  # body that is held until the decision
    SINK = 3  # rest of a denied or failed request, which is dropped
    BODY = 4
    PIPE = 5  # a WebSocket's bytes
    DONE = 6
    OVER = 7  # the request has ended; events are ignored


class ResponseState(Enum):
    """State of a response: the part of it that is expected next."""

    NOTHING = 1  # the request isn't sent yet
    HEAD = 2
    BODY = 3
    SWITCH = 4  # the end of the head that switches to WebSocket
    PIPE = 5
    DONE = 6
    OVER = 7


_AFTER_END: Final = {RequestState.SINK: "state_sink", RequestState.OVER: "ignore"}
_BODY: Final = {RequestState.BODY: "state_request_body", RequestState.HOLD: "state_hold"}
_PIPE: Final = {RequestState.PIPE: "state_pass"}

# Methods of `Stream` by event and state; an event without an entry can't occur in that state. The values are names, not
# functions: `stream.py` imports this module, so a reference to `Stream` here would be an import circle.
_REQUEST_HANDLERS: Final[dict[type, dict[RequestState, str]]] = {
    RequestHeaders: {RequestState.HEAD: "state_request_head"} | _AFTER_END,
    RequestData: _BODY | _PIPE | _AFTER_END,
    RequestTrailers: _BODY | _AFTER_END,
    RequestEndOfMessage: _BODY | _PIPE | _AFTER_END,
}
_OVER: Final = {ResponseState.OVER: "ignore"}
_RESPONSE_BODY: Final = {ResponseState.BODY: "state_response_body"} | _OVER
_RESPONSE_HANDLERS: Final[dict[type, dict[ResponseState, str]]] = {
    ResponseHeaders: {ResponseState.HEAD: "state_response_head"} | _OVER,
    ResponseData: {ResponseState.PIPE: "state_pass"} | _RESPONSE_BODY,
    ResponseTrailers: _RESPONSE_BODY,
    ResponseEndOfMessage: {ResponseState.PIPE: "state_pass", ResponseState.SWITCH: "state_switch"} | _RESPONSE_BODY,
}
_OTHER_HANDLERS: Final[dict[type, str]] = {
    RequestProtocolError: "handle_protocol_error",
    ResponseProtocolError: "handle_protocol_error",
    ClientEnded: "end_sending",
    RequestsRevoked: "revoke",
}


def handler_name(event: type, request_state: RequestState, response_state: ResponseState) -> str:
    """Return the method of `Stream` for a kind of event in these states. Raises RuntimeError if it can't occur."""
    if event in _RESPONSE_HANDLERS:
        name = _RESPONSE_HANDLERS[event].get(response_state)
    elif event in _REQUEST_HANDLERS:
        name = _REQUEST_HANDLERS[event].get(request_state)
    else:
        name = _OTHER_HANDLERS.get(event)
    if name is None:
        raise RuntimeError(f"{event.__name__} came in {request_state}, {response_state}")
    return name
