"""mitmproxy's messages with our heads: events of its HTTP layers, and requests and responses of its addons."""

import time

from mitmproxy import http
from mitmproxy.proxy.layers.http._base import HttpEvent

from proxy.request.messages import ResponseHead
from proxy.request.request_head import Head


class RequestHeaders(HttpEvent):
    """A request's head. `end_stream`: it is known that no body follows."""

    def __init__(self, stream_id: int, request: Head, end_stream: bool) -> None:  # noqa: FBT001  as mitmproxy's
        self.stream_id = stream_id
        self.request = request
        self.end_stream = end_stream


class ResponseHeaders(HttpEvent):
    """A response's head. `end_stream`: it is known that no body follows."""

    def __init__(self, stream_id: int, response: ResponseHead, end_stream: bool = False) -> None:  # noqa: FBT001, FBT002
        self.stream_id = stream_id
        self.response = response
        self.end_stream = end_stream


def request_of(head: Head) -> http.Request:
    """Return mitmproxy's request with this head."""
    return http.Request(
        host="",
        port=0,
        method=head.method,
        scheme=head.scheme,
        authority=head.authority,
        path=head.path,
        http_version=head.version,
        headers=http.Headers(head.fields),
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )


def response_of(head: ResponseHead, body: bytes | None = None) -> http.Response:
    """Return mitmproxy's response with this head, and with a body that is there already."""
    return http.Response(
        http_version=head.version,
        status_code=head.status,
        reason=head.reason,
        headers=http.Headers(head.fields),
        content=body,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )


def head_of(request: http.Request) -> Head:
    """Return the head of mitmproxy's request as it came."""
    data = request.data
    return Head(data.http_version, data.method, data.scheme, data.authority, data.path, data.headers.fields)


def response_head_of(response: http.Response) -> ResponseHead:
    """Return the head of mitmproxy's response."""
    data = response.data
    return ResponseHead(data.http_version, data.status_code, data.reason, data.headers.fields)
