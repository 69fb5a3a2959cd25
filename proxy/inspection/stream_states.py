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
    """What comes next from the client."""

    HEAD = 1
    HOLD = 2  # what decides it
    SINK = 3  # nothing that anybody wants: it is refused, or failed
    BODY = 4
    PIPE = 5  # a WebSocket's bytes
    DONE = 6
    OVER = 7  # nothing that counts any more


class ResponseState(Enum):
    """What comes next from the server."""

    NOTHING = 1  # it hasn't been asked
    HEAD = 2
    BODY = 3
    SWITCH = 4  # the end of the head that switches to WebSocket
    PIPE = 5
    DONE = 6
    OVER = 7


_LATE: Final = {RequestState.SINK: "state_sink", RequestState.OVER: "ignore"}
_BODY: Final = {RequestState.BODY: "state_request_body", RequestState.HOLD: "state_hold"}
_PIPE: Final = {RequestState.PIPE: "state_pass"}

# What `Stream` does about an event; where nothing is said, it can't come
OF_REQUEST: Final[dict[type, dict[RequestState, str]]] = {
    RequestHeaders: {RequestState.HEAD: "state_request_head"} | _LATE,
    RequestData: _BODY | _PIPE | _LATE,
    RequestTrailers: _BODY | _LATE,
    RequestEndOfMessage: _BODY | _PIPE | _LATE,
}
_OVER: Final = {ResponseState.OVER: "ignore"}
_ANSWER: Final = {ResponseState.BODY: "state_response_body"} | _OVER
OF_RESPONSE: Final[dict[type, dict[ResponseState, str]]] = {
    ResponseHeaders: {ResponseState.HEAD: "state_response_head"} | _OVER,
    ResponseData: {ResponseState.PIPE: "state_pass"} | _ANSWER,
    ResponseTrailers: _ANSWER,
    ResponseEndOfMessage: {ResponseState.PIPE: "state_pass", ResponseState.SWITCH: "state_switch"} | _ANSWER,
}
OTHERS: Final[dict[type, str]] = {
    RequestProtocolError: "handle_protocol_error",
    ResponseProtocolError: "handle_protocol_error",
    ClientEnded: "end_sending",
    RequestsRevoked: "revoke",
}
